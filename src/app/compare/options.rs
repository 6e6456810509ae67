//! The options of maps.

use crate::config::Refine;
use crate::model::{ChunkKind, DiskName, Permission, SnapshotId, VmId};

/// Identifies a disk: VM, snapshot, disk name.
pub type DiskRef = (VmId, SnapshotId, DiskName);

/// How the maps of a snapshot's disks are listed.
#[derive(Clone, Copy, Debug)]
pub struct MapOptions {
    /// The base.
    pub compare_to: Option<SnapshotId>,
    /// Whether the chunks lead back to the base.
    pub reverse: bool,
    /// Whether the chunks are listed.
    pub chunks: bool,
    /// Whether adjacent chunks are joined.
    pub squash: bool,
    /// Whether `zero` chunks are listed. Default: only with a base.
    pub zeros: Option<bool>,
    /// Whether the map is read for its totals.
    pub summary: bool,
    /// Whether a disk without a usable base is an error instead of a full map.
    pub refuse_full: bool,
    /// The refinement, which applies with a base. Default: as the config says.
    pub refine: Option<Refine>,
}

impl MapOptions {
    /// Whether the response needs the maps.
    pub fn maps(self) -> bool {
        self.chunks || self.summary
    }

    /// The permission that the request needs: less without maps and without a comparison.
    pub fn permission(self) -> Permission {
        if self.maps() || self.compare_to.is_some() { Permission::Read } else { Permission::View }
    }

    pub(super) fn lists_zeros(self) -> bool {
        self.zeros.unwrap_or(self.compare_to.is_some())
    }
}

/// Selects chunks of one disk.
#[derive(Clone, Copy, Debug)]
pub struct ChunkQuery {
    pub options: MapOptions,
    /// Only chunks of this kind.
    pub kind: Option<ChunkKind>,
    /// The offset to start from, bytes.
    pub from: u64,
    /// The most chunks to return.
    pub limit: usize,
}
