//! Every path below a repository: which disk is where, and the snapshots' files.
//!
//! A repository is a mounted file system with the folders of Oracle VM. Snapshots lie at
//! `<repository>/CoriolisSnapshots/<snapshot id>/<disk name>`.

pub mod clone;
pub mod clone_support;
pub mod disk_file;
pub mod locate;
pub mod manifest;
pub mod map;
pub mod snapshot_dir;

use std::path::{Path, PathBuf};

use crate::model::RepositoryId;

pub use clone_support::{CloneSupport, Unclonable};
pub use disk_file::{DiskFile, OpenError};
pub use locate::{LocatedDisk, Misplaced};
pub use map::{CompareError, MapError};
pub use snapshot_dir::{Removal, SnapshotDir};

/// A repository: a folder on a mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    id: RepositoryId,
    mount_point: PathBuf,
}

impl Repository {
    /// The repository `id` at `mount_point`. It need not be mounted at the moment.
    pub fn new(id: RepositoryId, mount_point: PathBuf) -> Self {
        Self { id, mount_point }
    }

    /// Its id.
    pub fn id(&self) -> &RepositoryId {
        &self.id
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The folder of the VM definitions, one folder a VM.
    pub fn virtual_machines(&self) -> PathBuf {
        self.mount_point.join("VirtualMachines")
    }

    /// The manager's own notes on the files.
    pub fn ovsmeta(&self) -> PathBuf {
        self.mount_point.join(".ovsmeta")
    }

    fn snapshots(&self) -> PathBuf {
        self.mount_point.join("CoriolisSnapshots")
    }
}
