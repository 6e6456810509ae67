//! Labels and descriptions of snapshots: set at the creation, kept in database and manifest, and selected by in lists.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Client, MB, SNAPSHOTS, World, ids, text};
use crate::needs_root;

fn create(client: &Client, body: &Value) -> Answer {
    client.send(client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}")).body(body.to_string()))
}

fn create_id(client: &Client, body: &Value) -> String {
    text(&create(client, body).ok()["id"])
}

#[test]
fn labels_and_description_are_kept_and_restored_from_the_manifest() {
    needs_root!();
    let mut world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let labels = json!({"job": "nightly", "team/owner": "Größe \"x\"=1", "empty": ""});
    let made = create(&client, &json!({"labels": labels, "description": "before the upgrade"})).ok();
    let plain = client.take_snapshot();
    let noted = |document: &Value| (document["labels"].clone(), document["description"].clone());
    assert_eq!(noted(&made), (labels.clone(), json!("before the upgrade")));
    assert_eq!(noted(&plain), (json!({}), Value::Null));
    // An empty description is none.
    let empty = create(&client, &json!({"labels": {}, "description": ""})).ok();
    assert!(noted(&empty) == noted(&plain) && empty.get("description").is_none(), "{empty}");

    let manifest = |document: &Value| -> Value {
        let path = world.snapshot_folder(&text(&document["id"])).join(".manifest.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    assert_eq!(noted(&manifest(&made)), noted(&made));
    assert!(manifest(&plain).get("labels").is_none() && manifest(&plain).get("description").is_none());

    let seen =
        |client: &Client| -> Vec<_> { client.get(SNAPSHOTS).ok().as_array().unwrap().iter().map(noted).collect() };
    let expected = vec![noted(&made), noted(&plain), noted(&plain)];
    assert_eq!(seen(&client), expected);
    world.exporter.restart();
    assert_eq!(seen(&world.client()), expected);
    // The database is lost.
    world.exporter.kill();
    fs::remove_file(world.exporter.db_file()).unwrap();
    world.exporter.restart();
    let (status, output) = world.exporter.command(&["adopt", "--manifests"]);
    assert!(status == Some(0) && output.contains("3 adopted"), "{output}");
    assert_eq!(seen(&world.client()), expected);
}

#[test]
fn lists_are_filtered_by_labels() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let nightly = create_id(&client, &json!({"labels": {"job": "nightly", "tier": "1"}}));
    let weekly = create_id(&client, &json!({"labels": {"job": "weekly", "equation": "a=b"}}));
    let plain = client.take_snapshot_id();
    let all = [&nightly, &weekly, &plain];
    for (query, expected) in [
        ("", &all[..]),
        ("?label=job", &all[..2]),
        ("?label=job=nightly", &all[..1]),
        ("?label=job%3Dnightly&chunks=false", &all[..1]),
        ("?label=job&label=tier=1", &all[..1]),
        ("?label=job=nightly&label=job=weekly", &[]),
        ("?label=equation=a=b", &all[1..2]),
        ("?label=job=", &[]),
        ("?label=other", &[]),
    ] {
        assert_eq!(
            ids(&client.get(&format!("{SNAPSHOTS}{query}")).ok()).iter().collect::<Vec<_>>(),
            expected,
            "{query}"
        );
    }
    for query in ["?label=", "?label==x", "?label=a%20b", "?labels=job", "?label=job&chunks=false&chunks=false"] {
        assert_eq!(client.get(&format!("{SNAPSHOTS}{query}")).error(400), "bad_request", "{query}");
    }
    // A deletion of all snapshots has no selection, so it must not look as if it had one.
    for query in ["?label=job=nightly", "?label=", "?labels=job"] {
        assert_eq!(client.delete(&format!("{SNAPSHOTS}{query}")).error(400), "bad_request", "{query}");
    }
    assert_eq!(client.snapshot_ids().iter().collect::<Vec<_>>(), all);
}

#[test]
fn invalid_labels_are_refused_and_leave_nothing() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let many: serde_json::Map<_, _> = (0..33).map(|number| (number.to_string(), json!(""))).collect();
    for (body, what) in [
        (json!({"labels": many}), "33 entries"),
        (json!({"labels": {"": "x"}}), "1 to 63"),
        (json!({"labels": {"a b": "x"}}), "\"a b\""),
        (json!({"labels": {"k".repeat(64): "x"}}), "1 to 63"),
        (json!({"labels": {"a": "x".repeat(256)}}), "255 bytes"),
        (json!({"labels": {"a": "x\u{1b}[2J"}}), "control characters"),
        (json!({"labels": {"a": 1}}), "invalid type"),
        (json!({"labels": ["a"]}), "invalid type"),
        (json!({"description": "x".repeat(1025)}), "1024 bytes"),
        (json!({"description": "two\nlines"}), "control characters"),
        (json!({"description": {}}), "invalid type"),
        (json!({"label": {"a": "x"}}), "unknown field"),
    ] {
        let answer = create(&client, &body);
        assert!(text(&answer.json()["details"]).contains(what), "{body}: {}", answer.json());
        assert_eq!(answer.error(400), "bad_request", "{body}");
    }
    assert_eq!(world.snapshot_files(), Vec::<std::path::PathBuf>::new());

    // Labels are a part of the request that an idempotency key stands for.
    let with_key = |body: &Value| {
        let request = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}")).header("Idempotency-Key", "one");
        client.send(request.body(body.to_string()))
    };
    let first = with_key(&json!({"labels": {"job": "nightly", "a": "b"}})).ok();
    assert_eq!(with_key(&json!({"labels": {"a": "b", "job": "nightly"}})).ok()["id"], first["id"]);
    assert_eq!(with_key(&json!({"labels": {"job": "weekly"}})).error(422), "idempotency_key_reused");
}
