//! What lies in a repository's folder of snapshots, whoever made it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::manifest;
use super::{Repository, SnapshotDir};
use crate::model::{DiskName, FileIdentity, Snapshot, SnapshotId};

/// A folder that has a snapshot's name.
#[derive(Debug)]
pub struct Folder {
    /// The snapshot that it is of.
    pub id: SnapshotId,
    /// The folder.
    pub path: PathBuf,
    /// Its disks, sorted by name.
    pub files: Vec<DiskName>,
    /// What its manifest says, if it has one.
    pub manifest: Option<Result<Snapshot, String>>,
    /// When its files were made, as far as it can be told: the earliest time that they show.
    pub made_at: jiff::Timestamp,
    /// When anything in it was changed last.
    pub touched_at: jiff::Timestamp,
}

/// Something that no snapshot's folder is like, and why.
#[derive(Debug)]
pub struct Odd {
    /// The folder or file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Looks through the folder of snapshots of `repository`, and changes nothing.
///
/// # Errors
/// Where it cannot be listed. A repository without one has no snapshots.
pub fn survey(repository: &Repository) -> io::Result<(Vec<Folder>, Vec<Odd>)> {
    let (mut folders, mut odd) = (Vec::new(), Vec::new());
    let path = repository.snapshots();
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((folders, odd)),
        metadata => {
            if !metadata?.is_dir() {
                return Err(io::Error::other(format!("{} is no folder", path.display())));
            }
        }
    }
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        match look_into(&path) {
            Ok(folder) => folders.push(folder),
            Err(reason) => odd.push(Odd { path, reason }),
        }
    }
    folders.sort_by_key(|folder| folder.id.as_u128());
    odd.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((folders, odd))
}

fn look_into(path: &Path) -> Result<Folder, String> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let id = name.parse().map_err(|_| "its name is no snapshot's id".to_owned())?;
    let metadata = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_dir() {
        return Err("is not a folder".to_owned());
    }
    let (mut files, mut manifest) = (Vec::new(), None);
    // Of a file the time of its inode's change, which no program can set; a folder changes with each
    // file that is made in it.
    let (mut made_at, mut touched_at) = (modified(&metadata), changed(&metadata));
    for entry in fs::read_dir(path).map_err(|error| error.to_string())? {
        let entry = entry.map_err(|error| error.to_string())?;
        if entry.file_name() == manifest::FILE_NAME {
            let read = read_manifest(&entry.path()).map_err(|error| error.to_string());
            manifest = Some(read.and_then(|text| manifest::decode(&text).map_err(|error| error.to_string())));
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let metadata = entry.metadata().map_err(|error| error.to_string())?;
        if !metadata.is_file() {
            return Err(format!("{name} in it is no regular file"));
        }
        if metadata.nlink() != 1 {
            return Err(format!("{name} in it has another name elsewhere, under which it can be written to"));
        }
        if metadata.len() == 0 {
            return Err(format!("{name} in it is empty, as a clone that failed leaves it"));
        }
        made_at = made_at.min(changed(&metadata));
        touched_at = touched_at.max(changed(&metadata));
        files.push(name.parse().map_err(|_| format!("{name:?} in it is no name of a disk"))?);
    }
    if files.is_empty() {
        return Err("holds no disk".to_owned());
    }
    files.sort();
    Ok(Folder { id, path: path.to_owned(), files, manifest, made_at, touched_at })
}

/// Opens a file that anybody may have put there: a regular one, under its only name.
fn open_found(path: &Path) -> io::Result<File> {
    // Non-blocking: opening a pipe must not hang.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.nlink() == 1 {
        Ok(file)
    } else {
        Err(io::Error::other("is no regular file under its only name"))
    }
}

fn read_manifest(path: &Path) -> io::Result<Vec<u8>> {
    /// Bytes; a manifest has a few hundred a disk.
    const LIMIT: u64 = 1 << 20;
    let mut text = Vec::new();
    open_found(path)?.take(LIMIT).read_to_end(&mut text)?;
    Ok(text)
}

fn timestamp(seconds: i64, nanoseconds: i64) -> jiff::Timestamp {
    let nanoseconds = i32::try_from(nanoseconds).unwrap_or_default();
    jiff::Timestamp::new(seconds, nanoseconds).unwrap_or_default()
}

fn changed(metadata: &Metadata) -> jiff::Timestamp {
    timestamp(metadata.ctime(), metadata.ctime_nsec())
}

fn modified(metadata: &Metadata) -> jiff::Timestamp {
    timestamp(metadata.mtime(), metadata.mtime_nsec())
}

/// Writes a disk of a folder that was found to stable storage; from then on its identity stands.
///
/// # Errors
/// The errno of open(2), fsync(2) or fstat(2).
pub fn seal_found(folder: &SnapshotDir, name: &DiskName) -> io::Result<FileIdentity> {
    SnapshotDir::seal_disk(&open_found(&folder.disk(name))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const ID: &str = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d";

    #[test]
    fn folders_of_snapshots_are_told_from_all_else() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::new("r".parse().unwrap(), dir.path().to_owned());
        assert!(survey(&repository).unwrap().0.is_empty());

        let snapshots = dir.path().join("CoriolisSnapshots");
        let folder = |number: usize| snapshots.join(format!("{number}{}", &ID[1..]));
        for number in [0, 1, 2, 3, 4, 5, 7] {
            fs::create_dir_all(folder(number)).unwrap();
        }
        fs::write(folder(7).join("a.img"), "").unwrap();
        for number in [0, 1, 3, 4, 5] {
            fs::write(folder(number).join("a.img"), "x").unwrap();
        }
        fs::write(folder(1).join(".manifest.json"), "{}").unwrap();
        fs::write(folder(3).join(".hidden"), "x").unwrap();
        symlink("a.img", folder(4).join("b.img")).unwrap();
        fs::hard_link(folder(5).join("a.img"), dir.path().join("live.img")).unwrap();
        fs::create_dir(snapshots.join("lost+found")).unwrap();
        fs::write(folder(6), "a file").unwrap();

        let (folders, odd) = survey(&repository).unwrap();
        let names: Vec<_> = folders.iter().map(|folder| folder.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, [folder(0).file_name().unwrap(), folder(1).file_name().unwrap()]);
        // Nothing blocks, and nothing leads elsewhere.
        let pipe = folder(0).join(".manifest.json");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(look_into(&folder(0)).unwrap().manifest.unwrap().is_err());
        let linked = Repository::new("linked".parse().unwrap(), dir.path().join("linked"));
        fs::create_dir(linked.mount_point()).unwrap();
        symlink(&snapshots, linked.snapshots()).unwrap();
        assert!(survey(&linked).is_err());
        assert!(folders[0].manifest.is_none() && folders[1].manifest.as_ref().unwrap().is_err());
        assert!(folders[0].made_at <= folders[0].touched_at);
        let reasons: Vec<_> = odd.iter().map(|odd| odd.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "holds no disk",
                "\".hidden\" in it is no name of a disk",
                "b.img in it is no regular file",
                "a.img in it has another name elsewhere, under which it can be written to",
                "is not a folder",
                "a.img in it is empty, as a clone that failed leaves it",
                "its name is no snapshot's id",
            ]
        );
    }
}
