//! Where the database and the repositories disagree about a snapshot: its files were removed by another service,
//! or are there and the database does not know them.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::app::audit::Actor;
use crate::app::{App, Error};
use crate::model::{RepositoryId, Snapshot, SnapshotFiles, SnapshotId, VmId};
use crate::repository::SnapshotDir;
use crate::repository::executor::JobKind;
use crate::repository::scan::{self, FoundFolder};

/// Deletions that are remembered, so that a client that repeats one is answered whatever repositories are away.
const REMEMBERED: usize = 10_000;

/// The snapshots that were deleted last, and nothing of them is left.
#[derive(Default)]
pub(crate) struct Deleted(Mutex<VecDeque<SnapshotId>>);

impl Deleted {
    pub(crate) fn note(&self, id: SnapshotId) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.push_back(id);
        if last.len() > REMEMBERED {
            last.pop_front();
        }
    }

    fn contains(&self, id: SnapshotId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }
}

impl App {
    /// Whether each repository of the snapshot answers, lies on the file system that is recorded, and has no
    /// folder of the snapshot: then it is gone. Anything else says nothing.
    pub(crate) fn is_gone(&self, snapshot: &Snapshot) -> bool {
        let is_gone_from = |id: &RepositoryId| {
            let repository = self.repository(id)?;
            let (of, asked) = (snapshot.clone(), repository.clone());
            let gone = repository.run(JobKind::SHORT, move |access, root| {
                asked.mounted_now(access)?;
                let disks = of.disks.iter().filter(|disk| disk.source.repository == *asked.id());
                SnapshotDir::new(root, of.id).is_gone(disks)
            });
            gone.ok()
        };
        snapshot.repositories().into_iter().all(|id| is_gone_from(id) == Some(true))
    }

    /// The complete snapshots whose folder is in none of the `listed` repositories, which have folders of the
    /// snapshots `there`. They may have been committed since that was listed.
    pub(crate) fn missing(
        &self,
        listed: &BTreeSet<RepositoryId>,
        there: &HashSet<SnapshotId>,
    ) -> Result<Vec<Snapshot>, Error> {
        let mut snapshots = self.store.snapshots()?;
        snapshots.retain(|snapshot| {
            !there.contains(&snapshot.id) && snapshot.repositories().into_iter().all(|id| listed.contains(id))
        });
        Ok(snapshots)
    }

    /// Forgets a snapshot that another service has deleted, where that is so. While the VM is locked nothing is
    /// decided: its snapshots are being changed.
    pub(crate) async fn forget_if_gone(self: &Arc<Self>, snapshot: Snapshot) {
        let Some(own) = self.vm_locks.try_take(&snapshot.vm) else { return };
        let Ok(turn) = self.try_lock_for_removal(own, &snapshot.vm, &snapshot.repositories()).await else { return };
        let forgotten = self.blocking(move |app| {
            let _turn = turn;
            let is_there = app.store.record(snapshot.id)?.is_some_and(|record| record.is_ready());
            if is_there && app.is_gone(&snapshot) {
                app.refined_cache.forget(snapshot.id);
                app.store.forget(&SnapshotFiles::from(&snapshot))?;
                tracing::warn!(
                    snapshot = %snapshot.id, vm = %snapshot.vm,
                    "its files were removed by another service, or by hand: it is forgotten"
                );
                let what = format_args!("{}/{}", snapshot.vm, snapshot.id);
                Actor::service("cleanup").did("forget", what, &Ok::<(), Error>(()));
            }
            Ok(())
        });
        if let Err(error) = forgotten.await {
            tracing::error!(%error, "a snapshot whose files are gone cannot be forgotten");
        }
    }

    /// The snapshot `id` of `vm`, which the database does not know, as a repository has it; nothing where no
    /// repository has any of it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where that is not known; [`Error::OtherVm`]; [`Error::NotAdopted`] where it is not
    /// certain that all of it is there, and whose it is.
    pub(crate) fn unknown_snapshot(&self, vm: &VmId, id: SnapshotId) -> Result<Option<Snapshot>, Error> {
        if self.deleted.contains(id) {
            return Ok(None);
        }
        let found = self.repositories.found();
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
