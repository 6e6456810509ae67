//! Every path below a repository: which disk is where, and the snapshots' files.
//!
//! A repository is a mounted file system with the folders of Oracle VM. Snapshots lie at
//! `<repository>/CoriolisSnapshots/<snapshot id>/<disk name>`.

pub mod changes;
pub mod checksum;
pub mod clone;
pub mod clone_support;
pub mod disk_file;
pub mod executor;
pub mod footprint;
pub mod locate;
pub mod manifest;
pub mod map;
pub mod refine;
pub mod snapshot_dir;
pub mod survey;
pub mod usage;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::model::RepositoryId;
use crate::sys::fsinfo::{self, Space};
use executor::Kind;

pub use changes::{Changes, CompareError};
pub use clone_support::{CloneSupport, Unclonable};
pub use disk_file::{DiskFile, OpenError, Run};
pub use executor::{Executor, Unresponsive};
pub use footprint::Footprint;
pub use locate::{LocatedDisk, Misplaced};
pub use map::MapError;
pub use snapshot_dir::{Removal, SnapshotDir};

/// A repository: a folder on a mounted file system.
#[derive(Clone, Debug)]
pub struct Repository {
    id: RepositoryId,
    mount_point: PathBuf,
    executor: Executor,
}

/// What a repository lies on.
#[derive(Debug)]
pub struct Mounted {
    /// Name of the file system, such as `ocfs2`.
    pub file_system: String,
    /// How full it is.
    pub space: Space,
}

/// Why a repository is not there.
#[derive(Debug, thiserror::Error)]
pub enum Absent {
    /// The folder cannot be opened.
    #[error("is not there: {0}; is it mounted?")]
    Unreadable(#[from] io::Error),
    /// It is no folder.
    #[error("is not a folder")]
    NotAFolder,
    /// Nothing is in it, and nothing mounted on it.
    #[error("is empty: nothing is mounted there")]
    Empty,
    /// It hangs.
    #[error(transparent)]
    Unresponsive(#[from] Unresponsive),
}

impl Repository {
    /// The repository `id` at `mount_point`. It need not be mounted at the moment.
    pub fn new(id: RepositoryId, mount_point: PathBuf) -> Self {
        let executor = Executor::of(&mount_point);
        Self { id, mount_point, executor }
    }

    /// What does its file work.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Its id.
    pub fn id(&self) -> &RepositoryId {
        &self.id
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// What is mounted there.
    ///
    /// # Errors
    /// [`Absent`] where nothing is.
    pub fn mounted(&self) -> Result<Mounted, Absent> {
        let repository = self.clone();
        self.executor.run(Kind::SHORT, move |_| repository.mounted_now())?
    }

    pub(super) fn mounted_now(&self) -> Result<Mounted, Absent> {
        let folder = File::open(&self.mount_point)?;
        let metadata = folder.metadata()?;
        if !metadata.is_dir() {
            return Err(Absent::NotAFolder);
        }
        // What a mount point is like when nothing is mounted. A folder with something in it may be
        // a repository all the same: several can share one file system.
        let parent = self.mount_point.join("..").metadata()?;
        if parent.dev() == metadata.dev() && self.mount_point.read_dir()?.next().is_none() {
            return Err(Absent::Empty);
        }
        Ok(Mounted { file_system: fsinfo::name_of(&folder)?, space: fsinfo::space(&folder)? })
    }

    /// The folder of the VM definitions, one folder a VM.
    pub fn virtual_machines(&self) -> PathBuf {
        self.mount_point.join("VirtualMachines")
    }

    fn virtual_disks(&self) -> PathBuf {
        self.mount_point.join("VirtualDisks")
    }

    /// The manager's own notes on the files.
    pub fn ovsmeta(&self) -> PathBuf {
        self.mount_point.join(".ovsmeta")
    }

    fn snapshots(&self) -> PathBuf {
        self.mount_point.join("CoriolisSnapshots")
    }
}
