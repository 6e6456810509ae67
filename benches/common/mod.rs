//! Shared code of the benches: snapshots without the service, raw FIEMAP reads, medians.

#![allow(dead_code)] // no bench uses all of it

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coriolis_ovm_exporter::testing::Folder;
use coriolis_ovm_exporter::testing::fiemap;
use coriolis_ovm_exporter::testing::{Access, JobKind};
use coriolis_ovm_exporter::testing::{Clones, Source, Target};
use coriolis_ovm_exporter::testing::{DiskFile, Repository, SnapshotDir};
use coriolis_ovm_exporter::testing::{DiskName, DiskSource, SnapshotDisk, SnapshotId};

/// Makes a snapshot of the file `live`; returns it with its path.
pub fn snapshot(repository: &Repository, live: &File, number: u128) -> (Arc<DiskFile>, PathBuf) {
    let id = SnapshotId::from_u128(number);
    let make = move |_: &Access<'_>, root: &Folder| Ok((root.clone(), SnapshotDir::new(root, id).create()?));
    let (root, folder) = repository.run(JobKind::CHANGE, make).unwrap();
    let name: DiskName = "disk".parse().unwrap();
    let path = repository.snapshot_path(id, &name);
    let source = Source { file: live.try_clone().unwrap(), folder: root, name: "live".into() };
    let disks = vec![(repository.clone(), source, Target { folder, name: name.to_string() })];
    let sealed = Clones::make_all(vec![Clones::prepare(disks, number).unwrap()]).unwrap().remove(0).seal().unwrap()[0];
    let source = DiskSource { repository: repository.id().clone(), path: "live".to_owned() };
    let disk = SnapshotDisk { name, source, identity: sealed.identity, volume: None, seal: Some(sealed.seal) };
    let opened = repository.executor().run_here(|access| DiskFile::open(access, repository, (id, &disk), None));
    (Arc::new(opened.unwrap().unwrap()), path)
}

/// Reads a map with the same calls as the service, and only counts the extents.
pub fn count_extents(file: &File) -> u64 {
    let mut reader = fiemap::Reader::new(fiemap::EXTENTS_PER_CALL);
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
