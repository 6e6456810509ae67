//! Download slots: fair shares, waiting clients, and slow clients.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Method;

use serde_json::{Value, json};

use crate::harness::{
    Client, Connection, MB, OTHER_VM, USER, VM, World, define_vm, eventually, make_disk, text, write_at,
};
use crate::needs_root;

/// The longest that a download with a slot may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Two VMs with a snapshot each: a disk larger than all buffers on the way, and a small one. Returns their routes.
fn two_vms(world: &World) -> (Client, String, String) {
    write_at(&world.define_vm(&[("a.img", 64 * MB)])[0], 0, &vec![7; 64 << 20]);
    let disk = make_disk(&world.repository, "b.img", MB);
    write_at(&disk, 0, &[8; 4096]);
    define_vm(&world.repository, OTHER_VM, &[disk]);
    let client = world.client();
    let large = client.take_snapshot_id();
    let small = text(&client.post(&format!("/vms/{OTHER_VM}/snapshots")).ok()["id"]);
    (
        client,
        format!("/vms/{VM}/snapshots/{large}/disks/a.img"),
        format!("/vms/{OTHER_VM}/snapshots/{small}/disks/b.img"),
    )
}

/// The running and the waiting exports.
fn exports(client: &Client) -> (Vec<Value>, Vec<Value>) {
    let status = client.get("/status").ok();
    let of = |state: &str| status["exports"][state].as_array().unwrap().clone();
    (of("running"), of("waiting"))
}

#[test]
fn slow_downloads_of_one_vm_do_not_block_another() {
    needs_root!();
    let world = World::with(512, |settings| settings.policy = "export_wait = \"3s\"".to_owned());
    let (client, large, small) = two_vms(&world);
    let slow: Vec<Connection> = (0..12).map(|_| world.send_get(&client, &large)).collect();
    eventually("twelve exports run", || exports(&client).0.len() == 12);
    // The disk of another VM is served at once, repeatedly.
    for _ in 0..3 {
        let started = Instant::now();
        let answer = client.get(&small);
        assert_eq!((answer.status, answer.body.len() as u64), (200, MB));
        assert!(started.elapsed() < SOON, "another VM's download took {:?}", started.elapsed());
    }
    // One more download of the first VM waits, and is listed in the status.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let started = Instant::now();
            (client.get(&large), started.elapsed())
        });
        let mut seen = Value::Null;
        eventually("the waiting export is listed", || {
            let waiting = exports(&client).1;
            seen = waiting.first().cloned().unwrap_or_default();
            !waiting.is_empty()
        });
        assert_eq!((&seen["user"], &seen["address"], &seen["vm_id"]), (&json!(USER), &json!("127.0.0.1"), &json!(VM)));
        assert!(seen["seconds"].as_f64() >= Some(0.0) && text(&seen["since"]).ends_with('Z'), "{seen}");
        let page = client.request(Method::GET, "/api/v1/status").header("Accept", "text/plain");
        let page = String::from_utf8(client.send(page).body).unwrap();
        assert!(page.contains("exports: 12 of 12 at a time, 1 waiting"), "{page}");
        let (answer, took) = waits.join().unwrap();
        assert_eq!((answer.error(429), answer.header("retry-after")), ("throttled".to_owned(), "10"));
        assert!(text(&answer.json()["details"]).contains("in 3 s (policy.export_wait)"), "{}", answer.json());
        assert!(took >= Duration::from_secs(3) && took < SOON, "waited {took:?}");
    });
    drop(slow);
    eventually("all exports end", || exports(&client).0.is_empty());
    assert_eq!(client.get(&large).body.len() as u64, 64 * MB);
}

#[test]
fn slow_client_is_disconnected_only_if_others_wait() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.policy = "export_concurrency = 1\nexport_wait = \"10m\"".to_owned();
        settings.sections = "[export]\nmin_rate = \"256KiB\"\n".to_owned();
    });
    let (client, large, small) = two_vms(&world);
    // 100 KiB/s: the client is slow, but its kernel acknowledges bytes often enough that it does not seem to stall.
    let mut slow = Command::new("curl")
        .args(["-sS", "--fail", "--limit-rate", "100k", "-o", "/dev/null", "--cacert"])
        .arg(world.certificates.ca())
        .args(["-H", &format!("Authorization: Bearer {}", client.token)])
        .arg(format!("https://127.0.0.1:{}/api/v1{large}", world.exporter.port))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the slow export runs", || exports(&client).0.len() == 1);
    // The slow client is tolerated while no other waits.
    eventually("it has been slow for 75 seconds", || {
        let running = exports(&client).0;
        assert_eq!(running.len(), 1, "the client was disconnected while no other waited");
        running[0]["seconds"].as_f64().unwrap() > 75.0
    });
    assert!(!world.exporter.log().contains("slower than export.min_rate"));
    let started = Instant::now();
    assert_eq!(client.get(&small).body.len() as u64, MB);
    assert!(started.elapsed() < Duration::from_secs(90), "the slot was free after {:?}", started.elapsed());
    // curl would see the truncated body only after it had read all buffers on the way.
    slow.kill().unwrap();
    slow.wait().unwrap();
    eventually("the audit has the reason", || {
        let log = world.exporter.log();
        let line = log.lines().find(|line| line.contains(" audit ") && line.contains("outcome=\"cut\""));
        line.is_some_and(|line| line.contains("slower than export.min_rate") && line.contains("action=\"export\""))
    });
    world.exporter.wait_for_log("disconnecting a client slower than export.min_rate");
}

#[test]
fn rate_limited_client_does_not_count_as_slow() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.policy = "export_concurrency = 1\nexport_wait = \"10m\"".to_owned();
        settings.sections = "[export]\nmin_rate = \"2MiB\"\nmax_rate_per_connection = \"1MiB\"\n".to_owned();
    });
    let (client, large, _) = two_vms(&world);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| client.get(&large).body.len() as u64);
        eventually("the first export runs", || exports(&client).0.len() == 1);
        let second = scope.spawn(|| client.disk_range(large.split('/').nth(4).unwrap(), "a.img", 0, 4096));
        eventually("the second has waited longer than a slow client is tolerated", || {
            let waiting = exports(&client).1;
            waiting.first().and_then(|one| one["seconds"].as_f64()).is_some_and(|seconds| seconds > 40.0)
        });
        assert_eq!(first.join().unwrap(), 64 * MB, "the first was disconnected");
        assert_eq!(second.join().unwrap(), [7; 4096]);
    });
    assert!(!world.exporter.log().contains("disconnecting a client slower than export.min_rate"));
    // The audit counts the bytes of each minute; the last line has only the remaining bytes.
    let audited = || {
        let log = world.exporter.log();
        let lines = log.lines().filter(|line| line.contains(" audit ") && line.contains("action=\"export\""));
        let bytes = |line: &str| line.split_once(" bytes=")?.1.split(' ').next()?.parse::<u64>().ok();
        let all: Vec<(bool, u64)> =
            lines.map(|line| (line.contains("outcome=\"under way\""), bytes(line).unwrap_or_default())).collect();
        (all.iter().any(|(under_way, _)| *under_way), all.iter().map(|(_, bytes)| bytes).sum::<u64>())
    };
    eventually("all bytes are in the audit, some as under way", || audited() == (true, 64 * MB + 4096));
}
