//! Whether files of a repository can be cloned and their maps read. A trial on the mount decides.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;

use super::clone::{self, Source, Target};
use super::executor::{Executor, JobKind, Unresponsive};
use super::vm_lock::LocalLocks;
use super::{SNAPSHOTS, SUPPORTED_FILE_SYSTEMS};
use crate::sys::folder::{Folder, UnexpectedEntry};
use crate::sys::{fiemap, fsinfo, mounts};

/// Why disks in a folder cannot be snapshotted.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unclonable {
    /// A file system whose maps were not tested.
    #[error("the file system {0} is not supported; move the disk to a repository on OCFS2 or XFS with reflinks")]
    UnsupportedFileSystem(String),
    #[error("the {0} file system was made without reflinks; {remedy}", remedy = remedy(.0))]
    NoReflinks(String),
    /// The trial lacked space, or the file system is read-only now. The VM still counts as fit: a snapshot will report
    /// the actual error.
    #[error("nothing can be written there now: {0}")]
    NotNow(String),
    /// OCFS2 would clone this disk wrongly.
    #[error(
        "space is reserved past the end of {path}: OCFS2 counts it in the clone but does not clone it, and deleting \
         the snapshot would turn the repository read-only; release the space (truncate --size={size} {path})"
    )]
    ReservedPastEnd { path: String, size: u64 },
    #[error(transparent)]
    LocalLocks(#[from] LocalLocks),
    /// The name of the snapshot folder belongs to a link or a file.
    #[error("{0}; remove it, and the service will create the snapshot folder")]
    SnapshotsNotAFolder(String),
    #[error(transparent)]
    Unresponsive(#[from] Unresponsive),
    #[error("a trial clone in the repository failed: {0}")]
    TrialFailed(String),
}

fn remedy(file_system: &str) -> &'static str {
    match file_system {
        "ocfs2" => {
            "unmount it on all servers and add them (tunefs.ocfs2 --fs-features=refcount, which needs sparse and unwritten)"
        }
        _ => "recreate it with reflinks (mkfs.xfs -m reflink=1)",
    }
}

/// How long a result is reused. A repository can be unmounted, changed, and mounted again.
const CACHE_TTL: Duration = Duration::from_secs(60);

/// Trials run one at a time: if one hangs, the next would too.
const TRIAL_KEY: u128 = 0;

/// Device and inode of a folder. Another file system mounted there has another key.
type FolderKey = (u64, u64);

/// When the trial was made, and its result.
type Answer = (Instant, Result<(), Unclonable>);

/// Results of trials by folder, kept for a minute.
#[derive(Debug, Default)]
pub struct CloneSupport {
    known: Mutex<HashMap<FolderKey, Answer>>,
}

impl CloneSupport {
    /// Whether files in `folder` can be snapshotted.
    pub fn of(&self, folder: &Path) -> Result<(), Unclonable> {
        let failed = |error: io::Error| Unclonable::TrialFailed(error.to_string());
        let (path, executor) = (folder.to_owned(), Executor::of(folder));
        let opened = executor.run(JobKind::SHORT, move |_| {
            let root = Folder::open(&path)?;
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
        if let Some((tried_at, answer)) = known().get(&key)
            && tried_at.elapsed() < CACHE_TTL
        {
            return answer.clone();
        }
        let answer = executor.run(JobKind::SHORT.exclusive(TRIAL_KEY), move |_| try_clone(&root))?;
        match &answer {
            // These may pass: the next trial may succeed.
            Err(Unclonable::TrialFailed(_) | Unclonable::NotNow(_) | Unclonable::Unresponsive(_)) => {}
            _ => {
                known().insert(key, (Instant::now(), answer.clone()));
            }
        }
        answer
    }
}

/// Whether the disk `file` at `path` can be snapshotted, given that its folder allows it.
///
/// OCFS2 (6.1, and since it has reflinks) gives a clone the source's number of clusters, but shares only those up to
/// the end of the file. Clusters past the end, which fallocate(2) can reserve, are missing in the clone. When the clone
/// is deleted, OCFS2 finds the wrong number and turns the volume read-only.
///
/// # Errors
/// [`Unclonable::ReservedPastEnd`]; [`Unclonable::TrialFailed`] if the disk cannot be checked.
pub fn of_disk(file: &File, path: &Path) -> Result<(), Unclonable> {
    let failed = |error: io::Error| Unclonable::TrialFailed(error.to_string());
    if fsinfo::name_of(file).map_err(failed)? != "ocfs2" {
        return Ok(());
    }
    let metadata = file.metadata().map_err(failed)?;
    // On OCFS2 the reported block size is the cluster size. A file without blocks is stored in its inode.
    let end = metadata.len().next_multiple_of(metadata.blksize().max(1));
    if metadata.blocks() > 0 && fiemap::Reader::reaches_past(file.as_fd(), end).map_err(failed)? {
        return Err(Unclonable::ReservedPastEnd { path: path.display().to_string(), size: metadata.len() });
    }
    Ok(())
}

/// Clones a small file, if the file system is a supported one.
fn try_clone(root: &Folder) -> Result<(), Unclonable> {
    let failed = |error: io::Error| Unclonable::TrialFailed(error.to_string());
    let name = fsinfo::name_of(root).map_err(failed)?;
    if !SUPPORTED_FILE_SYSTEMS.contains(&name.as_str()) {
        return Err(Unclonable::UnsupportedFileSystem(name));
    }
    if mounts::keeps_locks_local(root.metadata().map_err(failed)?.dev()).map_err(failed)? {
        return Err(LocalLocks.into());
    }
    remove_old_trials(root);
    let trial = Trial::new(root);
    trial.run().map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => Unclonable::NoReflinks(name),
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS) => Unclonable::NotNow(error.to_string()),
        _ => failed(error),
    })
}

/// Prefix of the names of trial files. OCFS2 has no unnamed files.
const TRIAL_PREFIX: &str = ".coriolis-trial-";

/// A file and its clone. They are removed when this is dropped.
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

/// Removes files of trials that were killed. Young ones may belong to a running trial of another server.
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
