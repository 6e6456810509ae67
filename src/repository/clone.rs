//! The one moment: all disks of a VM cloned together.

use std::ffi::{CString, OsString};
use std::fs::{File, Permissions};
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::executor::{Access, Executor, JobKind};
use super::seal::{self, Sealed};
use super::{Repository, Unavailable};
use crate::sys::folder::Folder;
use crate::sys::{fsinfo, page_cache, reflink};

/// Read-only to all that open it later: a snapshot does not change.
const MODE: u32 = 0o440;

/// A disk to be cloned.
#[derive(Debug)]
pub struct Source {
    /// The live disk.
    pub file: File,
    /// The folder that it was opened in.
    pub folder: Folder,
    /// Its name there.
    pub name: OsString,
}

/// A file that a clone is to be.
#[derive(Debug)]
pub struct Target {
    /// The folder to make it in.
    pub folder: Folder,
    /// Its name there.
    pub name: String,
}

/// The clones of a VM's disks, ready to be made.
pub struct Clones {
    clones: Vec<(Executor, Clone)>,
    key: u128,
}

/// The clones of a VM's disks, made.
pub struct Cloned {
    clones: Vec<(Executor, Clone)>,
    key: u128,
    /// From the first start to the last end.
    pub window: Duration,
}

/// What failed: the index of the disk, and its errno with what it means for an operator. Files may
/// have been made: the caller undoes.
pub type CloneError = (usize, io::Error);

/// A clone that is ready to be made.
enum Clone {
    /// By FICLONE, into an empty file.
    Ficlone { source: Source, target: File, inode: u64 },
    /// By OCFS2's own call, which makes the file. There FICLONE is younger than the hosts' kernels,
    /// and leaves an empty file behind where it fails.
    Ocfs2 { source: Source, source_path: CString, target: Target, target_path: CString },
}

impl Clones {
    /// Makes ready to clone each disk, in its repository, to the new file beside it. What is done to these files
    /// from now on is done one after the other, under the `key`.
    ///
    /// What a guest has left in the page cache is written out here: the clone would do it inside the
    /// window, and hold off the guest's writes meanwhile.
    ///
    /// # Errors
    /// [`CloneError`].
    pub fn prepare(disks: Vec<(Repository, Source, Target)>, key: u128) -> Result<Self, CloneError> {
        let mut clones = Vec::with_capacity(disks.len());
        for (index, (repository, source, target)) in disks.into_iter().enumerate() {
            let executor = repository.executor().clone();
            let ready = run_exclusively(&executor, key, move |access| {
                write_out(access, &source.file)?;
                Clone::prepare(source, target)
            });
            clones.push((executor, ready.map_err(|error| (index, with_remedy(error)))?));
        }
        Ok(Self { clones, key })
    }

    /// The inodes of the new files, in the order of the disks. `None` for a file that the clone itself will make.
    pub fn inodes(&self) -> impl Iterator<Item = Option<NonZero<u64>>> {
        self.clones.iter().map(|(_, clone)| match clone {
            Clone::Ficlone { inode, .. } => NonZero::new(*inode),
            Clone::Ocfs2 { .. } => None,
        })
    }

    /// What writes out once more, when it is called, what guests have left in the page cache since. A disk for
    /// which that fails is written out by its clone.
    pub fn refresh(&self) -> impl Fn() + Send + Sync + 'static {
        let file =
            |(executor, clone): &(Executor, Clone)| Some((executor.clone(), clone.source().file.try_clone().ok()?));
        let files: Vec<(Executor, Arc<File>)> =
            self.clones.iter().filter_map(file).map(|(executor, file)| (executor, Arc::new(file))).collect();
        move || {
            for (executor, file) in &files {
                let file = Arc::clone(file);
                drop(executor.run(JobKind::CHANGE, move |access| write_out(access, &file)));
            }
        }
    }

    /// Makes the clones, one thread each, started together. Nothing else happens here.
    ///
    /// # Errors
    /// [`CloneError`].
    pub fn make(self) -> Result<Cloned, CloneError> {
        let window = clone_together(&self.clones).map_err(|(index, error)| (index, with_remedy(error)))?;
        Ok(Cloned { clones: self.clones, key: self.key, window })
    }
}

impl Cloned {
    /// Writes the new files to stable storage, in the order of the disks; from now on their identities stand.
    ///
    /// # Errors
    /// [`CloneError`].
    pub fn seal(self) -> Result<Vec<Sealed>, CloneError> {
        let key = self.key;
        let seal = |(index, (executor, clone)): (usize, (Executor, Clone))| {
            let sealed = run_exclusively(&executor, key, move |_| {
                let file = clone.finish()?;
                file.sync_all()?;
                seal::of(&file)
            });
            sealed.map_err(|error| (index, with_remedy(error)))
        };
        self.clones.into_iter().enumerate().map(seal).collect()
    }
}

/// Changes something of a snapshot, after what is under way on it.
fn run_exclusively<T: Send + 'static>(
    executor: &Executor,
    key: u128,
    work: impl FnOnce(&Access<'_>) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    executor.run(JobKind::CHANGE.exclusive(key), work).map_err(Unavailable::from)?
}

