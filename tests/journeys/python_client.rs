//! The command line of the Python client, used as a backup product would use it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::{Guest, MB, PASSWORD, ServerBehavior, USER, VM, World, write_at, xfs_io};
use crate::needs_root;

/// The folder of the Python package.
pub(super) fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python")
}

/// Python with the package, and what its clients find in the environment. The service is at `port`.
pub(super) fn python(world: &World, port: u16) -> Command {
    let mut command = Command::new("python3");
    command
        .env("PYTHONPATH", package().join("src"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("EXPORTER", format!("https://127.0.0.1:{port}"))
        .env("EXPORTER_CACERT", world.certificates.ca())
        .env("EXPORTER_USERNAME", USER)
        .env("EXPORTER_PASSWORD", PASSWORD)
        .env("VM", VM);
    command
}

/// The command line of the client.
pub(super) fn client_at(world: &World, port: u16, arguments: &[&str]) -> Output {
    let url = format!("https://127.0.0.1:{port}");
    python(world, port).args(["-m", "ovm_exporter_client", "--url", &url]).args(arguments).output().unwrap()
}

fn client(world: &World, arguments: &[&str]) -> Output {
    client_at(world, world.exporter.port, arguments)
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
    assert_eq!(client(&world, &["incremental", VM, &third, &first, copy]).status.code(), Some(4));
    write_at(&copy_dir.path().join("a.img"), 50 * MB, b"x");
    let output = client(&world, &["verify", VM, &second, copy]);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{printed}");
    assert_eq!(printed, format!("a.img: bytes {} to {} differ\ndata disk.img: equal\n", 48 * MB, 52 * MB - 1));

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
    // The service refuses the token after the first listing: the deletion and the second listing fail.
    world.client().take_snapshot_id();
    let script = "import argparse, os\n\
        from ovm_exporter_client import Client, ClientError\n\
        from ovm_exporter_client.__main__ import purge\n\
        class Logged(Client):\n    \
            def get_snapshots(self, *vm, **options):\n        \
                try: return super().get_snapshots(*vm, **options)\n        \
                finally: self._token, self._credentials = 'refused', None\n\
        environment = [os.environ['EXPORTER' + name] for name in ('', '_USERNAME', '_PASSWORD')]\n\
        client = Logged.login(*environment, cacert=os.environ['EXPORTER_CACERT'])\n\
        try: purge(client, argparse.Namespace(vm=os.environ['VM'], yes=True))\n\
        except ClientError as error: print(f'raised {error}')\n";
    let output = python(&world, world.exporter.port).args(["-c", script]).output().unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(printed.starts_with("raised Authentication failed"), "{printed}{errors}");
    assert!(errors.contains("cannot list the remaining snapshots: Authentication failed"), "{errors}");
}

#[test]
fn passwords_go_only_to_the_verified_service() {
    needs_root!();
    let world = World::new(512);
    let refused = |command: &mut Command| {
        let output = command.output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && !errors.contains("Traceback"), "{errors}");
        (output.status.code().unwrap(), errors)
    };
    let command = |port: u16| {
        let mut command = python(&world, port);
        command.args(["-m", "ovm_exporter_client", "--url", &format!("https://127.0.0.1:{port}")]);
        command
    };
    // A certificate of an unknown CA.
    let (status, errors) = refused(command(world.exporter.port).arg("vms").env_remove("EXPORTER_CACERT"));
    assert!(status == 1 && errors.contains("CERTIFICATE_VERIFY_FAILED"), "{status}: {errors}");
    // A server that redirects: the second request would have the password.
    let server = Guest::start(&world.certificates, "server");
    server.set_post_sync_behavior(ServerBehavior::Redirects);
    let (status, errors) = refused(command(server.port).arg("vms"));
    assert!(status == 1 && errors.contains("redirects are not followed"), "{status}: {errors}");
    assert_eq!(server.take_requests(), ["POST /api/v1/auth/login "]);
    // No TLS.
    let (status, errors) =
        refused(python(&world, 1).args(["-m", "ovm_exporter_client", "--url", "http://host", "vms"]));
    assert!(status == 2 && errors.contains("https://host:5544"), "{status}: {errors}");
    // A wrong password; and a .netrc does not replace the token.
    let (status, errors) = refused(command(world.exporter.port).arg("vms").env("EXPORTER_PASSWORD", "wrong"));
    assert!(status == 1 && errors.contains("(unauthorized, request "), "{status}: {errors}");
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join(".netrc"), "machine 127.0.0.1 login other password other\n").unwrap();
    world.define_vm(&[("a.img", MB)]);
    let output = command(world.exporter.port).arg("vms").env("HOME", home.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
