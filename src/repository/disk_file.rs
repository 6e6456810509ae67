//! A disk of a snapshot, open, and proven to be the file that was snapshotted.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use super::executor::{Access, Executor, JobKind, Unresponsive};
use super::{Repository, SnapshotDir, seal};
use crate::model::{DiskName, FileIdentity, SnapshotDisk, SnapshotId};
use crate::sys::folder::{Folder, UnexpectedEntry};
use crate::sys::{fsinfo, page_cache, sparse};

/// Why a snapshot's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not there.
    #[error("the snapshot's file is missing")]
    Missing,
    /// All of the snapshot is gone, on the file system that it was made on.
    #[error("the snapshot was removed by another service, or by hand")]
    Gone,
    /// The repository is not there, and with it nothing of the snapshot: both may come back.
    #[error("the repository {0}")]
    RepositoryUnavailable(String),
    /// It is another file, or was changed.
    #[error("the snapshot's file is not the one that was taken, or was changed since")]
    Replaced,
    /// Its change time is another one, and nothing else that is recorded of it, and its content could not be proven.
    #[error("the snapshot's file was touched since it was taken, and its content is not proven")]
    Unproven,
    /// Its change time is another one, and nothing else that is recorded of it: its content may be proven.
    #[error("the snapshot's file was touched, and its content is being checked")]
    Touched {
        /// The change time, nanoseconds since 1970.
        changed_ns: i128,
    },
    /// The file system's own error.
    #[error("the snapshot's file cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl From<Unresponsive> for OpenError {
    fn from(unresponsive: Unresponsive) -> Self {
        Self::RepositoryUnavailable(unresponsive.to_string())
    }
}

/// An open disk of a snapshot.
///
/// While it is open its blocks stay allocated, even if the snapshot is deleted.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    executor: Executor,
    recorded: FileIdentity,
    /// Time of the last change of content, when it was opened.
    modified: (i64, i64),
}

/// The identity of the file behind `metadata`.
pub(super) fn identity(metadata: &Metadata) -> FileIdentity {
    FileIdentity {
        inode: metadata.ino(),
        size: metadata.len(),
        changed_ns: i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()),
    }
}

fn open_below(root: &Folder, id: SnapshotId, name: &DiskName) -> io::Result<File> {
    SnapshotDir::new(root, id).open()?.open_file(name.as_str())
}

/// Why the file of a disk is not there.
fn missing(root: &Folder, id: SnapshotId, disk: &SnapshotDisk) -> OpenError {
    let dir = SnapshotDir::new(root, id);
    match (dir.is_gone([disk]), dir.open()) {
        (Ok(true), _) => OpenError::Gone,
        (Ok(false), Ok(_)) => OpenError::Missing,
        (Ok(false), Err(_)) => OpenError::RepositoryUnavailable(
            "is another file system than the one that the snapshot was made on".to_owned(),
        ),
        (Err(error), _) => error.into(),
    }
}

