//! Opens snapshots' files.

use std::sync::Arc;

use tokio::sync::Notify;

use super::content_proof::ContentProofs;
use super::errors::lost;
use super::open_disk::{OpenDisk, version};
use crate::app::Error;
use crate::app::common::Common;
use crate::app::inventory::Inventory;
use crate::app::retention::Retention;
use crate::app::tasks::{Service, Tasks, is_own_thread};
use crate::auth::Session;
use crate::model::{DiskName, RepositoryId, Snapshot, SnapshotDisk, SnapshotId, VmId};
use crate::repository::executor::{Access, JobKind};
use crate::repository::seal::Proof;
use crate::repository::{DiskFile, MapError, OpenError, SnapshotDir};
use crate::store::Store;

/// Opens snapshots' files, and proves that they are unchanged.
pub struct FileOpener {
    inventory: Arc<Inventory>,
    retention: Arc<Retention>,
    store: Store,
    proofs: ContentProofs,
    /// Notified when all files of a snapshot are found to be gone.
    gone: Arc<Notify>,
    tasks: Tasks,
}

impl Service for FileOpener {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl FileOpener {
    pub(crate) fn new(common: &Common, gone: Arc<Notify>) -> Self {
        let Common { inventory, retention, store, tasks, .. } = common.clone();
        let proofs = ContentProofs::new(Arc::clone(&inventory), store.clone());
        Self { inventory, retention, store, proofs, gone, tasks }
    }

    /// Opens the disk `name` of the snapshot `id` of the VM `vm_ref`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OtherVm`], [`Error::SnapshotLost`], [`Error::Io`].
    pub async fn open_disk(
        self: &Arc<Self>,
        session: &Session,
        vm_ref: VmId,
        id: SnapshotId,
        name: DiskName,
    ) -> Result<OpenDisk, Error> {
        let session = session.clone();
        self.run_inline_or_blocking(move |files| {
            let in_use = Arc::new(files.retention.hold(&session, &vm_ref, id)?);
            let snapshot = files.inventory.snapshot_of(&session, &vm_ref, id)?;
            let disk = snapshot.disk(&name).ok_or(Error::NotFound("the snapshot has no such disk"))?;
            let file = Arc::new(files.open(&snapshot, disk).map_err(|error| files.lost(id, disk, error))?);
            let (version, disk) = (version(id, disk), disk.clone());
            let Snapshot { vm, annotations, created_at: taken_at, .. } = snapshot;
            Ok(OpenDisk { snapshot: (vm, id), annotations, file, disk, version, taken_at, in_use })
        })
        .await
    }

    /// Opens a disk's file and checks that it is unchanged. This runs on a thread of the repository, so that a hung
    /// file system does not block the caller. A connection's own thread opens it itself while the file system responds.
    pub(crate) fn open(&self, snapshot: &Snapshot, disk: &SnapshotDisk) -> Result<DiskFile, OpenError> {
        let open = |proven| self.open_file(snapshot, disk, proven);
        self.proofs.open_proven(snapshot, disk, Proof::Whole, open).map(|(file, _)| file)
    }

    /// Opens a disk's file as the base of a comparison, which needs less proof than serving its bytes.
    pub(crate) fn open_base(&self, snapshot: &Snapshot, disk: &SnapshotDisk) -> Result<(DiskFile, Proof), OpenError> {
        self.proofs.open_proven(snapshot, disk, Proof::Map, |proven| self.open_file(snapshot, disk, proven))
    }

    /// Opens a file that matches its record, or has the change time `proven`.
    fn open_file(&self, snapshot: &Snapshot, disk: &SnapshotDisk, proven: Option<i128>) -> Result<DiskFile, OpenError> {
        let repository = self.inventory.repository_of(disk)?;
        let (opened, id, of) = (repository.clone(), snapshot.id, disk.clone());
        let open = move |access: &Access<'_>| DiskFile::open(access, &opened, (id, &of), proven);
        let executor = repository.executor();
        let opened = if is_own_thread() { executor.run_short_here(open) } else { executor.run(JobKind::SHORT, open) };
        let opened = opened.unwrap_or_else(|unresponsive| Err(unresponsive.into()));
        opened.map_err(|error| self.gone_or_missing(snapshot, error)).inspect_err(|error| {
            let file = repository.snapshot_path(snapshot.id, &disk.name);
            tracing::warn!(file = %file.display(), %error, "cannot use a snapshot's file");
        })
    }

    /// The error of a snapshot whose disk cannot be used, or which was deleted meanwhile.
    pub(crate) fn lost(&self, id: SnapshotId, disk: &SnapshotDisk, cause: impl Into<MapError>) -> Error {
        match lost(disk, cause) {
            // A deletion hides the record before it removes the files.
            Error::SnapshotLost { .. } if self.store.snapshot(id).is_ok_and(|found| found.is_none()) => {
                Error::SnapshotGone
            }
            error => error,
        }
    }

    /// A snapshot is gone only if all of its files are gone. If some exist, the others are missing.
    fn gone_or_missing(&self, snapshot: &Snapshot, error: OpenError) -> OpenError {
        match error {
            OpenError::Gone if self.is_gone(snapshot) => {
                self.gone.notify_one();
                error
            }
            OpenError::Gone => OpenError::Missing,
            error => error,
        }
    }

    /// Whether the snapshot is gone: each of its repositories responds, is the recorded file system, and has no folder
    /// of the snapshot. Anything else does not prove that.
    pub(crate) fn is_gone(&self, snapshot: &Snapshot) -> bool {
        let is_gone_from = |id: &RepositoryId| {
            let repository = self.inventory.repository(id)?;
            let (of, checked) = (snapshot.clone(), repository.clone());
            let gone = repository.run(JobKind::SHORT, move |access, root| {
                checked.mounted_now(access)?;
                let disks = of.disks.iter().filter(|disk| disk.source.repository == *checked.id());
                SnapshotDir::new(root, of.id).is_gone(disks)
            });
            gone.ok()
        };
        snapshot.repositories().into_iter().all(|id| is_gone_from(id) == Some(true))
    }
}
