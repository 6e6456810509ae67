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
pub mod locate;
pub mod manifest;
pub mod map;
pub mod page_cache_policy;
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

use crate::model::{DiskName, RepositoryId, SnapshotId};
use crate::sys::folder::{self, Folder};
use crate::sys::fsinfo::{self, Space};
use crate::sys::volume;
use executor::{Access, JobKind, Pending};

pub use changes::{Changes, CompareError};
pub use clone_support::{CloneSupport, Unclonable};
pub use disk_file::{DiskFile, OpenError, Run};
pub use executor::{Executor, Unresponsive};
pub use locate::{AssignedPath, LocatedDisk, PathError, assign};
pub use map::MapError;
pub use page_cache_policy::PageCachePolicy;
pub use snapshot_dir::{Removal, RemoveError, SnapshotDir};

/// The folders of a repository in which Oracle VM keeps disks and definitions.
const CONTENT: [&str; 2] = ["VirtualDisks", "VirtualMachines"];

/// The folder of all snapshots in a repository.
const SNAPSHOTS: &str = "CoriolisSnapshots";

/// The folder in it that the services of a pool share, and where they keep their locks.
const POOL: &str = ".pool";

/// A repository: a folder on a mounted file system.
#[derive(Clone, Debug)]
pub struct Repository {
    id: RepositoryId,
    mount_point: PathBuf,
    executor: Executor,
    /// The mount point with every link followed, once it is known.
    resolved: Arc<OnceLock<PathBuf>>,
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
pub enum Unavailable {
    /// The folder cannot be opened.
    #[error("is not there: {0}; is it mounted?")]
    Unreadable(#[from] io::Error),
    /// It is no folder.
    #[error("is not a folder")]
    NotAFolder,
    /// Nothing is in it, and nothing mounted on it.
    #[error("is empty: nothing is mounted there")]
    Empty,
    /// Something is in it, but not what was there: its file system was unmounted.
    #[error(
        "is not mounted: its folder lies on another file system than before; mount it, or restart the service if it \
         was moved"
    )]
    Unmounted,
    /// It hangs.
    #[error(transparent)]
    Unresponsive(#[from] Unresponsive),
    /// The service does not know it (any more).
    #[error("is not in the list of repositories any more")]
    NotListed,
}

impl Unavailable {
    /// What an error says of the repository itself, where it is about that.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref::<Self>()
    }
}

impl From<Unavailable> for io::Error {
    fn from(absent: Unavailable) -> Self {
        Self::new(io::ErrorKind::TimedOut, absent)
    }
}

impl Repository {
    /// The repository `id` at `mount_point`. It need not be mounted at the moment.
    pub fn new(id: RepositoryId, mount_point: PathBuf) -> Self {
        // Definitions may name the folder by either path.
        let resolved = folder::resolve(&mount_point).map(OnceLock::from).unwrap_or_default();
        let executor = Executor::of(&mount_point);
        Self { id, mount_point, executor, resolved: Arc::new(resolved) }
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

    /// Does `work` below its folder, in its executor.
    ///
    /// # Errors
    /// Those of `work`; [`Unavailable`], as the error's own cause, where the repository is not there or hangs.
    pub fn run<T: Send + 'static>(
        &self,
        kind: JobKind,
        work: impl FnOnce(&Access<'_>, &Folder) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.submit(kind, work).wait().map_err(Unavailable::from)?
    }

    /// Queues `work` below its folder; see [`Repository::run`].
    pub fn submit<T: Send + 'static>(
        &self,
        kind: JobKind,
        work: impl FnOnce(&Access<'_>, &Folder) -> io::Result<T> + Send + 'static,
    ) -> Pending<io::Result<T>> {
        let repository = self.clone();
        self.executor.submit(kind, move |access| work(access, &repository.open(access)?))
    }

    /// Opens its folder, through which all else in it is reached.
    ///
    /// # Errors
    /// [`Unavailable`].
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

    /// Where it is mounted with every link followed, as far as that is known.
    pub fn resolved(&self) -> &Path {
        self.resolved.get().unwrap_or(&self.mount_point)
    }

    /// The repository that it only seems to be, where its folder is one in a repository: one above it has folders of
    /// disks or definitions, and it has none.
    ///
    /// # Errors
    /// As [`Repository::run`].
    pub fn enclosing_repository(&self) -> io::Result<Option<PathBuf>> {
        let is_one = |folder: &Folder| CONTENT.iter().any(|name| folder.folder(name).is_ok());
        self.run(JobKind::SHORT, move |_, root| {
            if is_one(root) {
                return Ok(None);
            }
            let above = root.resolved()?;
            let mut above = above.ancestors().skip(1);
            Ok(above.find(|path| Folder::open(path).is_ok_and(|folder| is_one(&folder))).map(Path::to_owned))
        })
    }

    /// Whether its path has the name of a folder that a repository has.
    pub fn is_named_as_content(&self) -> bool {
        self.spellings().flat_map(Path::iter).any(|part| CONTENT.iter().any(|name| part == *name))
    }

    /// Whether its folder lies below that of `other`.
    pub fn is_below(&self, other: &Self) -> bool {
        let is_below = |inner: &Path| other.spellings().any(|outer| inner != outer && inner.starts_with(outer));
        self.resolved() != other.resolved() && self.spellings().any(is_below)
    }

    /// The paths by which a definition may name its folder.
    fn spellings(&self) -> impl Iterator<Item = &Path> {
        [self.mount_point(), self.resolved()].into_iter()
    }

    /// The path of a snapshot's file: for documents and messages, and for nothing else.
    pub fn snapshot_path(&self, id: SnapshotId, disk: &DiskName) -> PathBuf {
        self.mount_point.join(SNAPSHOTS).join(id.to_string()).join(disk.as_str())
    }

    /// What is mounted there.
    ///
    /// # Errors
    /// [`Unavailable`] where nothing is.
    pub fn mounted(&self) -> Result<Mounted, Unavailable> {
        self.submit_mounted().wait()?
    }

    /// Begins to ask what is mounted there.
    pub fn submit_mounted(&self) -> Pending<Result<Mounted, Unavailable>> {
        let repository = self.clone();
        self.executor.submit(JobKind::SHORT, move |access| repository.mounted_now(access))
    }

    /// The same, of whoever has access already.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub fn mounted_now(&self, access: &Access<'_>) -> Result<Mounted, Unavailable> {
        let root = self.open(access)?;
        // What a mount point is like when nothing is mounted. A folder with something in it may be
        // a repository all the same: several can share one file system.
        let is_mounted_on = root.outer_device()? != root.metadata()?.dev();
        if !is_mounted_on && root.is_empty()? {
            return Err(Unavailable::Empty);
        }
        if !self.executor.recognizes(volume::id_of(&root)?, is_mounted_on) {
            return Err(Unavailable::Unmounted);
        }
        Ok(Mounted { file_system: fsinfo::name_of(&root)?, space: fsinfo::space(&root)? })
    }
}
