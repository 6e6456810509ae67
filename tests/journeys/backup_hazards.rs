//! What must not spread from a damaged, hostile or odd backup directory.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Backup, MB, Random, Tmpfs, VM, Volume, World, text, write_at};
use crate::needs_root;

fn restored(backup: &Backup, point: &str, disk: &str) -> Vec<u8> {
    let out = tempfile::tempdir().unwrap();
    backup.restore(VM, point, &out.path().join("o"), &[]);
    fs::read(out.path().join("o").join(disk)).unwrap()
}

/// A block that changes in a part takes the rest from the base. A decayed base must not get a new checksum there.
#[test]
fn decay_of_a_base_does_not_reach_the_next_point() {
    needs_root!();
    for target in [Volume::xfs(1024), Volume::ext4(1024)] {
        let world = World::new(512);
        let disk = world.define_vm(&[("a.img", 16 * MB)]).remove(0);
        write_at(&disk, 0, &Random(1).bytes(8 * MB));
        let backup = Backup::new(&world, &target.mount_point);
        let first = backup.back_up()["vms"][0].clone();
        let folder = backup.directory.join(VM).join(text(&first["point"]));
        let image = ["a.img", "a.img.qcow2"].map(|name| folder.join(name)).into_iter().find(|path| path.exists());
        let file = fs::File::options().read(true).write(true).open(image.unwrap()).unwrap();
        // The data of a qcow2 image comes after its tables, so this is within the first MiB of the disk in both formats.
        let mut byte = [0];
        let length = file.metadata().unwrap().len();
        let at = if length == 16 * MB { 3 * 65536 + 100 } else { length - 8 * MB + 3 * 65536 + 100 };
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        // Every block changes in a part.
        (0..128).for_each(|block| write_at(&disk, block * 65536 + 8192, &[1; 4096]));
        let second = backup.back_up()["vms"][0].clone();
        assert_eq!(second["is_full"], true, "{second}");
        assert!(restored(&backup, &text(&second["point"]), "a.img") == fs::read(&disk).unwrap());
        let (status, printed, _) = backup.try_run(&["verify", backup.directory.to_str().unwrap()]);
        assert_eq!(status, Some(4), "{printed}");
        assert!(printed.contains(&format!("{}: ok", text(&second["point"]))), "{printed}");
    }
}

#[test]
fn a_restore_writes_only_into_its_directory() {
    needs_root!();
    let world = World::new(512);
    let disk = world.define_vm(&[("a.img", 4 * MB)]).remove(0);
    write_at(&disk, 0, b"a");
    let target = Tmpfs::new("size=100m");
    let backup = Backup::new(&world, target.path());
    let point = text(&backup.back_up()["vms"][0]["point"]);
    let path = backup.directory.join(VM).join(&point).join("point.json");
    let document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let escaped = target.path().join("escaped");
    for (pointer, value) in [
        ("/disks/0/name", escaped.to_str().unwrap()),
        ("/disks/0/name", "../escaped"),
        ("/disks/0/file", "../../../escaped"),
        ("/disks/0/checksum/file", "../a"),
        ("/vm/id", "0004fb00000600000000000000000009"),
        ("/snapshot_id", "../vms"),
        ("/id", "another"),
    ] {
        let mut changed = document.clone();
        *changed.pointer_mut(pointer).unwrap() = value.into();
        fs::write(&path, changed.to_string()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let arguments = ["restore", backup.directory.to_str().unwrap(), VM, "--out", out.path().to_str().unwrap()];
        let (status, _, stderr) = backup.try_run(&arguments);
        assert!(status == Some(1), "{pointer}: {stderr}");
        assert!(!escaped.exists() && fs::read_dir(out.path()).unwrap().next().is_none(), "{pointer}");
        assert_eq!(backup.try_run(&["verify", backup.directory.to_str().unwrap()]).0, Some(4), "{pointer}");
    }
    fs::write(&path, document.to_string()).unwrap();
    assert!(restored(&backup, &point, "a.img") == fs::read(&disk).unwrap());
    // An existing file stays.
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("a.img"), "mine").unwrap();
    let arguments = ["restore", backup.directory.to_str().unwrap(), VM, "--out", out.path().to_str().unwrap()];
    assert_eq!(backup.try_run(&arguments).0, Some(1));
    assert_eq!(fs::read(out.path().join("a.img")).unwrap(), b"mine");
}

