//! Receivers that fail: no event is lost, and nothing waits for a receiver.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Certificates, Exporter, MB, Receiver, SNAPSHOTS, World, eventually, free_port, run, text, write_at,
};
use crate::needs_root;

fn with_webhooks(sections: String) -> World {
    let world = World::with(512, |settings| settings.sections = sections);
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[1; 8192]);
    world
}

fn webhook(world: &World, index: usize) -> Value {
    world.client().get("/status").ok()["webhooks"][index].clone()
}

fn wait_for_error(world: &World, index: usize, reason: &str) {
    eventually(&format!("an attempt fails with {reason}"), || {
        webhook(world, index)["last_error"]["reason"].as_str().is_some_and(|found| found.contains(reason))
    });
}

/// Lets the receiver work again, and ends the pause after the failures.
fn recover(receiver: &Receiver, exporter: &Exporter) {
    receiver.behave("good");
    eventually("the webhook accepts a test", || exporter.command(&["notifications", "test"]).0 == Some(0));
}

/// The ids of the snapshots in the events of this kind, in the order of their arrival.
fn snapshots_in(receiver: &Receiver, kind: &str) -> Vec<String> {
    let events = receiver.events();
    events.iter().filter(|event| event["event"] == kind).map(|event| text(&event["data"]["id"])).collect()
}

#[test]
fn example_receiver_answers_while_it_is_busy_and_says_when_its_queue_is_full() {
    let certificates = Certificates::new();
    let mut check = Command::new("python3");
    check.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journeys/webhook_example.py"));
    check.args(["pem", "key"].map(|end| certificates.path(format!("server.{end}"))));
    run(check.arg(certificates.ca()).arg(free_port().to_string()));
}

#[test]
fn events_wait_for_a_failing_receiver_and_arrive_in_order() {
    needs_root!();
    let certificates = Certificates::new();
    let receiver = Receiver::start(&certificates, "server");
    let world = with_webhooks(receiver.section(&certificates, "alerts", "events = [\"snapshot.*\"]\ntimeout = \"1s\""));
    let client = world.client();
    let mut ids = Vec::new();
    for (behavior, reason) in [
        ("500", "answers 500 Internal Server Error"),
        ("hang", "timed out"),
        ("redirect", "answers 307 Temporary Redirect; redirects are not followed"),
        ("401", "answers 401 Unauthorized"),
    ] {
        receiver.behave(behavior);
        ids.push(client.take_snapshot_id());
        wait_for_error(&world, 0, reason);
    }
    assert_eq!(snapshots_in(&receiver, "snapshot.created"), Vec::<String>::new());
    assert_eq!(webhook(&world, 0)["queued"], 4);
    assert!(receiver.requests().iter().all(|request| request["path"] == "/hush-alerts"), "a redirect was followed");
    let (_, page) = world.exporter.command(&["status"]);
    assert!(page.contains("webhook alerts") && page.contains("4 events wait"), "{page}");
    recover(&receiver, &world.exporter);
    eventually("all events arrive", || snapshots_in(&receiver, "snapshot.created").len() == 4);
    // A refused one may be behind the others.
    assert_eq!(BTreeSet::from_iter(snapshots_in(&receiver, "snapshot.created")), BTreeSet::from_iter(ids));
    let of_first = |request: &&Value| request["body"]["id"] == receiver.requests()[0]["body"]["id"];
    let attempts: Vec<Value> = receiver.requests().iter().filter(of_first).cloned().collect();
    assert!(attempts.len() > 1, "{attempts:?}");
    for attempt in &attempts {
        assert_eq!(attempt["headers"]["webhook-id"], attempts[0]["body"]["id"]);
        assert_eq!(attempt["body"]["time"], attempts[0]["body"]["time"]);
    }
    eventually("nothing waits", || {
        let found = webhook(&world, 0);
        found["queued"] == 0 && found.get("last_error").is_none()
    });
}

#[test]
fn hung_receiver_delays_neither_snapshots_nor_other_webhooks() {
    needs_root!();
    let certificates = Certificates::new();
    let (hung, good) = (Receiver::start(&certificates, "server"), Receiver::start(&certificates, "server"));
    let stranger = Receiver::start(&Certificates::new(), "server");
    let sections = hung.section(&certificates, "hung", "timeout = \"60s\"")
        + &good.section(&certificates, "good", "")
        + &stranger.section(&certificates, "stranger", "events = [\"*\"]");
    hung.behave("hang");
    let mut world = with_webhooks(sections);
    let ids = [(); 3].map(|()| world.client().take_snapshot_id());
    eventually("the other webhook has all events", || snapshots_in(&good, "snapshot.created") == ids);
    eventually("the request to the hung receiver", || !hung.requests().is_empty());
    assert_eq!(hung.requests().len(), 1, "the snapshots have waited for the receiver");
    wait_for_error(&world, 2, "name its authority, or the certificate itself, with ca_certificate of the webhook");
    assert_eq!((stranger.requests().len(), webhook(&world, 2)["queued"].clone()), (0, json!(3)));
    // Nor does it delay the end of the service, after which the events still wait.
    world.exporter.signal(Signal::SIGTERM);
    assert!(world.exporter.wait(std::time::Duration::from_secs(30)).success());
    hung.behave("good");
    world.exporter.restart();
    eventually("its events arrive", || snapshots_in(&hung, "snapshot.created") == ids);
}

