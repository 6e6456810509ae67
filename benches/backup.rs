//! The backup client beside curl, nbdcopy and a client that makes one request for each chunk, in one run.
//!
//! `make bench` runs it as root: the release binary on both sides, over TLS, on loop-mounted XFS.

#![allow(clippy::unwrap_used)] // a bench that cannot run may panic

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{median_ms, timed};
use harness::{Backup, Random, VM, Volume, World, define_vm, eventually, make_disk, run, write_at};
use jiff::Timestamp;

mod common;
#[allow(dead_code, unused_imports)] // the tests use the rest
#[path = "../tests/journeys/harness/mod.rs"]
mod harness;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const CURLS: u64 = 8;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("this bench mounts XFS: run it as root");
        return;
    }
    let is_quick = std::env::var_os("QUICK").is_some();
    let rounds = if is_quick { 3 } else { 5 };
    let only = std::env::var("ONLY").ok();
    let wants = |name: &str| only.as_ref().is_none_or(|only| only == name);
    if wants("full") {
        full(if is_quick { 1024 } else { 4096 }, rounds);
    }
    if wants("scattered") {
        scattered(rounds);
    }
    if wants("lost_base") {
        lost_base();
    }
    if wants("nothing_changed") {
        nothing_changed(rounds);
    }
    if wants("many_extents") {
        many_extents(if is_quick { 100_000 } else { 1_000_000 });
    }
}

/// A full backup, the same bytes by eight curls, and by nbdcopy from qemu-nbd. All of them end on stable storage.
fn full(mib: u64, rounds: usize) {
    let world = World::new(16 << 10);
    let target = Volume::xfs(16 << 10);
    let disk = world.define_vm(&[("a.img", mib * MIB)]).remove(0);
    fill(&disk, mib);
    let client = world.client();
    let snapshot = client.take_snapshot_id();
    let source = world.snapshot_folder(&snapshot).join("a.img");
    let url = format!("https://127.0.0.1:{}/api/v1/vms/{VM}/snapshots/{snapshot}/disks/a.img", world.exporter.port);
    let (ca, out) = (world.certificates.ca(), target.mount_point.join("out"));
    let [mut ours, mut digests, mut curls, mut nbd] = std::array::from_fn(|_| Vec::new());
    for round in 0..=rounds {
        fs::create_dir(&out).unwrap();
        let backup = Backup::new(&world, &out);
        let backed_up = timed(|| drop(backup.back_up()));
        fs::remove_dir_all(&out).unwrap();
        fs::create_dir(&out).unwrap();
        let compared = timed(|| drop(backup.run(&backup.backup_arguments(&["--digests", "-q"]))));
        fs::remove_dir_all(&out).unwrap();
        fs::create_dir(&out).unwrap();
        let curled = timed(|| {
            let part = mib * MIB / CURLS;
            let children = (0..CURLS).map(|n| {
                let mut curl = Command::new("curl");
                curl.args(["-sSf", "-r", &format!("{}-{}", n * part, (n + 1) * part - 1), "--cacert"]).arg(&ca);
                curl.args(["-H", &format!("Authorization: Bearer {}", client.token), "-o"]);
                curl.arg(out.join(n.to_string())).arg(&url).spawn().unwrap()
            });
            children.collect::<Vec<_>>().into_iter().for_each(succeed);
            run(Command::new("sync").arg("-f").arg(&out));
        });
        fs::remove_dir_all(&out).unwrap();
        fs::create_dir(&out).unwrap();
        let copied = timed(|| {
            run(Command::new("nbdcopy")
                .args(["--", "[", "qemu-nbd", "-r", "-f", "raw"])
                .arg(&source)
                .arg("]")
                .arg(out.join("copy")));
            run(Command::new("sync").arg("-f").arg(&out));
        });
        fs::remove_dir_all(&out).unwrap();
        // The first round warms the page cache.
        if round > 0 {
            ours.push(backed_up);
            digests.push(compared);
            curls.push(curled);
            nbd.push(copied);
        }
        client.snapshot_ids().iter().filter(|id| **id != snapshot).for_each(|id| {
            client.delete(&format!("/vms/{VM}/snapshots/{id}"));
        });
    }
    let [ours, digests, curls, nbd] = [ours, digests, curls, nbd].map(median_ms);
    let rate = |ms: f64| mib as f64 / ms * 1e3;
    println!("| a full backup of {mib} MiB | MiB/s | of 8 curls |\n|---|---:|---:|");
    println!("| backup | {:.0} | {:.2} |", rate(ours), curls / ours);
    println!("| backup --digests | {:.0} | {:.2} |", rate(digests), curls / digests);
    println!("| 8 curls, and sync | {:.0} | 1 |", rate(curls));
    println!("| nbdcopy from qemu-nbd without TLS, and sync | {:.0} | {:.2} |", rate(nbd), curls / nbd);
}

