//! What several benches need: snapshots without the service, a raw reading of a map, medians.

#![allow(dead_code)] // none of them needs all of it

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coriolis_ovm_exporter::model::{DiskSource, FileIdentity, SnapshotDisk, SnapshotId};
use coriolis_ovm_exporter::repository::clone::{Clones, Source, Target};
use coriolis_ovm_exporter::repository::{DiskFile, Repository, SnapshotDir};
use coriolis_ovm_exporter::sys::fiemap;

/// A snapshot of the file `live`, and where it lies.
pub fn snapshot(repository: &Repository, live: &File, number: u128) -> (Arc<DiskFile>, PathBuf) {
    let id = SnapshotId::from_u128(number);
    let root = repository.open().unwrap();
    let folder = SnapshotDir::new(&root, id).create().unwrap();
    let name = "disk".parse().unwrap();
    let path = repository.snapshot_path(id, &name);
    let source = Source { file: live.try_clone().unwrap(), folder: root, name: "live".into() };
    let clones = Clones::prepare(vec![(source, Target { folder, name: name.to_string() })]).unwrap();
    clones.make().unwrap().finish().unwrap()[0].sync_all().unwrap();
    let metadata = fs::metadata(&path).unwrap();
    let changed_ns = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    let identity = FileIdentity { inode: metadata.ino(), size: metadata.len(), changed_ns };
    let source = DiskSource { repository: repository.id().clone(), path: "live".to_owned() };
    (
        Arc::new(
            DiskFile::open(repository, id, &SnapshotDisk { name, source, identity, volume: None, seal: None }).unwrap(),
        ),
        path,
    )
}

/// Reads a map with as few calls as our reader makes, and keeps nothing.
pub fn count_extents(file: &File) -> u64 {
    let mut reader = fiemap::Reader::new(fiemap::PAGE);
    let (mut at, mut count) = (0, 0);
    loop {
        let page = reader.read(file.as_fd(), at).unwrap();
        count += page.len() as u64;
        match page.last() {
            Some(last) if last.flags & fiemap::LAST == 0 => at = last.logical + last.length,
            _ => return count,
        }
    }
}

pub fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

pub fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}
