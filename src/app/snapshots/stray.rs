//! Finds snapshots that a repository has but the database does not know.

use crate::app::Error;
use crate::app::inventory::RepositorySet;
use crate::model::{RepositoryId, Snapshot, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::scan::{self, FoundFolder};

/// Finds the snapshot `id` of `vm`, which the database does not know, in the repositories. Returns nothing if no
/// repository has a part of it, or if `is_visible` is false for the snapshot that its manifest describes, or for none.
///
/// # Errors
/// [`Error::Unavailable`] if a repository cannot be searched; [`Error::OtherVm`]; [`Error::NotAdopted`] if it is not
/// certain that the snapshot is complete and belongs to the VM.
pub(super) fn find(
    found: &RepositorySet,
    vm: &VmId,
    id: SnapshotId,
    is_visible: impl Fn(Option<&Snapshot>) -> bool,
) -> Result<Option<Snapshot>, Error> {
    let searches = found.usable().map(|repository| {
        let searched = repository.clone();
        let search = repository.submit(JobKind::SHORT, move |access, root| {
            searched.mounted_now(access)?;
            scan::of_snapshot(root, id)
        });
        (repository.id().clone(), search)
    });
    let searches: Vec<_> = searches.collect();
    let (mut parts, mut unresponsive) = (Vec::new(), Vec::new());
    for (repository, search) in searches {
        match search.wait() {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(part))) => parts.push((repository, part)),
            Ok(Err(_)) | Err(_) => unresponsive.push(repository.to_string()),
        }
    }
    let described = |part: &Result<FoundFolder, String>| match part {
        Ok(FoundFolder { manifest: Some(Ok(manifest)), .. }) => is_visible(Some(&manifest.snapshot)),
        _ => is_visible(None),
    };
    if !parts.is_empty() && parts.iter().all(|(_, part)| described(part)) {
        return complete(vm, id, &parts).map(Some);
    }
    if unresponsive.is_empty() {
        return Ok(None);
    }
    Err(Error::Unavailable(format!(
        "cannot check whether these repositories have files of the snapshot: {}",
        unresponsive.join(", ")
    )))
}

/// The snapshot whose folders are `parts`, if it is complete.
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
            return Err(refused("it is being created, or is unfinished"));
        }
        match &part.manifest {
            Some(Ok(manifest)) => manifests.push(&manifest.snapshot),
            Some(Err(problem)) => return Err(refused(&format!("its manifest cannot be read: {problem}"))),
            None => return Err(refused("it has no manifest that names its VM")),
        }
    }
    let Some(snapshot) = manifests.first().filter(|snapshot| snapshot.id == id) else {
        return Err(refused("its manifest belongs to another snapshot"));
    };
    if snapshot.vm != *vm {
        return Err(Error::OtherVm(id));
    }
    if snapshot.repositories().into_iter().any(|id| parts.iter().all(|(repository, _)| repository != id)) {
        return Err(refused("a part of it is in an unavailable repository"));
    }
    Ok((*snapshot).clone())
}
