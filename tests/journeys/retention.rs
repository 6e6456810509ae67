//! Expired snapshots are swept, except the newest, leased ones and those being read. A clock jump sweeps nothing.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Client, Clock, HookDir, MB, SNAPSHOTS, VM, World, define_vm, eventually, eventually_some, make_disk,
    snapshot_folders, text, write_at,
};
use crate::needs_root;

/// A service with movable clocks.
fn world(policy: &str) -> (Clock, World) {
    let clock = Clock::new();
    let world = World::with(512, |settings| {
        clock.load_into(settings);
        settings.policy = policy.to_owned();
    });
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    write_at(disk, 0, &vec![7; 64 << 20]);
    (clock, world)
}

fn post(client: &Client, path: &str, body: &Value) -> Answer {
    client.send(client.request(Method::POST, &format!("/api/v1{path}")).body(body.to_string()))
}

fn list(world: &World) -> Vec<String> {
    world.lasting_client().snapshot_ids()
}

/// The seconds between two timestamps.
fn seconds(from: &Value, to: &Value) -> f64 {
    let [from, to] = [from, to].map(|time| text(time).parse::<jiff::Timestamp>().unwrap());
    to.duration_since(from).as_secs_f64()
}

#[test]
fn only_expired_snapshots_are_swept() {
    needs_root!();
    let (clock, world) = world("default_ttl = \"4h\"");
    let client = world.lasting_client();
    let short = client.take_snapshot_with_ttl("1h");
    let leased = client.take_snapshot_with_ttl("1h");
    let released = client.take_snapshot_with_ttl("1h");
    let by_default = client.take_snapshot();
    let forever = post(&client, SNAPSHOTS, &json!({"ttl": "none"})).ok();
    let read = client.take_snapshot_with_ttl("1h");
    let newest = client.take_snapshot_with_ttl("1h");
    assert!((seconds(&by_default["created_at"], &by_default["expires_at"]) - 4.0 * 3600.0).abs() < 0.01);
    assert_eq!(forever["expires_at"], Value::Null);
    let by_default = text(&by_default["id"]);
    let forever = text(&forever["id"]);
    // The only snapshot of another VM.
    let alone = "0004fb0000060000000000000000000a";
    define_vm(&world.repository, alone, &[make_disk(&world.repository, "alone.img", MB)]);
    post(&client, &format!("/vms/{alone}/snapshots"), &json!({"ttl": "1h"})).ok();
    for id in [&leased, &released] {
        let lease = post(&client, &format!("{SNAPSHOTS}/{id}/lease"), &json!({"ttl": "6h"})).ok();
        let document = client.get(&format!("{SNAPSHOTS}/{id}")).ok();
        assert_eq!(document["leased_until"], lease["expires_at"]);
        assert!(seconds(&document["expires_at"], &lease["expires_at"]) > 4.9 * 3600.0, "{document}");
    }
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{released}/lease")).status, 200);
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{released}")).ok()["leased_until"], Value::Null);

    let all = [&short, &leased, &released, &by_default, &forever, &read, &newest];
    clock.rounds(&world, 2);
    assert_eq!(list(&world).iter().collect::<Vec<_>>(), all);
    clock.pass(2);
    // A slow download is in progress.
    use std::io::Read;
    let mut stream = world.send_get(&client, &format!("{SNAPSHOTS}/{read}/disks/a.img"));
    stream.read_exact(&mut [0; 100]).unwrap();
    clock.rounds(&world, 1);
    assert_eq!(list(&world), [&leased, &by_default, &forever, &read, &newest].map(Clone::clone));
    drop(stream);
    clock.rounds(&world, 2);
    assert!(list(&world).contains(&read), "a recently read snapshot was swept");
    // The default lifetime is over, and the grace period after the read, too.
    clock.pass(2);
    clock.rounds(&world, 1);
    assert_eq!(list(&world), [&leased, &forever, &newest].map(Clone::clone));
    clock.pass(4);
    clock.rounds(&world, 1);
    assert_eq!(list(&world), [&forever, &newest].map(Clone::clone));
    assert_eq!(world.lasting_client().get(&format!("/vms/{alone}")).ok()["snapshots"].as_array().unwrap().len(), 1);
    assert_eq!(snapshot_folders(&world.repository).len(), 3, "files of swept snapshots are left");
    let log = world.exporter.log();
    for id in [&short, &released, &read, &by_default, &leased] {
        let swept = |line: &&str| line.contains("audit action=\"sweep\"") && line.contains(id.as_str());
        assert_eq!(log.lines().filter(swept).count(), 1, "{id}");
    }
}

#[test]
fn clock_jump_sweeps_nothing() {
    needs_root!();
    let (clock, mut world) = world("");
    let client = world.lasting_client();
    let ids =
        [client.take_snapshot_with_ttl("3h"), client.take_snapshot_with_ttl("3h"), client.take_snapshot_with_ttl("3h")];
    // And a lease of a snapshot that would expire.
    post(&client, &format!("{SNAPSHOTS}/{}/lease", ids[1]), &json!({"ttl": "8h"})).ok();
    clock.leap(10 * 365 * 24);
    clock.rounds(&world, 15);
    assert_eq!(list(&world), ids);
    // After a start with a wrong clock there is time to correct it.
    world.exporter.restart();
    clock.rounds(&world, 3);
    assert_eq!(list(&world), ids);
    clock.leap(-10 * 365 * 24);
    clock.rounds(&world, 15);
    assert_eq!(list(&world), ids);
    clock.pass(4);
    clock.rounds(&world, 1);
    assert_eq!(list(&world), ids[1..], "one snapshot has expired, the other is leased");
    // Snapshots that expired while the service was down are swept some rounds after the start.
    world.exporter.kill();
    clock.pass(4);
    world.exporter.restart();
    clock.rounds(&world, 1);
    assert_eq!(list(&world), ids[1..]);
    clock.rounds(&world, 6);
    assert_eq!(list(&world), ids[2..]);
}

