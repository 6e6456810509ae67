//! What is frozen is let go: where a clone hangs, where a `post` fails or takes long, where the service stops.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Answer, Client, HookDir, MB, SNAPSHOTS, World, eventually, text, write_at};
use crate::needs_root;

/// A world with hooks that have these lines in the config.
fn with(lines: &str) -> (HookDir, World) {
    let hooks = HookDir::new();
    let world = World::with(512, |settings| settings.sections = hooks.section(lines) + "[metrics]\nenabled = true\n");
    for disk in world.define_vm(&[("a.img", MB)]) {
        write_at(&disk, 0, &[1; 8192]);
    }
    (hooks, world)
}

fn listed(client: &Client) -> usize {
    client.get(SNAPSHOTS).ok().as_array().unwrap().len()
}

#[test]
fn hung_clone_times_out_and_is_removed_when_it_ends() {
    needs_root!();
    let (hooks, world) = with("timeout = \"2s\"");
    let client = world.client();
    // A frozen file system takes no clone, and the clone cannot be interrupted.
    let repository = world.repository.display();
    let frozen = world.volume.thaw_on_drop();
    hooks.put(
        "freeze",
        &format!("echo $2 >> $OUT/calls; [ $2 = pre ] || exit 0\necho quiesced; fsfreeze --freeze {repository}"),
    );
    let answer: Answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| client.post(SNAPSHOTS));
        // The answer comes while the clone hangs still, so nothing but the deadline has brought it.
        eventually("the client is answered", || asked.is_finished());
        asked.join().unwrap()
    });
    assert_eq!(answer.error(503), "clone_timeout");
    assert!(text(&answer.json()["details"]).contains("hooks.timeout"), "{answer:?}");
    assert_eq!(hooks.take("calls"), "pre\npost\n");
    assert_eq!(listed(&client), 0);
    let counted = client.send(client.request(reqwest::Method::GET, "/metrics"));
    let counted = String::from_utf8(counted.body).unwrap();
    assert!(counted.contains("ovm_exporter_freeze_seconds_count 1\n"), "{counted}");
    assert!(world.exporter.log().contains("the guest was held up for it"));
    assert!(!world.exporter.log().contains("they are removed"), "nothing was to be removed yet");
    // Nobody else clones the VM's disks meanwhile: the next waits for its turn.
    hooks.put("freeze", "echo $2 >> $OUT/calls");
    let next = world.request_snapshot();
    drop(frozen);
    next.join().unwrap();
    eventually("the next one is made", || listed(&client) == 1);
    assert_eq!(hooks.read("calls"), "pre\npost\n");
    assert!(world.exporter.log().contains("its clones have ended late: they are removed"));
    // The one that was made: a folder, a disk and a manifest, and nothing of the other.
    assert_eq!(world.snapshot_files().len(), 3, "{:?}", world.snapshot_files());
}

#[test]
fn failed_post_hook_is_retried_after_a_restart() {
    needs_root!();
    let (hooks, mut world) = with("");
    hooks.put("freeze", "echo $1 $2 >> $OUT/calls; [ $2 = pre ] || [ -e $OUT/mended ]");
    let made = world.client().take_snapshot();
    assert_eq!(made["hooks"][1]["outcome"], "failed");
    assert_eq!(hooks.read("calls"), "snapshot-create pre\nsnapshot-create post\n");
    // Its deletion owes its own.
    assert_eq!(world.client().delete(&format!("{SNAPSHOTS}/{}", text(&made["id"]))).status, 200);
    hooks.take("calls");
    // Who stops it is told.
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(120)).code(), Some(1));
    let log = world.exporter.log();
    assert!(log.contains("what they froze may be frozen still") && log.contains("of 2 operations"), "{log}");
    world.exporter.restart();
    eventually("it is called again", || hooks.read("calls").lines().count() == 2);
    fs::write(hooks.at("mended"), "").unwrap();
    world.exporter.restart();
    eventually("it is called again", || hooks.read("calls").lines().count() >= 4);
    let mut calls: Vec<_> = hooks.read("calls").lines().map(str::to_owned).collect();
    calls.dedup();
    assert!(
        calls.iter().all(|call| call.ends_with(" post"))
            && calls.iter().any(|call| call.starts_with("snapshot-create"))
    );
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(120)).code(), Some(0));
    hooks.take("calls");
    world.exporter.restart();
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(120)).code(), Some(0));
    assert_eq!(hooks.read("calls"), "", "what was settled was called again");
}

#[test]
fn shutdown_waits_for_a_slow_post_hook() {
    needs_root!();
    let (hooks, mut world) = with("");
    // Longer than running answers may take.
    hooks.put("freeze", "touch $OUT/$2; [ $2 = pre ] || sleep 34; touch $OUT/$2-done");
    let asked = world.request_snapshot();
    hooks.wait_for("post");
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(240)).code(), Some(0));
    asked.join().unwrap();
    assert!(hooks.at("post-done").exists(), "{}", world.exporter.log());
    assert!(world.exporter.log().contains("its post hooks are waited for"), "{}", world.exporter.log());
}

#[test]
fn created_at_is_the_time_of_the_clones() {
    needs_root!();
    let (hooks, world) = with("");
    hooks.put(
        "slow",
        "[ $2 = post ] || { date +%s.%N > $OUT/asked; sleep 1.5; date +%s.%N > $OUT/frozen; }; [ $2 = pre ] || sleep 1",
    );
    let client = world.client();
    let made =
        client.send(client.request(reqwest::Method::POST, &format!("/api/v1{SNAPSHOTS}")).json(&json!({"ttl": "1h"})));
    let made = made.ok();
    let seconds = |value: &str| {
        let at: jiff::Timestamp = value.parse().unwrap();
        at.as_nanosecond() as f64 / 1e9
    };
    let frozen: f64 = hooks.read("frozen").trim().parse().unwrap();
    let created = seconds(&text(&made["created_at"]));
    // RFC 3339 of whole milliseconds or finer.
    assert!(created >= frozen - 0.001, "created {created}, frozen {frozen}");
    let expires = seconds(&text(&made["expires_at"]));
    assert!((expires - created - 3600.0).abs() < 0.01, "{made}");
}
