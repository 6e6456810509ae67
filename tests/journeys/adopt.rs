//! `adopt`: snapshots of the original exporter, and of a lost database.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Clock, OTHER_VM, SNAPSHOTS, VM, World, define_vm, eventually, make_disk, run, write_at};
use crate::needs_root;

fn id(number: u32) -> String {
    format!("{number:08x}-9f3c-4f0e-8a52-0c3f3a1b2c4d")
}

/// Makes a snapshot as the original exporter does: a folder with clones and nothing else.
fn make_original_snapshot(repository: &Path, number: u32, disks: &[&Path]) -> PathBuf {
    let folder = repository.join("CoriolisSnapshots").join(id(number));
    fs::create_dir_all(&folder).unwrap();
    for disk in disks {
        run(Command::new("cp").arg("--reflink=always").arg(disk).arg(&folder));
    }
    folder
}

/// Whether a report succeeded and ends with `last`.
fn report_ends_with(report: &(Option<i32>, String), last: &str) -> bool {
    report.0 == Some(0) && report.1.trim_end().ends_with(last)
}

#[test]
fn snapshots_of_the_original_exporter_are_adopted() {
    needs_root!();
    let (_volume, second, mut world) = World::with_two_repositories(512);
    let clock = Clock::new();
    let repository = world.repository.clone();
    let (a, b) = (make_disk(&repository, "a.img", 1 << 20), make_disk(&second, "b.img", 1 << 20));
    define_vm(&repository, VM, &[a.clone(), b.clone()]);
    let c = make_disk(&repository, "c.img", 1 << 20);
    define_vm(&repository, OTHER_VM, std::slice::from_ref(&c));

    write_at(&a, 0, &[1; 65536]);
    let placed = [make_original_snapshot(&repository, 0xb, &[&a]), make_original_snapshot(&second, 0xb, &[&b])];
    let base = fs::read(&a).unwrap();
    write_at(&a, 8192, &[2; 4096]);
    let (probe, last) = (tempfile::NamedTempFile::new_in(&second).unwrap(), placed[1].join("b.img"));
    eventually("a new file gets a later timestamp", || {
        write_at(probe.path(), 0, &[1]);
        let times = [probe.path(), &last].map(|path| fs::metadata(path).unwrap().modified().unwrap());
        times[0] > times[1]
    });
    drop(probe);
    make_original_snapshot(&repository, 0xa, &[&a]);
    let target = fs::read(&a).unwrap();
    // Folders that belong to no VM.
    let stranger = make_disk(&repository, "stranger.img", 4096);
    let not_adopted = [
        (
            make_original_snapshot(&repository, 1, &[&stranger]),
            "no readable VM of the inventory has a disk stranger.img",
        ),
        (make_original_snapshot(&repository, 2, &[&a, &c]), "more than one VM"),
        (repository.join("CoriolisSnapshots/notes"), "not a snapshot id"),
    ];
    fs::create_dir(&not_adopted[2].0).unwrap();
    let before = world.snapshot_files();

    // New folders are skipped: another service may still be writing them.
    let report = world.exporter.command(&["adopt"]);
    assert!(
        report_ends_with(&report, "0 adopted, 6 skipped") && report.1.contains("less than 10 minutes ago"),
        "{report:?}"
    );
    clock.load_into(world.exporter.settings());
    clock.leap(1);
    world.exporter.restart();

    // A snapshot with a missing part is not adopted.
    let moved = second.with_extension("moved");
    fs::rename(&second, &moved).unwrap();
    let report = world.exporter.command(&["adopt"]);
    assert!(report.1.contains("0 adopted") && report.1.contains("its VM has a disk in"), "{report:?}");
    assert!(report.1.contains(&format!("skipped  {}: ", second.display())), "{report:?}");
    fs::rename(&moved, &second).unwrap();

    let report = world.exporter.command(&["adopt", "--dry-run"]);
    assert!(report_ends_with(&report, "2 would be adopted, 3 skipped"), "{report:?}");
    let client = world.client();
    assert_eq!(
        (client.snapshot_ids(), world.snapshot_files()),
        (Vec::new(), before.clone()),
        "a dry run changes nothing"
    );

    let report = world.exporter.command(&["adopt"]);
    assert!(report_ends_with(&report, "2 adopted, 3 skipped"), "{report:?}");
    for (path, reason) in &not_adopted {
        let start = format!("skipped  {}: ", path.display());
        assert!(report.1.lines().any(|line| line.starts_with(&start) && line.contains(reason)), "{path:?}: {report:?}");
    }
    assert!(before.iter().all(|path| path.exists()), "files were deleted");
    assert_eq!(client.snapshot_ids(), [id(0xb), id(0xa)], "oldest first, by the files' times");
    let taken = client.get(&format!("{SNAPSHOTS}/{}", id(0xb))).ok();
    assert_eq!(taken["disks"].as_array().unwrap().len(), 2, "{taken}");
    assert_eq!(taken["created_by"], "unix:root", "the user of the command");

    // Comparisons work between adopted snapshots, and between an adopted and a new one.
    let change = client.compare(&id(0xa), &id(0xb));
    assert!(client.patched(&change["disks"][0], &base) == target, "{change}");
    assert_eq!(change["disks"][0]["data_bytes"], 4096);
    write_at(&a, 32768, &[3; 4096]);
    let made = client.take_snapshot_id();
    let change = client.compare(&made, &id(0xa));
    assert!(client.patched(&change["disks"][0], &target) == fs::read(&a).unwrap(), "{change}");
    assert_eq!(client.snapshot_ids(), [id(0xb), id(0xa), made.clone()]);

    // Known snapshots are not adopted again, and adopted ones can be deleted.
    assert!(report_ends_with(&world.exporter.command(&["adopt"]), "0 adopted, 3 skipped"));
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{}", id(0xb))).status, 200);
    assert!(placed.iter().all(|folder| !folder.exists()));

    // A lost database.
    world.exporter.kill();
    fs::remove_file(world.exporter.db_file()).unwrap();
    world.exporter.restart();
    assert_eq!(client.snapshot_ids(), Vec::<String>::new());
    // The last snapshot was made with the clock an hour ahead; another two hours make it old enough.
    clock.leap(2);
    world.exporter.restart();
    let client = world.client();
    let report = world.exporter.command(&["adopt"]);
    assert!(report_ends_with(&report, "skipped") && report.1.contains("has a manifest"), "{report:?}");
    let report = world.exporter.command(&["adopt", "--manifests"]);
    assert!(report.1.contains("2 adopted"), "{report:?}");
    assert_eq!(client.snapshot_ids(), [id(0xa), made.clone()]);
    let change = client.compare(&made, &id(0xa));
    assert!(client.patched(&change["disks"][0], &target) == fs::read(&a).unwrap(), "{change}");
    let next = client.take_snapshot_id();
    assert_eq!(client.snapshot_ids(), [id(0xa), made, next]);
}

