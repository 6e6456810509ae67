//! The files of one snapshot in one repository: made, sealed, removed.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::clone_support::SUPPORTED;
use super::seal::{self, Sealed};
use super::{SNAPSHOTS, manifest};
use crate::model::{Snapshot, SnapshotDisk, SnapshotFile, SnapshotId, VolumeId};
use crate::sys::folder::{EntryProblem, Folder, UnexpectedEntry};
use crate::sys::{fsinfo, volume};

/// Marks a folder whose snapshot is not finished: it is there before the first disk, and goes when the manifest
/// is in place in every repository of the snapshot.
pub const UNFINISHED_MARKER: &str = ".making";

/// A manifest that is being written: it gets its name when all of it is on stable storage.
const MANIFEST_TEMP: &str = ".manifest.json.new";

/// The folder `CoriolisSnapshots/<snapshot id>` of a repository that is open.
#[derive(Clone, Debug)]
pub struct SnapshotDir {
    root: Folder,
    name: String,
}

/// How a removal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Nothing of the snapshot is left there.
    Done,
    /// The repository is not mounted: its files may come back with it.
    RepositoryUnavailable,
}

/// Why something of a snapshot is still there.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The file system's own error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Something stands there that the service has not made. It stays as it is.
    #[error("{}", list(.0))]
    Foreign(Vec<ForeignEntry>),
}

/// A file, a folder or a link that the service has not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignEntry {
    /// Where it stands.
    pub path: PathBuf,
    /// What tells that it is not the service's.
    pub reason: String,
}

fn list(foreign: &[ForeignEntry]) -> String {
    /// Most of them that an answer names.
    const MAX_NAMED: usize = 10;
    let each = foreign.iter().take(MAX_NAMED).map(|ForeignEntry { path, reason }| format!("{path:?} {reason}"));
    let more = foreign.len().saturating_sub(MAX_NAMED);
    let more = (more > 0).then(|| format!("and {more} more"));
    each.chain(more).collect::<Vec<_>>().join("; ")
}

impl SnapshotDir {
    /// The folder of snapshot `id` in the repository `root`. It need not exist.
    pub fn new(root: &Folder, id: SnapshotId) -> Self {
        Self { root: root.clone(), name: id.to_string() }
    }

    /// Makes the folder, mode 0750, with the marker of a snapshot in the making, and opens it.
    ///
    /// # Errors
    /// The errno of mkdirat(2), `EEXIST` where the folder is there already; [`UnexpectedEntry`] where the folder of all
    /// snapshots is a link.
    pub fn create(&self) -> io::Result<Folder> {
        match self.root.create_folder(SNAPSHOTS, 0o750) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Always: who made it may have died before this.
        self.root.sync()?;
        let snapshots = self.root.folder(SNAPSHOTS)?;
        snapshots.create_folder(&self.name, 0o750)?;
        let folder = snapshots.folder(&self.name)?;
        folder.create_file(UNFINISHED_MARKER, 0o440)?;
        // Before the first disk: a power cut must not leave disks without the marker.
        folder.sync()?;
        Ok(folder)
    }

    /// Opens the folder.
    ///
    /// # Errors
    /// The errno of openat(2); [`UnexpectedEntry`] where it is a link or no folder.
    pub fn open(&self) -> io::Result<Folder> {
        self.root.folder(SNAPSHOTS)?.folder(&self.name)
    }

    /// Writes a cloned disk to stable storage; from then on its identity stands.
    ///
    /// # Errors
    /// The errno of fsync(2) or fstat(2).
    pub fn seal_disk(disk: &File) -> io::Result<Sealed> {
        disk.sync_all()?;
        seal::of(disk)
    }

