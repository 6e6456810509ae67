//! A disk of a snapshot: an open file that is verified to be the snapshotted one.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use super::Repository;
use super::executor::{Access, Executor, JobKind, Unresponsive};
use super::file_identity::{identity, is_touched_only};
use super::snapshot_dir::SnapshotDir;
use crate::model::{DiskName, FileIdentity, SnapshotDisk, SnapshotId};
use crate::sys::folder::{Folder, UnexpectedEntry};
use crate::sys::{fsinfo, page_cache, sparse};

/// Why a snapshot's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the snapshot's file is missing")]
    Missing,
    /// The snapshot is gone from the file system that it was made on.
    #[error("another exporter or an administrator removed the snapshot")]
    Gone,
    /// The repository is not available, and may come back with the snapshot.
    #[error("the repository {0}")]
    RepositoryUnavailable(String),
    /// It is another file, or its content or inode was changed.
    #[error("the snapshot's file is not the one that was taken, or was changed since")]
    Replaced,
    /// Only its ctime differs from the record, and its content could not be proven.
    #[error("the snapshot's file was touched since it was taken, and its content is not proven")]
    Unproven,
    /// Only its ctime differs from the record. Its content may still be proven.
    #[error("the snapshot's file was touched, and its content is being verified")]
    Touched {
        /// The current ctime, nanoseconds since 1970.
        changed_ns: i128,
    },
    #[error("the snapshot's file cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl From<Unresponsive> for OpenError {
    fn from(unresponsive: Unresponsive) -> Self {
        Self::RepositoryUnavailable(unresponsive.to_string())
    }
}

/// The open file of a snapshot's disk.
///
/// While it is open, its blocks stay allocated, even if the snapshot is deleted.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    executor: Executor,
    recorded: FileIdentity,
    /// The mtime when it was opened.
    modified: (i64, i64),
}

fn open_below(root: &Folder, id: SnapshotId, name: &DiskName) -> io::Result<File> {
    SnapshotDir::new(root, id).open()?.open_file(name.as_str())
}

/// Why the file of a disk does not exist.
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
    /// Opens the file of `disk` and checks that it is the snapshotted one. `proven` is a ctime for which its content
    /// was proven: the file may have it instead of the recorded one.
    pub fn open(
        access: &Access<'_>,
        repository: &Repository,
        (id, disk): (SnapshotId, &SnapshotDisk),
        proven: Option<i128>,
    ) -> Result<Self, OpenError> {
        let root = repository.open(access).map_err(|reason| OpenError::RepositoryUnavailable(reason.to_string()))?;
        let file = open_below(&root, id, &disk.name).map_err(|error| match UnexpectedEntry::of(&error) {
            // The service makes no links, sockets or folders there.
            Some(_) => OpenError::Replaced,
            None if error.kind() == io::ErrorKind::NotFound => match repository.mounted_now(access) {
                Ok(_) => missing(&root, id, disk),
                Err(reason) => OpenError::RepositoryUnavailable(reason.to_string()),
            },
            None => OpenError::Io(error),
        })?;
        let metadata = file.metadata()?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let found = identity(&metadata);
        if found != disk.identity && !(is_touched_only(&metadata, disk) && proven == Some(found.changed_ns)) {
            return Err(match is_touched_only(&metadata, disk) {
                true => OpenError::Touched { changed_ns: found.changed_ns },
                false => OpenError::Replaced,
            });
        }
        Ok(Self { file, executor: repository.executor().clone(), recorded: found, modified })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.recorded.size
    }

    /// Whether its file system copies much more than was written, so that its maps list too much. OCFS2 copies about 1
    /// MiB for a write of 4 KiB.
    pub fn copies_more_than_was_written(self: &Arc<Self>) -> Result<bool, Unresponsive> {
        let file = Arc::clone(self);
        self.executor.run(JobKind::SHORT, move |_| fsinfo::name_of(&file.file).is_ok_and(|name| name == "ocfs2"))
    }

    /// The threads that access it.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The device that holds the file now.
    pub(super) fn device(&self) -> Result<u64, OpenError> {
        Ok(self.file.metadata()?.dev())
    }

    /// Checks that the file has not changed since it was opened.
    ///
    /// # Errors
    /// [`OpenError::Touched`] if only its ctime changed; [`OpenError::Replaced`] if more did, or the file was deleted.
    pub(super) fn verify(&self) -> Result<(), OpenError> {
        let metadata = self.file.metadata()?;
        if identity(&metadata) == self.recorded { Ok(()) } else { Err(self.difference(&metadata)) }
    }

    fn difference(&self, metadata: &Metadata) -> OpenError {
        let changed_ns = identity(metadata).changed_ns;
        let is_touched_only = identity(metadata) == FileIdentity { changed_ns, ..self.recorded }
            && (metadata.mtime(), metadata.mtime_nsec()) == self.modified
            && metadata.nlink() > 0;
        if is_touched_only { OpenError::Touched { changed_ns } } else { OpenError::Replaced }
    }

    /// Checks that no one has written to the file since it was opened, so the bytes read so far are the snapshot's. A
    /// deletion is allowed.
    ///
    /// # Errors
    /// [`OpenError::Replaced`] if it was written to; [`OpenError::Touched`] if that cannot be decided.
    pub fn verify_content(&self, _: &Access<'_>) -> Result<(), OpenError> {
        let metadata = self.file.metadata()?;
        let is_touched = identity(&metadata).changed_ns != self.recorded.changed_ns;
        // A write whose mtime was set back looks like a touch. So does the removal of the file's last name.
        let same = metadata.len() == self.size()
            && (metadata.mtime(), metadata.mtime_nsec()) == self.modified
            && (!is_touched || metadata.nlink() == 0);
        if same { Ok(()) } else { Err(self.difference(&metadata)) }
    }

    /// # Errors
    /// The errno of pread(2); `UnexpectedEof` if the file is shorter than it was.
    pub(super) fn read_exact_at(&self, _: &Access<'_>, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Fills `buffer` if the page cache holds all of it. Returns whether it did.
    ///
    /// # Errors
    /// `EOPNOTSUPP` and `ENOSYS` if the kernel cannot tell; the errno of preadv2(2).
    pub(super) fn read_if_cached(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        page_cache::read(self.file.as_fd(), buffer, offset)
    }

    /// Whether the page cache holds the bytes around `offset`. True if that cannot be known.
    pub(super) fn is_cached(&self, offset: u64) -> bool {
        page_cache::is_resident(self.file.as_fd(), offset).unwrap_or(true)
    }

    /// Switches readahead on or off.
    pub(super) fn set_read_ahead(&self, yes: bool) {
        // Only advice: reading works without it.
        let _ = page_cache::read_ahead(&self.file, yes);
    }

    pub(super) fn drop_cached(&self, range: &Range<u64>) {
        // Only advice: reading works without it.
        let _ = page_cache::drop_cached(&self.file, range);
    }

    /// The run at `offset`. It is cut at `limit`, which must be past `offset` and within the file.
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

/// A part of a file that is either all data or all hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub end: u64,
    /// False: it reads as zeros.
    pub is_data: bool,
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_touch_of_an_open_file_is_told_from_a_change_of_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        let open = || {
            fs::write(&path, "content").unwrap();
            let file = File::open(&path).unwrap();
            let metadata = file.metadata().unwrap();
            let modified = (metadata.mtime(), metadata.mtime_nsec());
            DiskFile { file, executor: Executor::of(dir.path()), recorded: identity(&metadata), modified }
        };
        // Times have the resolution of the kernel's tick, so the change is repeated until it shows.
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
