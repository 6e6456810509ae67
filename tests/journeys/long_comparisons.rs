//! Long comparisons: clients that disconnect, and files that are touched meanwhile.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use reqwest::Method;

use crate::harness::{Client, MB, ProcessStats, SNAPSHOTS, World, ends_completely, eventually, text, write_at, xfs_io};
use crate::needs_root;

const GB: u64 = 1 << 30;

/// Two snapshots of a disk of 8 GiB, which was rewritten completely in between, in few extents. The bytes are the
/// same, except that every second block of the first MiB differs.
fn with_much_to_compare() -> (World, Client, String, String) {
    let world = World::new(40 << 10);
    let disk = &world.define_vm(&[("a.img", 8 * GB)])[0];
    let fill = |pattern: &str| xfs_io(disk, &[&format!("pwrite -q -b 16m -S {pattern} 0 {}", 64 * MB)]);
    fill("0x11");
    // 64 MiB are cloned repeatedly to save space.
    let copies = |disk: &Path| {
        for at in 1..8 * GB / (64 * MB) {
            xfs_io(disk, &[&format!("reflink {} 0 {} {}", disk.display(), at * 64 * MB, 64 * MB)]);
        }
    };
    copies(disk);
    let client = world.client();
    let base = client.take_snapshot_id();
    fill("0x11");
    for block in (0..256).step_by(2) {
        write_at(disk, block * 4096, &[0x22; 4096]);
    }
    copies(disk);
    let target = client.take_snapshot_id();
    (world, client, base, target)
}

#[test]
fn refinement_stops_when_the_client_disconnects() {
    needs_root!();
    let (world, client, base, target) = with_much_to_compare();
    let stats = ProcessStats::of(&world.exporter);
    let document = format!("{SNAPSHOTS}/{target}?compareTo={base}");
    let chunks = format!("{SNAPSHOTS}/{target}/disks/a.img/chunks?compareTo={base}");
    for (path, accept) in [
        (format!("{document}&refine=4096"), "*/*"),
        (format!("{document}&refine=4096&summary=true"), "*/*"),
        (format!("{chunks}&refine=4096&startingOffset={MB}"), "*/*"),
        (format!("{chunks}&refine=4096"), "application/x-ndjson"),
    ] {
        let before = stats.bytes_read();
        let stream = world.send_get_with(&client, &path, &format!("Accept: {accept}\r\n"));
        eventually("the file is read", || stats.bytes_read() > before + 64 * MB);
        drop(stream);
        stats.wait_until_idle();
        let read = stats.bytes_read() - before;
        assert!(read < 8 * GB, "{path}: {read} bytes of 16 GiB were read for a disconnected client");
        assert_eq!(stats.threads_named("refine"), 0, "{path}: refine threads are left");
    }
}

fn file_of(client: &Client, id: &str) -> PathBuf {
    let document = client.get(&format!("{SNAPSHOTS}/{id}?chunks=false")).ok();
    text(&document["disks"][0]["path"]).into()
}

/// Enough extents to make a comparison larger than all buffers on the way.
const EXTENTS: u64 = 160_000;

/// `N` snapshots of an empty disk, and one of the disk with many extents.
fn with_many_chunks<const N: usize>() -> (World, Client, [String; N], String) {
    let world = World::new(8 << 10);
    let disk = &world.define_vm(&[("a.img", EXTENTS * 8192)])[0];
    let client = world.client();
    let bases = std::array::from_fn(|_| client.take_snapshot_id());
    let file = fs::File::options().write(true).open(disk).unwrap();
    (0..EXTENTS).for_each(|extent| file.write_all_at(&[1; 4096], extent * 8192).unwrap());
    let target = client.take_snapshot_id();
    (world, client, bases, target)
}

/// Changes only the change time of a file.
fn touch(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(file.metadata().unwrap().modified().unwrap()).unwrap();
}

#[test]
fn touched_target_aborts_the_streamed_lines() {
    needs_root!();
    let (world, client, [base], target) = with_many_chunks();
    let stats = ProcessStats::of(&world.exporter);
    let path = format!("{SNAPSHOTS}/{target}/disks/a.img/chunks?compareTo={base}");
    let answer =
        client.request(Method::GET, &format!("/api/v1{path}")).header("Accept", "application/x-ndjson").send().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(BufReader::new(answer).lines().map(Result::unwrap).count() as u64, EXTENTS);

    // The client stops reading after some lines, so the service blocks.
    let (answer, some) = world.begin_get(&client, &path, "application/x-ndjson");
    assert!(some.contains("{\"start\":73728,"), "{some}");
    stats.wait_until_idle();
    touch(&file_of(&client, &target));
    assert!(!ends_completely(answer), "the response was completed");
    world.exporter.wait_for_log("cutting the connection");
    assert!(world.exporter.log().contains("its content is being verified"), "the log lacks the reason");
}

#[test]
fn touched_base_aborts_the_streamed_document() {
    needs_root!();
    let (world, client, bases, target) = with_many_chunks::<2>();
    let stats = ProcessStats::of(&world.exporter);
    let untouched = format!("{SNAPSHOTS}/{target}?compareTo={}&refine=0", bases[0]);
    assert!(ends_completely(world.begin_get(&client, &untouched, "*/*").0));
    for (base, query) in bases.iter().zip(["refine=0", "refine=4096"]) {
        let path = format!("{SNAPSHOTS}/{target}?compareTo={base}&{query}");
        let (answer, _) = world.begin_get(&client, &path, "*/*");
        stats.wait_until_idle();
        touch(&file_of(&client, base));
        assert!(!ends_completely(answer), "{query}: the response was completed");
        let aborts = || world.exporter.log().matches("cutting the connection").count();
        eventually("the abort is logged", || aborts() > usize::from(query != "refine=0"));
        // The content is unchanged, so another attempt succeeds.
        client.get(&format!("{path}&summary=true")).ok();
    }
}
