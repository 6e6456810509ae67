//! Two services on one repository: they serialize the operations on a VM, and a killed service blocks none.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command};
use std::thread;

use reqwest::Method;

use crate::harness::{Client, Exporter, HookDir, SNAPSHOTS, VM, World, define_vm, eventually, make_disk, text};
use crate::needs_root;

/// Two services with separate databases and the same hook directory.
fn two_services(hooks: &HookDir, lines: &str) -> (World, Exporter) {
    let world = World::with(512, |settings| settings.sections = hooks.section(lines));
    world.define_vm(&[("a.img", 1 << 20)]);
    let second = world.second_service(|settings| settings.sections = hooks.section(lines));
    (world, second)
}

#[test]
fn operations_of_two_services_do_not_interleave() {
    needs_root!();
    let hooks = HookDir::new();
    let (world, second) = two_services(&hooks, "");
    // Records the beginning and the end of an operation, and takes some time.
    hooks.put("note", "echo $1 $2 $EXPORTER_SNAPSHOT >> $OUT/calls; [ $2 = post ] || sleep 0.2");
    let clients = [world.client(), Client::logged_in(&second, &world.certificates)];
    thread::scope(|scope| {
        for client in &clients {
            scope.spawn(move || {
                for _ in 0..4 {
                    let id = client.take_snapshot_id();
                    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
                }
            });
        }
    });
    let calls = hooks.read("calls");
    let calls: Vec<&str> = calls.lines().collect();
    assert_eq!(calls.len(), 2 * 4 * 4, "{calls:#?}");
    for pair in calls.chunks(2) {
        assert_eq!(pair[0].replace(" pre ", " post "), pair[1], "{calls:#?}");
    }
    assert_eq!(world.snapshot_files(), [""; 0].map(std::path::PathBuf::from));
}

#[test]
fn vm_busy_error_names_the_lock_holder() {
    needs_root!();
    let hooks = HookDir::new();
    let (mut world, second) = two_services(&hooks, "timeout = \"10m\"");
    let (first, other) = (world.client(), Client::logged_in(&second, &world.certificates));
    let kept = first.take_snapshot_id();
    hooks.put("wait", "touch $OUT/waiting; while [ ! -e $OUT/go-on ]; do sleep 0.1; done");
    thread::scope(|scope| {
        let request = scope.spawn(|| first.try_send(first.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"))));
        hooks.wait_for("waiting");
        // Another VM is not locked.
        let free = "0004fb0000060000000000000000000a";
        define_vm(&world.repository, free, &[make_disk(&world.repository, "free.img", 1 << 20)]);
        let refused = other.post(SNAPSHOTS);
        assert_eq!(refused.error(503), "vm_busy");
        assert!(!refused.header("retry-after").is_empty());
        let holder = text(&refused.json()["details"]);
        assert!(holder.contains(&format!("pid {}", world.exporter.pid())), "{holder}");
        fs::write(hooks.at("go-on"), "").unwrap();
        other.post(&format!("/vms/{free}/snapshots")).ok();
        request.join().unwrap().unwrap();
    });
    other.take_snapshot();
    // A killed service releases the lock at once.
    fs::remove_file(hooks.at("go-on")).unwrap();
    fs::remove_file(hooks.at("waiting")).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| first.try_send(first.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"))));
        hooks.wait_for("waiting");
        fs::write(hooks.at("go-on"), "").unwrap();
        world.exporter.kill();
    });
    other.take_snapshot();
    world.exporter.restart();
    let first = world.client();
    eventually("the files of the killed creation are removed", || {
        let list = first.get(SNAPSHOTS).ok();
        world.snapshot_files().iter().filter(|path| path.ends_with(".making")).count() == 0
            && list.as_array().unwrap().iter().any(|snapshot| snapshot["id"] == *kept)
    });
}

/// A process that holds a VM's lock, as another host would.
struct Holder(Child);

impl Holder {
    fn of(world: &World, vm: &str) -> Self {
        let path = world.repository.join("CoriolisSnapshots/.pool/locks").join(vm);
        let mut flock = Command::new("flock");
        let child = flock.args(["--exclusive", "--no-fork"]).arg(&path).args(["sleep", "600"]).spawn().unwrap();
        let inode = fs::metadata(&path).unwrap().ino().to_string();
        eventually("the lock is held", || {
            let locks = fs::read_to_string("/proc/locks").unwrap();
            locks.lines().any(|line| line.contains("FLOCK") && line.contains(&format!(":{inode} ")))
        });
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nothing_is_removed_while_another_service_holds_the_vm_lock() {
    needs_root!();
    let hooks = HookDir::new();
    let mut world = World::with(512, |settings| settings.sections = hooks.section(""));
    world.define_vm(&[("a.img", 1 << 20)]);
    let client = world.client();
    let id = client.take_snapshot_id();
    hooks.put("die", "[ $2 = pre ] || kill_service");
    assert!(client.try_send(client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"))).is_err());
    world.exporter.settings().sections = String::new();
    let files = world.snapshot_files();
    let holder = Holder::of(&world, VM);
    world.exporter.restart();
    let client = world.client();
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).error(503), "vm_busy");
    assert_eq!(world.snapshot_files(), files, "files were removed without the lock");
    drop(holder);
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
    world.exporter.restart();
    eventually("all files are removed", || world.snapshot_files().is_empty());
}

#[test]
fn pending_thaw_waits_for_the_snapshot_of_another_service() {
    needs_root!();
    let hooks = HookDir::new();
    let (mut world, second) = two_services(&hooks, "timeout = \"10m\"");
    let (first, other) = (world.client(), Client::logged_in(&second, &world.certificates));
    // The first service dies after the freeze. The second service snapshots the VM while the first restarts.
    let log = "echo $EXPORTER_SNAPSHOT $2 >> $OUT/calls";
    hooks.put("freeze", &format!("{log}; [ $2 = post ] || [ -e $OUT/second ] || kill_service"));
    assert!(first.try_send(first.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"))).is_err());
    fs::write(hooks.at("second"), "").unwrap();
    hooks.put(
        "freeze",
        &format!("{log}; [ $2 = post ] || {{ touch $OUT/frozen; while [ ! -e $OUT/go-on ]; do sleep 0.1; done; }}"),
    );
    let log_path = world.exporter.log_path();
    let log_of_first = || fs::read_to_string(&log_path).unwrap();
    thread::scope(|scope| {
        let made = scope.spawn(|| other.take_snapshot());
        hooks.wait_for("frozen");
        let starting = scope.spawn(|| world.exporter.restart());
        eventually("the first service finds its pending post hook", || {
            log_of_first().contains("the service stopped before this operation's post hooks")
        });
        fs::write(hooks.at("go-on"), "").unwrap();
        made.join().unwrap();
        starting.join().unwrap();
    });
    let calls = hooks.read("calls");
    let calls: Vec<(&str, &str)> = calls.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let [first_pre, second_pre, second_post, first_post] = calls[..] else { panic!("{calls:?}") };
    assert_eq!((first_pre.1, second_pre.1, second_post.1, first_post.1), ("pre", "pre", "post", "post"));
    assert_eq!(
        (second_pre.0, first_pre.0),
        (second_post.0, first_post.0),
        "the thaw ran during the other snapshot: {calls:?}"
    );
}
