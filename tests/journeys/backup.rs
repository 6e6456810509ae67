//! Backups with the client: points equal the snapshots, on every kind of target.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{Backup, MB, Random, Tmpfs, VM, Volume, World, run, text, write_at, xfs_io};
use crate::needs_root;

/// What a disk holds now. No guest writes to it.
fn contents(disks: &[PathBuf]) -> Vec<Vec<u8>> {
    disks.iter().map(|disk| fs::read(disk).unwrap()).collect()
}

fn assert_restored(backup: &Backup, point: &str, expected: &[Vec<u8>], scratch: &Path) {
    let (raw, qcow2) = (scratch.join(format!("raw-{point}")), scratch.join(format!("qcow2-{point}")));
    backup.restore(VM, point, &raw, &[]);
    backup.restore(VM, point, &qcow2, &["--format", "qcow2"]);
    for (name, bytes) in ["a.img", "data disk.img"].iter().zip(expected) {
        assert!(fs::read(raw.join(name)).unwrap() == *bytes, "{name} of {point}");
        let image = qcow2.join(format!("{name}.qcow2"));
        run(Command::new("qemu-img").args(["check", "-q"]).arg(&image));
        run(Command::new("qemu-img")
            .args(["compare", "-q", "-f", "qcow2", "-F", "raw"])
            .arg(&image)
            .arg(raw.join(name)));
    }
    fs::remove_dir_all(raw).unwrap();
    fs::remove_dir_all(qcow2).unwrap();
}

/// Full, incremental, grown, shrunk: every point is what the disks were.
fn points_equal_the_disks(target: &Path, format: &str) {
    let world = World::new(2048);
    let disks = world.define_vm(&[("a.img", 96 * MB), ("data disk.img", 40 * MB + 512)]);
    write_at(&disks[0], 3 * MB, &vec![1; 20 * MB as usize]);
    write_at(&disks[1], 0, &vec![2; 5 * MB as usize + 77]);
    let mut random = Random(11);
    let mut scatter = |from: u64| {
        for _ in 0..200 {
            let (at, length) = (from + random.below(20 * MB), random.below(100_000));
            write_at(&disks[0], at, &random.bytes(length));
        }
    };
    scatter(30 * MB);
    let backup = Backup::new(&world, target);
    let client = world.client();
    let mut expected = Vec::new();
    let mut back_up = || {
        let more: &[&str] = if expected.len() % 2 == 0 { &["--json", "--digests"] } else { &["--json"] };
        let printed = backup.run(&backup.backup_arguments(more));
        let result: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(result["failed"], Value::Array(Vec::new()), "{result}");
        // The snapshot of the newest point stays, as the base of the next one.
        assert_eq!(client.snapshot_ids(), [text(&result["vms"][0]["snapshot_id"])]);
        expected.push((text(&result["vms"][0]["point"]), contents(&disks)));
        result["vms"][0].clone()
    };

    let full = back_up();
    assert_eq!(full["is_full"], true);
    // Nothing changed.
    assert_eq!(back_up()["transferred_bytes"], 0);
    // Writes at odd places, a discard, and growth.
    write_at(&disks[0], 70 * MB + 5, &[3; 12345]);
    write_at(&disks[1], 5 * MB + 70, &[4; 100]);
    xfs_io(&disks[0], &[&format!("fpunch {} {}", 4 * MB + 4096, 16 * MB)]);
    fs::File::options().write(true).open(&disks[1]).unwrap().set_len(60 * MB + 1024).unwrap();
    write_at(&disks[1], 59 * MB, &[5; 4096]);
    let increment = back_up();
    assert_eq!(increment["is_full"], false);
    assert!(increment["transferred_bytes"].as_u64().unwrap() < MB / 8, "{increment}");
    // The disk shrinks, and grows again in the next point.
    fs::File::options().write(true).open(&disks[1]).unwrap().set_len(3 * MB + 512).unwrap();
    scatter(35 * MB);
    back_up();
    fs::File::options().write(true).open(&disks[1]).unwrap().set_len(10 * MB).unwrap();
    write_at(&disks[0], 0, &[6; 1]);
    back_up();

    let points = backup.points();
    assert_eq!(points.len(), 5);
    assert!(points.iter().all(|point| point["disks"][0]["format"] == format), "{points:?}");
    assert!(backup.run(&["verify", backup.directory.to_str().unwrap()]).matches(": ok").count() == 5);
    backup.run(&["verify", backup.directory.to_str().unwrap(), "--against", backup.url()]);
    let scratch = tempfile::tempdir_in(&world.volume.mount_point).unwrap();
    for (point, bytes) in &expected {
        assert_restored(&backup, point, bytes, scratch.path());
    }
    // Each removal leaves all other points as they were.
    for remaining in [4, 2, 1] {
        let keep = remaining.to_string();
        backup.run(&["prune", backup.directory.to_str().unwrap(), "--keep-last", &keep]);
        assert_eq!(backup.points().len(), remaining);
        for (point, bytes) in &expected[5 - remaining..] {
            assert_restored(&backup, point, bytes, scratch.path());
        }
        backup.run(&["verify", backup.directory.to_str().unwrap()]);
    }
    // The next backup stands on what is left.
    write_at(&disks[0], 50 * MB, &[7; 4096]);
    let result = backup.back_up();
    assert_eq!(result["vms"][0]["is_full"], false);
    assert_restored(&backup, &text(&result["vms"][0]["point"]), &contents(&disks), scratch.path());
}

#[test]
fn points_on_xfs_are_raw_images_that_share_blocks() {
    needs_root!();
    let target = Volume::xfs(2048);
    points_equal_the_disks(&target.mount_point, "raw");
}

#[test]
fn points_on_ext4_are_chains_of_qcow2_images() {
    needs_root!();
    let target = Volume::ext4(1024);
    points_equal_the_disks(&target.mount_point, "qcow2");
}

#[test]
fn points_on_tmpfs_are_chains_of_qcow2_images() {
    needs_root!();
    let target = Tmpfs::new("size=1g");
    points_equal_the_disks(target.path(), "qcow2");
}