fn succeed(mut child: Child) {
    assert!(child.wait().unwrap().success());
}

fn fill(disk: &Path, mib: u64) {
    let bytes = Random(1).bytes(64 * MIB);
    (0..mib / 64).for_each(|n| write_at(disk, n * 64 * MIB, &bytes));
    File::open(disk).unwrap().sync_all().unwrap();
}

/// 10,000 scattered changes of 4 KiB, beside a client that makes one request for each chunk.
fn scattered(rounds: usize) {
    const CHANGES: u64 = 10_000;
    let world = World::new(16 << 10);
    let target = Volume::xfs(16 << 10);
    let disk = world.define_vm(&[("a.img", 2048 * MIB)]).remove(0);
    fill(&disk, 2048);
    let backup = Backup::new(&world, &target.mount_point);
    backup.back_up();
    let client = world.client();
    let [mut ahead, mut transfers, mut completions, mut one_by_one] = std::array::from_fn(|_| Vec::new());
    let mut random = Random(2);
    for _ in 0..rounds {
        let mut blocks = BTreeSet::new();
        while (blocks.len() as u64) < CHANGES {
            blocks.insert(random.below(2048 * MIB / BLOCK));
        }
        let file = File::options().write(true).open(&disk).unwrap();
        blocks.iter().for_each(|block| file.write_all_at(&random.bytes(BLOCK), block * BLOCK).unwrap());
        file.sync_all().unwrap();
        let snapshot = client.take_snapshot_id();
        // Neither finds the pages of its snapshot in the page cache. Both write into a clone of the older point.
        let (point, copy) = (backup.points().pop().unwrap(), target.mount_point.join("copy"));
        let image = backup.directory.join(VM).join(point["id"].as_str().unwrap()).join("a.img");
        run(Command::new("cp").arg("--reflink=always").arg(image).arg(&copy));
        let copy = File::options().write(true).open(copy).unwrap();
        one_by_one.push(timed(|| {
            for block in &blocks {
                let bytes = client.disk_range(&snapshot, "a.img", block * BLOCK, BLOCK);
                copy.write_all_at(&bytes, block * BLOCK).unwrap();
            }
        }));
        client.delete(&format!("/vms/{VM}/snapshots/{snapshot}"));
        let lines = backup.run(&backup.backup_arguments(&["--progress", "json"]));
        let ended = Timestamp::now();
        let events = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let steps = events.filter(|event| event["event"] == "step");
        let steps: Vec<Timestamp> = steps.map(|step| step["time"].as_str().unwrap().parse().unwrap()).collect();
        let [first, .., transferring, completing] = steps[..] else { panic!("{lines}") };
        let between = |from: Timestamp, to: Timestamp| to.duration_since(from).unsigned_abs();
        ahead.push(between(first, transferring));
        transfers.push(between(transferring, completing));
        completions.push(between(completing, ended));
    }
    let [ahead, transfer, completion, one_by_one] = [ahead, transfers, completions, one_by_one].map(median_ms);
    println!("\n| 10,000 changes of 4 KiB | ms | changes/s |\n|---|---:|---:|");
    println!("| backup: snapshot and comparison | {ahead:.0} | |");
    println!("| backup: transfer | {transfer:.0} | {:.0} |", 1e7 / transfer);
    println!("| backup: checksums and sync | {completion:.0} | |");
    println!("| one request for each chunk, without checksums and sync | {one_by_one:.0} | {:.0} |", 1e7 / one_by_one);
    println!("\ntransfer: {:.1} times as many changes per second", one_by_one / transfer);
}