impl DiskFile {
    /// Opens the file of `disk` and checks that it is the one that was snapshotted. It may have the change time
    /// `proven`, for which its content was proven.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        access: &Access<'_>,
        repository: &Repository,
        (id, disk): (SnapshotId, &SnapshotDisk),
        proven: Option<i128>,
    ) -> Result<Self, OpenError> {
        let root = repository.open(access).map_err(|absent| OpenError::RepositoryUnavailable(absent.to_string()))?;
        let file = open_below(&root, id, &disk.name).map_err(|error| match UnexpectedEntry::of(&error) {
            // A link, a socket, a folder: none of which the service makes.
            Some(_) => OpenError::Replaced,
            None if error.kind() == io::ErrorKind::NotFound => match repository.mounted_now(access) {
                Ok(_) => missing(&root, id, disk),
                Err(absent) => OpenError::RepositoryUnavailable(absent.to_string()),
            },
            None => OpenError::Io(error),
        })?;
        let metadata = file.metadata()?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let found = identity(&metadata);
        if found != disk.identity && !(seal::is_touched_only(&metadata, disk) && proven == Some(found.changed_ns)) {
            return Err(match seal::is_touched_only(&metadata, disk) {
                true => OpenError::Touched { changed_ns: found.changed_ns },
                false => OpenError::Replaced,
            });
        }
        Ok(Self { file, executor: repository.executor().clone(), recorded: found, modified })
    }

    /// Size of the disk, bytes.
    pub fn size(&self) -> u64 {
        self.recorded.size
    }

    /// Whether its file system copies much more than is written, so that maps list too much: OCFS2
    /// copies about 1 MiB for a write of 4 KiB.
    ///
    /// # Errors
    /// [`Unresponsive`].
    pub fn copies_more_than_was_written(self: &Arc<Self>) -> Result<bool, Unresponsive> {
        let file = Arc::clone(self);
        self.executor.run(JobKind::SHORT, move |_| fsinfo::name_of(&file.file).is_ok_and(|name| name == "ocfs2"))
    }

    /// What does the work on it.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Number of the device that the file lies on, now.
    pub(super) fn device(&self) -> Result<u64, OpenError> {
        Ok(self.file.metadata()?.dev())
    }

    /// Checks once more that the file is the one that was snapshotted.
    ///
    /// # Errors
    /// [`OpenError::Touched`] where its change time alone is another one since it was opened;
    /// [`OpenError::Replaced`] where more is, or it was deleted.
    pub(super) fn verify(&self) -> Result<(), OpenError> {
        let metadata = self.file.metadata()?;
        if identity(&metadata) == self.recorded { Ok(()) } else { Err(self.difference(&metadata)) }
    }

    /// Why the file is not as it was opened.
    fn difference(&self, metadata: &Metadata) -> OpenError {
        let changed_ns = identity(metadata).changed_ns;
        let is_touched_only = identity(metadata) == FileIdentity { changed_ns, ..self.recorded }
            && (metadata.mtime(), metadata.mtime_nsec()) == self.modified
            && metadata.nlink() > 0;
        if is_touched_only { OpenError::Touched { changed_ns } } else { OpenError::Replaced }
    }

    /// Checks that the bytes read so far are those of the snapshot: no one has written to the file
    /// since it was opened. Its deletion is no such change.
    ///
    /// # Errors
    /// [`OpenError::Replaced`] where somebody has; [`OpenError::Touched`] where that cannot be told.
    pub fn verify_content(&self, _: &Access<'_>) -> Result<(), OpenError> {
        let metadata = self.file.metadata()?;
        let is_touched = identity(&metadata).changed_ns != self.recorded.changed_ns;
        // A write whose modification time was set back is a touch. So is the removal of the file's last name.
        let same = metadata.len() == self.size()
            && (metadata.mtime(), metadata.mtime_nsec()) == self.modified
            && (!is_touched || metadata.nlink() == 0);
        if same { Ok(()) } else { Err(self.difference(&metadata)) }
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// The errno of pread(2); `UnexpectedEof` where the file is shorter than it was.
    pub(super) fn read_exact_at(&self, _: &Access<'_>, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// The same, where the page cache has all of it; says whether it had.
    ///
    /// # Errors
    /// The errno of preadv2(2): `EOPNOTSUPP` and `ENOSYS` of those that cannot tell.
    pub(super) fn read_if_cached(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        page_cache::read(self.file.as_fd(), buffer, offset)
    }

    /// Whether the page cache holds the bytes around `offset`. Where that cannot be known, it does.
    pub(super) fn is_cached(&self, offset: u64) -> bool {
        page_cache::is_resident(self.file.as_fd(), offset).unwrap_or(true)
    }

    /// Whether the kernel is to read more than is asked for.
    pub(super) fn set_read_ahead(&self, yes: bool) {
        // Where it does not listen, reading is no less right.
        let _ = page_cache::read_ahead(&self.file, yes);
    }

    /// Has the page cache let go of `range`.
    pub(super) fn drop_cached(&self, range: &Range<u64>) {
        // Where it does not, reading is no less right.
        let _ = page_cache::drop_cached(&self.file, range);
    }

    /// Where the run that starts at `offset` ends, and whether it holds data. The end is never
    /// past `limit`, which is within the file and past `offset`.
    ///
    /// # Errors
    /// The errno of lseek(2).
    pub fn run_at(&self, _: &Access<'_>, offset: u64, limit: u64) -> io::Result<Run> {
        let data = sparse::next_data(&self.file, offset)?;
        match data {
            None => Ok(Run { end: limit, is_data: false }),
            Some(start) if start > offset => Ok(Run { end: start.min(limit), is_data: false }),
            Some(_) => {
                let end = sparse::next_hole(&self.file, offset)?.unwrap_or(limit);
                Ok(Run { end: end.min(limit), is_data: true })
            }
        }
    }
}

/// A part of a file that holds data throughout, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Offset after its last byte.
    pub end: u64,
    /// Whether there is anything to read; zeros otherwise.
    pub is_data: bool,
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_touch_while_it_is_open_is_no_change_of_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        let open = || {
            fs::write(&path, "content").unwrap();
            let file = File::open(&path).unwrap();
            let metadata = file.metadata().unwrap();
            let modified = (metadata.mtime(), metadata.mtime_nsec());
            DiskFile { file, executor: Executor::of(dir.path()), recorded: identity(&metadata), modified }
        };
        // Change times have the resolution of the kernel's tick: it is done until it is seen.
        let changed = |file: &DiskFile, change: &dyn Fn()| loop {
            change();
            if let Err(error) = file.verify() {
                return error;
            }
        };
        let touch = || fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(changed(&open(), &touch), OpenError::Touched { .. }));
        let write = || fs::write(&path, "CONTENT").unwrap();
        assert!(matches!(changed(&open(), &write), OpenError::Replaced));
        let remove = || drop(fs::remove_file(&path));
        assert!(matches!(changed(&open(), &remove), OpenError::Replaced));
    }
}
