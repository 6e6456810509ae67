//! The names of disks in a snapshot.

use std::path::Path;

use crate::model::{DiskName, DiskSource};

/// Returns a unique name for each disk: its file name if that is free. If several disks have the same file name, all
/// but the first get their repository's id as a prefix.
///
/// # Errors
/// The index of a disk that cannot be named: its file name is hidden, has control characters, or is too long.
pub(crate) fn names_for(sources: &[&DiskSource]) -> Result<Vec<DiskName>, usize> {
    let mut names: Vec<DiskName> = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let file_name = file_name(source);
        let qualified = format!("{}-{file_name}", source.repository);
        let mut candidates = [file_name.to_owned(), qualified.clone()]
            .into_iter()
            .chain((2..).map(|number| format!("{qualified}-{number}")));
        // The candidates are unlimited, so one is free.
        let free = candidates.find(|candidate| names.iter().all(|name| name.as_str() != candidate));
        names.push(free.unwrap_or_default().parse().map_err(|_| index)?);
    }
    Ok(names)
}

/// The reason if a disk cannot be named.
pub(crate) const NO_NAME: &str = "cannot be named in a snapshot: its file name is hidden (starts with a dot), has \
    control characters, or is too long";

/// Whether a snapshot can contain a disk with this file name.
pub(crate) fn can_be_named(source: &DiskSource) -> bool {
    file_name(source).parse::<DiskName>().is_ok()
}

fn file_name(source: &DiskSource) -> &str {
    Path::new(&source.path).file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_with_equal_file_names_get_different_names() {
        let source = |repository: &str, path: &str| DiskSource {
            repository: repository.parse().unwrap(),
            path: path.to_owned(),
        };
        let sources = [
            source("r1", "VirtualDisks/a.img"),
            source("r2", "VirtualDisks/a.img"),
            source("r2", "Templates/a.img"),
            source("r2", "VirtualDisks/b.img"),
        ];
        let names = names_for(&sources.iter().collect::<Vec<_>>()).unwrap();
        let names: Vec<_> = names.iter().map(DiskName::as_str).collect();
        assert_eq!(names, ["a.img", "r2-a.img", "r2-a.img-2", "b.img"]);
        assert_eq!(names_for(&[&source("r1", "VirtualDisks/.hidden")]), Err(0));
        let long = format!("VirtualDisks/{}", "x".repeat(255));
        assert!(can_be_named(&source("r1", &long)) && !can_be_named(&source("r1", "VirtualDisks/a\tb.img")));
        assert_eq!(names_for(&[&source("r1", &long), &source("r2", &long)]), Err(1));
    }
}
