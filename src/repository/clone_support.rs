//! Whether files of a repository can be cloned and their maps read: asked of the mount, not believed.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;

use super::SNAPSHOTS;
use super::clone::{self, Source, Target};
use super::executor::{Executor, JobKind, Unresponsive};
use crate::sys::folder::{Folder, UnexpectedEntry};
use crate::sys::{fiemap, fsinfo, mounts};

/// Why disks in a folder cannot be snapshotted.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unclonable {
    /// A file system whose maps have not been proven to tell the truth here.
    #[error("the file system {0} is not supported; move the disk to a repository on OCFS2 or XFS with reflinks")]
    UnsupportedFileSystem(String),
    /// A file system that could share blocks, made without the feature.
    #[error("the {0} file system was made without reflinks; {remedy}", remedy = remedy(.0))]
    NoReflinks(String),
    /// There is no space for a trial, or nothing can be written at the moment. That is no reason to
    /// call a VM unfit: a snapshot will fail for what it is.
    #[error("nothing can be written there now: {0}")]
    NotNow(String),
    /// A disk that OCFS2 would clone wrongly.
    #[error(
        "space is reserved past the end of {path}, which OCFS2 counts to its clone and does not clone: to delete \
         the snapshot would turn the repository read-only; release it (truncate --size={size} {path})"
    )]
    ReservedPastEnd {
        /// Where the disk lies.
        path: String,
        /// Its size, bytes.
        size: u64,
    },
    /// A service on another server would not see that a VM is locked.
    #[error(
        "the file system is mounted with localflocks, so that other servers of the pool do not see that a VM is being \
         snapshotted; mount it without that option on all of them"
    )]
    LocalLocks,
    /// Snapshots have no place there: the name of their folder is a link's, or a file's.
    #[error("{0}; remove it, and the service makes the folder for the snapshots")]
    SnapshotsNotAFolder(String),
    /// It hangs.
    #[error(transparent)]
    Unresponsive(#[from] Unresponsive),
    /// The trial clone failed for another reason.
    #[error("a trial clone in the repository failed: {0}")]
    TrialFailed(String),
}

fn remedy(file_system: &str) -> &'static str {
    match file_system {
        "ocfs2" => {
            "unmount it on all servers and add them (tunefs.ocfs2 --fs-features=refcount, which needs sparse and unwritten)"
        }
        _ => "make it anew with them (mkfs.xfs -m reflink=1)",
    }
}

/// File systems whose maps have been proven to tell the truth, by tests on the real thing.
pub(super) const SUPPORTED: [&str; 2] = ["ocfs2", "xfs"];

/// How long an answer is believed: a repository can be unmounted, changed and mounted again.
const CACHE_TTL: Duration = Duration::from_secs(60);

/// The key of trials: one at a time, as one that hangs says what the next would.
const TRIAL_KEY: u128 = 0;

/// Device number and inode of a folder, so that another file system mounted there is asked anew.
type FolderKey = (u64, u64);

/// When it was asked, and what it answered.
type Answer = (Instant, Result<(), Unclonable>);

/// What has been found out about mounts, remembered for a minute.
#[derive(Debug, Default)]
pub struct CloneSupport {
    known: Mutex<HashMap<FolderKey, Answer>>,
}

impl CloneSupport {
    /// Whether files in `folder` can be snapshotted.
    ///
    /// # Errors
    /// [`Unclonable`] with the reason, in words for an operator.
    pub fn of(&self, folder: &Path) -> Result<(), Unclonable> {
        let failed = |error: io::Error| Unclonable::TrialFailed(error.to_string());
        let (asked, executor) = (folder.to_owned(), Executor::of(folder));
        let opened = executor.run(JobKind::SHORT, move |_| {
            let root = Folder::open(&asked)?;
            let metadata = root.metadata()?;
            let place = root.folder(SNAPSHOTS).map_err(|error| UnexpectedEntry::of(&error).map(|_| error.to_string()));
            Ok((root, metadata, place.err().flatten()))
        })?;
        let (root, metadata, place) = opened.map_err(failed)?;
        if let Some(problem) = place {
            return Err(Unclonable::SnapshotsNotAFolder(problem));
        }
        let key = (metadata.dev(), metadata.ino());
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((asked, answer)) = known().get(&key)
            && asked.elapsed() < CACHE_TTL
        {
            return answer.clone();
        }
        let answer = executor.run(JobKind::SHORT.exclusive(TRIAL_KEY), move |_| try_clone(&root))?;
        match &answer {
            // By accident, for now: the next one may go better.
            Err(Unclonable::TrialFailed(_) | Unclonable::NotNow(_) | Unclonable::Unresponsive(_)) => {}
            _ => {
                known().insert(key, (Instant::now(), answer.clone()));
            }
        }
        answer
    }
}

