//! `quiesce` in the request for a snapshot: required, tried or skipped.

use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Client, HookDir, MB, SNAPSHOTS, World, hook_runs, text};
use crate::needs_root;

fn create(client: &Client, quiesce: &str) -> Answer {
    let request = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"));
    client.send(request.body(json!({"quiesce": quiesce}).to_string()))
}

/// Checks that a required quiescing failed, and that nothing is left; returns the details.
fn refused(world: &World, client: &Client) -> String {
    let answer = create(client, "require");
    assert_eq!(answer.error(409), "not_quiesced");
    assert_eq!((world.snapshot_files(), client.snapshot_ids()), (Vec::<PathBuf>::new(), Vec::new()));
    text(&answer.json()["details"])
}

fn world(lines: &str) -> (HookDir, World, Client) {
    let (hooks, world) = World::with_hooks(lines, &["a.img", "b.img"]);
    let client = world.client();
    (hooks, world, client)
}

/// Notes each call with the outcome.
const NOTE: &str =
    "outcome=$(sed -n 's/.*\"outcome\":\"\\([a-z]*\\)\".*/ \\1/p')\necho \"$1 $2$outcome\" >> $OUT/calls";

#[test]
fn required_quiescing_makes_a_quiesced_snapshot_or_none() {
    needs_root!();
    let (hooks, world, client) = world("on_failure = \"continue\"\npost_on_failure = true");
    let cloned = "\nstat -c %b $DISKS/$EXPORTER_SNAPSHOT/a.img >> $OUT/blocks";
    let disks = format!("DISKS={}\n", world.repository.join("CoriolisSnapshots").display());
    hooks.put("freeze", &format!("{disks}{NOTE}{cloned}; [ $2 = post ] || echo quiesced"));
    let made = create(&client, "require").ok();
    assert_eq!((&made["consistency"], hook_runs(&made, "name").len()), (&json!("quiesced"), 2));
    assert_eq!(hooks.take("calls"), "snapshot-create pre\nsnapshot-create post ok\n");
    assert_ne!(hooks.take("blocks"), "0\n0\n", "the clone is made before post");
    assert_eq!(client.delete(SNAPSHOTS).status, 200);
    hooks.take("calls");
    hooks.take("blocks");

    // The hook quiesces nothing: the disks are not cloned, and post gets to know.
    hooks.put("freeze", &format!("{disks}{NOTE}{cloned}"));
    assert!(refused(&world, &client).contains("no hook reported \"quiesced\""));
    assert_eq!(hooks.take("calls"), "snapshot-create pre\nsnapshot-create post failed\n");
    assert_eq!(hooks.take("blocks"), "0\n0\n", "the disks were cloned");
    // It fails, which alone does not prevent a snapshot here.
    hooks.put("freeze", &format!("{NOTE}; echo quiesced; [ $2 = post ] || exit 3"));
    let details = refused(&world, &client);
    assert!(details.contains("pre hook freeze: exit status: 3") && details.contains("\"try\""), "{details}");
    assert_eq!(create(&client, "try").ok()["consistency"], "crash");
    assert_eq!(client.delete(SNAPSHOTS).status, 200);
}

#[test]
fn required_quiescing_fails_with_the_post_hook_which_stays_pending() {
    needs_root!();
    let (hooks, world, client) = world("");
    hooks.put("freeze", "[ $2 = pre ] && echo quiesced || [ -e $OUT/mended ]");
    let details = refused(&world, &client);
    assert!(details.contains("post hook freeze") && details.contains("does not count as quiesced"), "{details}");
    assert_eq!(client.pending_hooks()[0]["hooks"], json!(["freeze"]));
    std::fs::write(hooks.at("mended"), "").unwrap();
    assert_eq!(create(&client, "require").ok()["consistency"], "quiesced");
    let counted = client.send(client.request(Method::GET, "/metrics"));
    assert!(String::from_utf8_lossy(&counted.body).contains("ovm_exporter_snapshots_total{outcome=\"failed\"} 1\n"));
}

#[test]
fn required_quiescing_needs_a_hook() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    assert!(refused(&world, &client).contains("no hook is configured for this VM"));
    for wrong in ["", "Require", "always"] {
        assert_eq!(create(&client, wrong).error(400), "bad_request", "{wrong}");
    }
    // A failed request does not use up its key.
    let with_key = |body: Value| {
        let request = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}")).header("Idempotency-Key", "one");
        client.send(request.body(body.to_string()))
    };
    assert_eq!(with_key(json!({"quiesce": "require"})).error(409), "not_quiesced");
    let made = with_key(json!({"quiesce": "skip"})).ok();
    assert_eq!(with_key(json!({"quiesce": "skip"})).ok()["id"], made["id"]);
    assert_eq!(with_key(json!({"quiesce": "try"})).error(422), "idempotency_key_reused");
}

#[test]
fn skipped_quiescing_calls_no_hook() {
    needs_root!();
    let (hooks, world, client) = world("");
    hooks.put("refuses", &format!("{NOTE}; [ $1 = snapshot-delete ]"));
    assert_eq!(create(&client, "try").error(502), "hook_failed");
    hooks.take("calls");
    let made = create(&client, "skip").ok();
    assert_eq!((&made["consistency"], &made["hooks"]), (&json!("crash"), &json!([])));
    assert!(made["freeze_ms"].is_u64() && hooks.read("calls").is_empty(), "{made}");
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{}", text(&made["id"]))).status, 200);
    assert_eq!(hooks.read("calls"), "snapshot-delete pre\nsnapshot-delete post ok\n");
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
}
