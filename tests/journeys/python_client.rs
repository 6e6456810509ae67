//! The example client in Python, used as a backup product would use it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{MB, PASSWORD, USER, VM, World, write_at, xfs_io};
use crate::needs_root;

fn client(world: &World, arguments: &[&str]) -> Output {
    Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/exporter_client.py"))
        .args(["--url", &format!("https://127.0.0.1:{}", world.exporter.port), "--username", USER, "--cacert"])
        .arg(world.certificates.ca())
        .args(arguments)
        .env("EXPORTER_PASSWORD", PASSWORD)
        .output()
        .unwrap()
}

/// Runs the client, which has to succeed; returns its standard output.
fn run_client(world: &World, arguments: &[&str]) -> String {
    let output = client(world, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn full_and_incremental_copies_match_the_snapshots() {
    needs_root!();
    let world = World::new(1024);
    let disks = world.define_vm(&[("a.img", 128 * MB), ("data disk.img", 64 * MB + 512)]);
    write_at(&disks[0], 3 * MB, &vec![1; 20 * MB as usize]);
    write_at(&disks[1], 0, &vec![2; 5 * MB as usize]);
    let copy_dir = tempfile::tempdir_in(&world.volume.mount_point).unwrap();
    let copy = copy_dir.path().to_str().unwrap();
    let is_copy = |id: &str| {
        for name in ["a.img", "data disk.img"] {
            let snapshot = world.snapshot_folder(id).join(name);
            assert!(fs::read(snapshot).unwrap() == fs::read(copy_dir.path().join(name)).unwrap(), "{name} of {id}");
        }
    };

    assert!(run_client(&world, &["vms"]).contains(VM));
    let first = run_client(&world, &["snapshot", VM]).trim().to_owned();
    run_client(&world, &["full", VM, &first, copy]);
    is_copy(&first);
    let allocated = || fs::metadata(copy_dir.path().join("a.img")).unwrap().blocks() * 512;
    assert!(allocated() < 24 * MB, "the copy is not sparse: {}", allocated());

    // Writes, a discard, and growth.
    write_at(&disks[0], 100 * MB, &[3; 12345]);
    xfs_io(&disks[0], &[&format!("fpunch {} {}", 4 * MB, 16 * MB)]);
    fs::File::options().write(true).open(&disks[1]).unwrap().set_len(80 * MB).unwrap();
    write_at(&disks[1], 79 * MB, &[4; 4096]);
    let second = run_client(&world, &["snapshot", VM]).trim().to_owned();
    run_client(&world, &["incremental", VM, &second, &first, copy]);
    is_copy(&second);
    assert!(allocated() < 8 * MB, "discarded ranges were not punched: {}", allocated());
    let verified = run_client(&world, &["verify", VM, &second, copy]);
    assert!(verified.contains("a.img"), "{verified}");

    // An increment onto another base is refused, and `verify` detects a wrong copy.
    let third = run_client(&world, &["snapshot", VM]).trim().to_owned();
    assert!(!client(&world, &["incremental", VM, &third, &first, copy]).status.success());
    write_at(&copy_dir.path().join("a.img"), 50 * MB, b"x");
    assert!(!client(&world, &["verify", VM, &second, copy]).status.success());

    // With a lost base the client makes a full copy and says so.
    run_client(&world, &["full", VM, &first, copy]);
    fs::remove_file(world.snapshot_folder(&first).join("a.img")).unwrap();
    let output = client(&world, &["incremental", VM, &second, &first, copy]);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("base_lost"), "{printed}");
    is_copy(&second);

    run_client(&world, &["delete", VM, &first]);
    // Without --yes nothing is deleted.
    let output = client(&world, &["purge", VM]);
    let listed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2), "{listed}");
    assert!(listed.contains(&format!("would delete {second}")) && listed.contains(&third), "{listed}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--yes"));
    assert_eq!(world.client().get(&format!("/vms/{VM}/snapshots")).ok().as_array().unwrap().len(), 2);
    let deleted = run_client(&world, &["purge", "--yes", VM]);
    assert_eq!(deleted, format!("deleted {second}\ndeleted {third}\n"));
    assert_eq!(world.client().get(&format!("/vms/{VM}/snapshots")).ok(), serde_json::json!([]));
    let listed = run_client(&world, &["snapshots", VM]);
    assert!(!listed.contains(&second), "{listed}");
}

#[test]
fn client_errors_are_one_line() {
    needs_root!();
    let world = World::new(512);
    let unknown = client(&world, &["snapshot", VM]);
    let errors = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(!unknown.status.success() && errors.contains("not_found") && !errors.contains("Traceback"), "{errors}");
}

#[test]
fn purge_reports_the_first_error_and_an_empty_list() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    for arguments in [&["purge", VM][..], &["purge", "--yes", VM]] {
        assert_eq!(run_client(&world, arguments), "there are none\n", "{arguments:?}");
    }
    // The service stops after the first listing: the deletion and the second listing fail.
    let script = "import argparse, exporter_client as client\n\
        class Service:\n    \
            calls = 0\n    \
            def call(self, method, path):\n        \
                self.calls += 1\n        \
                if self.calls == 1: return [{'id': 'x'}]\n        \
                raise client.ClientError(f'{method} failed')\n\
        try: client.purge(Service(), argparse.Namespace(vm='v', yes=True))\n\
        except client.ClientError as error: print(f'raised {error}')\n";
    let output = Command::new("python3")
        .args(["-B", "-c", script])
        .env("PYTHONPATH", Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "raised DELETE failed\n", "{errors}");
    assert!(errors.contains("GET failed"), "{errors}");
}
