//! Whether files of a folder can be cloned and their maps read: asked of the mount, not believed.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

use crate::sys::{fiemap, fsinfo, reflink};

/// Why disks in a folder cannot be snapshotted.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unclonable {
    /// A file system whose maps have not been proven to tell the truth here.
    #[error("the file system {0} is not supported; move the disk to a repository on XFS with reflink=1")]
    UnsupportedFileSystem(String),
    /// A file system that could share blocks, made without the feature.
    #[error("the {0} file system was made without reflinks; make it anew with them (xfs: mkfs.xfs -m reflink=1)")]
    NoReflinks(String),
    /// There is no space for a trial, or nothing can be written at the moment. That is no reason to
    /// call a VM unfit: a snapshot will fail for what it is.
    #[error("no trial was possible")]
    NotNow,
    /// The trial clone failed for another reason.
    #[error("a trial clone in the repository failed: {0}")]
    TrialFailed(String),
}

/// What has been found out about mounts, remembered while they stay mounted.
#[derive(Debug, Default)]
pub struct CloneSupport {
    // Key: device number and inode of the folder, so that another file system mounted there, or
    // mounted again, is asked again.
    known: Mutex<HashMap<(u64, u64), Result<(), Unclonable>>>,
}

impl CloneSupport {
    /// Whether files in `folder` can be snapshotted.
    ///
    /// # Errors
    /// [`Unclonable`] with the reason, in words for an operator.
    pub fn of(&self, folder: &Path) -> Result<(), Unclonable> {
        let failed = |error: io::Error| Unclonable::TrialFailed(error.to_string());
        let folder_file = File::open(folder).map_err(failed)?;
        let metadata = folder_file.metadata().map_err(failed)?;
        let key = (metadata.dev(), metadata.ino());
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = known().get(&key) {
            return answer.clone();
        }
        let answer = probe(&folder_file, folder);
        match &answer {
            // By accident, for now: the next one may go better.
            Err(Unclonable::TrialFailed(_)) => {}
            Err(Unclonable::NotNow) => return Ok(()),
            _ => {
                known().insert(key, answer.clone());
            }
        }
        answer
    }
}

/// Clones a small file that has no name, so that nothing can stay behind.
fn probe(folder_file: &File, folder: &Path) -> Result<(), Unclonable> {
    let failed = |error: io::Error| Unclonable::TrialFailed(error.to_string());
    let name = fsinfo::name_of(folder_file).map_err(failed)?;
    // OCFS2 needs a call of its own, which comes with its own tests.
    if name != "xfs" {
        return Err(Unclonable::UnsupportedFileSystem(name));
    }
    let nameless =
        || OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(nix::libc::O_TMPFILE).open(folder);
    let trial = || -> io::Result<()> {
        let mut source = nameless()?;
        let target = nameless()?;
        source.write_all(&[1; 4096])?;
        reflink::clone_whole(source.as_fd(), target.as_fd())?;
        fiemap::Reader::default().read(target.as_fd(), 0)?;
        Ok(())
    };
    trial().map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => Unclonable::NoReflinks(name),
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS) => Unclonable::NotNow,
        _ => failed(error),
    })
}
