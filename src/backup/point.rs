//! A restore point: `point.json` beside its disks (docs/formats.md).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::blocks::BLOCK;
use super::error::{AtPath, BackupError, Result};
use super::files;
use crate::api::Mode;
use crate::model::{DiskName, VmId};

pub const VERSION: u32 = 1;
pub const FILE: &str = "point.json";

/// The algorithm of checksums.
pub const ALGORITHM: &str = "blake3";

/// The largest `point.json` that is read.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    pub version: u32,
    /// The name of its directory.
    pub id: String,
    /// Orders the points of a VM, whatever the clocks say: each new point has a larger one.
    pub number: u64,
    pub vm: PointVm,
    /// Address of the service.
    pub server: String,
    pub snapshot_id: String,
    /// The point of which this one has the changes. Its disks may be gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// When the disks were cloned.
    pub created_at: Timestamp,
    /// When the point was complete.
    pub completed_at: Timestamp,
    /// `crash`, `quiesced`; `unknown` if the service did not tell.
    pub consistency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_ms: Option<u64>,
    /// As in the service's response.
    #[serde(default)]
    pub hooks: Vec<serde_json::Value>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The VM's definition, as in the service's response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<serde_json::Value>,
    pub disks: Vec<PointDisk>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointVm {
    /// 32 hexadecimal digits.
    pub id: String,
    /// The name that users gave it, at that time.
    pub name: String,
    pub uuid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    pub point: String,
    pub snapshot_id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Raw,
    Qcow2,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PointDisk {
    /// In the snapshot.
    pub name: String,
    /// The file in the point's directory.
    pub file: String,
    pub format: Format,
    /// The image that a qcow2 image stands on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<BackingFile>,
    pub size: u64,
    pub mode: Mode,
    /// Why the mode is full, although there was a base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of the changes, or of the whole disk if the mode is full.
    pub data_bytes: u64,
    pub zero_bytes: u64,
    pub checksum: DiskChecksum,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingFile {
    /// Relative to the point's directory: `../<point>/<file>`.
    pub file: String,
    pub format: Format,
}

impl BackingFile {
    pub fn new(point: &str, disk: &PointDisk) -> Self {
        Self { file: format!("../{point}/{}", disk.file), format: disk.format }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskChecksum {
    pub algorithm: String,
    pub block_size: u64,
    /// The checksum of the blocks' checksums, hexadecimal.
    pub value: String,
    /// The file of the blocks' checksums.
    pub file: String,
}

impl Point {
    /// Reads the point in `directory`.
    ///
    /// # Errors
    /// It is damaged, or newer than this program.
    pub fn read(directory: &Path, vm: &VmId) -> Result<Self> {
        let path = directory.join(FILE);
        let invalid = |problem: String| BackupError::Damaged(format!("{}: {problem}", path.display()));
        let text = match fs::metadata(&path).and_then(|metadata| Ok((metadata.len(), fs::read(&path)?))) {
            Ok((length, _)) if length > MAX_BYTES => return Err(invalid(format!("has {length} bytes, too many"))),
            Ok((_, text)) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(invalid("is missing".to_owned())),
            Err(error) => return Err(error).at(&path),
        };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let version: Version = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
        if version.version != VERSION {
            return Err(invalid(format!("has version {}; this program reads version {VERSION}", version.version)));
        }
        let point: Self = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
        let id = directory.file_name().and_then(|name| name.to_str());
        if let Some(problem) = point.problem(id.unwrap_or_default(), vm) {
            return Err(invalid(problem));
        }
        Ok(point)
    }

    /// Why this is not the point `id` of `vm`. Its names become paths and parts of URLs.
    fn problem(&self, id: &str, vm: &VmId) -> Option<String> {
        let is_plain = |name: &str| name.parse::<DiskName>().is_ok();
        let is_id =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if self.id != id {
            return Some(format!("belongs to the point {:?}", self.id));
        }
        if self.vm.id != vm.as_str() || !is_id(&self.snapshot_id) {
            return Some(format!("belongs to the VM {:?} or to no snapshot", self.vm.id));
        }
        let mut names = BTreeSet::new();
        for disk in &self.disks {
            let PointDisk { name, file, checksum, .. } = disk;
            if ![name, file, &checksum.file].iter().all(|name| is_plain(name)) || !names.insert(name) {
                return Some(format!("{name:?} is no valid disk"));
            }
            if checksum.block_size != BLOCK || checksum.algorithm != ALGORITHM {
                return Some(format!("{name}: the checksums are of an unknown kind"));
            }
        }
        None
    }

    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::from).at(&path)?;
        text.push(b'\n');
        files::write_atomically(&path, &text).at(&path)
    }

    pub fn disk(&self, name: &str) -> Option<&PointDisk> {
        self.disks.iter().find(|disk| disk.name == name)
    }

    /// Whether it has a disk that was copied as a whole.
    pub fn is_full(&self) -> bool {
        self.disks.iter().any(|disk| disk.mode == Mode::Full)
    }

    pub fn size(&self) -> u64 {
        self.disks.iter().map(|disk| disk.size).sum()
    }

    /// Like `2026-11-26T23-35-04Z`: it sorts by time.
    pub fn id_at(created_at: Timestamp) -> String {
        created_at.strftime("%Y-%m-%dT%H-%M-%SZ").to_string()
    }
}

/// A restore point and where it is.
#[derive(Clone, Debug)]
pub struct StoredPoint {
    pub point: Point,
    pub directory: PathBuf,
}

impl StoredPoint {
    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }
}

/// The file names of a disk and of its blocks' checksums. They differ from those of all other disks and from
/// `point.json`, whatever the disks are called.
pub fn file_names(disk: &str, format: Format, taken: &[PointDisk]) -> (String, String) {
    const NAME_MAX: usize = 255;
    let suffix = match format {
        Format::Raw => "",
        Format::Qcow2 => ".qcow2",
    };
    let in_use =
        |name: &str| name == FILE || taken.iter().any(|other| other.file == name || other.checksum.file == name);
    let mut stem = disk.to_owned();
    let mut number = 1;
    loop {
        let (file, blocks) = (format!("{stem}{suffix}"), format!("{stem}.blocks"));
        if blocks.len() <= NAME_MAX && !in_use(&file) && !in_use(&blocks) && file != blocks {
            return (file, blocks);
        }
        number += 1;
        let cut = disk.char_indices().map(|(at, _)| at).take_while(|at| *at <= NAME_MAX - 32).last().unwrap_or(0);
        stem =
            if disk.len() > NAME_MAX - 32 { format!("{}-{number}", &disk[..cut]) } else { format!("{disk}-{number}") };
    }
}

/// A directory entry that looks like a point and cannot be used.
#[derive(Debug)]
pub struct DamagedPoint {
    pub id: String,
    pub error: BackupError,
}
