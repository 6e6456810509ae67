//! Finds out whether a folder in a repository is a complete snapshot of this or another exporter.

use std::io;

use crate::app::inventory::Inventory;
use crate::model::{Described, RepositoryId, SnapshotId};
use crate::repository::Repository;
use crate::repository::executor::JobKind;
use crate::repository::scan::{self, FoundFolder};

/// What a folder with the name of a snapshot is.
pub(super) enum Part {
    /// A complete snapshot, as its manifests say. Its files were not looked at.
    Complete(Box<Described>),
    /// It has the marker of an unfinished snapshot, or another part of the snapshot has.
    Unfinished,
    /// A part of a snapshot whose first repository is another one: it is found there.
    OfOther,
    Gone,
    /// Anything else that was read, with the reason.
    Unfit(String),
    /// A repository cannot be read now.
    Unknown(String),
}

/// Looks at the folder of the snapshot `id` in `repository`, and at its folders in other repositories.
pub(super) fn find(inventory: &Inventory, repository: &Repository, id: SnapshotId) -> Part {
    let described = match folder(repository, id) {
        Ok(None) => return Part::Gone,
        Ok(Some(found)) => match described(found, id) {
            Ok(described) => described,
            Err(part) => return part,
        },
        Err(error) => return Part::Unknown(error.to_string()),
    };
    let repositories: Vec<RepositoryId> = described.snapshot.repositories().into_iter().cloned().collect();
    let Some((first, others)) = repositories.split_first() else { return Part::Unfit("it has no disk".to_owned()) };
    if first != repository.id() {
        let is_part = others.contains(repository.id());
        return if is_part { Part::OfOther } else { Part::Unfit("its manifest names other repositories".to_owned()) };
    }
    for other in others {
        let Some(other) = inventory.repository(other) else {
            return Part::Unknown(format!("a part of it is in the repository {other}, which is not listed here"));
        };
        let found = match folder(&other, id) {
            Ok(Some(found)) => found,
            Ok(None) => return Part::Unfit(format!("the repository {} has no part of it", other.id())),
            Err(error) => return Part::Unknown(error.to_string()),
        };
        match self::described(found, id) {
            Ok(other) if *other == *described => {}
            Ok(_) => return Part::Unfit("its manifests differ".to_owned()),
            Err(part) => return part,
        }
    }
    Part::Complete(described)
}

fn folder(repository: &Repository, id: SnapshotId) -> io::Result<Option<Result<FoundFolder, String>>> {
    let checked = repository.clone();
    repository.run(JobKind::SHORT, move |access, root| {
        checked.mounted_now(access)?;
        scan::of_snapshot(root, id)
    })
}

/// What the manifest in the folder says.
fn described(found: Result<FoundFolder, String>, id: SnapshotId) -> Result<Box<Described>, Part> {
    let found = found.map_err(Part::Unfit)?;
    if found.is_unfinished {
        return Err(Part::Unfinished);
    }
    match found.manifest {
        Some(Ok(described)) if described.snapshot.id == id => Ok(Box::new(described)),
        Some(Ok(_)) => Err(Part::Unfit("its manifest belongs to another snapshot".to_owned())),
        Some(Err(problem)) => Err(Part::Unfit(format!("its manifest cannot be read: {problem}"))),
        None => Err(Part::Unfit("it has no manifest".to_owned())),
    }
}
