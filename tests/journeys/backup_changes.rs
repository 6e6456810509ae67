//! What changes between two backups: damaged points, a lost base, other disks, other names.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{
    Backup, Clock, MB, OTHER_VM, Random, Tmpfs, VM, Volume, World, define_vm, make_disk, text, write_at,
};
use crate::needs_root;

const DIFFERENCE: Option<i32> = Some(4);

fn point_file(backup: &Backup, point: &Value, file: &str) -> PathBuf {
    backup.directory.join(VM).join(text(&point["id"])).join(file)
}

fn verify(backup: &Backup, more: &[&str]) -> (Option<i32>, String) {
    let (status, stdout, stderr) = backup.try_run(&[&["verify", backup.directory.to_str().unwrap()], more].concat());
    (status, stdout + &stderr)
}

fn damage(path: &Path, offset: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn a_flipped_bit_a_truncated_file_and_swapped_disks_are_found_and_named() {
    needs_root!();
    let world = World::new(1024);
    let target = Volume::xfs(1024);
    let disks = world.define_vm(&[("a.img", 16 * MB), ("b.img", 16 * MB)]);
    disks.iter().zip(1..).for_each(|(disk, seed)| write_at(disk, 0, &Random(seed).bytes(4 * MB)));
    let backup = Backup::new(&world, &target.mount_point);
    backup.back_up();
    write_at(&disks[0], 8 * MB, b"new");
    backup.back_up();
    let points = backup.points();
    let [first, second] = &points[..] else { panic!("{points:?}") };
    assert_eq!(verify(&backup, &[]).0, Some(0));

    // The points share blocks, but not this one: the file system copies it before it is written.
    let a = point_file(&backup, second, "a.img");
    damage(&a, 3 * MB + 5);
    let (status, printed) = verify(&backup, &[]);
    assert_eq!(status, DIFFERENCE, "{printed}");
    let range = format!("{}-{}", 3 * MB, 3 * MB + 65536);
    let expected = format!("{}: a.img: blocks do not have their checksums: 64.00 KiB at {range}", text(&second["id"]));
    assert!(printed.contains(&expected), "{printed}");
    assert!(printed.contains(&format!("{}: ok", text(&first["id"]))), "{printed}");
    // The damaged point is not restored.
    let out = tempfile::tempdir().unwrap();
    let arguments = ["restore", backup.directory.to_str().unwrap(), VM, "--out", out.path().to_str().unwrap()];
    let (status, _, stderr) = backup.try_run(&arguments);
    assert_eq!((status, stderr.contains(&format!("offset {}", 3 * MB))), (DIFFERENCE, true), "{stderr}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    damage(&a, 3 * MB + 5);
    assert_eq!(verify(&backup, &[]).0, Some(0));

    // A byte in what is a hole.
    write_at(&a, 12 * MB, b"x");
    assert_eq!(verify(&backup, &[]).0, DIFFERENCE);
    write_at(&a, 12 * MB, &[0]);
    fs::File::options().write(true).open(&a).unwrap().set_len(16 * MB - 512).unwrap();
    let (status, printed) = verify(&backup, &[]);
    assert!(status == DIFFERENCE && printed.contains("a.img"), "{printed}");
    fs::File::options().write(true).open(&a).unwrap().set_len(16 * MB).unwrap();

    let (b, aside) = (point_file(&backup, second, "b.img"), point_file(&backup, second, "aside"));
    fs::rename(&a, &aside).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(&aside, &b).unwrap();
    let (status, printed) = verify(&backup, &[]);
    assert!(status == DIFFERENCE && printed.contains(": a.img: ") && printed.contains(": b.img: "), "{printed}");

    // Without its description a point is none, and says so.
    fs::write(point_file(&backup, second, "point.json"), "{").unwrap();
    let (status, stdout, stderr) = backup.try_run(&["points", backup.directory.to_str().unwrap()]);
    assert!(status == DIFFERENCE && stderr.contains("is damaged"), "{stdout}{stderr}");
}

#[test]
fn a_lost_base_costs_only_the_blocks_that_differ() {
    needs_root!();
    for target in [Volume::xfs(1024), Volume::ext4(1024)] {
        let world = World::new(1024);
        let disk = world.define_vm(&[("a.img", 64 * MB + 512)]).remove(0);
        write_at(&disk, 0, &Random(1).bytes(40 * MB));
        let backup = Backup::new(&world, &target.mount_point);
        let first = text(&backup.back_up()["vms"][0]["snapshot_id"]);
        write_at(&disk, 10 * MB + 5, b"changed");
        write_at(&disk, 50 * MB, &[1; 4096]);
        fs::File::options().write(true).open(&disk).unwrap().set_len(70 * MB).unwrap();
        // Somebody damages the file of the snapshot: the service cannot compare with it.
        fs::remove_file(world.snapshot_folder(&first).join("a.img")).unwrap();
        let result = backup.back_up();
        assert_eq!(result["vms"][0]["transferred_bytes"], 2 * 65536, "{result}");
        let point = backup.points().pop().unwrap();
        assert!(text(&point["disks"][0]["reason"]).contains("lost the base"), "{point}");
        // Somebody deletes the snapshot. Nothing changed since.
        let client = world.client();
        client.snapshot_ids().iter().for_each(|id| drop(client.delete(&format!("/vms/{VM}/snapshots/{id}"))));
        assert_eq!(backup.back_up()["vms"][0]["transferred_bytes"], 0);
        let out = tempfile::tempdir().unwrap();
        backup.restore(VM, &text(&backup.points().pop().unwrap()["id"]), &out.path().join("o"), &[]);
        assert!(fs::read(out.path().join("o/a.img")).unwrap() == fs::read(&disk).unwrap());
    }
}

#[test]
fn disks_and_names_may_change() {
    needs_root!();
    let world = World::new(1024);
    let target = Tmpfs::new("size=500m");
    let disks = world.define_vm(&[("a.img", 8 * MB), ("b.img", 8 * MB)]);
    disks.iter().zip(1..).for_each(|(disk, seed)| write_at(disk, 0, &Random(seed).bytes(2 * MB)));
    let backup = Backup::new(&world, target.path());
    backup.back_up();
    // `b` is removed, `c` is added, and another disk gets the name of `a`.
    let c = make_disk(&world.repository, "c.img", 4 * MB);
    write_at(&c, MB, b"c");
    let other = make_disk(&world.repository, "other.img", 8 * MB);
    write_at(&other, 0, &Random(9).bytes(MB));
    fs::rename(&other, &disks[0]).unwrap();
    define_vm(&world.repository, VM, &[disks[0].clone(), c.clone()]);
    let result = backup.back_up();
    assert_eq!(
        (&result["failed"], &result["vms"][0]["is_full"]),
        (&Value::Array(Vec::new()), &true.into()),
        "{result}"
    );
    let out = tempfile::tempdir().unwrap();
    backup.restore(VM, &text(&backup.points()[1]["id"]), &out.path().join("o"), &[]);
    for disk in [&disks[0], &c] {
        let restored = fs::read(out.path().join("o").join(disk.file_name().unwrap())).unwrap();
        assert!(restored == fs::read(disk).unwrap(), "{}", disk.display());
    }
    // Another name of the VM: its points stay together, and it is found by the new name.
    let definition = world.repository.join("VirtualMachines").join(VM).join("vm.cfg");
    let text_of = fs::read_to_string(&definition).unwrap();
    let old_name = text(&backup.points()[0]["vm"]["name"]);
    fs::write(&definition, text_of.replace(&old_name, "renamed")).unwrap();
    backup.back_up();
    assert_eq!(backup.points().len(), 3);
    let listed = backup.run(&["points", backup.directory.to_str().unwrap(), "renamed"]);
    assert_eq!(listed.lines().count(), 4, "{listed}");
    // A second VM, and one that is left out.
    define_vm(&world.repository, OTHER_VM, &[make_disk(&world.repository, "d.img", MB)]);
    let result = backup.run(&backup.backup_arguments(&["--json", "--exclude", "renamed"]));
    let result: Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["vms"].as_array().unwrap().len(), 1, "{result}");
    assert_eq!(result["vms"][0]["vm"]["id"], OTHER_VM);
}

#[test]
fn a_clock_that_goes_back_costs_no_full_backup() {
    needs_root!();
    let clock = Clock::new();
    let world = World::with(512, |settings| clock.load_into(settings));
    let target = Tmpfs::new("size=200m");
    let disk = world.define_vm(&[("a.img", 16 * MB)]).remove(0);
    write_at(&disk, 0, &Random(1).bytes(4 * MB));
    let backup = Backup::new(&world, target.path());
    backup.back_up();
    for (hours, seed) in [(-1, 5), (0, 6), (2, 7), (-1, 8)] {
        clock.leap(hours);
        write_at(&disk, seed * MB, &Random(seed).bytes(4096));
        let result = backup.back_up();
        let result = &result["vms"][0];
        assert_eq!((&result["is_full"], &result["transferred_bytes"]), (&false.into(), &4096.into()), "{result}");
        let out = tempfile::tempdir().unwrap();
        backup.restore(VM, &text(&result["point"]), &out.path().join("o"), &[]);
        assert!(fs::read(out.path().join("o/a.img")).unwrap() == fs::read(&disk).unwrap());
        // Whatever the clocks say, this is the newest point.
        assert_eq!(backup.points().last().unwrap()["id"], result["point"]);
    }
    assert_eq!(world.client().snapshot_ids().len(), 1);
    let newest = backup.points().pop().unwrap();
    backup.run(&["prune", backup.directory.to_str().unwrap(), "--keep-last", "1"]);
    let ids: Vec<String> = backup.points().iter().map(|point| text(&point["id"])).collect();
    assert_eq!(ids, [text(&newest["id"])]);
}

#[test]
fn labels_and_the_definition_are_kept_with_the_point() {
    needs_root!();
    let world = World::new(512);
    let target = Tmpfs::new("size=200m");
    world.define_vm(&[("a.img", 4 * MB), ("b.img", 4 * MB)]);
    let backup = Backup::new(&world, target.path());
    let more = ["--label", "job=nightly", "--description", "before the update", "--disks", "a.img", "-q"];
    backup.run(&backup.backup_arguments(&more));
    let point = &backup.points()[0];
    assert_eq!((&point["labels"]["job"], &point["description"]), (&"nightly".into(), &"before the update".into()));
    assert_eq!(point["disks"].as_array().unwrap().len(), 1);
    assert!(text(&point["definition"]["text"]).contains("OVM_simple_name"), "{point}");
    // A look leaves no snapshot and no point behind.
    let printed = backup.run(&backup.backup_arguments(&["--dry-run"]));
    assert!(printed.contains("web-1: full: 0 B to transfer"), "{printed}");
    assert_eq!((backup.points().len(), world.client().snapshot_ids().len()), (1, 1));
    // Nothing can quiesce this guest.
    let (status, _, stderr) = backup.try_run(&backup.backup_arguments(&["--quiesce", "require"]));
    assert!(status == Some(1) && stderr.contains("not_quiesced"), "{stderr}");
}

#[test]
fn bytes_of_a_disk_are_written_to_standard_output() {
    needs_root!();
    let world = World::new(512);
    let target = Tmpfs::new("size=200m");
    let disk = world.define_vm(&[("a.img", 8 * MB + 512)]).remove(0);
    write_at(&disk, MB, &Random(1).bytes(MB));
    let backup = Backup::new(&world, target.path());
    let client = world.client();
    let first = client.take_snapshot_id();
    let cat = |snapshot: &str, more: &[&str]| {
        let address = format!("{VM}/{snapshot}/a.img");
        let output = backup.command(&[&["cat", backup.url(), &address], more].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert!(cat(&first, &[]) == fs::read(&disk).unwrap());
    write_at(&disk, 4 * MB, b"changed");
    let second = client.take_snapshot_id();
    let changes = cat(&second, &["--since", &first]);
    let head = format!("size {} incremental\n{} 4096 data\nchanged", 8 * MB + 512, 4 * MB);
    assert!(changes.starts_with(head.as_bytes()) && changes.ends_with(b"end\n"));
    assert_eq!(changes.len(), head.len() - 7 + 4096 + 4);
}
