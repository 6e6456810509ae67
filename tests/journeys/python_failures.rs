//! The Python package when something fails: broken connections, kills, expired tokens, a busy service.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Connection, MB, Proxy, SNAPSHOTS, VM, World, eventually, free_port, write_at};
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
error = error_of(lambda: pull(login(), vm, sys.argv[1], directory, *sys.argv[2:], connections=2))
print(type(error).__name__)
"#;
    let interrupt = |arguments: &[&str]| {
        proxy.end_after(100 * MB);
        let output = script(&world, proxy.port, folder.path(), give_up).args(arguments).output().unwrap();
        assert_eq!(printed(&output), "Unreachable\n");
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

#[test]
fn tokens_are_renewed_once_for_all_threads() {
    needs_root!();
    let world = World::with(512, |settings| settings.jwt = "time_to_live = \"2s\"".to_owned());
    world.define_vm(&[("a.img", MB)]);
    let code = r#"
import threading
client = login()
first = client.token
tokens = {first}

def work():
    while client.token == first:
        assert client.get_vm(vm)["name"] == vm
        tokens.add(client.token)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(tokens) == 2 and client.get_vm(vm)["name"] == vm
# A client that only has the old token cannot renew it.
error = error_of(Client(os.environ["EXPORTER"], first, cacert=os.environ["EXPORTER_CACERT"]).get_vms)
print(error.status, error.code)
"#;
    assert_eq!(run_script(&world, folder(&world).path(), code), "401 unauthorized\n");
}

#[test]
fn a_refresh_token_renews_the_token_without_another_log_in() {
    needs_root!();
    let world = World::with(512, |settings| settings.jwt = "access_time_to_live = \"2s\"".to_owned());
    world.define_vm(&[("a.img", MB)]);
    let code = r#"
client = login()
first = client.token
while client.token == first:
    assert client.get_vm(vm)["name"] == vm
second = client.token
client.logout()
error = error_of(Client(os.environ["EXPORTER"], second, cacert=os.environ["EXPORTER_CACERT"]).get_vms)
print(error.status, error.code)
# A log-out after the token has expired.
client = login()
while True:
    try:
        Client(os.environ["EXPORTER"], client.token, cacert=os.environ["EXPORTER_CACERT"]).get_vms()
    except ClientError:
        break
client.logout()
"#;
    assert_eq!(run_script(&world, folder(&world).path(), code), "401 unauthorized\n");
    assert_eq!(world.exporter.log().matches("logged in user=").count(), 2);
    assert_eq!(world.client().get("/status").ok()["sessions"]["renewable"], 0, "a log-in did not end");
}

#[test]
fn busy_service_is_asked_again_after_the_time_that_it_names() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.policy = "export_concurrency = 1\nexport_wait = \"1s\"".to_owned();
    });
    write_at(&world.define_vm(&[("a.img", 64 * MB)])[0], 0, &vec![7; 64 << 20]);
    let client = world.client();
    let id = client.take_snapshot_id();
    let holds_the_slot: Connection = world.send_get(&client, &format!("{SNAPSHOTS}/{id}/disks/a.img"));
    let exports = |state: &str| client.get("/status").ok()["exports"][state].as_array().unwrap().len();
    eventually("the slot is taken", || exports("running") == 1);
    let folder = folder(&world);
    let code = r#"pull(login(), vm, sys.argv[1], directory, connections=1)"#;
    let started = Instant::now();
    let pull = script(&world, world.exporter.port, folder.path(), code)
        .arg(&id)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the client's request waits", || exports("waiting") == 1);
    eventually("the client's request is refused", || exports("waiting") == 0);
    drop(holds_the_slot);
    printed(&pull.wait_with_output().unwrap());
    assert!(started.elapsed() >= Duration::from_secs(11), "Retry-After is 10: {:?}", started.elapsed());
    assert!(equals(&world, &folder.path().join("copy/a.img"), &id, "a.img"));
}

#[test]
fn lost_response_to_a_creation_makes_no_second_snapshot() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let proxy = Proxy::start(world.exporter.port);
    let code =
        "client = login()\nprint('ready', flush=True)\nsys.stdin.readline()\nprint(client.create_snapshot(vm)['id'])";
    let folder = folder(&world);
    let mut child =
        script(&world, proxy.port, folder.path(), code).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    proxy.hold();
    drop(child.stdin.take());
    let client = world.client();
    eventually("the snapshot exists", || client.snapshot_ids().len() == 1);
    proxy.cut();
    let id = lines.next().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!((client.snapshot_ids(), proxy.cuts()), (vec![id], 1));
}

#[test]
fn pull_goes_on_at_another_host_of_the_pool() {
    needs_root!();
    let (world, disk) = world();
    let folder = folder(&world);
    let proxies = [0, 1].map(|_| Proxy::start(world.exporter.port));
    let url = |port: u16| format!("https://127.0.0.1:{port}");
    let endpoint = [url(free_port()), url(proxies[0].port), url(proxies[1].port)].join(", ");
    // The first is dead, and the second dies during the pull.
    proxies[0].end_after(50 * MB);
    let code = r#"
client = login()
snapshot, base = next_pull(client, vm, directory)
[disk] = pull(client, vm, snapshot, directory, base)
assert disk.fetched == disk.listed, disk
print(client.host)
for url in ("https://a,", "https://a,http://b", ",", ""):
    assert "must look like" in str(error_of(Client, url, "token")), url
"#;
    let mut command = script(&world, proxies[0].port, folder.path(), code);
    let said = printed(&command.env("EXPORTER", endpoint).output().unwrap());
    assert_eq!(said.trim(), "127.0.0.1, 127.0.0.1, 127.0.0.1");
    assert!(proxies[1].passed() > 90 * MB, "{} bytes", proxies[1].passed());
    assert_eq!(world.client().snapshot_ids().len(), 1);
    assert!(std::fs::read(folder.path().join("copy/a.img")).unwrap() == std::fs::read(&disk).unwrap());
}
