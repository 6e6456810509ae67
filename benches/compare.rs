//! The time of a comparison relative to reading the two maps, from one run.
//!
//! `make bench` runs it as root, on a loop-mounted XFS with disks of 1,000 to 100,000 extents.

#![allow(clippy::unwrap_used)] // a bench that cannot run may panic

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{count_extents, median_ms, snapshot, timed};
use coriolis_ovm_exporter::testing::{Changes, Repository};

mod common;
#[allow(dead_code)] // the tests use the rest
#[path = "../tests/journeys/harness/volume.rs"]
mod volume;
#[allow(dead_code)] // the tests use the rest
#[path = "../tests/journeys/harness/wait.rs"]
mod wait;

const BLOCK: u64 = 4096;
const ROUNDS: usize = 7;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("this bench mounts XFS: run it as root");
        return;
    }
    let volume = volume::Volume::xfs(8 << 10);
    println!("two snapshots of a disk whose every second block is data, 1 % of them written between");
    println!("medians of {ROUNDS} rounds, milliseconds; ratio: comparison ÷ reading the two maps once\n");
    println!("| extents | read two maps | comparison | ratio | filefrag of the two |");
    println!("|--------:|--------------:|-----------:|------:|--------------------:|");
    for extents in [1_000, 10_000, 100_000] {
        row(&volume.mount_point, extents);
    }
}

fn row(mount_point: &Path, extents: u64) {
    let repository = Repository::new("bench".parse().unwrap(), mount_point.to_owned());
    let live = mount_point.join(format!("live-{extents}"));
    let file = File::options().read(true).write(true).create_new(true).open(&live).unwrap();
    file.set_len(extents * 2 * BLOCK).unwrap();
    for extent in 0..extents {
        file.write_all_at(&[1; BLOCK as usize], extent * 2 * BLOCK).unwrap();
    }
    file.sync_all().unwrap();
    let (base, base_path) = snapshot(&repository, &file, 1 + u128::from(extents));
    for extent in (0..extents).step_by(100) {
        file.write_all_at(&[2; BLOCK as usize], extent * 2 * BLOCK).unwrap();
    }
    file.sync_all().unwrap();
    let (target, target_path) = snapshot(&repository, &file, 2 + u128::from(extents));
    let paths = [base_path, target_path];
    let files = paths.each_ref().map(|path| File::open(path).unwrap());

    let (mut raw, mut compared, mut filefrag) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw.push(timed(|| files.iter().for_each(|file| assert!(count_extents(file) >= extents))));
        compared.push(timed(|| {
            let changes =
                Changes::incremental(Arc::clone(&base), Arc::clone(&target), 0, Arc::new(|| true)).unwrap().unwrap();
            assert_eq!(changes.map(Result::unwrap).count() as u64, extents.div_ceil(100));
        }));
        filefrag.push(timed(|| {
            let status = Command::new("filefrag").args(&paths).stdout(Stdio::null()).status().unwrap();
            assert!(status.success());
        }));
    }
    let [raw, compared, filefrag] = [raw, compared, filefrag].map(median_ms);
    println!("| {extents} | {raw:.2} | {compared:.2} | {:.2} | {filefrag:.2} |", compared / raw);
}
