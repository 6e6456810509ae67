//! The cost of many extents: the real service over TLS, and other programs that read the same maps, in one run.
//!
//! `make bench` runs it as root, on a loop-mounted XFS with disks of 1,000 to 1,000,000 extents.

#![allow(clippy::unwrap_used)] // a bench that cannot run may panic

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{count_extents, median_ms, timed};
use harness::{VM, World, define_vm, make_disk, memory_kib, text};
use reqwest::Method;

mod common;
#[allow(dead_code, unused_imports)] // the tests use the rest
#[path = "../tests/journeys/harness/mod.rs"]
mod harness;

const BLOCK: u64 = 4096;
const SNAPSHOTS: &str = "/api/v1/vms/0004fb00000600000000000000000001/snapshots";

fn main() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("this bench mounts XFS: run it as root");
        return;
    }
    if std::env::var("ONLY").is_ok_and(|only| only == "vms") {
        many_vms(500, 2, 1);
        return many_vms(std::env::var("VMS").map_or(100_000, |vms| vms.parse().unwrap()), 1, 20);
    }
    let most = std::env::var("EXTENTS").map_or(1_000_000, |most| most.parse().unwrap());
    println!("two snapshots of a disk whose every second block is data, 1 % of them written between; medians, ms\n");
    println!("| extents | read two maps | filefrag | qemu-img map | comparison | ratio | memory, MiB |");
    println!("|--------:|--------------:|---------:|-------------:|-----------:|------:|------------:|");
    let rows: Vec<String> =
        [1_000, 10_000, 100_000, 1_000_000].into_iter().filter(|extents| *extents <= most).map(row).collect();
    println!("\n| extents | create | get: first byte | get: last byte | a range of 4 KiB |");
    println!("|--------:|-------:|----------------:|---------------:|-----------------:|");
    rows.iter().for_each(|row| println!("{row}"));
    listing();
    many_vms(500, 2, 1);
    many_vms(std::env::var("VMS").map_or(100_000, |vms| vms.parse().unwrap()), 1, 20);
}

/// Prints a row of the first table; returns a row of the second.
fn row(extents: u64) -> String {
    let world = World::new(16 << 10);
    let disk = &world.define_vm(&[("a.img", extents * 2 * BLOCK)])[0];
    let file = File::options().write(true).open(disk).unwrap();
    let write = |step: usize, byte: u8| {
        for extent in (0..extents).step_by(step) {
            file.write_all_at(&[byte; BLOCK as usize], extent * 2 * BLOCK).unwrap();
        }
        file.sync_all().unwrap();
    };
    write(1, 1);
    let client = world.client();
    client.get("/capabilities").ok();
    let idle = memory_kib(world.exporter.pid(), "VmRSS");

    let mut created = Vec::new();
    let take = |created: &mut Vec<Duration>| {
        created.push(timed(|| {
            let mut answer = client.request(Method::POST, SNAPSHOTS).send().unwrap();
            assert_eq!(answer.status(), 200);
            std::io::copy(&mut answer, &mut std::io::sink()).unwrap();
        }));
        let list = client.get(&format!("/vms/{VM}/snapshots?chunks=false")).ok();
        let last = list.as_array().unwrap().last().unwrap().clone();
        (text(&last["id"]), text(&last["disks"][0]["path"]))
    };
    let base = take(&mut created);
    write(100, 2);
    let target = take(&mut created);
    let paths = [&base.1, &target.1];
    let files = paths.map(|path| File::open(path).unwrap());

    let rounds = if extents > 100_000 { 3 } else { 7 };
    let [mut raw, mut filefrag, mut qemu, mut compared, mut first, mut last] = std::array::from_fn(|_| Vec::new());
    for _ in 0..rounds {
        raw.push(timed(|| files.iter().for_each(|file| assert!(count_extents(file) >= extents))));
        filefrag.push(timed(|| run(Command::new("filefrag").args(paths))));
        qemu.push(timed(|| {
            for path in paths {
                run(Command::new("qemu-img").args(["map", "-f", "raw", "--output=json", "-U"]).arg(path));
            }
        }));
        compared.push(timed(|| {
            let answer = client.compare(&target.0, &base.0);
            assert_eq!(answer["disks"][0]["data_bytes"], BLOCK * extents.div_ceil(100));
        }));
        let started = Instant::now();
        let mut answer = client.request(Method::GET, &format!("{SNAPSHOTS}/{}", target.0)).send().unwrap();
        answer.read_exact(&mut [0]).unwrap();
        first.push(started.elapsed());
        std::io::copy(&mut answer, &mut std::io::sink()).unwrap();
        last.push(started.elapsed());
    }
    // The first round warms the page cache.
    let places: Vec<u64> = (0..100).map(|i| extents * i / 100 * 2 * BLOCK).collect();
    let read = |at: &u64| timed(|| assert_eq!(client.disk_range(&target.0, "a.img", *at, BLOCK).len() as u64, BLOCK));
    let [_, range] = [(); 2].map(|()| places.iter().map(read).collect::<Vec<_>>());
    let over_idle = (memory_kib(world.exporter.pid(), "VmHWM") - idle) >> 10;
    let [raw, filefrag, qemu, compared] = [raw, filefrag, qemu, compared].map(median_ms);
    println!(
        "| {extents} | {raw:.1} | {filefrag:.1} | {qemu:.1} | {compared:.1} | {:.2} | {over_idle} |",
        compared / raw
    );
    let [created, first, last, range] = [created, first, last, range].map(median_ms);
    format!("| {extents} | {created:.1} | {first:.1} | {last:.1} | {range:.2} |")
}

