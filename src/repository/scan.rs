//! The content of a repository's snapshot folder, whether this service made it or not.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::seal::{self, Sealed};
use super::snapshot_dir::UNFINISHED_MARKER;
use super::{SNAPSHOTS, SnapshotDir, manifest, pool};
use crate::model::{Described, DiskName, SnapshotId};
use crate::sys::folder::{self, Folder};

/// A folder with the name of a snapshot.
#[derive(Debug)]
pub struct FoundFolder {
    pub id: SnapshotId,
    pub path: PathBuf,
    /// Sorted by name.
    pub files: Vec<DiskName>,
    /// The snapshot of its manifest, or why that cannot be read. `None`: it has no manifest.
    pub manifest: Option<Result<Described, String>>,
    /// The service that its manifest names. It writes the manifest last.
    pub maker: Option<String>,
    /// Whether it has the marker of an unfinished snapshot.
    pub is_unfinished: bool,
    /// The earliest time of its files: when they were made, as far as that can be told.
    pub made_at: jiff::Timestamp,
    /// When anything in it was changed last.
    pub touched_at: jiff::Timestamp,
}

/// Something that is not like a snapshot's folder.
#[derive(Debug)]
pub struct Unrecognized {
    pub path: PathBuf,
    pub reason: String,
    /// Whether it could not be read, so that it may be a snapshot's.
    pub is_unread: bool,
}

/// Why a folder is not like a snapshot's.
#[derive(Debug)]
struct Odd {
    reason: String,
    is_unread: bool,
}

impl From<String> for Odd {
    fn from(reason: String) -> Self {
        Self { reason, is_unread: false }
    }
}

impl From<io::Error> for Odd {
    fn from(error: io::Error) -> Self {
        let reason = folder::UnexpectedEntry::of(&error).map_or_else(|| error.to_string(), |what| what.to_string());
        Self { reason, is_unread: is_unread(&error) }
    }
}

/// Whether reading failed. A missing file is not unread: its folder is being removed.
fn is_unread(error: &io::Error) -> bool {
    error.raw_os_error().is_some() && error.kind() != io::ErrorKind::NotFound
}

/// Lists the snapshot folder of the repository `root`. `progress` is called for each entry. A repository without the
/// folder has no snapshots.
pub fn scan(root: &Folder, progress: &dyn Fn()) -> io::Result<(Vec<FoundFolder>, Vec<Unrecognized>)> {
    let (mut found, mut odd) = (Vec::new(), Vec::new());
    let snapshots = match root.folder(SNAPSHOTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((found, odd)),
        snapshots => snapshots?,
    };
    for name in snapshots.entries()? {
        if name == pool::NAME {
            continue;
        }
        progress();
        match scan_folder(&snapshots, &name) {
            Ok(folder) => found.push(folder),
            Err(Odd { reason, is_unread }) => {
                odd.push(Unrecognized { path: snapshots.path().join(name), reason, is_unread });
            }
        }
    }
    found.sort_by_key(|folder| folder.id.as_u128());
    odd.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((found, odd))
}

/// The folder of the snapshot `id`, or why it is not like a snapshot's. `None` if it does not exist.
pub fn of_snapshot(root: &Folder, id: SnapshotId) -> io::Result<Option<Result<FoundFolder, String>>> {
    let name = id.to_string();
    let snapshots = match root.folder(SNAPSHOTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        snapshots => snapshots?,
    };
    match snapshots.stat(&name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(|_| Some(scan_folder(&snapshots, OsStr::new(&name)).map_err(|odd| odd.reason))),
    }
}

/// The service that made a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Maker {
    /// The one that its manifest names.
    Service(String),
    /// Its manifest names none, as those of older versions.
    Unnamed,
    /// It has no readable manifest.
    Unknown,
}

/// The service that made the snapshot. `None` if its folder is gone.
pub fn maker(root: &Folder, id: SnapshotId) -> io::Result<Option<Maker>> {
    let folder = match SnapshotDir::new(root, id).open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        folder => folder?,
    };
    let maker = read_manifest(&folder).ok().and_then(|text| manifest::maker(&text).ok());
    Ok(Some(maker.map_or(Maker::Unknown, |maker| maker.map_or(Maker::Unnamed, Maker::Service))))
}

