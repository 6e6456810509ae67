//! Gives the disks of a restore point as images that stand alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::directory::{VmDir, make_directory};
use super::error::{AtPath, BackupError, Result};
use super::files;
use super::point::{Format, PointDisk, StoredPoint};
use super::progress::{DiskLabel, Event, Progress};
use super::scan::{Block, DiskReader};
use crate::client::Cancel;
use crate::qcow2::{Content, Layout};
use crate::sys::folder::Folder;

/// Bytes between two reports of progress.
const STEP: u64 = 4 << 20;

/// The point that `at` means: the start of an id, or the newest point at or before a time. The newest one without it.
///
/// # Errors
/// There is none, or several.
pub fn find<'a>(points: &'a [StoredPoint], at: Option<&str>, time: Option<Timestamp>) -> Result<&'a StoredPoint> {
    let none = |problem: String| Err(BackupError::Unusable(problem));
    let Some(at) = at else {
        return points.last().map_or_else(|| none("the VM has no restore point".to_owned()), Ok);
    };
    if let Some(found) = points.iter().find(|stored| stored.point.id == at) {
        return Ok(found);
    }
    // Ids begin with a date in UTC, so a text that is a time must not be taken for the start of an id.
    let Some(time) = time else {
        let by_start: Vec<&StoredPoint> = points.iter().filter(|stored| stored.point.id.starts_with(at)).collect();
        match by_start.as_slice() {
            [found] => return Ok(found),
            [] => {}
            _ => return none(format!("several restore points begin with {at:?}; the command points lists them")),
        }
        let problem = format!(
            "there is no restore point {at:?}, and it is no time such as 2026-11-26T18:00; the command points lists them"
        );
        return none(problem);
    };
    let found = points.iter().rev().find(|stored| stored.point.created_at <= time);
    found.map_or_else(|| none(format!("the VM has no restore point at or before {at}")), Ok)
}

/// What to restore, and where.
pub struct Restore<'a> {
    pub vm: &'a VmDir,
    pub stored: &'a StoredPoint,
    pub out: &'a Path,
    pub format: Format,
    /// Only these disks.
    pub disks: Option<&'a [String]>,
    pub cancel: &'a Cancel,
    pub progress: &'a dyn Progress,
}

impl Restore<'_> {
    /// Writes the disks into the directory, and compares every block with its checksum. A file appears only when it is
    /// complete. Returns the files.
    ///
    /// # Errors
    /// A file is in the way, or the point is damaged.
    pub fn run(&self) -> Result<Vec<PathBuf>> {
        let disks = self.disks()?;
        make_directory(self.out)?;
        let targets: Vec<PathBuf> = disks.iter().map(|disk| self.out.join(self.file_name(disk))).collect();
        if let Some(taken) = targets.iter().find(|target| target.symlink_metadata().is_ok()) {
            let problem = format!("{} exists; name another directory with --out", taken.display());
            return Err(BackupError::Unusable(problem));
        }
        let folder = Folder::open(self.vm.path()).at(self.vm.path())?;
        let mut made = Vec::new();
        for (disk, target) in disks.iter().zip(&targets) {
            // Another restore may work here too.
            let new = target.with_file_name(format!(".restoring-{}", uuid::Uuid::new_v4()));
            let result = self.write(disk, &folder, &new);
            made.push((new, target));
            if let Err(error) = result {
                made.iter().for_each(|(new, _)| drop(files::remove_if_there(new)));
                return Err(error);
            }
        }
        // The files appear together, when all are complete.
        for (new, target) in &made {
            files::rename_new(new, target).at(target)?;
        }
        files::sync_directory(self.out).at(self.out)?;
        Ok(targets)
    }

    fn disks(&self) -> Result<Vec<&PointDisk>> {
        let all = &self.stored.point.disks;
        let Some(names) = self.disks else { return Ok(all.iter().collect()) };
        let find = |name: &String| {
            let names: Vec<&str> = all.iter().map(|disk| disk.name.as_str()).collect();
            let missing = || format!("the restore point has no disk {name:?}; it has {}", names.join(", "));
            all.iter().find(|disk| disk.name == *name).ok_or_else(|| BackupError::Unusable(missing()))
        };
        names.iter().map(find).collect()
    }

    fn file_name(&self, disk: &PointDisk) -> String {
        match self.format {
            Format::Raw => disk.name.clone(),
            Format::Qcow2 => format!("{}.qcow2", disk.name),
        }
    }

    fn write(&self, disk: &PointDisk, folder: &Folder, new: &Path) -> Result<()> {
        let label = DiskLabel { vm: self.stored.point.vm.name.as_str().into(), disk: disk.name.as_str().into() };
        let reader = DiskReader::open(folder, self.stored, disk)?;
        self.progress.event(&Event::DiskStarted { disk: &label, bytes: disk.size });
        let target = Target::create(self, &reader, disk, new)?;
        let mut done = 0;
        reader.scan(self.cancel, &mut |Block { range, bytes, is_right }| {
            if !is_right {
                let problem = "a block does not have its checksum; the command verify lists all such blocks";
                let file = self.stored.path(&disk.file);
                return Err(BackupError::Damaged(format!("{}: offset {}: {problem}", file.display(), range.start)));
            }
            if let Some(bytes) = bytes {
                target.write(range.start, bytes).at(new)?;
            }
            done += range.end - range.start;
            if done >= STEP || range.end == disk.size {
                self.progress.event(&Event::Advanced { disk: &label, bytes: std::mem::take(&mut done) });
            }
            Ok(())
        })?;
        target.finish().at(new)?;
        self.progress.event(&Event::DiskDone { disk: &label });
        Ok(())
    }
}

/// The file that is written.
enum Target {
    /// It has all bytes already.
    Clone(File),
    Raw(File),
    Qcow2(File, Box<Layout>),
}

impl Target {
    fn create(restore: &Restore<'_>, reader: &DiskReader, disk: &PointDisk, new: &Path) -> Result<Self> {
        if restore.format == Format::Qcow2 {
            let data = reader.data()?.into_iter().map(|range| (range, Content::Data));
            let layout = Layout::new(disk.size, data, None).map_err(io::Error::other).at(new)?;
            let file = files::create_new(new).at(new)?;
            layout.write_metadata(&file).at(new)?;
            return Ok(Self::Qcow2(file, Box::new(layout)));
        }
        if disk.format == Format::Raw && files::clone(&restore.stored.path(&disk.file), new).at(new)? {
            return Ok(Self::Clone(files::open_rw(new).at(new)?));
        }
        let file = files::create_new(new).at(new)?;
        file.set_len(disk.size).at(new)?;
        Ok(Self::Raw(file))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Clone(_) => Ok(()),
            Self::Raw(file) => file.write_all_at(bytes, offset),
            Self::Qcow2(file, layout) => layout.write_at(file, offset, bytes),
        }
    }

    fn finish(&self) -> io::Result<()> {
        match self {
            Self::Clone(file) | Self::Raw(file) => file.sync_all(),
            Self::Qcow2(file, layout) => layout.finish(file),
        }
    }
}