fn write_out(access: &Access<'_>, file: &File) -> io::Result<()> {
    page_cache::write_out(file, file.metadata()?.len(), &|| access.progress())
}

/// Clones one file: for a trial.
///
/// # Errors
/// The errno, as it is.
pub(super) fn clone_one(source: Source, target: Target) -> io::Result<File> {
    let clone = Clone::prepare(source, target)?;
    clone.make()?;
    clone.finish()
}

fn clone_together(clones: &[(Executor, Clone)]) -> Result<Duration, CloneError> {
    // Whether all threads are there. Without them all nobody may wait for the others.
    let complete: OnceLock<bool> = OnceLock::new();
    let barrier = Barrier::new(clones.len());
    let make = |(executor, clone): &(Executor, Clone)| {
        if !*complete.wait() {
            return Err(io::Error::other("another disk's thread could not be started"));
        }
        barrier.wait();
        let started = Instant::now();
        // On this thread: nothing may stand between the start and the clone.
        executor.run_here_as(JobKind::CHANGE, |_| clone.make())?;
        Ok((started, Instant::now()))
    };
    thread::scope(|scope| {
        let mut running = Vec::with_capacity(clones.len());
        for (index, clone) in clones.iter().enumerate() {
            match thread::Builder::new().spawn_scoped(scope, || make(clone)) {
                Ok(thread) => running.push(thread),
                Err(error) => {
                    let _ = complete.set(false);
                    return Err((index, error));
                }
            }
        }
        let _ = complete.set(true);
        // All are waited for, also after one that failed.
        let ended: Vec<_> = running.into_iter().map(|thread| thread.join()).collect();
        let mut window: Option<(Instant, Instant)> = None;
        for (index, ended) in ended.into_iter().enumerate() {
            let ended = ended.unwrap_or_else(|_| Err(io::Error::other("the cloning thread panicked")));
            let (start, end) = ended.map_err(|error| (index, error))?;
            let (first, last) = window.unwrap_or((start, end));
            window = Some((first.min(start), last.max(end)));
        }
        Ok(window.map_or(Duration::ZERO, |(start, end)| end - start))
    })
}

impl Clone {
    fn prepare(source: Source, target: Target) -> io::Result<Self> {
        if fsinfo::name_of(&source.file)? == "ocfs2" {
            // Through the folders that are open: nobody can put another folder in their place.
            let source_path = source.folder.path_through(&source.name)?;
            let target_path = target.folder.path_through(&target.name)?;
            source.check_not_replaced()?;
            return Ok(Self::Ocfs2 { source, source_path, target, target_path });
        }
        let target = target.folder.create_file(&target.name, MODE)?;
        let inode = target.metadata()?.ino();
        Ok(Self::Ficlone { source, target, inode })
    }

    fn source(&self) -> &Source {
        match self {
            Self::Ficlone { source, .. } | Self::Ocfs2 { source, .. } => source,
        }
    }

    fn make(&self) -> io::Result<()> {
        match self {
            Self::Ficlone { source, target, .. } => reflink::ficlone(source.file.as_fd(), target.as_fd()),
            Self::Ocfs2 { source, source_path, target_path, .. } => {
                reflink::ocfs2(source.file.as_fd(), source_path, target_path)
            }
        }
    }

    fn finish(self) -> io::Result<File> {
        match self {
            Self::Ficlone { target, .. } => Ok(target),
            Self::Ocfs2 { source, target, .. } => {
                // The kernel took what had the name: it has to be what was opened.
                source.check_not_replaced()?;
                let file = target.folder.open_file(&target.name)?;
                file.set_permissions(Permissions::from_mode(MODE))?;
                Ok(file)
            }
        }
    }
}

impl Source {
    /// Checks that its name is still its own.
    fn check_not_replaced(&self) -> io::Result<()> {
        let (open, found) = (self.file.metadata()?, self.folder.stat(&self.name)?);
        if (open.dev(), open.ino()) == (found.dev(), found.ino()) {
            Ok(())
        } else {
            Err(io::Error::other("the disk was exchanged for another file meanwhile; try again"))
        }
    }
}

/// The error with what an operator can do about it. A full or read-only file system has its own
/// words already, and is told by its errno.
fn with_remedy(error: io::Error) -> io::Error {
    let remedy = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP | Errno::ENOTTY) => "the file system has no reflinks, or was made without them",
        Some(Errno::EXDEV) => "the disk and the repository's folder CoriolisSnapshots lie on two file systems",
        Some(Errno::EPERM) => "the file is immutable or append-only; look at it with lsattr",
        Some(Errno::EACCES) => "the service may not do that there; it has to run as root",
        Some(Errno::EINVAL | Errno::ETXTBSY) => {
            "a file in use as swap space, or on a realtime device, cannot be cloned"
        }
        Some(Errno::EIO) => "the device fails; look at the kernel's log of the host",
        Some(Errno::EMLINK) => "too many files share these blocks; delete snapshots that are not needed any more",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}: {remedy}"))
}
