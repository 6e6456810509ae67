//! Removes a snapshot's files and its record.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::shared_snapshot::{self, Part};
use crate::api::DeletionCause;
use crate::app::Error;
use crate::app::common::Common;
use crate::app::compare::Comparisons;
use crate::app::files::FileOpener;
use crate::app::inventory::Inventory;
use crate::app::notifications::{Event, Notifications};
use crate::model::{Described, RepositoryId, Snapshot, SnapshotFiles, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::{Removal, RemoveError, SnapshotDir, Unavailable};
use crate::store::{Record, Store};

/// The snapshots whose files could not be removed yet, with the reason.
#[derive(Default)]
pub(super) struct Leftovers(Mutex<HashMap<SnapshotId, String>>);

impl Leftovers {
    /// Sets the reason. Returns whether it is new.
    pub(super) fn set(&self, id: SnapshotId, reason: String) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(id, reason.clone()).is_none_or(|before| before != reason)
    }

    /// All files were removed.
    pub(super) fn remove(&self, id: SnapshotId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    pub(super) fn reason(&self, id: SnapshotId) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}

/// How many deletions are remembered. A repeated deletion of these succeeds even if repositories are unavailable.
const MAX_DELETED: usize = 10_000;

/// The snapshots that were completely deleted last.
#[derive(Default)]
pub(super) struct Deleted(Mutex<VecDeque<(VmId, SnapshotId)>>);

impl Deleted {
    pub(super) fn add(&self, vm: &VmId, id: SnapshotId) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.push_back((vm.clone(), id));
        if last.len() > MAX_DELETED {
            last.pop_front();
        }
    }

    pub(super) fn contains(&self, vm: &VmId, id: SnapshotId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|(of, one)| (of, *one) == (vm, id))
    }
}

/// Whether an interrupted creation could be completed.
pub(super) enum Completion {
    Done,
    Unfinished,
    /// Its repository cannot be read now.
    Unknown(String),
}

/// Removes snapshots.
pub(crate) struct Removals {
    inventory: Arc<Inventory>,
    comparisons: Arc<Comparisons>,
    files: Arc<FileOpener>,
    /// Whether other exporters show the snapshots too.
    is_shared: bool,
    pub(super) notifications: Arc<Notifications>,
    store: Store,
    pub(super) leftovers: Leftovers,
    pub(super) deleted: Deleted,
    /// Failed creations that the database could not record as such. Their events are in memory.
    unmarked: Mutex<HashSet<SnapshotId>>,
}

/// Whether the manifest is that of the recorded creation, alone.
fn is_the_recorded(described: &Described, files: &SnapshotFiles) -> bool {
    let Described { snapshot, is_of_group, .. } = described;
    let disks = |snapshot: &SnapshotFiles| {
        snapshot.files.iter().map(|file| (file.repository.clone(), file.name.clone())).collect::<Vec<_>>()
    };
    let found = SnapshotFiles::from(snapshot);
    !is_of_group && (&found.vm, found.sequence) == (&files.vm, files.sequence) && disks(&found) == disks(files)
}

impl Removals {
    pub(crate) fn new(common: &Common, comparisons: Arc<Comparisons>, files: Arc<FileOpener>, is_shared: bool) -> Self {
        let Common { inventory, notifications, store, .. } = common.clone();
        let (leftovers, deleted, unmarked) = (Leftovers::default(), Deleted::default(), Mutex::default());
        Self { inventory, comparisons, files, is_shared, notifications, store, leftovers, deleted, unmarked }
    }

    /// Removes the record of a snapshot whose files another exporter has removed.
    pub(super) fn forget(&self, snapshot: &Snapshot) -> Result<(), Error> {
        self.comparisons.remove_cached(snapshot.id);
        let event = Event::snapshot_deleted(snapshot, DeletionCause::FilesGone, None);
        self.store.forget(&SnapshotFiles::from(snapshot), self.notifications.prepare(&event).as_ref())?;
        self.notifications.wake();
        Ok(())
    }

