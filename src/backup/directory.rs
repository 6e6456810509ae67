//! The backup directory: a directory for each VM, with one for each restore point.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{AtPath, BackupError, Result};
use super::files;
use super::point::{DamagedPoint, Point, StoredPoint};
use crate::model::VmId;
use crate::sys::file_lock::LockFile;

const MARKER: &str = "backup.json";
const VERSION: u32 = 1;

/// The work on the next point. Not a point yet.
const PARTIAL: &str = ".partial";
/// The start of the name of a point that is being removed.
const DELETED: &str = ".deleted-";
const LOCK: &str = ".lock";
/// Directories hold everyone's disks.
const DIRECTORY_MODE: u32 = 0o700;

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    version: u32,
    /// Services keep this id as a label. It distinguishes the snapshots of this directory from others.
    id: String,
}

/// A backup directory.
#[derive(Clone, Debug)]
pub struct BackupDir {
    path: PathBuf,
    id: String,
}

impl BackupDir {
    /// # Errors
    /// `path` is no backup directory.
    pub fn open(path: &Path) -> Result<Self> {
        let marker = path.join(MARKER);
        let text = match fs::read(&marker) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                let problem = format!("{} is no backup directory: it has no {MARKER}", path.display());
                return Err(BackupError::Unusable(problem));
            }
            result => result.at(&marker)?,
        };
        let parsed: Result<Marker, _> = serde_json::from_slice(&text);
        match parsed {
            Ok(Marker { version: VERSION, id }) => Ok(Self { path: path.to_owned(), id }),
            Ok(Marker { version, .. }) => Err(BackupError::Unusable(format!(
                "{}: has version {version}; this program reads version {VERSION}",
                marker.display()
            ))),
            Err(error) => Err(BackupError::Damaged(format!("{}: {error}", marker.display()))),
        }
    }

    /// Opens the directory, or makes one of a directory that is missing or empty.
    ///
    /// # Errors
    /// It has other files.
    pub fn open_or_create(path: &Path) -> Result<Self> {
        if path.join(MARKER).exists() {
            return Self::open(path);
        }
        make_directory(path)?;
        let other = |entry: &io::Result<fs::DirEntry>| {
            let name = entry.as_ref().map(|entry| entry.file_name()).unwrap_or_default();
            name != "lost+found" && !name.as_encoded_bytes().starts_with(b".new-")
        };
        if fs::read_dir(path).at(path)?.any(|entry| other(&entry)) {
            let problem = format!("{} has files, but is no backup directory; name an empty one", path.display());
            return Err(BackupError::Unusable(problem));
        }
        let marker = Marker { version: VERSION, id: uuid::Uuid::new_v4().to_string() };
        let text = serde_json::to_vec_pretty(&marker).map_err(io::Error::from).at(path)?;
        files::write_atomically(&path.join(MARKER), &text).at(path)?;
        Self::open(path)
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The VMs that have a directory.
    pub fn vms(&self) -> Result<Vec<VmDir>> {
        let mut vms = Vec::new();
        for entry in fs::read_dir(&self.path).at(&self.path)? {
            let name = entry.at(&self.path)?.file_name();
            let id = name.to_str().and_then(|name| name.parse::<VmId>().ok().filter(|id| id.as_str() == name));
            vms.extend(id.map(|id| self.vm(&id)));
        }
        vms.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(vms)
    }

    pub fn vm(&self, id: &VmId) -> VmDir {
        VmDir { path: self.path.join(id.as_str()), id: id.clone() }
    }

    /// The VMs that `name` means: an id, or the name that users gave the VM in its newest point.
    ///
    /// # Errors
    /// There is none, or several have the name.
    pub fn find(&self, name: &str) -> Result<VmDir> {
        let vms = self.vms()?;
        if let Ok(id) = name.parse::<VmId>()
            && let Some(vm) = vms.iter().find(|vm| vm.id == id)
        {
            return Ok(vm.clone());
        }
        let mut found = Vec::new();
        for vm in vms {
            let points = vm.points()?;
            if points.whole.last().is_some_and(|stored| stored.point.vm.name == name) {
                found.push(vm);
            }
        }
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => {
                let problem = format!("{} has no restore point of a VM {name:?}", self.path.display());
                Err(BackupError::Unusable(problem))
            }
            _ => {
                let ids: Vec<String> = found.iter().map(|vm| vm.id.to_string()).collect();
                let problem = format!("several VMs are called {name:?}; name one by its id: {}", ids.join(", "));
                Err(BackupError::Unusable(problem))
            }
        }
    }
}

/// The points of a VM.
#[derive(Debug, Default)]
pub struct Points {
    /// Oldest first.
    pub whole: Vec<StoredPoint>,
    pub damaged: Vec<DamagedPoint>,
}

/// The directory of a VM. It may not exist yet.
#[derive(Clone, Debug)]
pub struct VmDir {
    path: PathBuf,
    pub id: VmId,
}

impl VmDir {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn partial(&self) -> PathBuf {
        self.path.join(PARTIAL)
    }

    pub fn point_path(&self, id: &str) -> PathBuf {
        self.path.join(id)
    }

    pub fn points(&self) -> Result<Points> {
        let mut points = Points::default();
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(points),
            result => result.at(&self.path)?,
        };
        for entry in entries {
            let entry = entry.at(&self.path)?;
            let Ok(id) = entry.file_name().into_string() else { continue };
            if id.starts_with('.') || !entry.file_type().at(&self.path)?.is_dir() {
                continue;
            }
            let directory = entry.path();
            match Point::read(&directory, &self.id) {
                Ok(point) => points.whole.push(StoredPoint { point, directory }),
                Err(error) => points.damaged.push(DamagedPoint { id, error }),
            }
        }
        points.whole.sort_by_key(|stored| stored.point.number);
        points.damaged.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(points)
    }

    /// Creates the directory, and keeps others from changing it until the result is dropped. Removes what an
    /// interrupted removal left.
    ///
    /// # Errors
    /// [`BackupError::Busy`] if another process has it.
    pub fn lock(&self) -> Result<VmLock> {
        make_directory(&self.path)?;
        let path = self.path.join(LOCK);
        let file = LockFile::new(files::open_or_create(&path).at(&path)?);
        if !file.try_lock().at(&path)? {
            let problem = format!("another process is working on {}", self.path.display());
            return Err(BackupError::Busy(problem));
        }
        for entry in fs::read_dir(&self.path).at(&self.path)? {
            let entry = entry.at(&self.path)?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(DELETED)) {
                fs::remove_dir_all(entry.path()).at(&entry.path())?;
            }
        }
        Ok(VmLock { _file: file })
    }

    /// Removes a point or the partial work. It is gone at once for readers.
    pub fn remove(&self, directory: &Path, _lock: &VmLock) -> Result<()> {
        let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let deleted = self.path.join(format!("{DELETED}{name}"));
        match fs::rename(directory, &deleted) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.at(directory)?,
        }
        files::sync_directory(&self.path).at(&self.path)?;
        fs::remove_dir_all(&deleted).at(&deleted)
    }
}

/// The exclusive right to change a VM's directory.
#[derive(Debug)]
pub struct VmLock {
    _file: LockFile,
}

/// Makes a directory and those above it, on stable storage.
pub fn make_directory(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_directory(parent)?;
    match fs::DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result.at(path)?,
    }
    files::sync_directory(parent).at(parent)
}
