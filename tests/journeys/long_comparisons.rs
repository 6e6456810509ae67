//! Comparisons that take long: a client that goes away, and files that are touched meanwhile.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use reqwest::Method;

use crate::harness::{Client, MB, ProcessStats, SNAPSHOTS, World, ends_completely, eventually, text, write_at, xfs_io};
use crate::needs_root;

const GB: u64 = 1 << 30;

/// A world of two snapshots between which all of a disk was written again, 8 GiB of it: its extents
/// lie one behind the other, and are few. The bytes are the same but for the first MiB, where every
/// second block differs.
fn with_much_to_compare() -> (World, Client, String, String) {
    let world = World::new(40 << 10);
    let disk = &world.define_vm(&[("a.img", 8 * GB)])[0];
    let fill = |pattern: &str| xfs_io(disk, &[&format!("pwrite -q -b 16m -S {pattern} 0 {}", 64 * MB)]);
    fill("0x11");
    // The same 64 MiB over and over: there is little to store.
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
        assert!(read < 8 * GB, "{path}: {read} bytes were read of 16 GiB for nobody");
        assert_eq!(stats.threads_named("refine"), 0, "{path}: threads are left");
    }
}

fn file_of(client: &Client, id: &str) -> PathBuf {
    let document = client.get(&format!("{SNAPSHOTS}/{id}?chunks=false")).ok();
    text(&document["disks"][0]["path"]).into()
}

/// Extents of a disk whose comparison is longer than any buffer on the way.
const EXTENTS: u64 = 160_000;

/// A world of snapshots of an empty disk, as many as wanted, and one of the same with many extents.
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

/// Changes nothing of a file but when it was changed.
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

    // The client takes some lines and no more for now: so the service waits, too.
    let (answer, some) = world.begin_get(&client, &path, "application/x-ndjson");
    assert!(some.contains("{\"start\":73728,"), "{some}");
    stats.wait_until_idle();
    touch(&file_of(&client, &target));
    assert!(!ends_completely(answer), "the lines came to an end");
    world.exporter.wait_for_log("the connection is cut");
    assert!(world.exporter.log().contains("its content is being checked"), "why");
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
        assert!(!ends_completely(answer), "{query}: the document came to an end");
        let cuts = || world.exporter.log().matches("the connection is cut").count();
        eventually("the log says it", || cuts() > usize::from(query != "refine=0"));
        // Its content is not changed: another attempt succeeds.
        client.get(&format!("{path}&summary=true")).ok();
    }
}
