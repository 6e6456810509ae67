//! The disks of an unfinished point: their plans, images and notes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::blocks::{BLOCK, Blocks};
use super::directory::{VmDir, make_directory};
use super::error::{AtPath, Result};
use super::features::Features;
use super::files;
use super::image::{BaseImage, Image};
use super::journal::Journal;
use super::plan::Plan;
use super::planning::{self, Question};
use super::point::{self, BackingFile, DiskChecksum, Format, PointDisk, PointVm, StoredPoint};
use super::progress::{DiskLabel, Event, Progress};
use super::transfer::{self, Disk};
use super::work::{BaseDisk, WorkDisk};
use crate::client::{Client, Created};

/// What is known before the disks are planned.
pub struct Preparation<'a> {
    pub client: &'a Client,
    pub features: &'a Features,
    pub progress: &'a dyn Progress,
    pub vm: &'a PointVm,
    pub snapshot: &'a Created,
    /// Oldest first.
    pub points: &'a [StoredPoint],
    /// Whether the service has a snapshot.
    pub is_there: &'a dyn Fn(&str) -> bool,
    pub partial: PathBuf,
    pub format: Option<Format>,
}

/// Plans all disks of the snapshot, and writes the plans.
pub fn plan(preparation: &Preparation<'_>) -> Result<Vec<WorkDisk>> {
    let Preparation { snapshot, partial, format, .. } = preparation;
    let can_clone = match format {
        Some(format) => *format == Format::Raw,
        None => files::can_clone(partial).at(partial)?,
    };
    for folder in NOTES {
        make_directory(&partial.join(folder))?;
    }
    let mut disks: Vec<WorkDisk> = Vec::new();
    for disk in &snapshot.disks {
        let disk = plan_disk(preparation, &disk.name, can_clone, &disks)?;
        disks.push(disk);
    }
    Ok(disks)
}

fn plan_disk(preparation: &Preparation<'_>, name: &str, can_clone: bool, others: &[WorkDisk]) -> Result<WorkDisk> {
    let Preparation { client, features, progress, vm, snapshot, points, is_there, .. } = *preparation;
    let partial = preparation.partial.as_path();
    let path = api_path(&vm.id, &snapshot.id, name);
    let (size, etag) = client.head(&path)?;
    let base = newest_with_disk(points, name, is_there);
    let question = Question {
        client,
        features,
        vm: &vm.id,
        snapshot: &snapshot.id,
        disk: name,
        path: &path,
        size,
        base,
        base_is_there: base.is_some_and(|base| is_there(&base.point.snapshot_id)),
    };
    let answer = planning::plan(&question)?;
    if let Some(reason) = &answer.reason {
        progress.event(&Event::Note { vm: &vm.name, text: format!("{name}: {reason}") });
    }
    let base = base
        .filter(|_| answer.uses_base)
        .and_then(|base| Some(BaseDisk { point: base.point.id.clone(), disk: base.point.disk(name)?.clone() }));
    // A raw image that cannot be cloned becomes the bottom of a chain.
    let is_raw = can_clone && base.as_ref().is_none_or(|base| base.disk.format == Format::Raw);
    let format = if is_raw { Format::Raw } else { Format::Qcow2 };
    let taken: Vec<PointDisk> = others.iter().map(|other| other.disk.clone()).collect();
    let (file, blocks_file) = point::file_names(name, format, &taken);
    answer.plan.write(&plan_path(partial, &file))?;
    let backing = base.as_ref().filter(|_| format == Format::Qcow2);
    let disk = PointDisk {
        name: name.to_owned(),
        backing: backing.map(|base| BackingFile::new(&base.point, &base.disk)),
        file,
        format,
        size,
        mode: answer.mode,
        reason: answer.reason,
        data_bytes: answer.plan.data_bytes(),
        zero_bytes: answer.plan.zero_bytes(),
        checksum: DiskChecksum {
            algorithm: "blake3".to_owned(),
            block_size: BLOCK,
            value: String::new(),
            file: blocks_file,
        },
    };
    Ok(WorkDisk { disk, etag, base })
}

/// The newest point with a disk of this name, if possible one whose snapshot the service has.
pub fn newest_with_disk<'a>(
    points: &'a [StoredPoint],
    name: &str,
    is_there: &dyn Fn(&str) -> bool,
) -> Option<&'a StoredPoint> {
    let mut with_disk = points.iter().rev().filter(|stored| stored.point.disk(name).is_some());
    with_disk.clone().find(|stored| is_there(&stored.point.snapshot_id)).or_else(|| with_disk.next())
}

/// Opens the files of a planned disk, and finds out what is done.
pub fn open(directory: &VmDir, vm: &PointVm, snapshot: &str, work: &WorkDisk) -> Result<Disk> {
    let partial = directory.partial();
    let WorkDisk { disk, etag, base } = work;
    let plan = Plan::read(&plan_path(&partial, &disk.file), disk.size)?;
    let file = partial.join(&disk.file);
    let base_path = |base: &BaseDisk, file: &str| directory.point_path(&base.point).join(file);
    let image = match disk.format {
        Format::Raw => {
            let base = base.as_ref().map(|base| base_path(base, &base.disk.file));
            Image::raw(&file, disk.size, base.as_deref())?
        }
        Format::Qcow2 => {
            let base = base.as_ref().map(|base| BaseImage {
                file: Path::new(&base.point).join(&base.disk.file),
                format: base.disk.format,
                size: base.disk.size,
            });
            Image::qcow2(&file, disk.size, &plan, base)?
        }
    };
    let blocks_path = partial.join(&disk.checksum.file);
    // They are made again from the base and from what is read back, so they need not be there.
    files::remove_if_there(&blocks_path).at(&blocks_path)?;
    let blocks = match base {
        Some(base) => Blocks::derive(&base_path(base, &base.disk.checksum.file), &blocks_path, disk.size)?,
        None => Blocks::create(&blocks_path, disk.size)?,
    };
    let journal_path = journal_path(&partial, &disk.file);
    let (journal, records) = Journal::open(&journal_path, disk.size)?;
    let label = DiskLabel { vm: vm.name.as_str().into(), disk: disk.name.as_str().into() };
    let path = api_path(&vm.id, snapshot, &disk.name);
    let (etag, size) = (etag.clone(), disk.size);
    let mut disk = Disk { label, path, etag, size, plan, image, file, blocks, journal, done: Vec::new() };
    disk.done = transfer::recall(&disk, records)?;
    Ok(disk)
}

/// Removes the plans and the journals, when all disks are complete.
pub fn remove_notes(partial: &Path) -> Result<()> {
    for folder in NOTES {
        let path = partial.join(folder);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.at(&path)?,
        }
    }
    Ok(())
}

/// The folders of plans and journals. A file name of a disk does not begin with a dot.
const NOTES: [&str; 2] = [".plans", ".journals"];

fn plan_path(partial: &Path, file: &str) -> PathBuf {
    partial.join(NOTES[0]).join(file)
}

fn journal_path(partial: &Path, file: &str) -> PathBuf {
    partial.join(NOTES[1]).join(file)
}

/// The path of a disk in the API, below its base path.
pub fn api_path(vm: &str, snapshot: &str, disk: &str) -> String {
    format!("/vms/{vm}/snapshots/{snapshot}/disks/{}", encode(disk))
}

/// Escapes what is special in a path.
fn encode(name: &str) -> String {
    let mut encoded = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
