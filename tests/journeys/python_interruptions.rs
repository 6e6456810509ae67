//! Pulls of the Python package that are interrupted: by broken connections, by kills, and by their caller.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use serde_json::Value;

use crate::harness::{MB, Proxy, VM, World, write_at};
use crate::needs_root;
use crate::python_client::client_at;
use crate::python_package::{equals, folder, printed, run_script, script};

const DATA: u64 = 160 * MB;

/// A VM with ten requests' worth of data.
fn world() -> (World, std::path::PathBuf) {
    let world = World::new(2048);
    let disk = world.define_vm(&[("a.img", 192 * MB)]).remove(0);
    write_at(&disk, MB, &vec![1; DATA as usize]);
    (world, disk)
}

/// Runs `full` or `incremental` of the command line; returns the summary of its disk.
fn pull(world: &World, folder: &Path, arguments: &[&str]) -> Value {
    let copy = folder.join("copy");
    let mut words = vec!["--json", arguments[0], VM];
    words.extend(&arguments[1..]);
    words.push(copy.to_str().unwrap());
    let summary: Value = serde_json::from_str(&printed(&client_at(world, world.exporter.port, &words))).unwrap();
    summary["disks"][0].clone()
}

/// Checks that a continued pull fetched the rest, and not much of what an earlier run had fetched.
fn continued(summary: &Value, least: u64) {
    let [resumed, fetched] = ["resumed", "fetched"].map(|name| summary[name].as_u64().unwrap());
    assert!(resumed >= least && resumed + fetched == DATA, "{summary}");
}

#[test]
fn pull_continues_after_broken_connections() {
    needs_root!();
    let (world, disk) = world();
    let folder = folder(&world);
    let proxy = Proxy::start(world.exporter.port);
    let first = world.client().take_snapshot_id();
    // A connection that breaks once does not end the pull, and only the rest is fetched.
    proxy.cut_after(100 * MB);
    let code = r#"
[disk] = pull(login(), vm, sys.argv[1], "cut")
assert disk.fetched == disk.listed, disk
"#;
    printed(&script(&world, proxy.port, folder.path(), code).arg(&first).output().unwrap());
    assert_eq!(proxy.cuts(), 1);
    assert!(equals(&world, &folder.path().join("cut/a.img"), &first, "a.img"));

    // If the service stays unreachable, the pull ends, and the next run continues it.
    let give_up = r#"
from ovm_exporter_client import retries
retries.DELAYS = ()
try:
    pull(login(), vm, sys.argv[1], directory, *sys.argv[2:], connections=2)
except Unreachable as error:
    print("unreachable")
"#;
    let interrupt = |arguments: &[&str]| {
        proxy.end_after(100 * MB);
        let output = script(&world, proxy.port, folder.path(), give_up).args(arguments).output().unwrap();
        assert_eq!(printed(&output), "unreachable\n");
        proxy.accept();
    };
    interrupt(&[&first]);
    continued(&pull(&world, folder.path(), &["full", &first]), 48 * MB);
    assert!(equals(&world, &folder.path().join("copy/a.img"), &first, "a.img"));

    write_at(&disk, MB, &vec![2; DATA as usize]);
    let second = world.client().take_snapshot_id();
    interrupt(&[&second, &first]);
    // The copy is neither of the two snapshots now: changes to a third one do not fit.
    let third = world.client().take_snapshot_id();
    let copy = folder.path().join("copy");
    let output = client_at(&world, world.exporter.port, &["incremental", VM, &third, &first, copy.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    continued(&pull(&world, folder.path(), &["incremental", &second, &first]), 48 * MB);
    assert!(equals(&world, &copy.join("a.img"), &second, "a.img"));
    let again = pull(&world, folder.path(), &["incremental", &second, &first]);
    assert_eq!(again["mode"], "up to date");
    // A full copy is made even if there is one already.
    assert_eq!(pull(&world, folder.path(), &["full", &second])["fetched"], DATA);
}

#[test]
fn killed_pull_continues_with_the_same_snapshot() {
    needs_root!();
    let (world, disk) = world();
    let folder = folder(&world);
    let killed = |code: &str| {
        let head = r#"
import signal
from ovm_exporter_client import transfer
transfer.CHECKPOINT_INTERVAL = 0

def kill_in_the_middle(disk, done, total):
    if done >= total * 2 // 3:
        os.kill(os.getpid(), signal.SIGKILL)

client = login()
"#;
        let output = script(&world, world.exporter.port, folder.path(), &format!("{head}{code}")).output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let rest = r#"
client = login()
snapshot, base = next_pull(client, vm, directory)
assert [one["id"] for one in client.get_snapshots(vm)][-1] == snapshot, "a new snapshot was made"
[disk] = pull(client, vm, snapshot, directory, base)
print(json.dumps([snapshot, base, disk.resumed, disk.fetched]))
"#;
    for base in [false, true] {
        write_at(&disk, MB, &vec![if base { 2 } else { 1 }; DATA as usize]);
        killed(
            r#"
snapshot, base = next_pull(client, vm, directory)
pull(client, vm, snapshot, directory, base, connections=2, progress=kill_in_the_middle)
"#,
        );
        let count = world.client().snapshot_ids().len();
        let done: Value = serde_json::from_str(&run_script(&world, folder.path(), rest)).unwrap();
        assert_eq!((world.client().snapshot_ids().len(), done[1].is_string()), (count, base), "{done}");
        let [resumed, fetched] = [2, 3].map(|at| done[at].as_u64().unwrap());
        assert!(resumed >= 48 * MB && resumed + fetched == DATA, "{done}");
        let id = done[0].as_str().unwrap();
        assert!(equals(&world, &folder.path().join("copy/a.img"), id, "a.img"));
    }
}

#[test]
fn exception_from_the_progress_callback_ends_the_pull() {
    needs_root!();
    let (world, _) = world();
    let folder = folder(&world);
    let code = r#"
class Stop(Exception):
    pass

def stop(disk, done, total):
    if done > total // 2:
        raise Stop

client = login()
snapshot = client.create_snapshot(vm)["id"]
for connections in (1, 4):
    try:
        pull(client, vm, snapshot, directory, connections=connections, progress=stop)
        raise SystemExit("not stopped")
    except Stop:
        assert not last_pull(directory).complete and not os.path.exists("copy/a.img")
[disk] = pull(client, vm, snapshot, directory)
assert disk.resumed > 0 and disk.resumed + disk.fetched == disk.listed, disk
print(snapshot)
"#;
    let id = run_script(&world, folder.path(), code);
    assert!(equals(&world, &folder.path().join("copy/a.img"), id.trim(), "a.img"));
}
