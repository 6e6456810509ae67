//! Clones all disks of a VM, or of several VMs, at one moment.

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
use crate::sys::{fiemap, fsinfo, page_cache, reflink};

/// Snapshots do not change: read-only for all who open the file later.
const MODE: u32 = 0o440;

#[derive(Debug)]
pub struct Source {
    /// The live disk.
    pub file: File,
    /// The folder of the disk.
    pub folder: Folder,
    /// The name of the disk in the folder.
    pub name: OsString,
}

#[derive(Debug)]
pub struct Target {
    pub folder: Folder,
    pub name: String,
}

/// The clones of a VM's disks, prepared.
pub struct Clones {
    clones: Vec<(Executor, Clone)>,
    key: u128,
}

/// The clones of a VM's disks, made.
pub struct Cloned {
    clones: Vec<(Executor, Clone)>,
    key: u128,
    /// From the start of the first clone to the end of the last.
    pub duration: Duration,
}

/// The index of the disk that failed, and the error with advice for an operator. Files may have been created: the
/// caller must undo.
pub type CloneError = (usize, io::Error);

enum Clone {
    /// By FICLONE, into an empty file.
    Ficlone { source: Source, target: File, inode: u64 },
    /// By OCFS2's own call, which creates the file. FICLONE on OCFS2 is newer than the kernels of the hosts, and leaves
    /// an empty file if it fails.
    Ocfs2 { source: Source, source_path: CString, target: Target, target_path: CString },
}

impl Clones {
    /// Prepares to clone each disk, in its repository, to the new file beside it. From now on, jobs on these files run
    /// one after the other, under `key`.
    ///
    /// Dirty pages of the disks are written here. Otherwise the clone would write them, and block the guest's writes
    /// meanwhile.
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

    /// The inodes of the new files, in the order of the disks. `None` for a file that the clone itself will create.
    pub fn inodes(&self) -> impl Iterator<Item = Option<NonZero<u64>>> {
        self.clones.iter().map(|(_, clone)| match clone {
            Clone::Ficlone { inode, .. } => NonZero::new(*inode),
            Clone::Ocfs2 { .. } => None,
        })
    }

    /// Returns a function that writes the disks' dirty pages again. If that fails for a disk, its clone writes them.
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

    /// Makes the clones of all snapshots: one thread each, started together. Nothing else is done in this step. An error
    /// has the index of the snapshot.
    pub fn make_all(snapshots: Vec<Self>) -> Result<Vec<Cloned>, (usize, CloneError)> {
        let disks = |(snapshot, clones): (usize, &'_ Self)| (0..clones.clones.len()).map(move |disk| (snapshot, disk));
        let places: Vec<(usize, usize)> = snapshots.iter().enumerate().flat_map(disks).collect();
        let all: Vec<_> = snapshots.iter().flat_map(|clones| &clones.clones).collect();
        let duration = clone_together(&all).map_err(|(index, error)| {
            let (snapshot, disk) = places[index];
            (snapshot, (disk, with_remedy(error)))
        })?;
        Ok(snapshots.into_iter().map(|Self { clones, key }| Cloned { clones, key, duration }).collect())
    }
}

impl Cloned {
    /// Writes the new files to stable storage, in the order of the disks. From now on their identities do not change.
    pub fn seal(self) -> Result<Vec<Sealed>, CloneError> {
        let key = self.key;
        let seal = |(index, (executor, clone)): (usize, (Executor, Clone))| {
            let sealed = run_exclusively(&executor, key, move |_| seal::sync_and_seal(&clone.finish()?));
            sealed.map_err(|error| (index, with_remedy(error)))
        };
        self.clones.into_iter().enumerate().map(seal).collect()
    }
}

/// Runs a change of a snapshot's files after those that are queued or running.
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

/// Clones one file, for a trial.
pub(super) fn clone_one(source: Source, target: Target) -> io::Result<File> {
    let clone = Clone::prepare(source, target)?;
    clone.make()?;
    clone.finish()
}

fn clone_together(clones: &[&(Executor, Clone)]) -> Result<Duration, CloneError> {
    // Whether all threads were started. Otherwise none may wait for the others.
    let complete: OnceLock<bool> = OnceLock::new();
    let barrier = Barrier::new(clones.len());
    let make = |(executor, clone): &(Executor, Clone)| {
        if !*complete.wait() {
            return Err(io::Error::other("the thread of another disk could not be started"));
        }
        barrier.wait();
        let started = Instant::now();
        // On this thread: nothing must delay the clone after its start.
        executor.run_here_as(JobKind::CHANGE, |_| clone.make())?;
        Ok((started, Instant::now()))
    };
    thread::scope(|scope| {
        let mut running = Vec::with_capacity(clones.len());
        for (index, clone) in clones.iter().copied().enumerate() {
            match thread::Builder::new().spawn_scoped(scope, || make(clone)) {
                Ok(thread) => running.push(thread),
                Err(error) => {
                    let _ = complete.set(false);
                    return Err((index, error));
                }
            }
        }
        let _ = complete.set(true);
        // All threads are awaited, even after one has failed.
        let ended: Vec<_> = running.into_iter().map(|thread| thread.join()).collect();
        let mut span: Option<(Instant, Instant)> = None;
        for (index, ended) in ended.into_iter().enumerate() {
            let ended = ended.unwrap_or_else(|_| Err(io::Error::other("the cloning thread panicked")));
            let (start, end) = ended.map_err(|error| (index, error))?;
            let (first, last) = span.unwrap_or((start, end));
            span = Some((first.min(start), last.max(end)));
        }
        Ok(span.map_or(Duration::ZERO, |(start, end)| end - start))
    })
}

impl Clone {
    fn prepare(source: Source, target: Target) -> io::Result<Self> {
        if fsinfo::name_of(&source.file)? == "ocfs2" {
            // Through the open folders: no one can replace a folder on the path.
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
                // The kernel opened the source by name. It must have been the file that is open here.
                source.check_not_replaced()?;
                let file = target.folder.open_file(&target.name)?;
                file.set_permissions(Permissions::from_mode(MODE))?;
                Ok(file)
            }
        }
    }
}

impl Source {
    /// The number of extents of the disk: the clone takes time for each.
    pub fn extent_count(file: &File) -> io::Result<u32> {
        fiemap::Reader::count(file.as_fd())
    }

    /// Checks that its name still belongs to the open file.
    fn check_not_replaced(&self) -> io::Result<()> {
        let (open, found) = (self.file.metadata()?, self.folder.stat(&self.name)?);
        if (open.dev(), open.ino()) == (found.dev(), found.ino()) {
            Ok(())
        } else {
            Err(io::Error::other("the disk was replaced by another file meanwhile; try again"))
        }
    }
}

/// Adds advice for an operator. Full and read-only file systems are reported by their errno, with advice of their own.
fn with_remedy(error: io::Error) -> io::Error {
    let remedy = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP | Errno::ENOTTY) => "the file system has no reflinks, or was made without them",
        Some(Errno::EXDEV) => "the disk and the repository's folder CoriolisSnapshots are on two file systems",
        Some(Errno::EPERM) => "the file is immutable or append-only; check it with lsattr",
        Some(Errno::EACCES) => "the service lacks the permission; run it as root",
        Some(Errno::EINVAL | Errno::ETXTBSY) => {
            "a file in use as swap space, or on a realtime device, cannot be cloned"
        }
        Some(Errno::EIO) => "the device fails; check the kernel log of the host",
        Some(Errno::EMLINK) => "too many files share these blocks; delete snapshots that are no longer needed",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}: {remedy}"))
}
