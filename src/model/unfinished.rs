//! Snapshots that are not complete: planned, being made, or being removed.

use std::num::NonZero;

use super::annotations::Annotations;
use super::id::{DiskName, RepositoryId, SnapshotId, VmId};
use super::snapshot::{DiskSource, FileIdentity, Provenance, Seal, Snapshot, SnapshotDisk, VolumeId, each_once};

/// A snapshot that is about to be made. The store assigns its sequence, and its files do not exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotDraft {
    pub id: SnapshotId,
    pub vm: VmId,
    pub created_at: jiff::Timestamp,
    /// The user who requested it.
    pub created_by: String,
    /// In the order of the VM's definition.
    pub disks: Vec<PlannedDisk>,
    pub annotations: Annotations,
}

/// A disk of a snapshot that is about to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedDisk {
    pub name: DiskName,
    pub source: DiskSource,
    /// Bytes, when the disk was opened.
    pub size: u64,
    pub volume: Option<VolumeId>,
}

impl SnapshotDraft {
    pub fn repositories(&self) -> Vec<&RepositoryId> {
        each_once(self.disks.iter().map(|disk| &disk.source.repository))
    }
}

/// A snapshot that is being made. The store knows it and shows it to no client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedSnapshot {
    pub draft: SnapshotDraft,
    /// See [`Snapshot::sequence`].
    pub sequence: u64,
    /// The inode of each disk's file, in the order of the disks. `None` if the file does not exist yet.
    pub inodes: Vec<Option<NonZero<u64>>>,
}

impl UnfinishedSnapshot {
    pub fn new(draft: SnapshotDraft, sequence: u64) -> Self {
        let inodes = vec![None; draft.disks.len()];
        Self { draft, sequence, inodes }
    }

    /// The files to remove if the snapshot is not completed.
    pub fn files(&self) -> SnapshotFiles {
        let files = self.draft.disks.iter().zip(&self.inodes).map(|(disk, inode)| SnapshotFile {
            name: disk.name.clone(),
            repository: disk.source.repository.clone(),
            volume: disk.volume,
            inode: *inode,
        });
        let SnapshotDraft { id, ref vm, .. } = self.draft;
        SnapshotFiles { id, vm: vm.clone(), sequence: self.sequence, files: files.collect() }
    }

    /// The complete snapshot. Its disks were cloned at `created_at`, and `files` are their finished files, in the same
    /// order.
    pub fn finish(
        self,
        created_at: jiff::Timestamp,
        provenance: Provenance,
        files: Vec<(FileIdentity, Seal)>,
    ) -> Snapshot {
        let Self { draft, sequence, .. } = self;
        debug_assert_eq!(draft.disks.len(), files.len());
        let SnapshotDraft { id, vm, created_by, disks, annotations, .. } = draft;
        let disks = disks.into_iter().zip(files).map(|(disk, (identity, seal))| {
            let PlannedDisk { name, source, volume, .. } = disk;
            SnapshotDisk { name, source, identity, volume, seal: Some(seal) }
        });
        Snapshot { id, vm, sequence, created_at, created_by, disks: disks.collect(), provenance, annotations }
    }
}

/// The files of a snapshot, complete or not: all that its removal needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFiles {
    pub id: SnapshotId,
    pub vm: VmId,
    /// See [`Snapshot::sequence`].
    pub sequence: u64,
    pub files: Vec<SnapshotFile>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    pub name: DiskName,
    pub repository: RepositoryId,
    pub volume: Option<VolumeId>,
    /// `None` if the file was not finished, or its inode is not recorded.
    pub inode: Option<NonZero<u64>>,
}

impl SnapshotFiles {
    /// The repositories that hold the files, each once.
    pub fn repositories(&self) -> Vec<&RepositoryId> {
        each_once(self.files.iter().map(|file| &file.repository))
    }
}

impl From<&Snapshot> for SnapshotFiles {
    fn from(snapshot: &Snapshot) -> Self {
        let files = snapshot.disks.iter().map(|disk| SnapshotFile {
            name: disk.name.clone(),
            repository: disk.source.repository.clone(),
            volume: disk.volume,
            inode: NonZero::new(disk.identity.inode),
        });
        let Snapshot { id, ref vm, sequence, .. } = *snapshot;
        Self { id, vm: vm.clone(), sequence, files: files.collect() }
    }
}
