//! What a client wants to see of the maps.

use crate::config::Refine;
use crate::model::{ChunkKind, DiskName, SnapshotId, VmId};

/// Which disk: VM, snapshot, disk.
pub type DiskRef = (VmId, SnapshotId, DiskName);

/// How the maps of a snapshot's disks are listed.
#[derive(Clone, Copy, Debug)]
pub struct MapOptions {
    /// The older snapshot to list the changes from.
    pub compare_to: Option<SnapshotId>,
    /// Whether the chunks are listed.
    pub chunks: bool,
    /// Whether chunks that touch are joined.
    pub squash: bool,
    /// Whether `zero` chunks are listed; by default with a base only.
    pub zeros: Option<bool>,
    /// Whether only the totals are wanted.
    pub summary: bool,
    /// Whether contents are compared, with a base; by default as the config says.
    pub refine: Option<Refine>,
}

impl MapOptions {
    /// Whether anything of the maps is wanted.
    pub fn maps(self) -> bool {
        self.chunks || self.summary
    }

    pub(super) fn lists_zeros(self) -> bool {
        self.zeros.unwrap_or(self.compare_to.is_some())
    }
}

/// Which chunks of one disk are wanted.
#[derive(Clone, Copy, Debug)]
pub struct ChunkQuery {
    pub options: MapOptions,
    /// Only chunks of this kind.
    pub kind: Option<ChunkKind>,
    /// The offset to start from, bytes.
    pub from: u64,
    /// How many chunks at most.
    pub limit: usize,
}
