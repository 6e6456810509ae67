//! A log that cannot be written: the service does not block, and dropped lines are counted.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

use crate::harness::{Client, HookDir, MB, SNAPSHOTS, Volume, World, eventually, write_at};
use crate::needs_root;

/// Prints the maximum number of lines that the log accepts from one hook.
const FLOOD: &str = "yes x | head -n 8192; yes x | head -n 8192 >&2";

/// A service with hooks; `lines` are for `[hooks]`, `top` is for the beginning of the config.
fn service_with_hooks(lines: &str, top: &str, launcher: &[&str]) -> (HookDir, World) {
    let hooks = HookDir::new();
    let world = World::with(512, |settings| {
        settings.sections = hooks.section(lines) + "[metrics]\nenabled = true\n";
        settings.top = top.to_owned();
        settings.launcher = launcher.iter().map(|word| (*word).to_owned()).collect();
    });
    for disk in world.define_vm(&[("a.img", MB)]) {
        write_at(&disk, 0, &[1; 8192]);
    }
    (hooks, world)
}

/// The number of dropped log lines according to the metrics.
fn dropped(client: &Client) -> u64 {
    let answer = client.send(client.request(Method::GET, "/metrics"));
    let counted = String::from_utf8(answer.body).unwrap();
    let value = counted.lines().find_map(|line| line.strip_prefix("ovm_exporter_log_lines_dropped_total "));
    value.unwrap_or_else(|| panic!("no such metric in\n{counted}")).parse().unwrap()
}

/// The number of dropped lines that the log itself reports.
fn reported(log: &str) -> u64 {
    let counts = log.lines().filter_map(|line| line.split_once(" log lines were dropped"));
    counts.map(|(before, _)| before.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Logs in 40 times, from 8 threads: each log-in writes a line.
fn log_in_many_times(world: &World) {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..5).for_each(|_| drop(world.client().get("/vms").ok())));
        }
    });
}

#[test]
fn hook_that_freezes_the_log_file_is_still_thawed() {
    needs_root!();
    let volume = Volume::xfs(320);
    let log = volume.mount_point.join("exporter.log");
    let (hooks, world) = service_with_hooks("timeout = \"5s\"", &format!("log_file = {log:?}\n"), &[]);
    let _thaw = volume.thaw_on_drop();
    let mount_point = volume.mount_point.display().to_string();
    let client = world.client();
    let on_post = format!("[ $2 = post ] && {{ echo post >> $OUT/calls; fsfreeze --unfreeze {mount_point}; exit; }}\n");
    let freeze = format!("echo quiesced; fsfreeze --freeze {mount_point}; touch $OUT/frozen\n");
    // A hook that ends, and one that hangs.
    for (wait, status) in [("until [ -e $OUT/go ]; do sleep 0.02; done", 200), ("sleep 600", 502)] {
        let (frozen, path) = (hooks.at("frozen"), format!("/api/v1{SNAPSHOTS}"));
        let _ = (fs::remove_file(&frozen), fs::remove_file(hooks.at("go")));
        hooks.put("10-freeze", &format!("{on_post}{freeze}{wait}"));
        std::thread::scope(|scope| {
            let request = client.request(Method::POST, &path);
            let making = scope.spawn(|| client.send(request));
            hooks.wait_for("frozen");
            log_in_many_times(&world);
            world.exporter.signal(Signal::SIGHUP);
            log_in_many_times(&world);
            fs::write(hooks.at("go"), "").unwrap();
            let answer = making.join().unwrap();
            assert_eq!(answer.status, status, "{wait}: {answer:?}");
            assert_eq!(hooks.take("calls"), "post\n", "{wait}");
        });
        assert!(!volume.thaw(), "{wait}: the file system was still frozen");
    }
    assert_eq!(dropped(&client), 0);
    eventually("the log is written", || {
        let content = fs::read_to_string(&log).unwrap();
        let waited_for = ["snapshot created", "log file reopened", "took too long", "action=\"log-in\""];
        waited_for.iter().all(|line| content.contains(line)) && content.matches("line=\"quiesced\"").count() == 2
    });
    assert_eq!(client.get(SNAPSHOTS).ok()[0]["consistency"], "quiesced");
}

#[test]
fn dropped_log_lines_are_counted_and_reported() {
    needs_root!();
    let volume = Volume::xfs(320);
    let log = volume.mount_point.join("exporter.log");
    let (hooks, world) = service_with_hooks("", &format!("log_file = {log:?}\n"), &[]);
    let _thaw = volume.thaw_on_drop();
    let mount_point = volume.mount_point.display().to_string();
    hooks.put(
        "10-freeze",
        &format!("[ $2 = pre ] && {{ echo quiesced; exec fsfreeze --freeze {mount_point}; }}; fsfreeze --unfreeze {mount_point}"),
    );
    for name in ["20-flood", "30-flood", "40-flood", "50-flood"] {
        hooks.put(name, &format!("[ $2 = post ] || {{ {FLOOD}; }}"));
    }
    let client = world.client();
    assert_eq!(client.take_snapshot()["consistency"], "quiesced");
    let count = dropped(&client);
    assert!(count > 1000, "{count} lines were dropped of some 65000");
    eventually("the log reports the count", || reported(&fs::read_to_string(&log).unwrap()) == count);
    // Later lines are logged as usual.
    client.get("/nowhere").error(404);
    eventually("new lines are logged", || fs::read_to_string(&log).unwrap().contains("/api/v1/nowhere"));
    assert_eq!(dropped(&client), count);
    let content = fs::read_to_string(&log).unwrap();
    assert!(content.lines().all(|line| line.starts_with("20") && line.contains("Z ")), "a line is incomplete");
}

#[test]
fn unread_log_pipe_blocks_neither_service_nor_shutdown() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Opened for reading and writing, so that the open does not wait for a reader.
    let mut unread = File::options().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(&pipe).unwrap();
    let script = format!("exec \"$0\" \"$@\" 2>{}", pipe.display());
    let (hooks, mut world) = service_with_hooks("", "", &["sh", "-c", &script]);
    let client = world.client();
    for name in ["20-flood", "30-flood", "40-flood", "50-flood"] {
        hooks.put(name, &format!("[ $2 = post ] || {{ {FLOOD}; }}"));
    }
    let first = client.take_snapshot_id();
    log_in_many_times(&world);
    let count = dropped(&client);
    assert!(count > 1000, "{count} lines were dropped of some 65000");
    // The pipe is read for a while.
    let mut log = Vec::new();
    eventually("the count is reported", || {
        let mut piece = vec![0; 1 << 20];
        while let Ok(length @ 1..) = unread.read(&mut piece) {
            log.extend_from_slice(&piece[..length]);
        }
        reported(&String::from_utf8_lossy(&log)) >= count
    });
    // Then it is not read any more. The pending post hook makes the service exit with 1.
    client.take_snapshot();
    for name in ["20-flood", "30-flood", "40-flood", "50-flood"] {
        hooks.remove(name);
    }
    hooks.put("60-fails", "[ $2 = pre ]");
    let made = client.take_snapshot();
    assert_eq!(made["hooks"][1]["outcome"], json!("failed"), "{made}");
    assert_eq!(client.get(SNAPSHOTS).ok()[0]["id"], json!(first));
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(120)).code(), Some(1));
}