    /// Writes the manifest, then the folder and its entry to stable storage. `exporter` says who writes it. The
    /// marker stays: see [`SnapshotDir::finish`].
    ///
    /// # Errors
    /// Those of writing a file, and of fsync(2).
    pub fn seal(&self, snapshot: &Snapshot, exporter: &str) -> io::Result<()> {
        let snapshots = self.root.folder(SNAPSHOTS)?;
        let folder = snapshots.folder(&self.name)?;
        let mut file = folder.create_file(MANIFEST_TEMP, 0o440)?;
        file.write_all(&manifest::encode(snapshot, exporter)?)?;
        file.sync_all()?;
        // Whoever reads it at any time reads all of it, or none.
        folder.rename(MANIFEST_TEMP, manifest::FILE_NAME)?;
        folder.sync()?;
        snapshots.sync()
    }

    /// Takes the marker away: the manifest is in place in every repository of the snapshot.
    ///
    /// # Errors
    /// Those of unlinkat(2) and fsync(2).
    pub fn finish(&self) -> io::Result<()> {
        let folder = self.open()?;
        ignore_missing(folder.unlink(UNFINISHED_MARKER))?;
        folder.sync()
    }

    /// Whether nothing of the snapshot is there, on the file system that the files of `disks` were made on. Where that
    /// is not recorded, nothing proves that it is gone.
    ///
    /// # Errors
    /// The errno of openat(2); [`UnexpectedEntry`] where something else has its name.
    pub fn is_gone<'a>(&self, disks: impl IntoIterator<Item = &'a SnapshotDisk>) -> io::Result<bool> {
        if !is_the_recorded_volume(&self.root, disks.into_iter().map(|disk| disk.volume))?.unwrap_or(false) {
            return Ok(false);
        }
        match self.open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            folder => folder.map(|_| false),
        }
    }

    /// Removes the snapshot's files, which are those of `disks`, and its folder, as far as they are there.
    ///
    /// A file is the service's own where it has the inode that is recorded for it; where none is (the service
    /// ended while it made the snapshot), see `looks_like_ours`. What has the name of a file of the snapshot, and
    /// is another one, stays and is an error. Files of other names stay too, with the folder.
    ///
    /// What is not there is gone only on the file system that the snapshot was made on. For a snapshot from before
    /// that was recorded, any file system that can clone will do, where it is mounted or has snapshots.
    ///
    /// # Errors
    /// [`RemoveError`]; all the rest has been tried all the same.
    pub fn remove<'a>(
        &self,
        files: impl IntoIterator<Item = &'a SnapshotFile, IntoIter: Clone>,
    ) -> Result<Removal, RemoveError> {
        let files = files.into_iter();
        if !is_the_volume(&self.root, files.clone().map(|file| file.volume))? {
            return Ok(Removal::RepositoryUnavailable);
        }
        let Some(snapshots) = self.open_own_folder(&self.root, OsStr::new(SNAPSHOTS))? else {
            return Ok(Removal::Done);
        };
        let Some(folder) = self.open_own_folder(&snapshots, OsStr::new(&self.name))? else {
            return Ok(Removal::Done);
        };
        let mut foreign = Vec::new();
        let mut first_error = None;
        for file in files {
            match remove_disk(&folder, file) {
                Ok(foreign_entry) => foreign.extend(foreign_entry),
                Err(error) => {
                    tracing::error!(folder = ?folder.path(), disk = %file.name, %error, "a snapshot's file cannot be removed");
                    first_error.get_or_insert(error);
                }
            }
        }
        if let Some(error) = first_error {
            return Err(error.into());
        }
        if !foreign.is_empty() {
            return Err(RemoveError::Foreign(foreign));
        }
        // The manifest goes last: what has one can still be told from litter. The inodes of these are recorded
        // nowhere, and they hold nothing that is not in the database.
        for name in [MANIFEST_TEMP, manifest::FILE_NAME, UNFINISHED_MARKER] {
            if let Some(foreign_entry) = remove_if(&folder, OsStr::new(name), |_| Ok(None))? {
                return Err(RemoveError::Foreign(vec![foreign_entry]));
            }
        }
        match ignore_missing(snapshots.remove_folder(&self.name)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                let left = folder.entries()?;
                tracing::warn!(folder = ?folder.path(), ?left, "left in place: it holds files that are not the service's");
                folder.sync()?;
            }
            outcome => {
                outcome?;
                snapshots.sync()?;
            }
        }
        Ok(Removal::Done)
    }

    /// The folder `name`; nothing where nothing has that name.
    fn open_own_folder(&self, parent: &Folder, name: &OsStr) -> Result<Option<Folder>, RemoveError> {
        match parent.folder(name) {
            Ok(folder) => Ok(Some(folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(match UnexpectedEntry::of(&error) {
                Some(what) => RemoveError::Foreign(vec![foreign_entry(parent, name, what.to_string())]),
                None => error.into(),
            }),
        }
    }
}

/// Whether a repository lies on the file system that the files of `disks` were made on; nothing where that is not
/// recorded.
fn is_the_recorded_volume(
    root: &Folder,
    mut volumes: impl Iterator<Item = Option<VolumeId>>,
) -> io::Result<Option<bool>> {
    match volumes.find_map(|volume| volume) {
        Some(VolumeId(recorded)) => Ok(Some(volume::id_of(root)? == Some(recorded))),
        None => Ok(None),
    }
}

/// The same. For a snapshot from before that was recorded, any file system that can clone will do, where it is
/// mounted there, or has snapshots: a folder that somebody has made at the mount point is none.
fn is_the_volume(root: &Folder, volumes: impl Iterator<Item = Option<VolumeId>>) -> io::Result<bool> {
    if let Some(is_it) = is_the_recorded_volume(root, volumes)? {
        return Ok(is_it);
    }
    Ok(SUPPORTED.contains(&fsinfo::name_of(root)?.as_str()) && is_in_use(root)?)
}

/// Whether something is mounted at a repository's folder, or the folder of snapshots is there.
fn is_in_use(root: &Folder) -> io::Result<bool> {
    if root.outer_device()? != root.metadata()?.dev() {
        return Ok(true);
    }
    match root.stat(OsStr::new(SNAPSHOTS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found.map(|_| true),
    }
}

fn foreign_entry(folder: &Folder, name: &OsStr, reason: impl Into<String>) -> ForeignEntry {
    ForeignEntry { path: folder.path().join(name), reason: reason.into() }
}

/// Removes the file of a disk, where it is there and is the one that the service made.
fn remove_disk(folder: &Folder, file: &SnapshotFile) -> io::Result<Option<ForeignEntry>> {
    remove_if(folder, OsStr::new(file.name.as_str()), |found| {
        Ok(match file.inode {
            None => (!looks_like_ours(found, folder)?).then_some("is no file that the service made"),
            Some(inode) => (found.ino() != inode.get()).then_some("is not the file that was snapshotted"),
        })
    })
}

/// Removes the regular file `name`, where it is there and `refusal` says nothing against it.
fn remove_if(
    folder: &Folder,
    name: &OsStr,
    refusal: impl FnOnce(&Metadata) -> io::Result<Option<&'static str>>,
) -> io::Result<Option<ForeignEntry>> {
    let found = match folder.stat(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    let reason = if found.is_symlink() {
        Some(EntryProblem::Link.to_string())
    } else if !found.is_file() {
        Some(EntryProblem::NotAFile.to_string())
    } else {
        refusal(&found)?.map(str::to_owned)
    };
    match reason {
        Some(reason) => Ok(Some(foreign_entry(folder, name, reason))),
        None => ignore_missing(folder.unlink(name)).map(|()| None),
    }
}

/// Whether a regular file, of a disk's name and in a snapshot's own folder, is like those that the service
/// makes: under no other name, and not to be written to.
///
/// That has to do where a crash has lost the inodes of a snapshot in the making. It reaches nothing that is
/// anybody else's: the folder was made under a name that nobody could know before, and no link leads out of
/// it. Who puts a file there on purpose may remove that file himself.
fn looks_like_ours(found: &Metadata, folder: &Folder) -> io::Result<bool> {
    // A clone on OCFS2 has the mode of its disk until it is sealed.
    let is_read_only = found.mode() & 0o222 == 0 || fsinfo::name_of(folder)? == "ocfs2";
    Ok(found.nlink() == 1 && is_read_only)
}

/// What is gone already need not be removed.
fn ignore_missing(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "snapshot_dir/tests.rs"]
mod tests;
