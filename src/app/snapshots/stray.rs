//! Snapshots that a repository has and the database does not know.

use crate::app::Error;
use crate::app::inventory::RepositorySet;
use crate::model::{RepositoryId, Snapshot, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::scan::{self, FoundFolder};

/// The snapshot `id` of `vm`, which the database does not know, as a repository has it; nothing where no
/// repository has any of it.
///
/// # Errors
/// [`Error::Unavailable`] where that is not known; [`Error::OtherVm`]; [`Error::NotAdopted`] where it is not
/// certain that all of it is there, and whose it is.
pub(super) fn find(found: &RepositorySet, vm: &VmId, id: SnapshotId) -> Result<Option<Snapshot>, Error> {
    let asked = found.usable().map(|repository| {
        let asked = repository.clone();
        let looking = repository.submit(JobKind::SHORT, move |access, root| {
            asked.mounted_now(access)?;
            scan::of_snapshot(root, id)
        });
        (repository.id().clone(), looking)
    });
    let asked: Vec<_> = asked.collect();
    let (mut parts, mut silent) = (Vec::new(), Vec::new());
    for (repository, looking) in asked {
        match looking.wait() {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(part))) => parts.push((repository, part)),
            Ok(Err(_)) | Err(_) => silent.push(repository.to_string()),
        }
    }
    if !parts.is_empty() {
        return complete(vm, id, &parts).map(Some);
    }
    if silent.is_empty() {
        return Ok(None);
    }
    Err(Error::Unavailable(format!(
        "whether a repository has files of the snapshot is not known: {}",
        silent.join(", ")
    )))
}

/// The snapshot whose folders are `parts`, where all of it is there.
fn complete(
    vm: &VmId,
    id: SnapshotId,
    parts: &[(RepositoryId, Result<FoundFolder, String>)],
) -> Result<Snapshot, Error> {
    let refused = |reason: &str| Error::NotAdopted { id, reason: reason.to_owned() };
    let mut manifests = Vec::new();
    for (_, part) in parts {
        let part = part.as_ref().map_err(|reason| refused(reason))?;
        if part.is_unfinished {
            return Err(refused("it is being made, or was left half made"));
        }
        match &part.manifest {
            Some(Ok(manifest)) => manifests.push(manifest),
            Some(Err(problem)) => return Err(refused(&format!("its manifest cannot be read: {problem}"))),
            None => return Err(refused("it has no manifest that says whose it is")),
        }
    }
    let Some(snapshot) = manifests.first().filter(|snapshot| snapshot.id == id) else {
        return Err(refused("its manifest is another snapshot's"));
    };
    if snapshot.vm != *vm {
        return Err(Error::OtherVm(id));
    }
    if snapshot.repositories().into_iter().any(|id| parts.iter().all(|(there, _)| there != id)) {
        return Err(refused("a part of it is in a repository that is not there"));
    }
    Ok(Snapshot::clone(snapshot))
}