#[test]
fn event_that_is_refused_does_not_hold_up_the_others() {
    needs_root!();
    let certificates = Certificates::new();
    let receiver = Receiver::start(&certificates, "server");
    let mut world = with_webhooks(receiver.section(&certificates, "alerts", ""));
    receiver.behave("400 snapshot.created");
    let client = world.client();
    let id = client.take_snapshot_id();
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
    receiver.wait_for("snapshot.deleted");
    assert_eq!(snapshots_in(&receiver, "snapshot.created"), Vec::<String>::new());
    // The receiver wants no more.
    receiver.behave("410");
    client.take_snapshot_id();
    eventually("the webhook is disabled", || webhook(&world, 0)["disabled"] == true);
    let requests = receiver.requests().len();
    client.take_snapshot_id();
    assert_eq!(webhook(&world, 0)["queued"], 3);
    assert_eq!(receiver.requests().len(), requests, "a disabled webhook was asked");
    receiver.behave("good");
    world.exporter.signal(Signal::SIGHUP);
    eventually("all events arrive", || snapshots_in(&receiver, "snapshot.created").len() == 3);
    // A webhook that is removed from the config takes its events with it.
    receiver.behave("500");
    client.take_snapshot_id();
    world.exporter.settings().sections = receiver.section(&certificates, "renamed", "");
    world.exporter.write_config();
    world.exporter.signal(Signal::SIGHUP);
    world.exporter.wait_for_log("dropped the events of webhooks that were removed");
    assert_eq!(webhook(&world, 0)["name"], "renamed");
}

#[test]
fn full_queue_drops_the_oldest_events_and_says_so() {
    needs_root!();
    let certificates = Certificates::new();
    let receiver = Receiver::start(&certificates, "server");
    receiver.behave("500");
    let world = with_webhooks(format!(
        "[metrics]\nenabled = true\n[notifications]\nmax_queued = 2\n{}",
        receiver.section(&certificates, "alerts", "")
    ));
    let client = world.client();
    let ids = [(); 5].map(|()| client.take_snapshot_id());
    let metric = |line: &str| {
        let metrics = client.send(client.request(Method::GET, "/metrics"));
        String::from_utf8(metrics.body).unwrap().lines().any(|found| found == line)
    };
    eventually("the queue is full", || metric("ovm_exporter_webhook_events_queued{webhook=\"alerts\"} 2"));
    eventually("the drops are counted", || metric("ovm_exporter_webhook_events_dropped_total{webhook=\"alerts\"} 3"));
    assert_eq!((&webhook(&world, 0)["queued"], &webhook(&world, 0)["dropped"]), (&json!(2), &json!(3)));
    world.exporter.wait_for_log("dropped events that could not be delivered");
    recover(&receiver, &world.exporter);
    // The first one may have been under way.
    let kept = [&ids[..1], &ids[4..]].concat();
    eventually("the others arrive", || snapshots_in(&receiver, "snapshot.created") == kept);
    let dropped: Vec<Value> =
        receiver.events().into_iter().filter(|event| event["event"] == "snapshot.created").collect();
    assert_eq!((&dropped[0]["dropped"], dropped[1].get("dropped")), (&json!(3), None));
    eventually("it is reported", || webhook(&world, 0)["dropped"] == 0);
    eventually("they are counted", || {
        metric("ovm_exporter_webhook_deliveries_total{webhook=\"alerts\",outcome=\"sent\"} 2")
    });
}

#[test]
fn queued_events_survive_a_kill() {
    needs_root!();
    let certificates = Certificates::new();
    let mut receiver = Receiver::start(&certificates, "server");
    let mut world = with_webhooks(receiver.section(&certificates, "alerts", ""));
    receiver.stop();
    let client = world.client();
    let ids = [(); 2].map(|()| client.take_snapshot_id());
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{}", ids[0])).status, 200);
    world.exporter.kill();
    receiver.run();
    world.exporter.restart();
    eventually("the events arrive", || {
        snapshots_in(&receiver, "snapshot.created") == ids && snapshots_in(&receiver, "snapshot.deleted") == ids[..1]
    });
}
