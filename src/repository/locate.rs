//! From a path in a VM definition to an open disk in a repository.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::{Repository, SNAPSHOTS};
use crate::model::{DiskSource, VolumeId};
use crate::sys::folder::Folder;
use crate::sys::volume;

/// Why a path cannot be used as a VM's disk.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The path leads nowhere, or to a folder, a device or a link.
    #[error("cannot be opened: {0}")]
    Unreadable(#[from] io::Error),
    #[error("lies outside of every repository; add its repository to repositories.paths, or exclude it")]
    Outside,
    #[error("has a name that is not UTF-8")]
    NotText,
    /// No VM has a disk there.
    #[error("{0}")]
    NoDisk(&'static str),
}

/// A path of a VM definition, and the repository that it lies in. The file system was not accessed for it.
#[derive(Clone, Debug)]
pub struct AssignedPath {
    pub repository: Repository,
    /// The path below the repository, of plain names only.
    pub below: PathBuf,
    /// The folders that the path enters and leaves again by `..`.
    detours: Vec<PathBuf>,
}

/// A VM's disk, open for reading.
#[derive(Debug)]
pub struct LocatedDisk {
    pub source: DiskSource,
    pub file: File,
    /// The folder of the disk, and its name there.
    pub location: (Folder, OsString),
    /// Only for messages.
    pub path: PathBuf,
    /// Bytes, when it was opened.
    pub size: u64,
    /// The file system of the disk.
    pub volume: Option<VolumeId>,
}

/// The repository of a path in a VM definition. If repositories are nested, the innermost.
///
/// Only the text of the path decides. No file system is accessed, so none that hangs can block this.
///
/// # Errors
/// [`PathError::Outside`], also if `..` leads out of the repository.
pub fn assign<'a>(
    repositories: impl IntoIterator<Item = &'a Repository, IntoIter: Clone>,
    path: &Path,
) -> Result<AssignedPath, PathError> {
    let repositories = repositories.into_iter();
    let mut outer = below_any(repositories.clone(), path).filter_map(|(_, root, below)| {
        let (below, detours) = without_detours(below)?;
        let detours: Vec<PathBuf> = detours.iter().map(|detour| root.join(detour)).collect();
        Some((root.join(below), detours))
    });
    let (path, detours) = outer.next().ok_or(PathError::Outside)?;
    let innermost = below_any(repositories, &path).min_by_key(|(.., below)| below.components().count());
    let (repository, root, below) = innermost.ok_or(PathError::Outside)?;
    // A detour through another repository is refused, too.
    let detours = detours.iter().map(|detour| detour.strip_prefix(root).map(Path::to_path_buf));
    let detours = detours.collect::<Result<_, _>>().map_err(|_| PathError::Outside)?;
    Ok(AssignedPath { repository: repository.clone(), below: below.to_path_buf(), detours })
}

/// The repositories that contain `path` by its text. Each comes with the matching path of its folder, and the rest of
/// `path`, which is not empty.
fn below_any<'a, 'p>(
    repositories: impl Iterator<Item = &'a Repository>,
    path: &'p Path,
) -> impl Iterator<Item = (&'a Repository, &'a Path, &'p Path)> {
    let spelled = repositories.flat_map(|repository| repository.spellings().map(move |root| (repository, root)));
    // Whole components: /repo1/x is not below /repo.
    spelled.filter_map(move |(repository, root)| {
        let below = path.strip_prefix(root).ok()?;
        (!below.as_os_str().is_empty()).then_some((repository, root, below))
    })
}

/// The relative path without `..`, and the folders that it enters and leaves again. `None` if it leaves the repository.
fn without_detours(path: &Path) -> Option<(PathBuf, Vec<PathBuf>)> {
    let (mut plain, mut detours) = (PathBuf::new(), Vec::new());
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                detours.push(plain.clone());
                if !plain.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!plain.as_os_str().is_empty()).then_some((plain, detours))
}

/// Opens a VM's disk in the repository with the folder `root`.
///
/// A guest's administrator may influence the definition. Below the repository, therefore, no links are followed, and
/// only regular files are opened.
pub fn open(root: &Folder, assigned: &AssignedPath) -> Result<LocatedDisk, PathError> {
    let AssignedPath { repository, below, detours } = assigned;
    check_disk_location(below)?;
    // `x/..` has no effect only if x is a folder. If x is a link, the path leads elsewhere, and the guest's disk is
    // another file.
    for detour in detours {
        root.folder(detour)?;
    }
    let text = below.to_str().ok_or(PathError::NotText)?.to_owned();
    let name = below.file_name().ok_or(PathError::Outside)?;
    let folder = root.folder(below.parent().unwrap_or(Path::new("")))?;
    let file = folder.open_file(name)?;
    let size = file.metadata()?.len();
    let volume = volume::id_of(&file)?.map(VolumeId);
    Ok(LocatedDisk {
        source: DiskSource { repository: repository.id().clone(), path: text },
        file,
        location: (folder, name.to_owned()),
        path: repository.mount_point().join(below),
        size,
        volume,
    })
}

/// Refuses what a repository holds besides VM disks: snapshots and definitions.
fn check_disk_location(below: &Path) -> Result<(), PathError> {
    let first = below.iter().next().unwrap_or_default();
    // At any depth: an unknown repository may lie in this one.
    if below.iter().any(|name| name == SNAPSHOTS) {
        Err(PathError::NoDisk("is in a folder of snapshots, where no VM has a disk"))
    } else if first.as_encoded_bytes().starts_with(b".") {
        Err(PathError::NoDisk("is hidden at the top of the repository, where no VM has a disk"))
    } else if below.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("cfg")) {
        Err(PathError::NoDisk("is a definition, not a disk"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
#[path = "locate/tests.rs"]
mod tests;
