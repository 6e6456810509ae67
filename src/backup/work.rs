//! The work on the next point, so that another run can go on with it: `.work.json` in the partial directory.

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::{AtPath, Result};
use super::files;
use super::point::{Base, PointDisk, PointVm};
use crate::client::{Created, NewSnapshot};

const FILE: &str = ".work.json";
const VERSION: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    version: u32,
    pub vm: PointVm,
    pub server: String,
    /// Makes the creation of the snapshot safe to repeat.
    pub key: String,
    pub request: NewSnapshot,
    pub snapshot: Option<Created>,
    /// When the snapshot was there, for services that do not tell.
    #[serde(default)]
    pub requested_at: Option<Timestamp>,
    pub base: Option<Base>,
    /// All disks, as soon as all plans are written.
    pub disks: Option<Vec<WorkDisk>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkDisk {
    /// As it will be in the point. Its checksum is not known yet.
    #[serde(flatten)]
    pub disk: PointDisk,
    /// The version of the file that the bytes are from.
    pub etag: String,
    /// The disk of the base that the image begins as, or stands on.
    pub base: Option<BaseDisk>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BaseDisk {
    pub point: String,
    pub disk: PointDisk,
}

impl Work {
    pub fn new(vm: PointVm, server: String, request: NewSnapshot) -> Self {
        let key = uuid::Uuid::new_v4().to_string();
        Self { version: VERSION, vm, server, key, request, snapshot: None, requested_at: None, base: None, disks: None }
    }

    /// `None` if there is no unfinished work, or none that this program can use.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.at(&path)?,
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(work) if work.version == VERSION => Ok(Some(work)),
            Ok(_) => Ok(None),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot read the unfinished work");
                Ok(None)
            }
        }
    }

    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let text = serde_json::to_vec(self).map_err(io::Error::from).at(&path)?;
        files::write_atomically(&path, &text).at(&path)
    }

    /// Removes everything in the partial directory but the file of the work.
    pub fn remove_all_else(directory: &Path) -> Result<()> {
        for entry in fs::read_dir(directory).at(directory)? {
            let entry = entry.at(directory)?;
            let (path, is_directory) = (entry.path(), entry.file_type().at(directory)?.is_dir());
            if entry.file_name() == FILE {
                continue;
            }
            if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.at(&path)?;
        }
        Ok(())
    }

    pub fn remove_file(directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        files::remove_if_there(&path).at(&path)
    }
}