fn scan_folder(snapshots: &Folder, name: &OsStr) -> Result<FoundFolder, Odd> {
    let id = name.to_str().unwrap_or_default().parse().map_err(|_| "its name is not a snapshot id".to_owned())?;
    let folder = snapshots.folder(name)?;
    let metadata = folder.metadata()?;
    let (mut files, mut manifest, mut maker) = (Vec::new(), None, None);
    // For files the ctime, which no program can set. For the folder also the mtime, which changes when a file is
    // created in it.
    let (mut made_at, mut touched_at) = (modified(&metadata), changed(&metadata));
    let names = folder.entries()?;
    let is_unfinished = names.iter().any(|name| name == UNFINISHED_MARKER);
    // The contents of an unfinished folder say nothing.
    for name in names.into_iter().filter(|_| !is_unfinished) {
        if name == manifest::FILE_NAME {
            let read = match read_manifest(&folder) {
                Err(error) if is_unread(&error) => {
                    return Err(Odd { reason: format!("its manifest cannot be read: {error}"), is_unread: true });
                }
                read => read.map_err(|error| error.to_string()),
            };
            maker = read.as_ref().ok().and_then(|text| manifest::maker(text).ok()).flatten();
            manifest = Some(read.and_then(|text| manifest::decode(&text).map_err(|error| error.to_string())));
            continue;
        }
        let metadata = folder.stat(&name)?;
        let name = name.to_string_lossy();
        if !metadata.is_file() {
            return Err(format!("{name:?} in it is not a regular file").into());
        }
        if metadata.nlink() != 1 {
            return Err(format!("{name:?} in it has a second hard link, through which it could be written").into());
        }
        if metadata.len() == 0 {
            return Err(format!("{name:?} in it is empty, as after a failed clone").into());
        }
        made_at = made_at.min(changed(&metadata));
        touched_at = touched_at.max(changed(&metadata));
        files.push(name.parse().map_err(|_| format!("{name:?} in it is not a valid disk name"))?);
    }
    if files.is_empty() && !is_unfinished {
        return Err("holds no disk".to_owned().into());
    }
    files.sort();
    Ok(FoundFolder { id, path: folder.path().to_owned(), files, manifest, maker, is_unfinished, made_at, touched_at })
}

/// Refuses a file with a second name, which anyone may have created.
fn check_single_link(file: &File) -> io::Result<()> {
    match file.metadata()?.nlink() {
        1 => Ok(()),
        _ => Err(io::Error::other("has a second hard link")),
    }
}

fn read_manifest(folder: &Folder) -> io::Result<Vec<u8>> {
    /// A manifest has a few hundred bytes a disk.
    const MAX_BYTES: u64 = 1 << 20;
    let file = folder.open_file(manifest::FILE_NAME)?;
    check_single_link(&file)?;
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text)?;
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

/// Writes the file of a found disk to stable storage. From then on its identity does not change.
pub fn seal_found(root: &Folder, id: SnapshotId, name: &DiskName) -> io::Result<Sealed> {
    let file = SnapshotDir::new(root, id).open()?.open_file(name.as_str())?;
    check_single_link(&file)?;
    seal::sync_and_seal(&file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const ID: &str = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d";

    #[test]
    fn snapshot_folders_are_told_from_other_entries() {
        let dir = tempfile::tempdir().unwrap();
        let root = Folder::open(dir.path()).unwrap();
        assert!(scan(&root, &|| ()).unwrap().0.is_empty());

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
        fs::create_dir(snapshots.join(pool::NAME)).unwrap();
        fs::write(folder(6), "a file").unwrap();

        let (folders, odd) = scan(&root, &|| ()).unwrap();
        let names: Vec<_> = folders.iter().map(|folder| folder.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, [folder(0).file_name().unwrap(), folder(1).file_name().unwrap()]);
        // A FIFO blocks nothing, and a link leads nowhere.
        let pipe = folder(0).join(".manifest.json");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let first = folder(0).file_name().unwrap().to_owned();
        let opened = root.folder(SNAPSHOTS).unwrap();
        assert!(scan_folder(&opened, &first).unwrap().manifest.unwrap().is_err());
        let linked = dir.path().join("linked");
        fs::create_dir(&linked).unwrap();
        symlink(&snapshots, linked.join(SNAPSHOTS)).unwrap();
        assert!(scan(&Folder::open(&linked).unwrap(), &|| ()).is_err());
        fs::write(folder(0).join(UNFINISHED_MARKER), "").unwrap();
        let unfinished = scan_folder(&opened, &first).unwrap();
        assert!(unfinished.is_unfinished && unfinished.files.is_empty() && unfinished.manifest.is_none());
        assert!(folders.iter().all(|folder| !folder.is_unfinished));
        assert!(folders[0].manifest.is_none() && folders[1].manifest.as_ref().unwrap().is_err());
        assert!(folders[0].made_at <= folders[0].touched_at);
        let reasons: Vec<_> = odd.iter().map(|odd| odd.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "holds no disk",
                "\".hidden\" in it is not a valid disk name",
                "\"b.img\" in it is not a regular file",
                "\"a.img\" in it has a second hard link, through which it could be written",
                "is not a folder",
                "\"a.img\" in it is empty, as after a failed clone",
                "its name is not a snapshot id",
            ]
        );
    }
}
