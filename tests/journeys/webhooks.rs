//! Webhooks get each kind of event, signed. The receiver checks the signatures with its own code.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::database_damage::damage;
use crate::harness::{
    Certificates, HookDir, MB, Receiver, SNAPSHOTS, VM, WEBHOOK_SECRET, World, eventually, run, text, write_at,
};
use crate::needs_root;

/// A service with a webhook for all events, and its receiver. `lines` are for `[notifications]`.
fn scene(lines: &str, sections: &str) -> (Receiver, Certificates, World) {
    let certificates = Certificates::new();
    let receiver = Receiver::start(&certificates, "server");
    let webhook = receiver.section(&certificates, "alerts", "");
    let world = World::with(512, |settings| {
        settings.sections = format!("{sections}[notifications]\n{lines}\n{webhook}");
    });
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[1; 8192]);
    (receiver, certificates, world)
}

/// Replaces a part of the config of the running service, and reloads it.
fn reload(world: &mut World, from: &str, to: &str) {
    let sections = &mut world.exporter.settings().sections;
    assert!(sections.contains(from), "{from} is not in {sections}");
    *sections = sections.replace(from, to);
    world.exporter.write_config();
    world.exporter.signal(Signal::SIGHUP);
}

#[test]
fn snapshots_and_hooks_are_reported() {
    needs_root!();
    let hooks = HookDir::new();
    let (receiver, _certificates, mut world) = scene("", &hooks.section(""));
    let client = world.client();
    let body = json!({"labels": {"job": "nightly"}, "description": "before the update", "ttl": "72h"});
    let made =
        client.send(client.request(reqwest::Method::POST, &format!("/api/v1{SNAPSHOTS}")).body(body.to_string()));
    let made = made.ok();
    let event = receiver.wait_for("snapshot.created");
    for member in ["id", "vm_id", "created_at", "created_by", "consistency", "freeze_ms", "expires_at", "labels"] {
        assert_eq!(event["data"][member], made[member], "{member}: {event}");
    }
    assert_eq!(event["data"]["disks"], json!([{"name": "a.img", "size": MB}]));
    assert_eq!(event["data"]["description"], "before the update");
    assert_eq!((&event["schema"], &event["id"]), (&json!(1), &json!(format!("{}-created", text(&made["id"])))));
    assert!(event["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{event}");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(event["host"], host.trim());

    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{}", text(&made["id"]))).status, 200);
    let event = receiver.wait_for("snapshot.deleted");
    assert_eq!(
        (&event["data"]["id"], &event["data"]["cause"], &event["data"]["deleted_by"]),
        (&made["id"], &json!("request"), &json!("admin"))
    );

    hooks.put("refuse", "[ $2 = post ]");
    assert_eq!(client.post(SNAPSHOTS).error(502), "hook_failed");
    let event = receiver.wait_for("snapshot.failed");
    assert_eq!(
        (&event["data"]["vm_id"], &event["data"]["code"], &event["data"]["user"]),
        (&json!(VM), &json!("hook_failed"), &json!("admin"))
    );
    assert!(text(&event["data"]["details"]).contains("refuse"), "{event}");
    assert_eq!(event["id"], format!("{}-failed", text(&event["data"]["snapshot_id"])));
    let event = receiver.wait_for("hook.failed");
    assert_eq!((&event["data"]["will_retry"], &event["data"]["operation"]), (&json!(false), &json!("snapshot-create")));
    assert_eq!(event["data"]["hooks"][0]["name"], "refuse");
    assert_eq!((&event["data"]["hooks"][0]["stage"], &event["data"]["vm_id"]), (&json!("pre"), &json!(VM)));
    // A post hook that fails is called again.
    hooks.put("refuse", "[ $2 = pre ]");
    let made = client.take_snapshot();
    let event = receiver.wait_for_where("hook.failed", |data| data["will_retry"] == true);
    assert_eq!((&event["data"]["snapshot_id"], &event["data"]["hooks"][0]["stage"]), (&made["id"], &json!("post")));
    hooks.put("refuse", "");
    world.exporter.restart();
    let event = receiver.wait_for("hook.recovered");
    assert_eq!((&event["data"]["snapshot_id"], &event["data"]["hooks"][0]["outcome"]), (&made["id"], &json!("ok")));
    let client = world.client();

    // Someone removes the files of a snapshot.
    fs::remove_dir_all(world.snapshot_folder(&text(&made["id"]))).unwrap();
    client.get(&format!("{SNAPSHOTS}/{}", text(&made["id"])));
    let event = receiver.wait_for_where("snapshot.deleted", |data| data["cause"] == "files_gone");
    assert_eq!((&event["data"]["id"], event["data"].get("deleted_by")), (&made["id"], None));
}

#[test]
fn conditions_are_reported_when_they_change() {
    needs_root!();
    let (receiver, certificates, mut world) = scene("low_space = 0", "");
    // A limit that no repository keeps.
    reload(&mut world, "low_space = 0", "low_space = \"99%\"");
    let event = receiver.wait_for("space.low");
    let repository = world.client().get("/status").ok()["repositories"][0].clone();
    for member in ["id", "total_bytes", "min_free_bytes"] {
        assert_eq!(event["data"][member], repository[member], "{member}: {event}");
    }
    let bytes = |member: &str| event["data"][member].as_u64().unwrap();
    assert!(bytes("free_bytes") < bytes("low_space_bytes"), "{event}");
    // It is reported once, also after a restart.
    world.exporter.restart();
    // A new webhook hears of it.
    let another = Receiver::start(&certificates, "server");
    let section = another.section(&certificates, "pager", "events = [\"space.low\"]");
    world.exporter.settings().sections.push_str(&section);
    world.exporter.write_config();
    world.exporter.signal(Signal::SIGHUP);
    assert_eq!(another.wait_for("space.low")["data"]["id"], repository["id"]);

    world.certificates.issue_for_days("server", 20);
    world.exporter.signal(Signal::SIGHUP);
    let event = receiver.wait_for("certificate.expiring");
    let found = &event["data"];
    assert_eq!((&found["key"], found["days_left"].as_u64()), (&json!("api.tls.certificate"), Some(19)), "{event}");
    assert_eq!(found["path"], world.certificates.path("server.pem").display().to_string());

    run(Command::new("umount").arg("--lazy").arg(&world.volume.mount_point));
    let event = receiver.wait_for("repository.unavailable");
    assert_eq!(event["data"]["id"], repository["id"]);
    assert!(text(&event["data"]["reason"]).contains("is it mounted?"), "{event}");
    world.volume.mount();
    receiver.wait_for("repository.available");

    reload(&mut world, "low_space = \"99%\"", "low_space = 0");
    receiver.wait_for("space.recovered");
    let kinds: Vec<_> = receiver.events().iter().map(|event| text(&event["event"])).collect();
    let expected =
        ["space.low", "certificate.expiring", "repository.unavailable", "repository.available", "space.recovered"];
    assert_eq!(kinds, expected);
    assert_eq!(another.events().len(), 1, "it gets space.low only");
}

#[test]
fn damaged_database_is_reported() {
    needs_root!();
    let (receiver, _certificates, mut world) = scene("", "");
    world.exporter.settings().top = "db_rebuild = true\n".to_owned();
    let id = world.client().take_snapshot_id();
    receiver.wait_for("snapshot.created");
    world.exporter.kill();
    damage(&world.exporter.db_file());
    // The rebuilding cannot end.
    run(Command::new("umount").arg("--lazy").arg(&world.volume.mount_point));
    world.exporter.restart();
    let event = receiver.wait_for("database.damaged");
    assert_eq!(event["data"], json!({"rebuilding": true}));
    world.volume.mount();
    world.exporter.restart();
    let event = receiver.wait_for("database.recovered");
    assert_eq!(event["data"], json!({"rebuilding": false}));
    assert_eq!(world.client().snapshot_ids(), [id]);
}

#[test]
fn webhook_is_tested_with_a_command() {
    needs_root!();
    let (receiver, _certificates, world) = scene("", "");
    let (status, printed) = world.exporter.command(&["notifications", "test", "alerts"]);
    assert_eq!(status, Some(0), "{printed}");
    assert!(printed.contains("alerts") && printed.contains("answers 204 No Content"), "{printed}");
    let event = receiver.wait_for("notification.test");
    assert_eq!(event["data"], json!({"user": "unix:root"}));
    receiver.behave("500");
    let (status, printed) = world.exporter.command(&["notifications", "test", "--json"]);
    assert_eq!(status, Some(1), "{printed}");
    let printed: Value = serde_json::from_str(&printed).unwrap();
    let expected = json!([
        {"name": "alerts", "delivered": false, "result": "answers 500 Internal Server Error"}
    ]);
    assert_eq!(printed, expected);
    let (status, printed) = world.exporter.command(&["notifications", "test", "other"]);
    assert!(status != Some(0) && printed.contains("no such webhook; the status lists them"), "{printed}");
    let (_, page) = world.exporter.command(&["status"]);
    let listed = format!("alerts  https://127.0.0.1:{}", receiver.port);
    assert!(page.contains("\nwebhooks\nNAME ") && page.contains(&listed), "{page}");
    let client = world.client();
    let body = client.request(reqwest::Method::POST, "/api/v1/notifications/test").body("{\"webhok\": \"alerts\"}");
    assert_eq!(client.send(body).error(400), "bad_request");
    world.exporter.wait_for_log("notifications-test");
    // Nothing was queued.
    assert_eq!(client.get("/status").ok()["webhooks"][0]["queued"], 0);
}

#[test]
fn config_of_webhooks_is_checked_and_its_secrets_stay_secret() {
    needs_root!();
    let (receiver, certificates, mut world) = scene("", "");
    let check = |world: &World| world.exporter.command(&["check-config"]);
    let (_, printed) = check(&world);
    assert!(printed.contains(&format!("https://127.0.0.1:{}; to send an event", receiver.port)), "{printed}");
    let secret = &WEBHOOK_SECRET["whsec_".len()..];
    let ca = format!("ca_certificate = {:?}", certificates.ca());
    reload(&mut world, &ca, "ca_certificate = \"/nonexistent.pem\"");
    world.exporter.wait_for_log("notifications: the webhook alerts: ");
    let (_, printed) = check(&world);
    assert!(printed.contains("webhook alerts") && printed.contains("/nonexistent.pem"), "{printed}");
    reload(&mut world, "secret = \"whsec_", "secret = \"wsec_");
    let (_, broken) = check(&world);
    assert!(broken.contains("notifications.webhooks.1.secret: does not begin with whsec_"), "{broken}");
    assert!(!broken.contains(secret), "{broken}");
    // The receiver knows only the former secret.
    let new = "whsec_QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
    reload(&mut world, "secret = \"wsec_", &format!("secret = \"{new}\"\nformer_secret = \"whsec_"));
    reload(&mut world, "ca_certificate = \"/nonexistent.pem\"", &ca);
    let signatures = || {
        let (status, _) = world.exporter.command(&["notifications", "test"]);
        let request = receiver.requests().pop().unwrap();
        (status == Some(0)).then(|| text(&request["headers"]["webhook-signature"]).split(' ').count())
    };
    eventually("the event has both signatures", || signatures() == Some(2));
    let id = world.client().take_snapshot_id();
    receiver.wait_for("snapshot.created");
    let (_, page) = world.exporter.command(&["status"]);
    let status = world.client().get("/status").ok();
    assert_eq!(status["webhooks"][0]["origin"], format!("https://127.0.0.1:{}", receiver.port));
    assert!(status["webhooks"][0]["last_success"].is_string() && status["webhooks"][0]["queued"] == 0, "{status}");
    for text in [world.exporter.log(), page, status.to_string(), printed] {
        assert!(!text.contains(secret) && !text.contains("QUFBQUFB") && !text.contains("/hush-alerts"), "{text}");
    }
    let database = fs::read(world.exporter.db_file()).unwrap();
    assert!(!database.windows(secret.len()).any(|bytes| bytes == secret.as_bytes()));
    assert!(Path::new(&world.snapshot_folder(&id)).exists());
}