#[test]
fn lease_is_validated_and_binds_only_the_sweeper() {
    needs_root!();
    let (_clock, mut world) = world("");
    let client_one = world.client();
    let (id, other) = (client_one.take_snapshot_with_ttl("1h"), client_one.take_snapshot_with_ttl("1h"));
    let lease = format!("{SNAPSHOTS}/{id}/lease");
    for wrong in ["", "{}", r#"{"ttl": "169h"}"#, r#"{"ttl": "0s"}"#, r#"{"ttl": 5}"#, r#"{"ttl": "1h", "x": 1}"#] {
        let request = client_one.request(Method::POST, &format!("/api/v1{lease}"));
        assert_eq!(client_one.send(request.body(wrong)).error(400), "bad_request", "{wrong}");
    }
    let hour = json!({"ttl": "1h"});
    let nowhere = format!("{SNAPSHOTS}/{}/lease", uuid::Uuid::nil());
    assert_eq!(post(&client_one, &nowhere, &hour).error(404), "not_found");
    assert_eq!(client_one.delete(&nowhere).error(404), "not_found");
    define_vm(&world.repository, "0004fb0000060000000000000000000a", &[]);
    let of_other = format!("/vms/0004fb0000060000000000000000000a/snapshots/{id}/lease");
    assert_eq!(post(&client_one, &of_other, &hour).error(409), "other_vm");
    let stranger = world.anonymous_client();
    assert_eq!(post(&stranger, &lease, &hour).error(401), "unauthorized");

    post(&client_one, &lease, &json!({"ttl": "168h"})).ok();
    post(&client_one, &format!("/vms/{VM}/snapshots/{other}/lease/"), &hour).ok();
    let until = client_one.get(&format!("{SNAPSHOTS}/{id}")).ok()["leased_until"].clone();
    assert!(until.is_string());
    world.exporter.restart();
    let client_two = world.client();
    assert_eq!(
        client_two.get(&format!("{SNAPSHOTS}/{id}")).ok()["leased_until"],
        until,
        "the lease is lost after a restart"
    );
    assert_eq!(client_two.delete(&lease).status, 200);
    assert_eq!(client_two.delete(&lease).status, 200, "a repeated release");
    // A lease does not prevent an explicit deletion.
    assert_eq!(client_two.delete(&format!("{SNAPSHOTS}/{other}")).status, 200);
    assert!(world.exporter.log().contains("deleting a snapshot with an active lease"));
    assert_eq!(list(&world), [id]);
}

#[test]
fn hooks_run_around_a_sweep() {
    needs_root!();
    let (clock, mut world) = world("");
    let hooks = HookDir::new();
    hooks.put("note", "echo $1 $2 $EXPORTER_SNAPSHOT >> $OUT/calls; [ ! -e $OUT/refuse ] || [ $2 = post ]");
    world.exporter.settings().sections = hooks.section("");
    world.exporter.restart();
    let client = world.lasting_client();
    let (short, newest) = (client.take_snapshot_with_ttl("1h"), client.take_snapshot_with_ttl("1h"));
    std::fs::write(hooks.at("refuse"), "").unwrap();
    hooks.take("calls");
    clock.rounds(&world, 1);
    clock.pass(2);
    clock.rounds(&world, 1);
    assert_eq!(list(&world), [short.clone(), newest.clone()], "the snapshot was deleted although a hook failed");
    assert!(hooks.take("calls").starts_with(&format!("snapshot-delete pre {short}\n")));
    std::fs::remove_file(hooks.at("refuse")).unwrap();
    hooks.take("calls");
    clock.rounds(&world, 1);
    assert_eq!(hooks.read("calls"), "", "a failing hook was called every minute");
    clock.pass(1);
    clock.rounds(&world, 1);
    assert_eq!(list(&world), [newest]);
    let calls = hooks.read("calls");
    assert!(calls.ends_with(&format!("snapshot-delete pre {short}\nsnapshot-delete post {short}\n")), "{calls}");
}

#[test]
fn post_hooks_hear_that_a_snapshot_needed_again_was_not_deleted() {
    needs_root!();
    let (clock, mut world) = world("");
    let hooks = HookDir::new();
    let script = "case \"$1 $2\" in
        'snapshot-delete pre') touch $OUT/waits; until [ -e $OUT/go ]; do sleep 0.1; done;;
        *post) cat > $OUT/told;;
        esac";
    hooks.put("note", script);
    world.exporter.settings().sections = hooks.section("post_on_failure = true");
    world.exporter.restart();
    let client = world.lasting_client();
    let (short, newest) = (client.take_snapshot_with_ttl("1h"), client.take_snapshot_with_ttl("1h"));
    hooks.take("told");
    clock.rounds(&world, 1);
    clock.pass(2);
    eventually("the sweeper calls the hook", || {
        // The service notices the new time when it gets a request.
        client.get("/vms");
        hooks.at("waits").exists()
    });
    post(&client, &format!("{SNAPSHOTS}/{short}/lease"), &json!({"ttl": "6h"})).ok();
    std::fs::write(hooks.at("go"), "").unwrap();
    hooks.wait_for("told");
    let told = || serde_json::from_str::<Value>(&hooks.read("told")).ok();
    let event = eventually_some("the event is complete", told);
    assert_eq!((text(&event["data"]["outcome"]), list(&world)), ("failed".to_owned(), vec![short, newest]), "{event}");
}
