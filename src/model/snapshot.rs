//! A complete snapshot, and what is recorded about it.

use super::annotations::Annotations;
use super::hook::{Consistency, HookRun};
use super::id::{DiskName, RepositoryId, SnapshotId, VmId};

/// A complete snapshot of a virtual machine's disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub vm: VmId,
    /// Position in the order of the VM's snapshots, see [`Snapshot::order`].
    pub sequence: u64,
    /// When the disks were cloned.
    pub created_at: jiff::Timestamp,
    /// The user who requested it.
    pub created_by: String,
    /// In the order of the VM's definition.
    pub disks: Vec<SnapshotDisk>,
    pub provenance: Provenance,
    pub annotations: Annotations,
}

impl Snapshot {
    /// The snapshots of a VM are ordered by this. The clock may jump; the sequence only grows. Exporters of older
    /// versions that shared a repository gave one sequence twice.
    pub fn order(&self) -> (u64, jiff::Timestamp, SnapshotId) {
        (self.sequence, self.created_at, self.id)
    }

    pub fn disk(&self, name: &DiskName) -> Option<&SnapshotDisk> {
        self.disks.iter().find(|disk| disk.name == *name)
    }

    /// The repositories that hold files of this snapshot, each once.
    pub fn repositories(&self) -> Vec<&RepositoryId> {
        each_once(self.disks.iter().map(|disk| &disk.source.repository))
    }
}

pub(super) fn each_once<'a>(ids: impl Iterator<Item = &'a RepositoryId>) -> Vec<&'a RepositoryId> {
    let mut ids: Vec<_> = ids.collect();
    ids.sort();
    ids.dedup();
    ids
}

/// How a snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    pub consistency: Consistency,
    /// The longest time that the guest can have been frozen, milliseconds, rounded up. `None`: not measured.
    pub freeze_ms: Option<u64>,
    /// In the order of their calls.
    pub hooks: Vec<HookRun>,
}

impl Provenance {
    /// A snapshot by cloning alone, without known hooks.
    pub fn crash_consistent() -> Self {
        Self { consistency: Consistency::Crash, freeze_ms: None, hooks: Vec::new() }
    }

    /// Why the snapshot is not quiesced although a hook said so.
    pub fn consistency_reason(&self) -> Option<String> {
        let run = self.hooks.iter().find(|run| run.denies_quiesced())?;
        Some(format!("the post hook {} has failed: {}", run.name, run.detail))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotDisk {
    /// Unique in the snapshot. It is also the name of the disk's file.
    pub name: DiskName,
    pub source: DiskSource,
    /// The file when the snapshot was finished.
    pub identity: FileIdentity,
    /// The file system that holds the file, if it has a stable id.
    pub volume: Option<VolumeId>,
    /// More about the finished file. `None` for snapshots from before it was recorded.
    pub seal: Option<Seal>,
}

/// The disk that a snapshot's file is a state of. Disks of two snapshots with the same source can be compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskSource {
    /// The repository that holds both the disk and the snapshot's file.
    pub repository: RepositoryId,
    /// Path of the disk below the repository.
    pub path: String,
}

/// Identifies a file, and detects changes of it.
///
/// The device number is left out: it can change at each boot. Whether two files are on one device is checked when they
/// are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Time of the last change of content or inode (ctime), nanoseconds since 1970.
    pub changed_ns: i128,
}

/// Identifies a file system, on whatever host and path it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeId(pub [u8; 16]);

/// More about a finished file than its identity. If only the ctime differs from the recorded one, the seal tells
/// whether the inode changed (mode, owner, labels, links) or the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Time of the last change of content (mtime), nanoseconds since 1970.
    pub modified_ns: i128,
    /// Digest of the extent map. `None` if the file system does not report all addresses.
    pub map: Option<[u8; 32]>,
}

/// Two snapshots of one VM. A comparison finds what turns a copy of the base into the target. The base is the older
/// one, except on the way back.
#[derive(Debug)]
pub struct SnapshotPair<'a> {
    base: &'a Snapshot,
    target: &'a Snapshot,
}

/// Why two snapshots cannot be compared.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnfitPair {
    #[error("the snapshot {0} belongs to another VM")]
    OtherVm(SnapshotId),
    #[error("compareTo must name an older snapshot than the one asked for; {0} is the same or newer")]
    NotOlder(SnapshotId),
}

impl<'a> SnapshotPair<'a> {
    /// Pairs `base` with the newer `target`.
    pub fn new(base: &'a Snapshot, target: &'a Snapshot) -> Result<Self, UnfitPair> {
        if base.vm != target.vm {
            Err(UnfitPair::OtherVm(base.id))
        } else if base.order() >= target.order() {
            Err(UnfitPair::NotOlder(base.id))
        } else {
            Ok(Self { base, target })
        }
    }

    /// The way back: the base is the newer one. Bytes are the same in both directions, and so is the proof.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { base: self.target, target: self.base }
    }

    pub fn is_reversed(&self) -> bool {
        self.base.order() > self.target.order()
    }

    pub fn base(&self) -> &'a Snapshot {
        self.base
    }

    pub fn target(&self) -> &'a Snapshot {
        self.target
    }
}
