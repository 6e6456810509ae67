//! The disks of an unfinished point: their plans, images and notes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::blocks::{BLOCK, Blocks};
use super::directory::{VmDir, make_directory};
use super::disk::Disk;
use super::error::{AtPath, BackupError, Result};
use super::features::Features;
use super::files;
use super::image::{BaseImage, Image};
use super::journal::Journal;
use super::leases::Leases;
use super::plan::Plan;
use super::planning::{self, Question};
use super::point::{self, BackingFile, DiskChecksum, Format, PointDisk, PointVm, StoredPoint};
use super::progress::{DiskLabel, Event, Progress};
use super::unit::Recall;
use super::work::{BaseDisk, WorkDisk};
use crate::client::{Client, Created};
use crate::model::path_segment;

/// Images of a chain. Each is a file to open, and the reader of images accepts 1,000.
const MAX_CHAIN: usize = 500;

/// What is known before the disks are planned.
pub struct Preparation<'a> {
    pub client: &'a Client,
    pub features: &'a Features,
    pub leases: &'a Leases,
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
    let can_clone = *format != Some(Format::Qcow2) && files::can_clone(partial).at(partial)?;
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
    let Preparation { client, features, leases, progress, vm, snapshot, points, is_there, .. } = *preparation;
    let partial = preparation.partial.as_path();
    let path = api_path(&vm.id, &snapshot.id, name);
    let (size, etag) = client.head(&path)?;
    let base = newest_with_disk(points, name, is_there);
    let base = match base {
        Some(base) if chain_length(points, base, name) >= MAX_CHAIN => {
            let text = format!("{name}: its chain has {MAX_CHAIN} images; copying the disk as a whole (see prune)");
            progress.event(&Event::Note { vm: &vm.name, text });
            None
        }
        base => base,
    };
    let question = Question {
        client,
        features,
        leases,
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
    let wants_raw = can_clone || (preparation.format == Some(Format::Raw) && base.is_none());
    let is_raw = wants_raw && base.as_ref().is_none_or(|base| base.disk.format == Format::Raw);
    if preparation.format == Some(Format::Raw) && !is_raw {
        let problem = "the file system of the backup directory cannot clone files, so an increment cannot be raw; leave \
                       --format out";
        return Err(BackupError::Unusable(problem.to_owned()));
    }
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
            algorithm: point::ALGORITHM.to_owned(),
            block_size: BLOCK,
            value: String::new(),
            file: blocks_file,
        },
    };
    Ok(WorkDisk { disk, etag, base })
}

/// The images that the disk of a point stands on, and its own.
fn chain_length(points: &[StoredPoint], base: &StoredPoint, name: &str) -> usize {
    let (mut length, mut current) = (1, base.point.disk(name));
    while let Some(backing) = current.and_then(|disk| disk.backing.as_ref())
        && length < MAX_CHAIN
    {
        let below = |stored: &StoredPoint, disk: &PointDisk| *backing == BackingFile::new(&stored.point.id, disk);
        let mut all = points.iter().flat_map(|stored| stored.point.disks.iter().map(move |disk| (stored, disk)));
        current = all.find(|(stored, disk)| below(stored, disk)).map(|(_, disk)| disk);
        length += 1;
    }
    length
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
    let label = DiskLabel { vm: vm.name.as_str().into(), disk: disk.name.as_str().into() };
    let path = api_path(&vm.id, snapshot, &disk.name);
    let (etag, size) = (etag.clone(), disk.size);
    image.drop_cache();
    let mut recall = Recall::new(&image, &blocks, size);
    let journal = Journal::open(&journal_path, size, |record| recall.check(record))?;
    let done = recall.finish();
    Ok(Disk { label, path, etag, size, plan, image, file, blocks, journal, done })
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

/// Makes the next run transfer all bytes again.
pub fn forget_progress(partial: &Path) -> Result<()> {
    let path = partial.join(NOTES[1]);
    fs::remove_dir_all(&path).at(&path)?;
    make_directory(&path)
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
    format!("/vms/{vm}/snapshots/{snapshot}/disks/{}", path_segment(disk))
}
