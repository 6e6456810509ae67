//! Reads restore points back, and compares them with their checksums, or with the service's.

use std::ops::Range;

use super::blocks::{BLOCK, Blocks};
use super::directory::VmDir;
use super::disk_work::api_path;
use super::error::{AtPath, Result};
use super::point::{PointDisk, StoredPoint};
use super::progress::{DiskLabel, Event, Progress};
use super::scan::{Block, DiskReader};
use super::server_blocks::for_each_part;
use crate::client::{Cancel, Client};
use crate::sys::folder::Folder;

/// Differences that are listed of one disk.
const MAX_LISTED: usize = 16;
/// Bytes between two reports of progress.
const STEP: u64 = 4 << 20;
/// A disk that is not what it was.
#[derive(Clone, Debug)]
pub struct Difference {
    pub point: String,
    pub disk: String,
    pub problem: String,
    /// The first ranges that differ.
    pub ranges: Vec<Range<u64>>,
    /// All bytes in blocks that differ.
    pub bytes: u64,
}

/// Collects differing blocks.
#[derive(Default)]
struct Differing {
    ranges: Vec<Range<u64>>,
    bytes: u64,
}

impl Differing {
    fn add(&mut self, range: Range<u64>) {
        self.bytes += range.end - range.start;
        let listed = self.ranges.len();
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if listed < MAX_LISTED => self.ranges.push(range),
            _ => {}
        }
    }

    fn into_difference(self, stored: &StoredPoint, disk: &PointDisk, problem: &str) -> Option<Difference> {
        let Self { ranges, bytes } = self;
        let (point, disk, problem) = (stored.point.id.clone(), disk.name.clone(), problem.to_owned());
        (bytes > 0).then_some(Difference { point, disk, problem, ranges, bytes })
    }
}

/// Reads all disks of a point. An unreadable disk is a difference too.
///
/// # Errors
/// Only [`crate::client::ClientError::Cancelled`], or the VM's directory cannot be read.
pub fn read_back(
    vm: &VmDir,
    stored: &StoredPoint,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Vec<Difference>> {
    let folder = Folder::open(vm.path()).at(vm.path())?;
    let mut differences = Vec::new();
    for disk in &stored.point.disks {
        match read_disk(&folder, stored, disk, cancel, progress) {
            Ok(found) => differences.extend(found),
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => differences.push(unusable(stored, disk, error.to_string())),
        }
    }
    Ok(differences)
}

fn unusable(stored: &StoredPoint, disk: &PointDisk, problem: String) -> Difference {
    let (point, disk) = (stored.point.id.clone(), disk.name.clone());
    Difference { point, disk, problem, ranges: Vec::new(), bytes: 0 }
}

fn read_disk(
    folder: &Folder,
    stored: &StoredPoint,
    disk: &PointDisk,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Option<Difference>> {
    let label = DiskLabel { vm: stored.point.vm.name.as_str().into(), disk: disk.name.as_str().into() };
    let reader = DiskReader::open(folder, stored, disk)?;
    progress.event(&Event::DiskStarted { disk: &label, bytes: disk.size });
    let (mut differing, mut done) = (Differing::default(), 0);
    reader.scan(cancel, &mut |Block { range, is_right, .. }| {
        done += range.end - range.start;
        if done >= STEP || range.end == disk.size {
            progress.event(&Event::Advanced { disk: &label, bytes: std::mem::take(&mut done) });
        }
        if !is_right {
            differing.add(range);
        }
        Ok(())
    })?;
    progress.event(&Event::DiskDone { disk: &label });
    Ok(differing.into_difference(stored, disk, "blocks do not have their checksums"))
}

/// Compares a point with its snapshot on the server, by checksums: no data is moved.
///
/// # Errors
/// The snapshot is not there, or cannot be read.
pub fn against(client: &Client, stored: &StoredPoint, progress: &dyn Progress) -> Result<Vec<Difference>> {
    let mut differences = Vec::new();
    let point = &stored.point;
    for disk in &point.disks {
        let path = api_path(&point.vm.id, &point.snapshot_id, &disk.name);
        let (size, _) = client.head(&path)?;
        if size != disk.size {
            let problem = format!("has {} bytes, but {size} on the server", disk.size);
            differences.push(unusable(stored, disk, problem));
            continue;
        }
        let label = DiskLabel { vm: point.vm.name.as_str().into(), disk: disk.name.as_str().into() };
        progress.event(&Event::DiskStarted { disk: &label, bytes: size });
        let blocks = Blocks::open(&stored.path(&disk.checksum.file), size)?;
        let mut differing = Differing::default();
        for_each_part(client, &path, size, &mut |range, digests| {
            let first = range.start / BLOCK;
            let own = blocks.digests(first..first + digests.len() as u64)?;
            for ((block, own), found) in (first..).zip(own).zip(digests) {
                if own != found {
                    differing.add(blocks.range(block));
                }
            }
            progress.event(&Event::Advanced { disk: &label, bytes: range.end - range.start });
            Ok(())
        })?;
        progress.event(&Event::DiskDone { disk: &label });
        differences.extend(differing.into_difference(stored, disk, "blocks differ from the server's"));
    }
    Ok(differences)
}