/// The service lost the base: checksums of blocks instead of a full transfer.
fn lost_base() {
    let world = World::new(16 << 10);
    let target = Volume::xfs(16 << 10);
    let disk = world.define_vm(&[("a.img", 2048 * MIB)]).remove(0);
    fill(&disk, 2048);
    let backup = Backup::new(&world, &target.mount_point);
    let full = backup.back_up();
    let mut random = Random(3);
    (0..200).for_each(|_| write_at(&disk, random.below(2047) * MIB, &random.bytes(100_000)));
    let client = world.client();
    client.snapshot_ids().iter().for_each(|id| drop(client.delete(&format!("/vms/{VM}/snapshots/{id}"))));
    let again = backup.back_up();
    println!("\n| 2 GiB, 20 MB changed | seconds | MiB transferred |\n|---|---:|---:|");
    for (name, result) in [("full", full), ("the base is lost", again)] {
        let result = &result["vms"][0];
        let transferred = result["transferred_bytes"].as_u64().unwrap() / MIB;
        println!("| {name} | {:.2} | {transferred} |", result["seconds"].as_f64().unwrap());
    }
}

/// 20 VMs of which nothing changed.
fn nothing_changed(rounds: usize) {
    let world = World::new(4 << 10);
    let target = Volume::xfs(4 << 10);
    for number in 1..=20 {
        let disk = make_disk(&world.repository, &format!("{number}.img"), 64 * MIB);
        write_at(&disk, 0, &Random(number).bytes(MIB));
        define_vm(&world.repository, &format!("0004fb0000060000{number:016x}"), &[disk]);
    }
    let backup = Backup::new(&world, &target.mount_point);
    backup.back_up();
    let times = (0..rounds).map(|_| timed(|| drop(backup.back_up()))).collect();
    println!("\n20 VMs of which nothing changed: {:.0} ms", median_ms(times));
}

/// The memory of the client for a disk of 1 TiB with many extents.
fn many_extents(extents: u64) {
    let world = World::new(32 << 10);
    let target = Volume::xfs(32 << 10);
    let disk = world.define_vm(&[("a.img", 1 << 40)]).remove(0);
    let file = File::options().write(true).open(&disk).unwrap();
    for extent in 0..extents {
        file.write_all_at(&[1; BLOCK as usize], extent * ((1 << 40) / extents / BLOCK * BLOCK)).unwrap();
    }
    file.sync_all().unwrap();
    let backup = Backup::new(&world, &target.mount_point);
    for name in ["full", "nothing changed"] {
        let mut child = backup.command(&backup.backup_arguments(&["-q"])).stdout(Stdio::null()).spawn().unwrap();
        let (mut peak, started) = (0, Instant::now());
        while child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(20));
            // A process that has ended has no memory.
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            peak = line.map_or(peak, |line| line.split_whitespace().next().unwrap().parse::<u64>().unwrap());
        }
        assert!(child.wait().unwrap().success());
        let seconds = started.elapsed().as_secs_f64();
        println!("1 TiB with {extents} extents, {name}: {seconds:.1} s, peak memory {} MiB", peak >> 10);
    }
    eventually("the service is idle", || {
        world.client().get("/status").ok()["exports"]["running"] == serde_json::json!([])
    });
}