    /// Removes the files of `snapshot`, then its record. If a repository is unavailable, a hidden record stays, and
    /// removing the files is retried each minute.
    pub(super) fn remove(&self, snapshot: &SnapshotFiles) -> Result<(), Error> {
        self.comparisons.remove_cached(snapshot.id);
        let mut unavailable = Vec::new();
        let mut first_error = None;
        for id in snapshot.repositories() {
            match self.remove_in(id, snapshot) {
                Ok(Removal::Done) => {}
                Ok(Removal::RepositoryUnavailable) => unavailable.push(id.as_str()),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        let outcome = match first_error {
            None if unavailable.is_empty() => {
                self.store.forget(snapshot, None)?;
                self.deleted.add(&snapshot.vm, snapshot.id);
                self.leftovers.remove(snapshot.id);
                self.unmarked().remove(&snapshot.id);
                return Ok(());
            }
            None => Ok(()),
            Some(RemoveError::Io(error)) => Err(Error::of_step("removing the snapshot's files", error)),
            Some(foreign @ RemoveError::Foreign(_)) => {
                Err(Error::NotRemoved { snapshot: snapshot.id, left: foreign.to_string() })
            }
        };
        let reason = match &outcome {
            Ok(()) => format!("unavailable repositories: {}", unavailable.join(", ")),
            Err(error) => error.to_string(),
        };
        if self.leftovers.set(snapshot.id, reason.clone()) {
            tracing::warn!(
                snapshot = %snapshot.id, reason,
                "cannot remove the snapshot's files yet; retrying each minute"
            );
        }
        outcome
    }

    /// Removes the rest of a snapshot that is not complete, as [`Self::remove`] does. Its VM is locked, so no creation
    /// runs. Does nothing to a complete one.
    pub(super) fn remove_rest(&self, record: &Record) -> Result<(), Error> {
        match record {
            Record::Ready(_) => Ok(()),
            Record::Deleting(files) => self.remove(files),
            Record::Creating(files) => {
                if !self.unmarked().contains(&files.id) {
                    match self.complete(files)? {
                        Completion::Done => return Ok(()),
                        Completion::Unfinished => {}
                        Completion::Unknown(reason) => {
                            self.leftovers.set(files.id, reason.clone());
                            return Err(Error::Unavailable(reason));
                        }
                    }
                }
                // For example, the thread of the creation panicked. If the database refused the true cause before,
                // that waits in memory.
                let event = Event::snapshot_unfinished(files.id, &files.vm);
                let is_reported = self.unmarked().contains(&files.id);
                let event = if is_reported { None } else { self.notifications.prepare(&event) };
                self.store.begin_undo(&[(files.id, event)])?;
                self.notifications.wake();
                self.remove(files)
            }
        }
    }

    /// Commits an interrupted creation whose files are complete, because other exporters show such a snapshot. One of a
    /// group is not committed: the others may be incomplete.
    pub(super) fn complete(&self, files: &SnapshotFiles) -> Result<Completion, Error> {
        let first = files.repositories().into_iter().next().filter(|_| self.is_shared);
        // A part in a repository that is not listed is unknown for ever.
        let Some(first) = first.and_then(|id| self.inventory.repository(id)) else { return Ok(Completion::Unfinished) };
        let described = match shared_snapshot::find(&self.inventory, &first, files.id) {
            Part::Complete(described) if is_the_recorded(&described, files) => *described,
            Part::Unknown(reason) => return Ok(Completion::Unknown(reason)),
            _ => return Ok(Completion::Unfinished),
        };
        if let Some(disk) =
            described.snapshot.disks.iter().find(|disk| self.files.open_base(&described.snapshot, disk).is_err())
        {
            tracing::warn!(snapshot = %files.id, disk = %disk.name, "an interrupted creation has a manifest and lacks this disk");
            return Ok(Completion::Unfinished);
        }
        tracing::warn!(snapshot = %files.id, vm = %files.vm, "the creation of this snapshot was interrupted after its last file");
        let event = self.notifications.prepare(&Event::snapshot_created(&described.snapshot, described.expires_at));
        self.store.commit(&[(described, event)])?;
        self.notifications.wake();
        Ok(Completion::Done)
    }

    fn unmarked(&self) -> MutexGuard<'_, HashSet<SnapshotId>> {
        self.unmarked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the files that the snapshot has in one repository.
    fn remove_in(&self, id: &RepositoryId, snapshot: &SnapshotFiles) -> Result<Removal, RemoveError> {
        let Some(repository) = self.inventory.repository(id) else { return Ok(Removal::RepositoryUnavailable) };
        // This check fails sooner than a removal does if the repository hangs.
        if repository.mounted().is_err() {
            return Ok(Removal::RepositoryUnavailable);
        }
        let files = snapshot.files.iter().filter(|file| file.repository == *id);
        let (files, snapshot) = (files.cloned().collect::<Vec<_>>(), snapshot.id);
        let kind = JobKind::CHANGE.exclusive(snapshot.as_u128());
        let removal = repository.run(kind, move |access, root| {
            // Each file counts as progress, because removing it may take long.
            Ok(SnapshotDir::new(root, snapshot).remove(files.iter().inspect(|_| access.progress())))
        });
        match removal {
            Err(error) if Unavailable::of(&error).is_some() => Ok(Removal::RepositoryUnavailable),
            removal => removal?,
        }
    }

    /// Undoes the creation of `snapshots`, which `user` has requested in one request and which has failed. What cannot be
    /// undone is retried each minute.
    pub(super) fn undo(&self, snapshots: &[SnapshotFiles], user: &str, error: &Error) {
        self.begin_undo(snapshots, user, error);
        for snapshot in snapshots {
            if let Err(error) = self.remove(snapshot) {
                tracing::error!(snapshot = %snapshot.id, %error, "cannot undo the creation; retrying each minute");
            }
        }
    }

    /// Records that the creation of `snapshots` has failed, and tells webhooks, unless that is recorded already. A later
    /// round or start then reports no other cause.
    pub(super) fn begin_undo(&self, snapshots: &[SnapshotFiles], user: &str, error: &Error) {
        let failed = |files: &SnapshotFiles| Event::snapshot_failed(files.id, &files.vm, user, error);
        let events: Vec<_> = snapshots.iter().map(failed).collect();
        let written = self.notifications.announce_with(&events, |events| {
            let ids = snapshots.iter().map(|files| files.id);
            self.store.begin_undo(&ids.zip(events.iter().cloned()).collect::<Vec<_>>())
        });
        if let Err(error) = written {
            tracing::error!(%error, "cannot record that a creation has failed");
            self.unmarked().extend(snapshots.iter().map(|files| files.id));
        }
    }
}
