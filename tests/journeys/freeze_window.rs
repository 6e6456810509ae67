//! Frozen guests are thawed if a clone hangs, if a post hook fails or is slow, and if the service stops.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Answer, Client, SNAPSHOTS, World, eventually, text};
use crate::needs_root;

fn listed(client: &Client) -> usize {
    client.get(SNAPSHOTS).ok().as_array().unwrap().len()
}

#[test]
fn hung_clone_times_out_and_is_removed_when_it_ends() {
    needs_root!();
    let (hooks, world) = World::with_hooks("timeout = \"2s\"", &["a.img"]);
    let client = world.client();
    // A clone on a frozen file system blocks and cannot be interrupted.
    let repository = world.repository.display();
    let frozen = world.volume.thaw_on_drop();
    hooks.put(
        "freeze",
        &format!("echo $2 >> $OUT/calls; [ $2 = pre ] || exit 0\necho quiesced; fsfreeze --freeze {repository}"),
    );
    let answer: Answer = std::thread::scope(|scope| {
        let request = scope.spawn(|| client.post(SNAPSHOTS));
        // The clone still hangs, so only the timeout can have produced the answer.
        eventually("the client gets an answer", || request.is_finished());
        request.join().unwrap()
    });
    assert_eq!(answer.error(503), "clone_timeout");
    assert!(text(&answer.json()["details"]).contains("hooks.timeout"), "{answer:?}");
    assert_eq!(hooks.take("calls"), "pre\npost\n");
    assert_eq!(listed(&client), 0);
    let counted = client.send(client.request(reqwest::Method::GET, "/metrics"));
    let counted = String::from_utf8(counted.body).unwrap();
    assert!(counted.contains("ovm_exporter_freeze_seconds_count 1\n"), "{counted}");
    assert!(world.exporter.log().contains("snapshot creation failed after the guest was frozen"));
    assert!(!world.exporter.log().contains("removing clones"), "the clones were removed before they ended");
    // Until then no other snapshot of the VM is made: the next request waits.
    hooks.put("freeze", "echo $2 >> $OUT/calls");
    let next = world.request_snapshot();
    drop(frozen);
    next.join().unwrap();
    eventually("the next snapshot is made", || listed(&client) == 1);
    assert_eq!(hooks.read("calls"), "pre\npost\n");
    assert!(world.exporter.log().contains("removing clones that finished after the timeout"));
    // The folder, disk and manifest of the second snapshot, and nothing of the first.
    assert_eq!(world.snapshot_files().len(), 3, "{:?}", world.snapshot_files());
}

#[test]
fn failed_post_hook_is_retried_after_a_restart() {
    needs_root!();
    let (hooks, mut world) = World::with_hooks("", &["a.img"]);
    hooks.put("freeze", "echo $1 $2 >> $OUT/calls; [ $2 = pre ] || [ -e $OUT/mended ]");
    let made = world.client().take_snapshot();
    assert_eq!(made["hooks"][1]["outcome"], "failed");
    assert_eq!(hooks.read("calls"), "snapshot-create pre\nsnapshot-create post\n");
    // The deletion has its own pending post hook.
    assert_eq!(world.client().delete(&format!("{SNAPSHOTS}/{}", text(&made["id"]))).status, 200);
    hooks.take("calls");
    // The exit status and the log report them.
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(120)).code(), Some(1));
    let log = world.exporter.log();
    assert!(log.contains("guests may still be frozen") && log.contains("of 2 operations"), "{log}");
    world.exporter.restart();
    eventually("both post hooks are called again", || hooks.read("calls").lines().count() == 2);
    fs::write(hooks.at("mended"), "").unwrap();
    world.exporter.restart();
    eventually("both post hooks are called again", || hooks.read("calls").lines().count() >= 4);
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
    assert_eq!(hooks.read("calls"), "", "a finished post hook was called again");
}

#[test]
fn shutdown_waits_for_a_slow_post_hook() {
    needs_root!();
    let (hooks, mut world) = World::with_hooks("", &["a.img"]);
    // Longer than the shutdown limit for running requests.
    hooks.put("freeze", "touch $OUT/$2; [ $2 = pre ] || sleep 34; touch $OUT/$2-done");
    let request = world.request_snapshot();
    hooks.wait_for("post");
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(240)).code(), Some(0));
    request.join().unwrap();
    assert!(hooks.at("post-done").exists(), "{}", world.exporter.log());
    assert!(world.exporter.log().contains("waiting for its post hooks"), "{}", world.exporter.log());
}

#[test]
fn created_at_is_the_time_of_the_clones() {
    needs_root!();
    let (hooks, world) = World::with_hooks("", &["a.img"]);
    hooks.put(
        "slow",
        "[ $2 = post ] || { date +%s.%N > $OUT/request; sleep 1.5; date +%s.%N > $OUT/frozen; }; [ $2 = pre ] || sleep 1",
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
    // The timestamp has at least milliseconds.
    assert!(created >= frozen - 0.001, "created {created}, frozen {frozen}");
    let expires = seconds(&text(&made["expires_at"]));
    assert!((expires - created - 3600.0).abs() < 0.01, "{made}");
}
