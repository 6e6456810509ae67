//! The time of a comparison by content relative to `cmp` of the same bytes, from one run.
//!
//! `make bench` runs it as root, on a loop-mounted XFS with two snapshots of a disk that was rewritten with the same
//! bytes in between. So all blocks are candidates, and none of them differs.

#![allow(clippy::unwrap_used)] // a bench that cannot run may panic

use std::fs::{self, File};
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{median_ms, snapshot, timed};
use coriolis_ovm_exporter::testing::{BaseContents, Refined};
use coriolis_ovm_exporter::testing::{Changes, DiskFile, Repository};

mod common;
#[allow(dead_code)] // the tests use the rest
#[path = "../tests/journeys/harness/volume.rs"]
mod volume;
#[allow(dead_code)] // the tests use the rest
#[path = "../tests/journeys/harness/wait.rs"]
mod wait;

const SIZE: u64 = 1 << 30;
const PIECE: u64 = 1 << 20;
const ROUNDS: usize = 7;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("this bench mounts XFS: run it as root");
        return;
    }
    let volume = volume::Volume::xfs(4 << 10);
    let repository = Repository::new("bench".parse().unwrap(), volume.mount_point.clone());
    let live = File::options().read(true).write(true).create_new(true).open(volume.mount_point.join("live")).unwrap();
    let mut number = 0_u64;
    let mut fill = || {
        number = 0;
        for at in (0..SIZE).step_by(PIECE as usize) {
            let piece: Vec<u8> = (0..PIECE / 8)
                .flat_map(|_| {
                    number += 1;
                    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
                })
                .collect();
            live.write_all_at(&piece, at).unwrap();
        }
        live.sync_all().unwrap();
    };
    fill();
    let (base, base_path) = snapshot(&repository, &live, 1);
    fill();
    let (target, target_path) = snapshot(&repository, &live, 2);

    println!("{} MiB, all of them written again with the same bytes; medians of {ROUNDS} rounds, ms\n", SIZE >> 20);
    println!("| page cache | cmp | refine=4096 | ratio |\n|---|---:|---:|---:|");
    for is_warm in [true, false] {
        let (mut cmp, mut refined) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            prepare(is_warm, &base_path, &target_path);
            cmp.push(timed(|| {
                assert!(Command::new("cmp").args([&base_path, &target_path]).status().unwrap().success());
            }));
            prepare(is_warm, &base_path, &target_path);
            refined.push(timed(|| assert_eq!(refine(&base, &target), 0)));
        }
        let (cmp, refined) = (median_ms(cmp), median_ms(refined));
        let cache = if is_warm { "warm" } else { "cold" };
        println!("| {cache} | {cmp:.0} | {refined:.0} | {:.2} |", refined / cmp);
    }
}

/// The number of chunks after refinement.
fn refine(base: &Arc<DiskFile>, target: &Arc<DiskFile>) -> usize {
    let changes = Changes::incremental(Arc::clone(base), Arc::clone(target), 0, Arc::new(|| true)).unwrap().unwrap();
    let block = NonZero::new(4096).unwrap();
    let refined =
        Refined::new(changes, BaseContents::File(Arc::clone(base)), Arc::clone(target), block, Arc::new(|| true));
    refined.map(Result::unwrap).count()
}

fn prepare(is_warm: bool, base: &Path, target: &Path) {
    if is_warm {
        for path in [base, target] {
            std::io::copy(&mut File::open(path).unwrap(), &mut std::io::sink()).unwrap();
        }
    } else {
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    }
}
