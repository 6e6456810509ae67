//! A snapshot as it was taken.

use super::hook::{Consistency, HookRun};
use super::id::{DiskName, RepositoryId, SnapshotId, VmId};

/// A complete snapshot of a virtual machine's disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Whose it is.
    pub vm: VmId,
    /// Its place in the order of all snapshots. The clock may jump; this only grows.
    pub sequence: u64,
    /// When it was asked for.
    pub created_at: jiff::Timestamp,
    /// The user who asked for it.
    pub created_by: String,
    /// Its disks, in the order of the VM's definition.
    pub disks: Vec<SnapshotDisk>,
    /// How it was taken.
    pub provenance: Provenance,
}

impl Snapshot {
    /// The disk of that name.
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

/// How a snapshot was taken: what ran around it, and what came of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// What its disks are like when they are restored.
    pub consistency: Consistency,
    /// The longest that the guest can have been held up for it, milliseconds, rounded up. Nothing:
    /// nobody has measured it.
    pub freeze_ms: Option<u64>,
    /// The hooks that ran, in their order.
    pub hooks: Vec<HookRun>,
}

impl Provenance {
    /// By a clone of the disks, and nothing around it that is known of.
    pub fn crash_consistent() -> Self {
        Self { consistency: Consistency::Crash, freeze_ms: None, hooks: Vec::new() }
    }

    /// Why it is not quiesced, where a hook said that it was.
    pub fn consistency_reason(&self) -> Option<String> {
        let run = self.hooks.iter().find(|run| run.denies_quiesced())?;
        Some(format!("the post hook {} has failed: {}", run.name, run.detail))
    }
}

/// A disk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotDisk {
    /// Its name, unique in the snapshot, and that of its file.
    pub name: DiskName,
    /// The disk that it is a state of.
    pub source: DiskSource,
    /// The file, as it was when the snapshot was finished.
    pub identity: FileIdentity,
    /// The file system that the file was made on, where that has a name of its own.
    pub volume: Option<VolumeId>,
    /// More of the finished file, where it was recorded.
    pub seal: Option<Seal>,
}

/// Which disk a file is a state of: what makes two disks of two snapshots comparable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskSource {
    /// The repository in which the disk and the snapshot's file lie.
    pub repository: RepositoryId,
    /// Path of the disk below the repository.
    pub path: String,
}

/// What tells a file from any other, and from itself after a change.
///
/// The device number is left out on purpose: it changes from boot to boot. Whether two files lie
/// on one device is asked when they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Inode number.
    pub inode: u64,
    /// Size, bytes.
    pub size: u64,
    /// Time of the last change of content or inode, nanoseconds since 1970.
    pub changed_ns: i128,
}

/// What tells a file system from any other, whatever host has it mounted where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeId(pub [u8; 16]);

/// What a file was like when its snapshot was finished, besides its identity. Where only its change time differs
/// from the recorded one, this tells a change of the inode (its mode, owner, labels, links) from one of the
/// content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Time of the last change of content, nanoseconds since 1970.
    pub modified_ns: i128,
    /// Digest of its map of extents; nothing where the file system does not tell all addresses.
    pub map: Option<[u8; 32]>,
}

/// Two snapshots of one VM, the base taken before the target.
#[derive(Debug)]
pub struct SnapshotPair<'a> {
    base: &'a Snapshot,
    target: &'a Snapshot,
}

/// Why two snapshots cannot be compared.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnfitPair {
    /// They are of different VMs.
    #[error("the snapshot {0} belongs to another VM")]
    OtherVm(SnapshotId),
    /// The base is the target itself, or was taken after it.
    #[error("compareTo must name an older snapshot than the one asked for; {0} is the same or newer")]
    NotOlder(SnapshotId),
}

impl<'a> SnapshotPair<'a> {
    /// Pairs `base` with the later `target`.
    ///
    /// # Errors
    /// [`UnfitPair`] where they are of two VMs, or in the wrong order.
    pub fn new(base: &'a Snapshot, target: &'a Snapshot) -> Result<Self, UnfitPair> {
        if base.vm != target.vm {
            Err(UnfitPair::OtherVm(base.id))
        } else if base.sequence >= target.sequence {
            Err(UnfitPair::NotOlder(base.id))
        } else {
            Ok(Self { base, target })
        }
    }

    /// The older snapshot.
    pub fn base(&self) -> &'a Snapshot {
        self.base
    }

    /// The newer snapshot.
    pub fn target(&self) -> &'a Snapshot {
        self.target
    }
}
