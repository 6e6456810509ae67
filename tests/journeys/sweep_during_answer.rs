//! A snapshot is not swept while an answer about it is being sent, even to a slow client.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::harness::{Clock, ProcessStats, SNAPSHOTS, World, ends_completely, ids};
use crate::needs_root;

/// Enough extents to make the answer larger than all buffers between the service and a client that does not read.
const EXTENTS: u64 = 100_000;

#[test]
fn snapshots_are_kept_until_the_answer_ends() {
    needs_root!();
    let clock = Clock::new();
    let world = World::with(8 << 10, |settings| clock.load_into(settings));
    let disk = &world.define_vm(&[("a.img", EXTENTS * 8192)])[0];
    let client = world.lasting_client();
    let bases: [String; 2] = std::array::from_fn(|_| client.take_snapshot_with_ttl("1h"));
    let file = fs::File::options().write(true).open(disk).unwrap();
    (0..EXTENTS).for_each(|extent| file.write_all_at(&[1; 4096], extent * 8192).unwrap());
    let [target, summed] = std::array::from_fn(|_| client.take_snapshot_with_ttl("1h"));
    client.take_snapshot_with_ttl("1h");
    clock.rounds(&world, 1);

    let document = format!("{SNAPSHOTS}/{target}?compareTo={}&refine=0", bases[0]);
    let lines = format!("{SNAPSHOTS}/{target}/disks/a.img/chunks?compareTo={}", bases[1]);
    let blocks = format!("{SNAPSHOTS}/{summed}/disks/a.img/checksum?blockSize=4096&blocks=true");
    let answers = [(document.as_str(), "*/*"), (&lines, "application/x-ndjson"), (&blocks, "*/*")]
        .map(|(path, accept)| (path, world.begin_get(&client, path, accept).0));
    // The clients do not read, so the service blocks.
    ProcessStats::of(&world.exporter).wait_until_idle();
    clock.pass(24);
    clock.rounds(&world, 3);
    for (path, answer) in answers {
        assert!(ends_completely(answer), "{path}: the answer is incomplete; {}", world.exporter.log());
    }
    // The snapshots are kept for a while after the answer.
    clock.rounds(&world, 1);
    world.lasting_client().get(&format!("{SNAPSHOTS}/{target}?compareTo={}&summary=true", bases[0])).ok();
    clock.pass(1);
    clock.rounds(&world, 1);
    for id in bases.iter().chain([&target, &summed]) {
        assert_eq!(world.lasting_client().get(&format!("{SNAPSHOTS}/{id}?chunks=false")).error(404), "not_found");
    }
}

#[test]
fn listing_does_not_delay_the_sweep() {
    needs_root!();
    let clock = Clock::new();
    let world = World::with(512, |settings| clock.load_into(settings));
    world.define_vm(&[("a.img", 1 << 20)]);
    let client = world.lasting_client();
    client.take_snapshot_with_ttl("1h");
    let newest = client.take_snapshot_with_ttl("1h");
    clock.rounds(&world, 1);
    clock.pass(3);
    world.lasting_client().get(SNAPSHOTS).ok();
    clock.rounds(&world, 1);
    let left = world.lasting_client().get(SNAPSHOTS).ok();
    assert_eq!(ids(&left), [newest]);
}