/// Lists 200 VMs with 1,000 snapshots.
fn listing() {
    const VMS: u64 = 200;
    const EACH: u64 = 5;
    let world = World::new(4 << 10);
    let vms: Vec<String> = (1..=VMS).map(|n| format!("0004fb0000060000{n:016x}")).collect();
    for vm in &vms {
        let disk = make_disk(&world.repository, &format!("{vm}.img"), 1 << 20);
        harness::write_at(&disk, 0, &[1; 65536]);
        define_vm(&world.repository, vm, &[disk]);
    }
    let client = world.client();
    for _ in 0..EACH {
        for vm in &vms {
            client.post(&format!("/vms/{vm}/snapshots")).ok();
        }
    }
    let all = (0..7).map(|_| {
        timed(|| {
            let list = client.get("/vms").ok();
            let list = list.as_array().unwrap();
            assert!(list.iter().all(|vm| vm["snapshots"].as_array().unwrap().len() as u64 == EACH));
            assert_eq!(list.len() as u64, VMS);
        })
    });
    println!("\nGET /vms, {VMS} of them with {} snapshots: {:.1} ms", VMS * EACH, median_ms(all.collect()));
    let each = timed(|| {
        for vm in &vms {
            let list = client.get(&format!("/vms/{vm}/snapshots")).ok();
            assert_eq!(list.as_array().unwrap().len() as u64, EACH);
        }
    });
    println!("GET /vms/{{vm}}/snapshots, of each of them: {:.1} ms each", each.as_secs_f64() * 1e3 / VMS as f64);
}

/// The time and memory of a list of many VMs, also with concurrent clients.
fn many_vms(vms: u64, disks: u64, clients: usize) {
    let world = World::new(8 << 10);
    for number in 0..vms {
        let vm = format!("0004fb0000060000{number:016x}");
        let paths: Vec<_> =
            (0..disks).map(|disk| make_disk(&world.repository, &format!("{vm}-{disk}.img"), 1 << 20)).collect();
        define_vm(&world.repository, &vm, &paths);
    }
    // Recently written definitions are not cached yet.
    std::thread::sleep(Duration::from_secs(3));
    let idle = memory_kib(world.exporter.pid(), "VmRSS");
    let client = world.client();
    let list = || {
        let mut answer = client.request(Method::GET, "/api/v1/vms").send().unwrap();
        assert_eq!(answer.status(), 200);
        std::io::copy(&mut answer, &mut std::io::sink()).unwrap()
    };
    let cold = timed(|| assert!(list() > 0));
    let warm = (0..7).map(|_| timed(|| assert!(list() > 0))).collect();
    let together = timed(|| {
        std::thread::scope(|scope| (0..clients).for_each(|_| drop(scope.spawn(list))));
    });
    let over_idle = (memory_kib(world.exporter.pid(), "VmHWM") - idle) >> 10;
    println!(
        "GET /vms, {vms} of them with {} disks: first {:.1} ms, then {:.1} ms; {clients} at once {:.1} ms, {over_idle} MiB over idle",
        vms * disks,
        cold.as_secs_f64() * 1e3,
        median_ms(warm),
        together.as_secs_f64() * 1e3
    );
}

fn run(command: &mut Command) {
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
}
