//! Repositories: where disks and snapshots are, and all access to their files.
//!
//! A repository is a mounted file system with the folders of Oracle VM. The file of a snapshot's disk is
//! `<repository>/CoriolisSnapshots/<snapshot id>/<disk name>`.

pub mod changes;
pub mod checksum;
pub mod clone;
pub mod clone_support;
mod digest;
pub mod disk_file;
pub mod executor;
mod file_identity;
pub mod hold;
pub mod leases;
pub mod listing;
pub mod locate;
pub mod manifest;
pub mod map;
pub mod page_cache_policy;
mod pool;
pub mod refine;
pub mod scan;
pub mod seal;
pub mod snapshot_dir;
pub mod usage;
pub mod vm_lock;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::model::layout::CONTENT;
use crate::model::{DiskName, RepositoryId, SnapshotId};
use crate::sys::folder;
use crate::sys::fsinfo::{self, Space};
use crate::sys::mounts;
use crate::sys::volume;
use executor::{Access, JobKind, Pending};

pub use changes::{Changes, CompareError};
pub use clone_support::{CloneSupport, Unclonable};
pub use disk_file::{DiskFile, OpenError, Run};
pub use executor::{Executor, Unresponsive};
pub use locate::{AssignedPath, LocatedDisk, PathError, assign};
pub use map::MapError;
pub use page_cache_policy::{PageCachePolicy, Read};
pub use snapshot_dir::{Removal, RemoveError, SnapshotDir};
pub use vm_lock::LocalLocks;

pub use crate::sys::folder::{Folder, UnexpectedEntry};

/// The folder of all snapshots in a repository.
const SNAPSHOTS: &str = "CoriolisSnapshots";

/// The file systems whose maps were tested on the real thing.
const SUPPORTED_FILE_SYSTEMS: [&str; 2] = ["ocfs2", "xfs"];

#[derive(Clone, Debug)]
pub struct Repository {
    id: RepositoryId,
    mount_point: PathBuf,
    executor: Executor,
    /// The mount point without links, once it is known.
    resolved: Arc<OnceLock<PathBuf>>,
}

/// The file system that is mounted at a repository.
#[derive(Debug)]
pub struct Mounted {
    /// As mount(8) spells it, such as `ocfs2`.
    pub file_system: String,
    pub space: Space,
    /// OCFS2 that hosts can share, mounted with `localflocks`.
    pub keeps_locks_local: bool,
}

impl Mounted {
    /// Why no snapshots can be made and deleted there.
    pub fn restriction(&self) -> Option<String> {
        if self.space.is_read_only {
            return Some("is mounted read-only".to_owned());
        }
        self.keeps_locks_local.then(|| format!("{}; {}", LocalLocks::PROBLEM, LocalLocks::REMEDY))
    }
}

/// Why a repository cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("is not there: {0}; is it mounted?")]
    Unreadable(#[from] io::Error),
    #[error("is not a folder")]
    NotAFolder,
    /// It has no entries, and nothing is mounted on it.
    #[error("is empty: nothing is mounted there")]
    Empty,
    /// It has entries, but it is on another file system than before.
    #[error(
        "is not mounted: its folder is on another file system than before; mount it, or restart the service if it \
         was moved"
    )]
    Unmounted,
    #[error(transparent)]
    Unresponsive(#[from] Unresponsive),
    /// The service does not know it, or no longer.
    #[error("is not in the list of repositories any more")]
    NotListed,
}

impl Unavailable {
    /// The reason, if `error` is about the repository itself.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref::<Self>()
    }
}

impl From<Unavailable> for io::Error {
    fn from(unavailable: Unavailable) -> Self {
        Self::new(io::ErrorKind::TimedOut, unavailable)
    }
}

impl Repository {
    /// A repository need not be mounted when it is created here.
    pub fn new(id: RepositoryId, mount_point: PathBuf) -> Self {
        // Definitions may name the folder by either path.
        let resolved = folder::resolve(&mount_point).map(OnceLock::from).unwrap_or_default();
        let executor = Executor::of(&mount_point);
        Self { id, mount_point, executor, resolved: Arc::new(resolved) }
    }

