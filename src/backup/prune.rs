//! Removes restore points that no rule keeps.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;

use super::directory::{VmDir, VmLock};
use super::error::{AtPath, BackupError, Result};
use super::files;
use super::image;
use super::point::{BackingFile, Point, PointDisk, StoredPoint};
use crate::model::ByteRange;
use crate::qcow2::{self, Content, Image, Layout, Part};
use crate::sys::folder::Folder;

/// Bytes that are copied at a time.
const STEP: u64 = 1 << 20;

/// Which points stay. A point stays if one rule keeps it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// The newest points.
    pub last: usize,
    /// The newest point of each of the last days that have one.
    pub daily: usize,
    /// The newest point of each of the last weeks (ISO 8601) that have one.
    pub weekly: usize,
    pub monthly: usize,
}

impl Keep {
    /// The points to remove, oldest first. `points` is in the order of time; days begin and end in `zone`.
    pub fn removable<'a>(&self, points: &'a [StoredPoint], zone: &TimeZone) -> Vec<&'a StoredPoint> {
        let mut kept = BTreeSet::new();
        let newest_first = || points.iter().rev();
        kept.extend(newest_first().take(self.last).map(|stored| stored.point.id.as_str()));
        let date = |stored: &StoredPoint| stored.point.created_at.to_zoned(zone.clone()).date();
        let mut keep = |count: usize, period: &dyn Fn(&StoredPoint) -> (i16, i8, i8)| {
            let mut periods = BTreeSet::new();
            for stored in newest_first() {
                if periods.len() < count && periods.insert(period(stored)) {
                    kept.insert(stored.point.id.as_str());
                }
            }
        };
        keep(self.daily, &|stored| (date(stored).year(), date(stored).month(), date(stored).day()));
        keep(self.weekly, &|stored| {
            let week = date(stored).iso_week_date();
            (week.year(), week.week(), 0)
        });
        keep(self.monthly, &|stored| (date(stored).year(), date(stored).month(), 0));
        points.iter().filter(|stored| !kept.contains(stored.point.id.as_str())).collect()
    }
}

/// Removes a point. Images that stand on its images are joined with them first, so every other point stays whole at
/// every moment.
///
/// # Errors
/// What is done stays; the same call goes on from there.
pub fn remove(vm: &VmDir, id: &str, lock: &VmLock) -> Result<()> {
    let points = vm.points()?;
    let Some(stored) = points.whole.iter().find(|stored| stored.point.id == id) else {
        return Err(BackupError::Unusable(format!("there is no restore point {id}")));
    };
    if let Some(damaged) = points.damaged.first() {
        let problem = format!(
            "the restore point {} is damaged, so what it stands on is not known: {}",
            damaged.id, damaged.error
        );
        return Err(BackupError::Damaged(problem));
    }
    let folder = Folder::open(vm.path()).at(vm.path())?;
    for other in points.whole.iter().filter(|other| other.point.id != id) {
        for (index, disk) in other.point.disks.iter().enumerate() {
            let is_below = |lower: &&PointDisk| disk.backing.as_ref() == Some(&BackingFile::new(id, lower));
            if let Some(lower) = stored.point.disks.iter().find(is_below) {
                join(&folder, vm, &other.point.id, index, lower)?;
            }
        }
    }
    vm.remove(&stored.directory, lock)
}

/// Makes a disk of the point `upper` stand on what `lower` stands on.
fn join(folder: &Folder, vm: &VmDir, upper: &str, index: usize, lower: &PointDisk) -> Result<()> {
    let directory = vm.point_path(upper);
    let mut point = Point::read(&directory, &vm.id)?;
    let disk = &mut point.disks[index];
    let image = image::open(folder, &Path::new(upper).join(&disk.file), disk.format)?;
    // An interrupted call may have joined the images already.
    let stands_on_lower =
        image.files().nth(1).is_some_and(|file| Some(file) == below(disk.backing.as_ref()).as_deref());
    if stands_on_lower {
        join_images(folder, &image, &directory.join(&disk.file), lower)?;
    }
    disk.backing = lower.backing.clone();
    point.write(&directory)
}

/// Where a backing file is, relative to the VM's directory.
fn below(backing: Option<&BackingFile>) -> Option<PathBuf> {
    backing.and_then(|backing| backing.file.strip_prefix("../")).map(PathBuf::from)
}

/// Replaces the image at `path` by one that has the bytes of the two newest images of its chain.
fn join_images(folder: &Folder, image: &Image, path: &Path, lower: &PointDisk) -> Result<()> {
    let new = files::temporary(path);
    let open = |backing: &BackingFile| -> Result<(qcow2::Backing, Image)> {
        let file = below(Some(backing))
            .ok_or_else(|| BackupError::Damaged(format!("{:?} is no backing file", backing.file)))?;
        let image = image::open(folder, &file, backing.format)?;
        Ok((qcow2::Backing { file: backing.file.clone(), format: backing.format.into(), size: image.size() }, image))
    };
    let backing = lower.backing.as_ref().map(open).transpose()?;
    let own = |run: Result<(ByteRange, Part), qcow2::ImageError>| match run {
        Ok((_, Part::Below)) => None,
        Ok((range, Part::Data)) => Some(Ok((range, Content::Data))),
        Ok((range, Part::Zero)) => Some(Ok((range, Content::Zero))),
        Err(error) => Some(Err(error)),
    };
    let runs: Vec<(ByteRange, Content)> =
        image.runs_of(2).filter_map(own).collect::<Result<_, _>>().map_err(damaged)?;
    let layout = Layout::new(image.size(), runs.iter().copied(), backing.as_ref().map(|(backing, _)| backing.clone()));
    let layout = layout.map_err(io::Error::other).at(path)?;
    files::remove_if_there(&new).at(&new)?;
    let file = files::create_new(&new).at(&new)?;
    layout.write_metadata(&file).at(&new)?;
    copy(image, &layout, &file, &runs).at(&new)?;
    layout.fill_gaps(&file, backing.as_ref().map(|(_, image)| image)).at(&new)?;
    layout.finish(&file).at(&new)?;
    fs::rename(&new, path).at(path)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    files::sync_directory(directory).at(directory)
}

fn copy(image: &Image, layout: &Layout, file: &fs::File, runs: &[(ByteRange, Content)]) -> io::Result<()> {
    let mut buffer = vec![0; STEP as usize];
    for (range, _) in runs.iter().filter(|(_, content)| *content == Content::Data) {
        let mut start = range.start();
        while start < range.end() {
            let end = range.end().min(start + STEP);
            let bytes = &mut buffer[..(end - start) as usize];
            image.read_at(start, bytes).map_err(io::Error::from)?;
            if !files::is_zero(bytes) {
                layout.write_at(file, start, bytes)?;
            }
            start = end;
        }
    }
    Ok(())
}

fn damaged(error: qcow2::ImageError) -> BackupError {
    BackupError::Damaged(error.to_string())
}

/// The bytes that the files of a point take on disk. Blocks that several points share count for each.
pub fn disk_usage(stored: &StoredPoint) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = stored.point.disks.iter().map(|disk| stored.path(&disk.file));
    files.filter_map(|path: PathBuf| fs::metadata(path).ok()).map(|metadata| metadata.blocks() * 512).sum()
}
