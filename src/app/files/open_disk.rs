//! The journey to a disk's bytes.

use std::sync::Arc;

use crate::app::retention::uses::InUse;
use crate::app::{App, Error};
use crate::auth::Session;
use crate::model::{DiskName, FileIdentity, Snapshot, SnapshotDisk, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::seal::Proof;
use crate::repository::{DiskFile, MapError, OpenError};

/// A disk of a snapshot, open for reading.
pub struct OpenDisk {
    /// The snapshot, and the VM whose it is.
    pub snapshot: (VmId, SnapshotId),
    /// The file, proven to be the one that was snapshotted.
    pub file: Arc<DiskFile>,
    /// The disk, as it was recorded.
    pub disk: SnapshotDisk,
    /// A text that no other content has.
    pub version: String,
    /// When the snapshot was taken.
    pub taken_at: jiff::Timestamp,
    /// Keeps the snapshot from being swept.
    pub held: Arc<InUse>,
}

impl App {
    /// Opens the disk `name` of the snapshot `id` of the VM that `vm_ref` names.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OtherVm`], [`Error::SnapshotLost`], [`Error::Io`].
    pub async fn open_disk(
        self: &Arc<Self>,
        _session: &Session,
        vm_ref: VmId,
        id: SnapshotId,
        name: DiskName,
    ) -> Result<OpenDisk, Error> {
        self.run_inline_or_blocking(move |app| {
            let held = Arc::new(app.hold(id)?);
            let snapshot = app.snapshot_of(&vm_ref, id)?;
            let disk = snapshot.disk(&name).ok_or(Error::NotFound("the snapshot has no such disk"))?;
            let opened = app.open(&snapshot, disk);
            let file = Arc::new(opened.map_err(|error| lost(disk, error))?);
            let version = version(id, disk);
            let disk = disk.clone();
            Ok(OpenDisk { snapshot: (snapshot.vm, id), file, disk, version, taken_at: snapshot.created_at, held })
        })
        .await
    }

    /// Opens a disk's file and checks that it is the one that was taken. A thread of the repository does it, so that
    /// nobody waits for a file system that hangs.
    pub(crate) fn open(&self, snapshot: &Snapshot, disk: &SnapshotDisk) -> Result<DiskFile, OpenError> {
        let open = |proven| self.open_file(snapshot, disk, proven);
        self.proven(snapshot, disk, Proof::Whole, open).map(|(file, _)| file)
    }

    /// The same for a file that is as it was recorded, or has the change time `proven`.
    pub(crate) fn open_file(
        &self,
        snapshot: &Snapshot,
        disk: &SnapshotDisk,
        proven: Option<i128>,
    ) -> Result<DiskFile, OpenError> {
        let repository = self.repository_of(disk)?;
        let (asked, id, wanted) = (repository.clone(), snapshot.id, disk.clone());
        let opened = repository
            .executor()
            .run(JobKind::SHORT, move |access| DiskFile::open(access, &asked, (id, &wanted), proven))
            .unwrap_or_else(|unresponsive| Err(unresponsive.into()));
        opened.map_err(|error| self.of_whole(snapshot, error)).inspect_err(|error| {
            let file = repository.snapshot_path(snapshot.id, &disk.name);
            tracing::warn!(file = %file.display(), %error, "a snapshot's file cannot be used");
        })
    }

    /// The error for a snapshot a part of which cannot be opened: only where all of it is gone it is gone.
    fn of_whole(&self, snapshot: &Snapshot, error: OpenError) -> OpenError {
        match error {
            OpenError::Gone if self.is_gone(snapshot) => {
                self.unknown_snapshots.look_soon();
                error
            }
            OpenError::Gone => OpenError::Missing,
            error => error,
        }
    }
}

/// A text that no other content has: of no other disk of the snapshot either, since files in two repositories can have
/// one inode number and one change time.
fn version(id: SnapshotId, disk: &SnapshotDisk) -> String {
    let FileIdentity { inode, size, changed_ns } = disk.identity;
    format!("{id}-{}-{inode:x}-{changed_ns:x}-{size:x}", disk.name)
}

/// The error of a snapshot whose disk cannot be used.
pub fn lost(disk: &SnapshotDisk, cause: impl Into<MapError>) -> Error {
    let cause = cause.into();
    if matches!(cause, MapError::File(OpenError::Gone)) {
        return Error::NotFound("the snapshot was removed by another service, or by hand");
    }
    passing(disk, &cause)
        .unwrap_or_else(|| Error::SnapshotLost { disk: disk.name.to_string(), cause: cause.to_string() })
}

/// The error, where it says nothing about the snapshot itself: another time it may be as it was.
pub(crate) fn passing(disk: &SnapshotDisk, cause: &MapError) -> Option<Error> {
    let disk = &disk.name;
    match cause {
        MapError::File(OpenError::RepositoryUnavailable(cause)) => {
            Some(Error::RepositoryUnavailable { disk: disk.to_string(), cause: format!("the repository {cause}") })
        }
        MapError::Io(error) | MapError::File(OpenError::Io(error)) => {
            Some(Error::Io { step: format!("reading {disk}"), cause: error.to_string() })
        }
        MapError::File(OpenError::Touched { .. }) => Some(Error::ContentCheckRunning { disk: disk.to_string() }),
        MapError::Inconsistent(_)
        | MapError::File(OpenError::Missing | OpenError::Gone | OpenError::Replaced | OpenError::Unproven) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DiskSource;

    #[test]
    fn two_disks_of_one_inode_number_are_two_contents() {
        let identity = FileIdentity { inode: 131, size: 1 << 30, changed_ns: 1_714_558_830_123_456_789 };
        let disk = |name: &str, repository: &str| SnapshotDisk {
            name: name.parse().unwrap(),
            source: DiskSource { repository: repository.parse().unwrap(), path: "VirtualDisks/a.img".to_owned() },
            identity,
            volume: None,
            seal: None,
        };
        let id = SnapshotId::from_u128(7);
        let versions = [disk("a.img", "r1"), disk("r2-a.img", "r2")].map(|disk| version(id, &disk));
        assert_ne!(versions[0], versions[1]);
        assert_ne!(version(SnapshotId::from_u128(8), &disk("a.img", "r1")), versions[0]);
    }
}