/// Names of disks come from the service, and files of the work stand beside the images.
#[test]
fn odd_names_of_disks_do_not_collide() {
    needs_root!();
    let world = World::new(512);
    let names = ["a", "a.new", "a.blocks", "point.json", "work.json", "point.json.new"];
    let disks = world.define_vm(&names.map(|name| (name, MB)));
    disks.iter().zip(1..).for_each(|(disk, seed)| write_at(disk, 0, &Random(seed).bytes(MB / 2)));
    for target in [Volume::xfs(512), Volume::ext4(512)] {
        let backup = Backup::new(&world, &target.mount_point);
        backup.back_up();
        disks.iter().for_each(|disk| write_at(disk, MB / 4 + 5, b"changed"));
        let point = text(&backup.back_up()["vms"][0]["point"]);
        for (name, disk) in names.iter().zip(&disks) {
            assert!(restored(&backup, &point, name) == fs::read(disk).unwrap(), "{name}");
        }
        backup.run(&["verify", backup.directory.to_str().unwrap()]);
    }
}

#[test]
fn a_date_means_the_newest_point_of_that_day() {
    needs_root!();
    let world = World::new(512);
    let disk = world.define_vm(&[("a.img", MB)]).remove(0);
    let target = Tmpfs::new("size=100m");
    let backup = Backup::new(&world, target.path());
    for byte in 1..=3 {
        write_at(&disk, 0, &[byte]);
        backup.back_up();
    }
    let points = backup.points();
    let set_time = |point: &Value, time: &str| {
        let path = backup.directory.join(VM).join(text(&point["id"])).join("point.json");
        let mut document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        document["created_at"] = time.into();
        fs::write(&path, document.to_string()).unwrap();
    };
    set_time(&points[0], "2026-03-01T20:00:00Z");
    set_time(&points[1], "2026-03-02T09:00:00Z");
    set_time(&points[2], "2026-03-02T20:00:00Z");
    let at = |zone: &str, at: &str| {
        let out = tempfile::tempdir().unwrap();
        let arguments = ["restore", backup.directory.to_str().unwrap(), VM, "--at", at, "-q", "--out"];
        let arguments = [&arguments[..], &[out.path().to_str().unwrap()]].concat();
        let output = backup.command(&arguments).env("TZ", zone).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read(out.path().join("a.img")).unwrap()[0]
    };
    assert_eq!(at("UTC", "2026-03-02"), 3);
    assert_eq!(at("UTC", "2026-03-01"), 1);
    assert_eq!(at("UTC", "2026-03-02T19:59"), 2);
    // 10 hours east of UTC, the last point is of the next day.
    assert_eq!(at("<+10>-10", "2026-03-02"), 2);
    assert_eq!(at("UTC", &text(&points[1]["id"])), 2);
}

#[test]
fn raw_increments_need_clones_and_say_so() {
    needs_root!();
    let world = World::new(512);
    let disk = world.define_vm(&[("a.img", 4 * MB)]).remove(0);
    write_at(&disk, 0, b"a");
    let target = Tmpfs::new("size=100m");
    let backup = Backup::new(&world, target.path());
    backup.run(&backup.backup_arguments(&["--format", "raw", "-q"]));
    write_at(&disk, MB, b"b");
    let (status, _, stderr) = backup.try_run(&backup.backup_arguments(&["--format", "raw"]));
    assert!(status == Some(1) && stderr.contains("leave --format out"), "{stderr}");
    // Without it, the work goes on, on top of the raw image.
    let point = text(&backup.back_up()["vms"][0]["point"]);
    assert_eq!(backup.points()[1]["disks"][0]["backing"]["format"], "raw");
    assert!(restored(&backup, &point, "a.img") == fs::read(&disk).unwrap());
    assert_is_private(&backup.directory);
}

/// Other users cannot read the disks.
fn assert_is_private(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o077, 0, "{}", entry.path().display());
        if metadata.is_dir() {
            assert_is_private(&entry.path());
        }
    }
}
