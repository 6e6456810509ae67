//! Whether files of a repository can be cloned and their maps read: asked of the mount, not believed.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;

use super::clone::{self, Source};
use super::executor::{Executor, Kind, Unresponsive};
use crate::sys::{fiemap, fsinfo};

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
const SUPPORTED: [&str; 2] = ["ocfs2", "xfs"];

/// How long an answer is believed: a repository can be unmounted, changed and mounted again.
const MEMORY: Duration = Duration::from_secs(60);

/// The key of trials: one at a time, as one that hangs says what the next would.
const TRIAL_KEY: u128 = 0;

/// Device number and inode of a folder, so that another file system mounted there is asked anew.
type Mounted = (u64, u64);

/// When it was asked, and what it answered.
type Answer = (Instant, Result<(), Unclonable>);

/// What has been found out about mounts, remembered for a minute.
#[derive(Debug, Default)]
pub struct CloneSupport {
    known: Mutex<HashMap<Mounted, Answer>>,
}

impl CloneSupport {
    /// Whether files in `folder` can be snapshotted.
    ///
    /// # Errors
    /// [`Unclonable`] with the reason, in words for an operator.
    pub fn of(&self, folder: &Path) -> Result<(), Unclonable> {
        let failed = |error: io::Error| Unclonable::TrialFailed(error.to_string());
        let (asked, executor) = (folder.to_owned(), Executor::of(folder));
        let opened = executor.run(Kind::SHORT, move |_| {
            let file = File::open(asked)?;
            let metadata = file.metadata()?;
            Ok((file, metadata))
        })?;
        let (folder_file, metadata) = opened.map_err(failed)?;
        let key = (metadata.dev(), metadata.ino());
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((asked, answer)) = known().get(&key)
            && asked.elapsed() < MEMORY
        {
            return answer.clone();
        }
        let asked = folder.to_owned();
        let answer = executor.run(Kind::SHORT.after(TRIAL_KEY), move |_| probe(&folder_file, &asked))?;
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
fn probe(folder_file: &File, folder: &Path) -> Result<(), Unclonable> {
    let failed = |error: io::Error| Unclonable::TrialFailed(error.to_string());
    let name = fsinfo::name_of(folder_file).map_err(failed)?;
    if !SUPPORTED.contains(&name.as_str()) {
        return Err(Unclonable::UnsupportedFileSystem(name));
    }
    remove_litter(folder);
    let trial = Trial::new(folder);
    trial.run().map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => Unclonable::NoReflinks(name),
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS) => Unclonable::NotNow(error.to_string()),
        _ => failed(error),
    })
}

/// What the names of trial files begin with. OCFS2 has no files without a name.
const TRIAL_PREFIX: &str = ".coriolis-trial-";

/// A file and its clone, which are removed when this is dropped.
struct Trial {
    source: PathBuf,
    target: PathBuf,
}

impl Trial {
    fn new(folder: &Path) -> Self {
        let name = format!("{TRIAL_PREFIX}{}", uuid::Uuid::new_v4());
        Self { source: folder.join(&name), target: folder.join(name + ".clone") }
    }

    fn run(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&self.source)?;
        file.write_all(&[1; 4096])?;
        let clone = clone::clone_one(Source { file, path: self.source.clone() }, &self.target)?;
        fiemap::Reader::new(1).read(clone.as_fd(), 0)?;
        Ok(())
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.source);
        let _ = fs::remove_file(&self.target);
    }
}

/// Removes what trials left that were killed. Another server's may be under way: those are young.
fn remove_litter(folder: &Path) {
    const OLD: Duration = Duration::from_secs(3600);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let old = || {
            let changed = entry.metadata().and_then(|metadata| metadata.modified()).ok()?;
            SystemTime::now().duration_since(changed).ok()
        };
        if entry.file_name().as_encoded_bytes().starts_with(TRIAL_PREFIX.as_bytes())
            && old().is_some_and(|age| age > OLD)
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}
