//! The files of one snapshot in one repository: made, sealed, removed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::disk_file::identity;
use super::{Repository, manifest};
use crate::model::{DiskName, FileIdentity, Snapshot, SnapshotId};

/// The folder `<repository>/CoriolisSnapshots/<snapshot id>`.
#[derive(Clone, Debug)]
pub struct SnapshotDir {
    repository: Repository,
    path: PathBuf,
}

/// How a removal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Nothing of the snapshot is left there.
    Done,
    /// The repository is not mounted: its files may come back with it.
    RepositoryAbsent,
}

impl SnapshotDir {
    /// The folder of snapshot `id` in `repository`, which need not exist.
    pub fn new(repository: &Repository, id: SnapshotId) -> Self {
        Self { path: repository.snapshots().join(id.to_string()), repository: repository.clone() }
    }

    /// Path of the file of disk `name`.
    pub fn disk(&self, name: &DiskName) -> PathBuf {
        self.path.join(name.as_str())
    }

    /// Makes the folder, mode 0750.
    ///
    /// # Errors
    /// The errno of mkdir(2); `EEXIST` where the folder is there already.
    pub fn create(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.mode(0o750);
        let parent = self.repository.snapshots();
        match builder.create(&parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Always: who made it may have died before this.
        sync_folder(self.repository.mount_point())?;
        // A link here would put snapshots anywhere.
        if !fs::symlink_metadata(&parent)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "CoriolisSnapshots is not a folder"));
        }
        builder.create(&self.path)
    }

    /// Writes a cloned disk to stable storage; from then on its identity stands.
    ///
    /// # Errors
    /// The errno of fsync(2) or fstat(2).
    pub fn seal_disk(disk: &File) -> io::Result<FileIdentity> {
        disk.sync_all()?;
        Ok(identity(&disk.metadata()?))
    }

    /// Writes the manifest, then the folder and its entry to stable storage.
    ///
    /// # Errors
    /// Those of writing a file, and of fsync(2).
    pub fn seal(&self, snapshot: &Snapshot) -> io::Result<()> {
        let path = self.path.join(manifest::FILE_NAME);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o440).open(path)?;
        file.write_all(&manifest::encode(snapshot)?)?;
        file.sync_all()?;
        sync_folder(&self.path)?;
        sync_folder(&self.repository.snapshots())
    }

    /// Removes the snapshot's files and its folder, as far as they are there. Files that are not
    /// of the snapshot stay, and so does the folder then.
    ///
    /// # Errors
    /// The first error met; all the rest has been tried all the same.
    pub fn remove<'a>(&self, disks: impl Iterator<Item = &'a DiskName>) -> io::Result<Removal> {
        // A link there would lead out of the repository, where nothing is ours to remove.
        if !fs::symlink_metadata(self.repository.snapshots()).is_ok_and(|metadata| metadata.is_dir()) {
            // Removed by hand, or not mounted? What a repository always has tells.
            let is_there = self.repository.virtual_machines().is_dir() || self.repository.virtual_disks().is_dir();
            return Ok(if is_there { Removal::Done } else { Removal::RepositoryAbsent });
        }
        // The manifest goes last: what has one can still be told from litter.
        let files = disks.map(|name| self.disk(name)).chain([self.path.join(manifest::FILE_NAME)]);
        let mut first_error = None;
        for file in files {
            if let Err(error) = unless_gone(fs::remove_file(&file)) {
                tracing::error!(file = %file.display(), %error, "a snapshot's file cannot be removed");
                first_error.get_or_insert(error);
            }
        }
        match first_error {
            Some(error) => Err(error),
            None => self.remove_folder(),
        }
    }

    fn remove_folder(&self) -> io::Result<Removal> {
        match unless_gone(fs::remove_dir(&self.path)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                tracing::warn!(folder = %self.path.display(), "left in place: it holds files that are not ours");
                sync_folder(&self.path)?;
            }
            Err(error) => return Err(error),
            Ok(()) => sync_folder(&self.repository.snapshots())?,
        }
        Ok(Removal::Done)
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// What is gone already need not be removed.
fn unless_gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        other => other,
    }
}
