//! The files of one snapshot in one repository: how they are made, sealed and removed.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::{SNAPSHOTS, SUPPORTED_FILE_SYSTEMS, leases, manifest};
use crate::model::{Described, SnapshotDisk, SnapshotFile, SnapshotId, VolumeId};
use crate::sys::folder::{EntryProblem, Folder, UnexpectedEntry};
use crate::sys::{fsinfo, volume};

/// Marks the folder of an unfinished snapshot. It is created before the first disk, and removed when every repository
/// of the snapshot has the manifest.
pub const UNFINISHED_MARKER: &str = ".making";

/// A manifest that is being written. It is renamed when it is on stable storage.
const MANIFEST_TEMP: &str = ".manifest.json.new";

/// The folder `CoriolisSnapshots/<snapshot id>` of an open repository.
#[derive(Clone, Debug)]
pub struct SnapshotDir {
    root: Folder,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Nothing of the snapshot is left there.
    Done,
    /// The repository is not mounted. The files may come back with it.
    RepositoryUnavailable,
}

/// Why something of a snapshot is still there.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Entries that the service did not make. They are left untouched.
    #[error("{}", list(.0))]
    Foreign(Vec<ForeignEntry>),
}

/// A file, folder or link that the service did not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignEntry {
    pub path: PathBuf,
    /// How it was recognized.
    pub reason: String,
}

fn list(foreign: &[ForeignEntry]) -> String {
    /// The most entries that an error message names.
    const MAX_NAMED: usize = 10;
    let each = foreign.iter().take(MAX_NAMED).map(|ForeignEntry { path, reason }| format!("{path:?} {reason}"));
    let more = foreign.len().saturating_sub(MAX_NAMED);
    let more = (more > 0).then(|| format!("and {more} more"));
    each.chain(more).collect::<Vec<_>>().join("; ")
}

impl SnapshotDir {
    /// The folder need not exist.
    pub fn new(root: &Folder, id: SnapshotId) -> Self {
        Self { root: root.clone(), name: id.to_string() }
    }

    /// Creates the folder, mode 0750, with the marker of an unfinished snapshot, and opens it.
    ///
    /// # Errors
    /// `EEXIST` if the folder exists; [`UnexpectedEntry`] if the folder of all snapshots is a link; the errno of
    /// mkdirat(2).
    pub fn create(&self) -> io::Result<Folder> {
        match self.root.create_folder(SNAPSHOTS, 0o750) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Even if it exists: its creator may have died before this.
        self.root.sync()?;
        let snapshots = self.root.folder(SNAPSHOTS)?;
        snapshots.create_folder(&self.name, 0o750)?;
        let folder = snapshots.folder(&self.name)?;
        folder.create_file(UNFINISHED_MARKER, 0o440)?;
        // Before the first disk: a power cut must not leave disks without the marker.
        folder.sync()?;
        Ok(folder)
    }

    /// # Errors
    /// [`UnexpectedEntry`] if it is a link or not a folder; the errno of openat(2).
    pub fn open(&self) -> io::Result<Folder> {
        self.root.folder(SNAPSHOTS)?.folder(&self.name)
    }

    /// Writes the manifest of the snapshot, then the folder and its entry, to stable storage. `exporter` is the id of
    /// this service. The marker stays: see [`SnapshotDir::finish`].
    pub fn seal(&self, described: &Described, exporter: &str) -> io::Result<()> {
        let snapshots = self.root.folder(SNAPSHOTS)?;
        let folder = snapshots.folder(&self.name)?;
        let mut file = folder.create_file(MANIFEST_TEMP, 0o440)?;
        file.write_all(&manifest::encode(described, exporter)?)?;
        file.sync_all()?;
        // Readers see the whole manifest or none.
        folder.rename(MANIFEST_TEMP, manifest::FILE_NAME)?;
        folder.sync()?;
        snapshots.sync()
    }

    /// Removes the marker. Every repository of the snapshot has the manifest now.
    pub fn finish(&self) -> io::Result<()> {
        let snapshots = self.root.folder(SNAPSHOTS)?;
        let folder = snapshots.folder(&self.name)?;
        ignore_missing(folder.unlink(UNFINISHED_MARKER))?;
        folder.sync()?;
        // Other exporters then look at the folder again, see `listing`. Without this they do so later.
        let _ = snapshots.touch();
        Ok(())
    }