/// Whether the disk `file` at `path` can be snapshotted, where its folder can.
///
/// OCFS2 (6.1, and the code is as old as its reflinks) gives a clone the source's number of clusters,
/// and shares those up to the end of the file. Clusters past the end, which fallocate(2) can reserve,
/// are missing then: the deletion of the clone finds the number wrong, and the volume turns read-only.
///
/// # Errors
/// [`Unclonable::ReservedPastEnd`]; [`Unclonable::TrialFailed`] where the disk cannot be asked.
pub fn of_disk(file: &File, path: &Path) -> Result<(), Unclonable> {
    let failed = |error: io::Error| Unclonable::TrialFailed(error.to_string());
    if fsinfo::name_of(file).map_err(failed)? != "ocfs2" {
        return Ok(());
    }
    let metadata = file.metadata().map_err(failed)?;
    // The size of blocks is the size of clusters there. Without blocks, all lies in the inode.
    let end = metadata.len().next_multiple_of(metadata.blksize().max(1));
    if metadata.blocks() > 0 && fiemap::Reader::reaches_past(file.as_fd(), end).map_err(failed)? {
        return Err(Unclonable::ReservedPastEnd { path: path.display().to_string(), size: metadata.len() });
    }
    Ok(())
}

/// Clones a small file, where the file system is one that is supported.
fn try_clone(root: &Folder) -> Result<(), Unclonable> {
    let failed = |error: io::Error| Unclonable::TrialFailed(error.to_string());
    let name = fsinfo::name_of(root).map_err(failed)?;
    if !SUPPORTED.contains(&name.as_str()) {
        return Err(Unclonable::UnsupportedFileSystem(name));
    }
    if mounts::keeps_locks_local(root.metadata().map_err(failed)?.dev()).map_err(failed)? {
        return Err(Unclonable::LocalLocks);
    }
    remove_old_trials(root);
    let trial = Trial::new(root);
    trial.run().map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => Unclonable::NoReflinks(name),
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS) => Unclonable::NotNow(error.to_string()),
        _ => failed(error),
    })
}

/// What the names of trial files begin with. OCFS2 has no files without a name.
const TRIAL_PREFIX: &str = ".coriolis-trial-";

/// A file and its clone, which are removed when this is dropped.
struct Trial<'a> {
    root: &'a Folder,
    source: String,
    target: String,
}

impl<'a> Trial<'a> {
    fn new(root: &'a Folder) -> Self {
        let source = format!("{TRIAL_PREFIX}{}", uuid::Uuid::new_v4());
        Self { root, target: format!("{source}.clone"), source }
    }

    fn run(&self) -> io::Result<()> {
        let mut file = self.root.create_file(&self.source, 0o600)?;
        file.write_all(&[1; 4096])?;
        let source = Source { file, folder: self.root.clone(), name: self.source.clone().into() };
        let clone = clone::clone_one(source, Target { folder: self.root.clone(), name: self.target.clone() })?;
        fiemap::Reader::new(1).read(clone.as_fd(), 0)?;
        Ok(())
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        let _ = self.root.unlink(&self.source);
        let _ = self.root.unlink(&self.target);
    }
}

/// Removes what trials left that were killed. Another server's may be under way: those are young.
fn remove_old_trials(root: &Folder) {
    const MAX_TRIAL_AGE: Duration = Duration::from_secs(3600);
    for name in root.entries().unwrap_or_default() {
        let is_old_file = || {
            let found = root.stat(&name).ok().filter(Metadata::is_file)?;
            SystemTime::now().duration_since(found.modified().ok()?).ok().filter(|age| *age > MAX_TRIAL_AGE)
        };
        if name.as_encoded_bytes().starts_with(TRIAL_PREFIX.as_bytes()) && is_old_file().is_some() {
            let _ = root.unlink(&name);
        }
    }
}
