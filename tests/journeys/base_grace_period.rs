//! A base is kept for a grace period after its successor was made. A lease does not depend on the host's clock.

use reqwest::Method;
use serde_json::json;

use crate::harness::{Clock, MB, SNAPSHOTS, World, text};
use crate::needs_root;

fn world(policy: &str) -> (Clock, World) {
    let clock = Clock::new();
    let world = World::with(512, |settings| {
        clock.load_into(settings);
        settings.policy = policy.to_owned();
    });
    world.define_vm(&[("a.img", MB)]);
    (clock, world)
}

fn take_snapshot(world: &World, ttl: &str) -> String {
    world.lasting_client().take_snapshot_with_ttl(ttl)
}

#[test]
fn expired_base_is_kept_for_the_grace_period() {
    needs_root!();
    let (clock, mut world) = world("");
    let base = take_snapshot(&world, "1h");
    clock.rounds(&world, 1);
    // The base has expired, but it is the newest snapshot: it stays until an hour after the next one.
    clock.pass(24);
    clock.rounds(&world, 2);
    let target = take_snapshot(&world, "1h");
    clock.rounds(&world, 2);
    world.lasting_client().compare(&target, &base);
    // A restart does not end the grace period.
    world.exporter.restart();
    clock.rounds(&world, 15);
    world.lasting_client().compare(&target, &base);
    clock.pass(2);
    clock.rounds(&world, 1);
    assert_eq!(world.lasting_client().get(&format!("{SNAPSHOTS}/{target}?compareTo={base}")).error(404), "not_found");
}

#[test]
fn expired_base_is_swept_without_a_grace_period() {
    needs_root!();
    let (clock, world) = world("superseded_grace = \"0\"");
    let base = take_snapshot(&world, "1h");
    clock.rounds(&world, 1);
    clock.pass(24);
    clock.rounds(&world, 1);
    let target = take_snapshot(&world, "1h");
    clock.rounds(&world, 1);
    assert_eq!(world.lasting_client().get(&format!("{SNAPSHOTS}/{target}?compareTo={base}")).error(404), "not_found");
}

#[test]
fn lease_is_granted_if_the_clock_is_behind_the_snapshot() {
    needs_root!();
    let (clock, world) = world("");
    let id = take_snapshot(&world, "1h");
    let document = world.lasting_client().get(&format!("{SNAPSHOTS}/{id}?chunks=false")).ok();
    // As if another host of the pool had made the snapshot with a clock that is ahead.
    clock.leap(-2);
    let client = world.lasting_client();
    let request = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}/{id}/lease"));
    let lease = client.send(request.body(json!({"ttl": "3h"}).to_string())).ok();
    let [created, leased] =
        [&document["created_at"], &lease["expires_at"]].map(|time| text(time).parse::<jiff::Timestamp>().unwrap());
    assert!(leased.duration_since(created).as_secs_f64() >= 3.0 * 3600.0, "{lease}");
    take_snapshot(&world, "1h");
    clock.leap(2);
    clock.pass(2);
    clock.rounds(&world, 1);
    world.lasting_client().get(&format!("{SNAPSHOTS}/{id}?chunks=false")).ok();
}
