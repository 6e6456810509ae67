//! Removing a snapshot's files and its record.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::app::Error;
use crate::app::compare::Comparisons;
use crate::app::inventory::Inventory;
use crate::model::{RepositoryId, SnapshotFiles, SnapshotId};
use crate::repository::executor::JobKind;
use crate::repository::{Removal, RemoveError, SnapshotDir, Unavailable};
use crate::store::Store;

/// Why the files of each snapshot could not be removed yet.
#[derive(Default)]
pub(super) struct Leftovers(Mutex<HashMap<SnapshotId, String>>);

impl Leftovers {
    /// Notes why files are still there. Says whether that is news.
    pub(super) fn note(&self, id: SnapshotId, reason: String) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(id, reason.clone()).is_none_or(|before| before != reason)
    }

    /// Notes that nothing is left.
    pub(super) fn forget(&self, id: SnapshotId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    pub(super) fn reason(&self, id: SnapshotId) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}

/// Deletions that are remembered, so that a client that repeats one is answered whatever repositories are away.
const REMEMBERED: usize = 10_000;

/// The snapshots that were deleted last, and nothing of them is left.
#[derive(Default)]
pub(super) struct Deleted(Mutex<VecDeque<SnapshotId>>);

impl Deleted {
    pub(super) fn note(&self, id: SnapshotId) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.push_back(id);
        if last.len() > REMEMBERED {
            last.pop_front();
        }
    }

    pub(super) fn contains(&self, id: SnapshotId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }
}

/// Removes snapshots.
pub(crate) struct Removals {
    inventory: Arc<Inventory>,
    comparisons: Arc<Comparisons>,
    store: Store,
    pub(super) leftovers: Leftovers,
    pub(super) deleted: Deleted,
}

impl Removals {
    pub(crate) fn new(inventory: Arc<Inventory>, comparisons: Arc<Comparisons>, store: Store) -> Self {
        Self { inventory, comparisons, store, leftovers: Leftovers::default(), deleted: Deleted::default() }
    }

    /// Removes the files of `snapshot` and then its record. Where a repository is absent the record
    /// stays, unseen, and the files are tried again each minute.
    pub(super) fn remove(&self, snapshot: &SnapshotFiles) -> Result<(), Error> {
        self.comparisons.forget(snapshot.id);
        let mut absent = Vec::new();
        let mut first_error = None;
        for id in snapshot.repositories() {
            match self.remove_in(id, snapshot) {
                Ok(Removal::Done) => {}
                Ok(Removal::RepositoryUnavailable) => absent.push(id.as_str()),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        let outcome = match first_error {
            None if absent.is_empty() => {
                self.store.forget(snapshot)?;
                self.deleted.note(snapshot.id);
                self.leftovers.forget(snapshot.id);
                return Ok(());
            }
            None => Ok(()),
            Some(RemoveError::Io(error)) => Err(Error::of_step("removing the snapshot's files", error)),
            Some(strangers @ RemoveError::Foreign(_)) => {
                Err(Error::NotRemoved { snapshot: snapshot.id, left: strangers.to_string() })
            }
        };
        let reason = match &outcome {
            Ok(()) => format!("not there, or not answering: {}", absent.join(", ")),
            Err(error) => error.to_string(),
        };
        if self.leftovers.note(snapshot.id, reason.clone()) {
            tracing::warn!(snapshot = %snapshot.id, reason, "files of it stay; they are tried again each minute");
        }
        outcome
    }

    /// Removes the files that the snapshot has in one repository.
    fn remove_in(&self, id: &RepositoryId, snapshot: &SnapshotFiles) -> Result<Removal, RemoveError> {
        let Some(repository) = self.inventory.repository(id) else { return Ok(Removal::RepositoryUnavailable) };
        // Asked first, as a removal has more patience than a question.
        if repository.mounted().is_err() {
            return Ok(Removal::RepositoryUnavailable);
        }
        let files = snapshot.files.iter().filter(|file| file.repository == *id);
        let (files, snapshot) = (files.cloned().collect::<Vec<_>>(), snapshot.id);
        let kind = JobKind::CHANGE.exclusive(snapshot.as_u128());
        let removal = repository.run(kind, move |access, root| {
            // Each file may take its time.
            Ok(SnapshotDir::new(root, snapshot).remove(files.iter().inspect(|_| access.progress())))
        });
        match removal {
            Err(error) if Unavailable::of(&error).is_some() => Ok(Removal::RepositoryUnavailable),
            removal => removal?,
        }
    }

    /// Takes back what was made. What cannot be removed now is tried again each minute.
    pub(super) fn undo(&self, snapshot: &SnapshotFiles) {
        if let Err(error) = self.remove(snapshot) {
            tracing::error!(snapshot = %snapshot.id, %error, "not undone; it is tried again each minute");
        }
    }
}
