//! Backups that are interrupted: the same command again goes on from there, and its point is whole and equal.

use std::fs;

use serde_json::Value;

use crate::harness::{Backup, Clock, MB, Proxy, Random, VM, Volume, World, eventually, write_at};
use crate::needs_root;

/// The bytes that the journal of an unfinished backup says are on disk: the sum of its records' lengths.
fn bytes_on_disk(backup: &Backup) -> u64 {
    let journal = backup.directory.join(VM).join(".partial/.journals");
    let files = fs::read_dir(journal).into_iter().flatten();
    let bytes = files.flat_map(|file| fs::read(file.unwrap().path()).unwrap());
    let bytes: Vec<u8> = bytes.collect();
    bytes.chunks_exact(48).map(|record| u64::from_le_bytes(record[8..16].try_into().unwrap())).sum()
}

#[test]
fn cut_and_damaged_connections_cost_only_what_was_under_way() {
    needs_root!();
    let world = World::new(1024);
    let target = Volume::xfs(1024);
    let disk = world.define_vm(&[("a.img", 128 * MB)]).remove(0);
    write_at(&disk, 0, &Random(7).bytes(64 * MB));
    let proxy = Proxy::start(world.exporter.port);
    let backup = Backup::new(&world, &target.mount_point).through(proxy.port);
    // Each connection brings some units, and breaks: the even ones are cut, the odd ones damaged.
    proxy.break_each_after(5 * MB + 99);
    let result = backup.back_up();
    assert_eq!(result["failed"], Value::Array(Vec::new()), "{result}");
    let connections = proxy.connections();
    backup.assert_newest_equals(&disk);
    // A broken connection loses a unit at most, so each brought 4 of the 64 units.
    assert!((13..22).contains(&connections), "{connections} connections");
    assert_eq!(result["vms"][0]["transferred_bytes"], 64 * MB);
}

#[test]
fn a_client_that_is_killed_a_hundred_times_fetches_nothing_twice() {
    needs_root!();
    for target in [Volume::xfs(1024), Volume::ext4(1024)] {
        let world = World::new(1024);
        let disk = world.define_vm(&[("a.img", 256 * MB)]).remove(0);
        write_at(&disk, 0, &Random(7).bytes(192 * MB));
        let proxy = Proxy::start(world.exporter.port);
        let backup = Backup::new(&world, &target.mount_point).through(proxy.port);
        let mut kills = 0;
        let mut random = Random(3);
        let kill_at = |backup: &Backup, bytes: u64| {
            let goal = proxy.passed() + bytes;
            let mut child = backup.spawn(&[]);
            let mut has_ended = false;
            eventually("the client has received enough, or has ended", || {
                has_ended = child.try_wait().unwrap().is_some();
                has_ended || proxy.passed() >= goal
            });
            let _ = child.kill();
            child.wait().unwrap();
            !has_ended
        };
        // 50 during the full copy, then 50 during increments.
        while kills < 25 && kill_at(&backup, random.below(8 * MB)) {
            kills += 1;
        }
        let during_full = kills;
        let on_disk = bytes_on_disk(&backup);
        let result = backup.back_up();
        backup.assert_newest_equals(&disk);
        // How many depends on how fast the disk is.
        assert!(on_disk > 0, "{on_disk} bytes are on disk after {during_full} kills");
        assert_eq!(result["vms"][0]["transferred_bytes"], 192 * MB - on_disk, "{result}");
        while kills < 50 {
            write_at(&disk, random.below(200) * MB, &random.bytes(3 * MB));
            if kill_at(&backup, random.below(4 * MB)) {
                kills += 1;
            }
        }
        let result = backup.back_up();
        // The point may be that of an older snapshot, whose backup was interrupted: one more catches up.
        backup.back_up();
        backup.assert_newest_equals(&disk);
        backup.run(&["verify", backup.directory.to_str().unwrap(), "-q"]);
        assert_eq!(world.client().snapshot_ids().len(), 1, "{result}");
        assert!(backup.points().len() > 1 && during_full > 10, "{during_full}");
    }
}

#[test]
fn a_backup_survives_the_death_of_the_service() {
    needs_root!();
    let mut world = World::new(1024);
    let target = Volume::xfs(1024);
    let disk = world.define_vm(&[("a.img", 128 * MB)]).remove(0);
    write_at(&disk, 0, &Random(7).bytes(100 * MB));
    let backup = Backup::new(&world, &target.mount_point);
    let mut child = backup.spawn(&["--bandwidth", "40MiB"]);
    for _ in 0..3 {
        let image = backup.directory.join(VM).join(".partial/a.img");
        let size =
            || fs::metadata(&image).map_or(0, |metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512);
        let before = size();
        eventually("more bytes arrived", || size() > before + MB);
        world.exporter.kill();
        world.exporter.restart();
    }
    assert!(child.wait().unwrap().success());
    backup.assert_newest_equals(&disk);
    assert_eq!(world.client().snapshot_ids().len(), 1);
}

#[test]
fn a_token_that_expires_during_a_backup_is_renewed() {
    needs_root!();
    let clock = Clock::new();
    let world = World::with(1024, |settings| clock.load_into(settings));
    let target = Volume::xfs(1024);
    let disk = world.define_vm(&[("a.img", 64 * MB)]).remove(0);
    write_at(&disk, 0, &Random(7).bytes(48 * MB));
    let backup = Backup::new(&world, &target.mount_point);
    let mut child = backup.spawn(&["--bandwidth", "20MiB"]);
    eventually("some bytes arrived", || bytes_on_disk(&backup) > 2 * MB);
    clock.leap(24 * 30);
    assert!(child.wait().unwrap().success());
    backup.assert_newest_equals(&disk);
    assert_eq!(world.exporter.log().matches("logged in user=").count(), 2);
}