#[test]
fn adopt_rejects_unknown_query_values() {
    needs_root!();
    let world = World::new(512);
    let client = world.client();
    for query in ["dryrun=true", "dryRun=yes", "dryRun=true&force=1"] {
        assert_eq!(client.post(&format!("/adopt?{query}")).error(400), "bad_request", "{query}");
    }
}

#[test]
fn adopt_reports_that_it_cannot_reach_the_service() {
    needs_root!();
    let mut world = World::new(512);
    world.exporter.kill();
    let fails_with = |world: &World, expected: &str| {
        let (status, output) = world.exporter.command(&["adopt"]);
        assert!(output.contains(expected), "{output} lacks {expected}");
        status
    };
    assert_eq!(fails_with(&world, "is it running?"), Some(1));
    // Another service listens at the path, and must not be asked.
    let path = world.exporter.socket().display().to_string();
    let other = world.second_service(|settings| settings.socket = Some(path.clone()));
    assert!(other.socket().exists());
    assert_eq!(fails_with(&world, "is it running?"), Some(1));
    drop(other);
    world.exporter.restart();
    fs::remove_file(world.exporter.socket()).unwrap();
    assert_eq!(fails_with(&world, "there is no socket "), Some(75), "it may be there later");
    world.exporter.settings().socket = Some(String::new());
    world.exporter.restart();
    assert_eq!(fails_with(&world, "api.socket is \"\""), Some(1));
}

#[test]
fn adopt_works_where_client_certificates_are_required() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.tls =
            format!("client_auth = true\nca_certificate = {:?}\n", settings.certificate.with_file_name("ca.pem"));
    });
    assert!(report_ends_with(&world.exporter.command(&["adopt"]), "0 adopted, 0 skipped"));
}
