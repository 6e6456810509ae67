//! Logs all writes and flushes of a volume, and makes the volume as a power cut would have left it.
//!
//! qemu-storage-daemon writes the log, in the format of the kernel's dm-log-writes
//! (Documentation/admin-guide/device-mapper/log-writes.rst), one entry when each request ends.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use tempfile::TempDir;

use super::volume::{export, run};
use super::{Random, Volume, eventually};

const SECTOR: u64 = 512;

/// XFS expects that a block of this size is written whole, or recovers it from its journal.
const BLOCK: usize = 4096;

const FLUSH: u64 = 1;
const DISCARD: u64 = 4;
const MAGIC: u64 = 0x006a_7366_7773_6872;

/// A volume whose writes are being logged.
pub struct WriteLog {
    daemon: Child,
    image: PathBuf,
    dir: TempDir,
}

/// What was logged, and the image as it was before.
pub struct Log {
    pub entries: Vec<Entry>,
    /// The image with the entries that were applied so far.
    durable: PathBuf,
    applied: usize,
    _dir: TempDir,
}

pub enum Entry {
    /// All writes that ended before it are on stable storage.
    Flush,
    Write {
        offset: u64,
        bytes: Vec<u8>,
    },
    /// The device does not keep these bytes.
    Discard {
        offset: u64,
        length: u64,
    },
}

impl WriteLog {
    /// Starts to log the writes of the volume, which is unmounted for a moment.
    pub fn start(volume: &Volume) -> Self {
        volume.unmount();
        let (dir, image) = (tempfile::tempdir().unwrap(), volume.image());
        copy(&image, &dir.path().join("durable"));
        let log = dir.path().join("log");
        File::create(&log).unwrap();
        let file = |name: &str, path: &Path| {
            // The host does not lose power, so its files need no flushes. Those of the volume are logged before that.
            format!("driver=file,node-name={name},locking=off,cache.no-flush=on,filename={}", path.display())
        };
        let filter = "driver=blklogwrites,node-name=image,file=content,log=log".to_owned();
        let daemon = export(&image, &[file("content", &image), file("log", &log), filter]);
        volume.mount();
        Self { daemon, image, dir }
    }

    fn log_file(&self) -> File {
        File::open(self.dir.path().join("log")).unwrap()
    }

    /// The number of entries up to the last flush that has ended.
    pub fn flushed(&self) -> usize {
        let [magic, _, entries] = numbers(&self.log_file(), 0);
        assert!(magic == MAGIC || magic == 0, "{magic:x} is not the magic number of a log");
        entries as usize
    }

    /// Ends the log. The volume is unmounted then.
    pub fn stop(mut self, volume: &Volume) -> Log {
        volume.unmount();
        let log = self.log_file();
        self.end();
        let end = log.metadata().unwrap().len();
        let (mut entries, mut offset) = (Vec::new(), SECTOR);
        while offset + 32 <= end {
            let [sector, sectors, flags, _] = numbers(&log, offset);
            offset += SECTOR;
            let (at, length) = (sector * SECTOR, sectors * SECTOR);
            entries.push(match flags {
                FLUSH => Entry::Flush,
                DISCARD => Entry::Discard { offset: at, length },
                0 if length > 0 => {
                    let mut bytes = vec![0; length as usize];
                    // The file is not extended for zeros at its end.
                    let there = end.saturating_sub(offset).min(length) as usize;
                    log.read_exact_at(&mut bytes[..there], offset).unwrap();
                    offset += length;
                    Entry::Write { offset: at, bytes }
                }
                _ => break,
            });
        }
        let durable = self.dir.path().join("durable");
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        Log { entries, durable, applied: 0, _dir: dir }
    }

    fn end(&mut self) {
        // The daemon writes nothing after this, because nothing uses the file any more.
        let unmounted = || Command::new("umount").arg(&self.image).output().unwrap().status.success();
        eventually("the device is no longer in use", unmounted);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Drop for WriteLog {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", "--quiet"]).arg(&self.image).output();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Log {
    /// The last flush among the first `end` entries; 0 without one.
    fn last_flush(&self, end: usize) -> usize {
        self.entries[..end].iter().rposition(|entry| matches!(entry, Entry::Flush)).map_or(0, |flush| flush + 1)
    }

    pub fn is_flush(&self, number: usize) -> bool {
        matches!(self.entries[number], Entry::Flush)
    }

    /// Writes `image` as a power cut after the first `end` entries would leave it: with all that was flushed, and with
    /// a random part of the rest. `end` may not decrease from call to call.
    pub fn cut(&mut self, end: usize, random: &mut Random, image: &Path) {
        let flushed = self.last_flush(end);
        let durable = File::options().write(true).open(&self.durable).unwrap();
        for entry in &self.entries[self.applied..flushed.max(self.applied)] {
            entry.apply(&durable, usize::MAX);
        }
        self.applied = flushed.max(self.applied);
        copy(&self.durable, image);
        let left = File::options().write(true).open(image).unwrap();
        for entry in &self.entries[flushed..end] {
            match random.below(5) {
                0 | 1 => {}
                2 => entry.apply(&left, random.below(entry.length() as u64 / BLOCK as u64 + 1) as usize * BLOCK),
                _ => entry.apply(&left, usize::MAX),
            }
        }
    }
}

impl Entry {
    fn length(&self) -> usize {
        match self {
            Self::Write { bytes, .. } => bytes.len(),
            Self::Flush | Self::Discard { .. } => 0,
        }
    }

    /// Writes the first bytes of the entry, at most `limit`.
    fn apply(&self, image: &File, limit: usize) {
        match self {
            Self::Flush => {}
            Self::Write { offset, bytes } => {
                image.write_all_at(&bytes[..limit.min(bytes.len())], *offset).unwrap();
            }
            // Whatever a disk returns after a discard, it is not relied on.
            Self::Discard { offset, length } => {
                image.write_all_at(&vec![0xdd; *length as usize], *offset).unwrap();
            }
        }
    }
}

/// Little-endian numbers at `offset`; zeros past the end.
fn numbers<const N: usize>(file: &File, offset: u64) -> [u64; N] {
    let mut bytes = vec![0; N * 8];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64).unwrap() {
            0 => break,
            count => done += count,
        }
    }
    std::array::from_fn(|n| u64::from_le_bytes(bytes[n * 8..][..8].try_into().unwrap()))
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_file(to);
    run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to));
}
