//! The Python package: its functions against the real service, its README, and its installation.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::{MB, PASSWORD, USER, VM, World, run, write_at, xfs_io};
use crate::python_client::{package, python};
use crate::{needs, needs_root};

/// Before each script.
const PRELUDE: &str = r#"
import json, os, sys
from ovm_exporter_client import *

vm, directory = os.environ["VM"], "copy"

def login():
    endpoint, username, password = (os.environ["EXPORTER" + name] for name in ("", "_USERNAME", "_PASSWORD"))
    return Client.login(endpoint, username, password, cacert=os.environ["EXPORTER_CACERT"])

def error_of(function, *arguments):
    try:
        function(*arguments)
    except ClientError as error:
        return error
    raise SystemExit("no error")
"#;

/// Python that runs a script in a folder. The service is at `port`.
pub(super) fn script(world: &World, port: u16, folder: &Path, code: &str) -> Command {
    let mut command = python(world, port);
    command.args(["-c", &format!("{PRELUDE}{code}")]).current_dir(folder);
    command
}

/// The standard output of a script, which has to succeed.
pub(super) fn run_script(world: &World, folder: &Path, code: &str) -> String {
    printed(&script(world, world.exporter.port, folder, code).output().unwrap())
}

pub(super) fn printed(output: &Output) -> String {
    let (stdout, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{errors}");
    stdout.into_owned()
}

/// A folder for copies. It is on the test's volume, so that the copies can have holes.
pub(super) fn folder(world: &World) -> tempfile::TempDir {
    tempfile::tempdir_in(&world.volume.mount_point).unwrap()
}

/// Whether a file equals a disk of a snapshot.
pub(super) fn equals(world: &World, copy: &Path, id: &str, disk: &str) -> bool {
    fs::read(copy).unwrap() == fs::read(world.snapshot_folder(id).join(disk)).unwrap()
}

#[test]
fn methods_of_the_original_client_work() {
    needs_root!();
    let world = World::new(512);
    let disks = world.define_vm(&[("a.img", 8 * MB)]);
    write_at(&disks[0], MB, &[7; 3 << 20]);
    let folder = folder(&world);
    let id = run_script(
        &world,
        folder.path(),
        r#"
import requests
client = login()
client = Client(os.environ["EXPORTER"] + "/", client.token, cacert=os.environ["EXPORTER_CACERT"])
assert [one["name"] for one in client.get_vms()] == [vm] and client.get_vm(vmID=vm)["name"] == vm
snapID = client.create_snapshot(vmID=vm)["id"]
[listed] = client.get_snapshots(vmID=vm)
assert listed["id"] == snapID and listed["disks"][0]["chunks"]
[disk] = client.get_snapshot(vmID=vm, snapshotID=snapID, compare_to=None, squash=False)["disks"]
with open("a.img", "wb") as file:
    file.truncate(client.get_disk_size(vmID=vm, snapID=snapID, diskID=disk["name"]))
    for chunk in disk["chunks"]:
        file.seek(chunk["start"])
        file.write(client.download_chunk(
            vmID=vm, snapID=snapID, diskID=disk["name"], offset=chunk["start"], length=chunk["length"]))
later = client.create_snapshot(vm)["id"]
[disk] = client.get_snapshot(vm, later, compare_to=snapID, squash=True)["disks"]
assert (disk["mode"], disk["chunks"]) == ("incremental", []), disk
error = error_of(client.get_vm, "0004fb00000600000000000000000009")
assert isinstance(error, requests.HTTPError) and error.response.status_code == 404, error
assert error.code == "not_found" and error.request_id and error.request_id in str(error)
assert error_of(client.download_chunk, vm, snapID, disk["name"], 8 << 20, 1).code == "range_not_satisfiable"
assert "has changed" in str(error_of(client.download_chunk, vm, snapID, disk["name"], (8 << 20) - 1, 2))
print(snapID)
"#,
    );
    assert!(equals(&world, &folder.path().join("a.img"), id.trim(), "a.img"));
}

#[test]
fn other_routes_work() {
    needs_root!();
    let world = World::new(512);
    let disks = world.define_vm(&[("a.img", 8 * MB), ("b.img", MB)]);
    for at in 0..16 {
        write_at(&disks[0], at * MB / 2, &[7; 4096]);
    }
    let code = r#"
client = login()
first = client.create_snapshot(vm, disks=["a.img"], ttl="72h", idempotency_key="one")
assert [disk["name"] for disk in first["disks"]] == ["a.img"] and first["expires_at"]
again = client.create_snapshot(vm, disks=["a.img"], ttl="72h", idempotency_key="one")
assert again["id"] == first["id"]
assert client.lease_snapshot(vm, first["id"], "100h") > first["expires_at"]
assert client.get_snapshot(vm, first["id"], chunks=False)["leased_until"]
client.release_snapshot(vm, first["id"])
assert not client.get_snapshot(vm, first["id"], chunks=False).get("leased_until")
listed = client.get_snapshot(vm, first["id"], squash=True)["disks"][0]["chunks"]
assert len(listed) == 16 and list(client.iter_chunks(vm, first["id"], "a.img")) == listed, listed
second = client.create_snapshot(vm, exclude_disks=["b.img"], chunks=False)
assert list(client.iter_chunks(vm, second["id"], "a.img", compare_to=first["id"], refine=0)) == []
assert "leases" in client.get_capabilities()["features"]
assert client.get_repositories()[0]["reflink"] is True
assert client.get_status()["exports"]["running"] == []
client.delete_snapshot(vm, first["id"])
client.delete_snapshot(vm, first["id"])
assert [one["id"] for one in client.get_snapshots(vm)] == [second["id"]]
client.delete_snapshots(vm)
assert client.get_snapshots(vm) == []
for name in ("", ".", ".."):
    assert error_of(client.get_vm, name).exit_status == 2, "it reached another resource"
"#;
    run_script(&world, folder(&world).path(), code);
}

#[test]
fn script_of_the_readme_makes_incremental_backups() {
    needs_root!();
    let world = World::new(512);
    let disks = world.define_vm(&[("a.img", 32 * MB)]);
    write_at(&disks[0], MB, &[1; 5 << 20]);
    let readme = fs::read_to_string(package().join("README.md")).unwrap();
    let code = readme.split_once("```python\n").unwrap().1.split_once("```").unwrap().0;
    assert!(code.lines().count() <= 15, "{code}");
    let folder = folder(&world);
    let backup = || {
        let mut command = python(&world, world.exporter.port);
        let output = printed(&command.args(["-c", code]).current_dir(folder.path()).output().unwrap());
        let ids = world.client().snapshot_ids();
        assert_eq!(ids.len(), 1, "a snapshot was left behind");
        assert!(equals(&world, &folder.path().join("backup/a.img"), &ids[0], "a.img"));
        output
    };
    assert!(backup().ends_with(&format!("a.img: {0} of {0} bytes\n", 5 * MB)));
    write_at(&disks[0], 20 * MB, &[2; 1 << 20]);
    assert!(backup().ends_with(&format!("a.img: {0} of {0} bytes\n", MB)));
    // The wrong byte of a copy is not backed up again, but it is found.
    write_at(&folder.path().join("backup/a.img"), 2 * MB, b"x");
    let mut command = python(&world, world.exporter.port);
    let output = command.args(["-c", code]).current_dir(folder.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains(&format!("a.img: bytes 0 to {} differ", 4 * MB - 1)), "{errors}");
}

#[test]
fn verify_finds_a_flipped_bit_a_wrong_size_and_a_missing_copy() {
    needs_root!();
    let world = World::new(1024);
    // The middle of the first disk is a hole, and its last block is shorter than the others.
    let disks = world.define_vm(&[("a.img", 33 * MB), ("b.img", 6 * MB), ("c.img", MB), ("d.img", MB)]);
    write_at(&disks[0], 0, &[1; 5 << 20]);
    write_at(&disks[0], 32 * MB, &[2; 1 << 20]);
    let folder = folder(&world);
    let code = r#"
client = login()
snapshot = client.create_snapshot(vm)["id"]
pull(client, vm, snapshot, directory)
seen = []
checks = verify(client, vm, snapshot, directory, progress=lambda *call: seen.append(call))
assert all(check.equal for check in checks), checks
assert ("a.img", 33 << 20, 33 << 20) in seen

def flip(at):
    with open("copy/a.img", "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))

for at in ((6 << 20) - 1, 8 << 20, 20 << 20, (33 << 20) - 1):
    flip(at)
os.truncate("copy/b.img", 5 << 20)
os.truncate("copy/c.img", 2 << 20)
os.remove("copy/d.img")
checks = verify(client, vm, snapshot, directory)
assert not any(check.equal for check in checks), checks
print(*checks, sep="\n")
"#;
    let printed = run_script(&world, folder.path(), code);
    let block = 4 * MB;
    let expected = format!(
        "a.img: bytes {} to {} differ; bytes {} to {} differ; bytes {} to {} differ\n\
         b.img: the copy has {} bytes, the snapshot {}; bytes {block} to {} differ\n\
         c.img: the copy has {} bytes, the snapshot {MB}\n\
         d.img: there is no copy\n",
        block,
        3 * block - 1,
        5 * block,
        6 * block - 1,
        8 * block,
        33 * MB - 1,
        5 * MB,
        6 * MB,
        6 * MB - 1,
        2 * MB,
    );
    assert_eq!(printed, expected);
}

#[test]
fn progress_adds_up_and_only_one_pull_works_in_a_directory() {
    needs_root!();
    let world = World::new(512);
    let disks = world.define_vm(&[("a.img", 64 * MB), ("b.img", 64 * MB)]);
    write_at(&disks[0], 0, &vec![1; 40 << 20]);
    let folder = folder(&world);
    let code = r#"
client = login()
snapshot = client.create_snapshot(vm)["id"]
calls, refused = [], []

def progress(*call):
    calls.append(call)
    if not refused:
        refused.append(str(error_of(pull, client, vm, snapshot, directory)))

summaries = pull(client, vm, snapshot, directory, progress=progress)
assert "another pull works in" in refused[0], refused
assert [call for call in calls if call[0] == "b.img"] == [("b.img", 0, 0)]
done = [call[1] for call in calls if call[0] == "a.img"]
assert done == sorted(done) and done[0] == 0 and done[-1] == 40 << 20 and len(done) > 40, done
assert {call[2] for call in calls if call[0] == "a.img"} == {40 << 20}
assert [one.fetched for one in summaries] == [40 << 20, 0]
assert last_pull(directory).complete and last_pull(directory).snapshot == snapshot
assert os.stat(directory).st_mode & 0o7777 == 0o700 and os.stat("copy/a.img").st_mode & 0o7777 == 0o600
error = error_of(pull, client, "another", snapshot, directory)
assert error.exit_status == 2 and vm in str(error), "the copies of two VMs in one directory"
"#;
    run_script(&world, folder.path(), code);
}

#[test]
fn package_can_be_installed() {
    needs_root!();
    let has_ensurepip = Command::new("python3").args(["-c", "import ensurepip"]).output().unwrap().status.success();
    needs!(has_ensurepip, "python3-venv");
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let folder = tempfile::tempdir().unwrap();
    let environment = folder.path().join("venv");
    // The installation writes into the sources.
    run(Command::new("cp").arg("-r").arg(package()).arg(folder.path().join("package")));
    run(Command::new("python3").args(["-m", "venv", "--system-site-packages"]).arg(&environment));
    let python = environment.join("bin/python");
    let installs = |options: &[&str]| {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet"]).args(options).arg(folder.path().join("package"));
        pip.output().unwrap().status.success()
    };
    // pip fetches the build tools and requests if they are not here.
    needs!(
        installs(&["--no-index", "--no-build-isolation"]) || installs(&[]),
        "Python's setuptools and wheel, or PyPI"
    );
    let client = |arguments: &[&str]| {
        let mut command = Command::new(environment.join("bin/ovm-exporter-client"));
        command.args(["--url", &format!("https://127.0.0.1:{}", world.exporter.port), "--username", USER, "--cacert"]);
        command.arg(world.certificates.ca()).args(arguments).env("EXPORTER_PASSWORD", PASSWORD);
        printed(&command.output().unwrap())
    };
    assert!(client(&["vms"]).contains(VM));
    let typed = "import ovm_exporter_client as p, os; print(os.listdir(os.path.dirname(p.__file__)))";
    let files = printed(&Command::new(&python).args(["-c", typed]).current_dir("/").output().unwrap());
    assert!(files.contains("py.typed"), "{files}");
}

#[test]
fn disks_that_appear_and_disappear_are_reported() {
    needs_root!();
    let world = World::new(512);
    let disks = world.define_vm(&[("a.img", 8 * MB), ("b.img", 8 * MB)]);
    write_at(&disks[0], 0, &[1; 1 << 20]);
    write_at(&disks[1], 0, &[2; 1 << 20]);
    let folder = folder(&world);
    let code = r#"
client = login()
snapshot, base = next_pull(client, vm, directory)
print(json.dumps([one.mode for one in pull(client, vm, snapshot, directory, base)]))
assert all(check.equal for check in verify(client, vm, snapshot, directory))
"#;
    assert_eq!(run_script(&world, folder.path(), code), "[\"full\", \"full\"]\n");
    xfs_io(&disks[0], &["fpunch 0 4096"]);
    let disks = world.define_vm(&[("a.img", 8 * MB), ("c.img", 4 * MB)]);
    write_at(&disks[1], MB, &[3; 4096]);
    let output = script(&world, world.exporter.port, folder.path(), code).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let modes: Value = serde_json::from_str(&printed(&output)).unwrap();
    assert_eq!(modes, json!(["incremental", "full"]), "{errors}");
    assert!(errors.contains("c.img: fetched in full: ") && !errors.contains("no reason given"), "{errors}");
    assert!(errors.contains("b.img: no longer in the snapshot"), "{errors}");
    assert_eq!(fs::metadata(folder.path().join("copy/b.img")).unwrap().len(), 8 * MB);
}