    /// The threads that access its files.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    pub fn id(&self) -> &RepositoryId {
        &self.id
    }

    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Runs `work` with its folder, on a thread of its executor.
    ///
    /// # Errors
    /// Those of `work`; an error with [`Unavailable`] as its source if the repository cannot be used.
    pub fn run<T: Send + 'static>(
        &self,
        kind: JobKind,
        work: impl FnOnce(&Access<'_>, &Folder) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.submit(kind, work).wait().map_err(Unavailable::from)?
    }

    /// Queues `work`; see [`Repository::run`].
    pub fn submit<T: Send + 'static>(
        &self,
        kind: JobKind,
        work: impl FnOnce(&Access<'_>, &Folder) -> io::Result<T> + Send + 'static,
    ) -> Pending<io::Result<T>> {
        let repository = self.clone();
        self.executor.submit(kind, move |access| work(access, &repository.open(access)?))
    }

    /// Opens its folder. Everything else in the repository is reached through it.
    pub fn open(&self, _: &Access<'_>) -> Result<Folder, Unavailable> {
        let root = Folder::open(&self.mount_point).map_err(|error| match error.kind() {
            io::ErrorKind::NotADirectory => Unavailable::NotAFolder,
            _ => Unavailable::Unreadable(error),
        })?;
        if self.resolved.get().is_none()
            && let Ok(resolved) = root.resolved()
        {
            let _ = self.resolved.set(resolved);
        }
        Ok(root)
    }

    /// Its mount point without links, as far as that is known.
    pub fn resolved(&self) -> &Path {
        self.resolved.get().unwrap_or(&self.mount_point)
    }

    /// The repository that contains this one's folder: a folder above has the folders of Oracle VM, and this one has
    /// none.
    pub fn enclosing_repository(&self) -> io::Result<Option<PathBuf>> {
        let is_one = |folder: &Folder| CONTENT.iter().any(|name| folder.folder(name).is_ok());
        self.run(JobKind::SHORT, move |_, root| {
            if is_one(root) {
                return Ok(None);
            }
            let above = root.resolved()?;
            let mut above = above.ancestors().skip(1);
            // The service may look at the folders above, but need not be able to open them.
            let is_above = |path: &&Path| CONTENT.iter().any(|name| folder::has_folder(path, name));
            Ok(above.find(is_above).map(Path::to_owned))
        })
    }

    /// Whether its path contains the name of one of Oracle VM's folders.
    pub fn is_named_as_content(&self) -> bool {
        self.spellings().flat_map(Path::iter).any(|part| CONTENT.iter().any(|name| part == *name))
    }

    /// Whether its folder is below that of `other`.
    pub fn is_below(&self, other: &Self) -> bool {
        let is_below = |inner: &Path| other.spellings().any(|outer| inner != outer && inner.starts_with(outer));
        self.resolved() != other.resolved() && self.spellings().any(is_below)
    }

    /// Whether other hosts would not see its locks: [`LocalLocks`]. Nothing of the repository is accessed, so this does
    /// not hang with it.
    pub fn keeps_locks_local(&self) -> bool {
        mounts::keeps_locks_local_at(self.resolved()).unwrap_or_default()
    }

    /// The paths that a definition may use for its folder.
    fn spellings(&self) -> impl Iterator<Item = &Path> {
        [self.mount_point(), self.resolved()].into_iter()
    }

    /// The path of a snapshot's file, only for documents and messages.
    pub fn snapshot_path(&self, id: SnapshotId, disk: &DiskName) -> PathBuf {
        self.mount_point.join(SNAPSHOTS).join(id.to_string()).join(disk.as_str())
    }

    /// The file system that is mounted there.
    pub fn mounted(&self) -> Result<Mounted, Unavailable> {
        self.submit_mounted().wait()?
    }

    /// Queues a check of what is mounted there.
    pub fn submit_mounted(&self) -> Pending<Result<Mounted, Unavailable>> {
        let repository = self.clone();
        self.executor.submit(JobKind::SHORT, move |access| repository.mounted_now(access))
    }

    /// As [`Repository::mounted`], for callers that already have access.
    pub fn mounted_now(&self, access: &Access<'_>) -> Result<Mounted, Unavailable> {
        let root = self.open(access)?;
        // An empty folder that is not a mount point means that nothing is mounted. One with entries may be a
        // repository: several can share a file system.
        let is_mounted_on = root.outer_device()? != root.metadata()?.dev();
        if !is_mounted_on && root.is_empty()? {
            return Err(Unavailable::Empty);
        }
        if !self.executor.recognizes(volume::id_of(&root)?, is_mounted_on) {
            return Err(Unavailable::Unmounted);
        }
        Ok(Mounted {
            file_system: fsinfo::name_of(&root)?,
            space: fsinfo::space(&root)?,
            keeps_locks_local: mounts::keeps_locks_local(root.metadata()?.dev())?,
        })
    }
}