    /// Whether the snapshot is gone from the file system that its `disks` were made on. If that file system is not
    /// recorded, the answer is no.
    ///
    /// # Errors
    /// [`UnexpectedEntry`] if something else has its name; the errno of openat(2).
    pub fn is_gone<'a>(&self, disks: impl IntoIterator<Item = &'a SnapshotDisk>) -> io::Result<bool> {
        if !is_the_recorded_volume(&self.root, disks.into_iter().map(|disk| disk.volume))?.unwrap_or(false) {
            return Ok(false);
        }
        match self.open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            folder => folder.map(|_| false),
        }
    }

    /// Removes the snapshot's `files` and its folder, as far as they exist.
    ///
    /// A file is removed if it has the recorded inode. If none is recorded, because the service stopped while it made
    /// the snapshot, see `looks_like_ours`. Another file with the name of a snapshot's file stays, and is an error.
    /// Files with other names stay too, and with them the folder.
    ///
    /// A missing file counts as removed only on the file system that the snapshot was made on. For a snapshot from
    /// before that was recorded, any file system that supports clones will do, if it is mounted or has snapshots.
    ///
    /// # Errors
    /// After a [`RemoveError`] everything else has been tried.
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
        // First: later, nothing would lead to them. A lease that stays harms nothing.
        if let Some(Err(error)) = self.name.parse().ok().map(|id| leases::remove_all(&self.root, id)) {
            tracing::warn!(snapshot = self.name, %error, "cannot remove the leases on the snapshot");
        }
        let mut foreign = Vec::new();
        let mut first_error = None;
        for file in files {
            match remove_disk(&folder, file) {
                Ok(foreign_entry) => foreign.extend(foreign_entry),
                Err(error) => {
                    tracing::error!(folder = ?folder.path(), disk = %file.name, %error, "cannot remove a snapshot's file");
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
        // The manifest goes last: as long as it exists, the folder is recognizable. The inodes of these files are not
        // recorded, and all that they hold is in the database.
        for name in [MANIFEST_TEMP, manifest::FILE_NAME, UNFINISHED_MARKER] {
            if let Some(foreign_entry) = remove_if(&folder, OsStr::new(name), |_| Ok(None))? {
                return Err(RemoveError::Foreign(vec![foreign_entry]));
            }
        }
        match ignore_missing(snapshots.remove_folder(&self.name)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                let left = folder.entries()?;
                tracing::warn!(folder = ?folder.path(), ?left, "folder left in place: it has files that the service did not make");
                folder.sync()?;
            }
            outcome => {
                outcome?;
                snapshots.sync()?;
            }
        }
        Ok(Removal::Done)
    }

    /// Opens the folder `name`, if it exists.
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

/// Whether the repository is on one of the recorded `volumes`. `None` if none is recorded.
fn is_the_recorded_volume(
    root: &Folder,
    mut volumes: impl Iterator<Item = Option<VolumeId>>,
) -> io::Result<Option<bool>> {
    match volumes.find_map(|volume| volume) {
        Some(VolumeId(recorded)) => Ok(Some(volume::id_of(root)? == Some(recorded))),
        None => Ok(None),
    }
}

/// As [`is_the_recorded_volume`]. If none is recorded, any file system that supports clones will do, if it is mounted
/// or has snapshots. A folder that someone created at the mount point does not count.
fn is_the_volume(root: &Folder, volumes: impl Iterator<Item = Option<VolumeId>>) -> io::Result<bool> {
    if let Some(is_it) = is_the_recorded_volume(root, volumes)? {
        return Ok(is_it);
    }
    Ok(SUPPORTED_FILE_SYSTEMS.contains(&fsinfo::name_of(root)?.as_str()) && is_in_use(root)?)
}

/// Whether something is mounted at the repository's folder, or the folder of snapshots exists.
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

/// Removes the file of a disk, if it exists and the service made it.
fn remove_disk(folder: &Folder, file: &SnapshotFile) -> io::Result<Option<ForeignEntry>> {
    remove_if(folder, OsStr::new(file.name.as_str()), |found| {
        Ok(match file.inode {
            None => (!looks_like_ours(found, folder)?).then_some("was not made by the service"),
            Some(inode) => (found.ino() != inode.get()).then_some("is not the file that was snapshotted"),
        })
    })
}

/// Removes the regular file `name`, if it exists and `refusal` returns no reason against it.
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

/// Whether a regular file with a disk's name in a snapshot's own folder is like those that the service makes: with one
/// link, and read-only.
///
/// After a crash the inodes of an unfinished snapshot may be unknown, so only this check is possible. It is safe: no one
/// knew the folder's random name before, and no link leads out of the folder.
fn looks_like_ours(found: &Metadata, folder: &Folder) -> io::Result<bool> {
    // On OCFS2 a clone has the mode of its disk until it is sealed.
    let is_read_only = found.mode() & 0o222 == 0 || fsinfo::name_of(folder)? == "ocfs2";
    Ok(found.nlink() == 1 && is_read_only)
}

fn ignore_missing(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "snapshot_dir/tests.rs"]
mod tests;
