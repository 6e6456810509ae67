//! Two exporters with databases of their own on one repository, as on the hosts of a pool: each serves all snapshots.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Bytes, Client, Clock, Exporter, Fault, FaultTest, MB, Random, SNAPSHOTS, Settings, World, eventually, text,
    write_at,
};
use crate::needs_root;

fn two_exporters() -> (World, Exporter) {
    let world = World::with(512, |settings| settings.shared = true);
    world.define_vm(&[("a.img", 16 * MB)]);
    let second = world.second_service(|settings| settings.shared = true);
    (world, second)
}

fn create(client: &Client, body: &Value) -> Value {
    client.send(client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}")).body(body.to_string())).ok()
}

#[test]
fn each_exporter_serves_the_snapshots_of_the_other() {
    needs_root!();
    let (world, second) = two_exporters();
    let (a, b) = (world.client(), Client::logged_in(&second, &world.certificates));
    let disk = world.repository.join("VirtualDisks/a.img");
    write_at(&disk, MB, &Random(1).bytes(1 << 20));
    let body = json!({"ttl": "168h", "labels": {"job": "nightly"}, "description": "before the upgrade"});
    let made = create(&a, &body);
    let first = text(&made["id"]);
    // Without any wait.
    assert_eq!(b.snapshot_ids(), [first.as_str()]);
    let path = format!("{SNAPSHOTS}/{first}");
    assert_eq!(a.get(&path).ok(), b.get(&path).ok());
    for field in ["expires_at", "labels", "description"] {
        assert_eq!(b.get(&path).ok()[field], made[field], "{field}");
        assert!(!made[field].is_null(), "{field}: {made}");
    }

    write_at(&disk, 8 * MB, &Random(2).bytes(1 << 20));
    let next = b.take_snapshot_id();
    for client in [&a, &b] {
        assert_eq!(client.snapshot_ids(), [first.as_str(), &next]);
        let compared = client.compare(&next, &first);
        assert_eq!(compared["disks"][0]["mode"], "incremental", "{compared}");
        assert_eq!(compared["disks"][0]["data_bytes"], 1 << 20, "{compared}");
        assert_eq!(client.disk(&next, "a.img"), fs::read(&disk).unwrap());
    }
    let etags: Vec<_> =
        [&a, &b].iter().map(|client| client.get(&format!("{path}/disks/a.img")).header("etag").to_owned()).collect();
    assert_eq!(etags[0], etags[1]);

    // Each deletes what the other has made.
    assert_eq!(b.delete(&path).status, 200);
    assert_eq!(a.snapshot_ids(), [next.as_str()]);
    assert_eq!(a.get(&path).error(404), "not_found");
    assert_eq!(a.delete(&format!("{SNAPSHOTS}/{next}")).status, 200);
    assert_eq!(b.snapshot_ids(), [""; 0]);
    assert_eq!(world.snapshot_files(), [""; 0].map(std::path::PathBuf::from));
}

#[test]
fn request_that_is_repeated_at_the_other_exporter_makes_no_second_snapshot() {
    needs_root!();
    let (world, second) = two_exporters();
    let (a, b) = (world.client(), Client::logged_in(&second, &world.certificates));
    let create = |client: &Client| {
        let request = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"));
        client.send(request.header("Idempotency-Key", "one"))
    };
    let made = create(&a).ok();
    assert_eq!(create(&b).ok()["id"], made["id"]);
    assert_eq!(b.snapshot_ids().len(), 1);
    assert_eq!(b.delete(&format!("{SNAPSHOTS}/{}", text(&made["id"]))).status, 200);
    assert_eq!(create(&b).error(410), "idempotency_key_spent");
    assert_eq!(create(&a).error(410), "idempotency_key_spent");
}

#[test]
fn snapshots_made_in_turn_have_one_order_on_both() {
    needs_root!();
    let (world, second) = two_exporters();
    let clients = [world.client(), Client::logged_in(&second, &world.certificates)];
    let made: Vec<String> = (0..6).map(|turn| clients[turn % 2].take_snapshot_id()).collect();
    for client in &clients {
        assert_eq!(client.snapshot_ids(), made);
    }
    let compared = clients[1].compare(&made[5], &made[0]);
    assert_eq!(compared["disks"][0]["mode"], "incremental", "{compared}");
}

#[test]
fn database_that_was_deleted_is_filled_again() {
    needs_root!();
    let (mut world, second) = two_exporters();
    let (a, b) = (world.client(), Client::logged_in(&second, &world.certificates));
    let body = json!({"ttl": "168h", "labels": {"job": "nightly"}});
    let first = text(&create(&a, &body)["id"]);
    let path = format!("{SNAPSHOTS}/{first}");
    let before = a.get(&path).ok();
    let next = b.take_snapshot_id();
    world.exporter.kill();
    fs::remove_file(world.exporter.db_file()).unwrap();
    world.exporter.restart();
    let a = world.client();
    assert_eq!(a.snapshot_ids(), [first.as_str(), &next]);
    assert_eq!(a.get(&path).ok(), before);
    let last = a.take_snapshot_id();
    eventually("the other exporter has it", || b.snapshot_ids() == [first.as_str(), &next, &last]);
}

/// Waits until a process has a lock on the manifest of the snapshot.
fn wait_until_held(world: &World, id: &str) {
    let inode = fs::metadata(world.snapshot_folder(id).join(".manifest.json")).unwrap().ino();
    eventually("the snapshot is held", || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| line.contains("FLOCK") && line.contains(&format!(":{inode} ")))
    });
}

#[test]
fn sweepers_respect_the_leases_and_readers_of_both_exporters() {
    needs_root!();
    let clock = Clock::new();
    let shared = |settings: &mut Settings| {
        clock.load_into(settings);
        settings.shared = true;
    };
    let world = World::with(512, shared);
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    write_at(disk, 0, &vec![7; 64 << 20]);
    let second = world.second_service(shared);
    // The service closes idle connections after each move of the clocks.
    let other = || Client::lasting(&second, &world.certificates);
    let client = other();
    let [free, leased, read, newest] = [(); 4].map(|()| client.take_snapshot_with_ttl("1h"));
    let lease = format!("/api/v1{SNAPSHOTS}/{leased}/lease");
    client.send(client.request(Method::POST, &lease).body(json!({"ttl": "6h"}).to_string())).ok();
    let path = format!("/api/v1{SNAPSHOTS}/{read}/disks/a.img");
    let mut download = client.request(Method::GET, &path).send().unwrap();
    download.read_exact(&mut [0; 100]).unwrap();
    wait_until_held(&world, &read);

    // The first exporter has not seen the successors being made, so it waits for longer before it sweeps.
    clock.rounds(&world, 1);
    let seen = world.lasting_client().get(&format!("{SNAPSHOTS}/{leased}")).ok();
    assert_eq!(seen["leased_until"], other().get(&format!("{SNAPSHOTS}/{leased}")).ok()["leased_until"]);
    for hours in [2, 1] {
        clock.pass(hours);
        clock.rounds(&world, 1);
    }
    eventually("the expired snapshot is swept", || other().snapshot_ids() == [leased.as_str(), &read, &newest]);
    assert!(!world.snapshot_folder(&free).exists());
    // The lease ends at either exporter.
    assert_eq!(world.lasting_client().delete(&format!("{SNAPSHOTS}/{leased}/lease")).status, 200);
    assert_eq!(other().get(&format!("{SNAPSHOTS}/{leased}")).ok()["leased_until"], Value::Null);
    for _ in 0..2 {
        clock.pass(1);
        clock.rounds(&world, 1);
    }
    eventually("the released snapshot is swept", || other().snapshot_ids() == [read.as_str(), &newest]);
    // Nothing of the leases is left.
    let leases = world.repository.join("CoriolisSnapshots/.pool/leases");
    assert_eq!(fs::read_dir(leases).unwrap().count(), 0);
    drop(download);
}

#[test]
fn leases_from_before_the_sharing_are_shared() {
    needs_root!();
    let mut world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let id = client.take_snapshot_with_ttl("1h");
    let lease = format!("{SNAPSHOTS}/{id}/lease");
    let request = client.request(Method::POST, &format!("/api/v1{lease}"));
    let until = client.send(request.body(json!({"ttl": "6h"}).to_string())).ok()["expires_at"].clone();
    world.exporter.settings().shared = true;
    world.exporter.kill();
    world.exporter.restart();
    let second = world.second_service(|settings| settings.shared = true);
    let other = Client::logged_in(&second, &world.certificates);
    assert_eq!(other.get(&format!("{SNAPSHOTS}/{id}")).ok()["leased_until"], until);
    // A lease that another exporter ends while this one is stopped stays ended.
    world.exporter.kill();
    assert_eq!(other.delete(&lease).status, 200);
    world.exporter.restart();
    assert_eq!(world.client().get(&format!("{SNAPSHOTS}/{id}")).ok()["leased_until"], Value::Null);
}

/// One of two exporters, with a record of what it must preserve, and the other.
fn with_faults() -> (FaultTest, Exporter) {
    let test = FaultTest::new(|settings| settings.shared = true);
    let second = test.world.second_service(|settings| settings.shared = true);
    (test, second)
}

/// Checks that the snapshots that the other exporter lists are those of the record, with their bytes, and perhaps one with
/// the `optional` bytes. Returns the id of that one.
fn check_other(test: &FaultTest, other: &Client, what: &str, optional: &Bytes) -> Option<String> {
    let listed = other.snapshot_ids();
    let mut extra = None;
    for id in &listed {
        let expected = test.confirmed.get(id).unwrap_or_else(|| {
            assert!(extra.replace(id.clone()).is_none(), "{what}: {listed:?}");
            optional
        });
        for (name, bytes) in ["a.img", "b.img"].iter().zip(expected) {
            assert!(other.disk(id, name) == *bytes, "{what}: {name} of {id} has the wrong content");
        }
    }
    for id in test.confirmed.keys() {
        assert!(listed.contains(id), "{what}: {id} is gone");
    }
    extra
}

#[test]
fn an_exporter_is_killed_at_every_step_of_a_creation_while_another_serves() {
    needs_root!();
    let (mut test, second) = with_faults();
    let other = Client::logged_in(&second, &test.world.certificates);
    let mut completed = 0;
    for n in 1.. {
        let what = format!("creation, step {n}");
        test.write(n as u8);
        let contents = test.disk_contents();
        let answer = test.request_with_fault(n, Fault::KillBefore, Method::POST, SNAPSHOTS);
        if let Some(answer) = answer {
            test.confirmed.insert(text(&answer.ok()["id"]), contents.clone());
            assert_eq!(check_other(&test, &other, &what, &contents), None);
            assert!(n > 10, "only {n} steps: the shim does not see the calls of the service");
            break;
        }
        // The other exporter shows a complete snapshot, or none, and goes on.
        let seen = check_other(&test, &other, &what, &contents);
        let next = other.take_snapshot_id();
        test.confirmed.insert(next.clone(), contents.clone());
        test.restart(Fault::KillBefore);
        // What was shown stays, and nothing else is left.
        assert_eq!(test.check(&what, Some(&contents)), seen, "{what}");
        completed += usize::from(seen.is_some());
        for id in seen.into_iter().chain([next]) {
            assert_eq!(other.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
            test.confirmed.remove(&id);
        }
        assert_eq!(test.check(&format!("after {what}"), None), None);
    }
    assert!(completed > 0, "no kill happened between the last file and the answer");
}

#[test]
fn an_exporter_is_killed_at_every_step_of_a_deletion_while_another_serves() {
    needs_root!();
    let (mut test, second) = with_faults();
    let other = Client::logged_in(&second, &test.world.certificates);
    for n in 1.. {
        let what = format!("deletion, step {n}");
        let id = test.take_snapshot();
        let path = format!("{SNAPSHOTS}/{id}");
        assert!(other.snapshot_ids().contains(&id));
        let answer = test.request_with_fault(n, Fault::KillBefore, Method::DELETE, &path);
        test.confirmed.remove(&id);
        if let Some(answer) = answer {
            assert_eq!(answer.status, 200);
            assert!(!other.snapshot_ids().contains(&id));
            assert!(n > 5, "only {n} steps: the shim does not see the calls of the service");
            break;
        }
        // The other exporter can end what has begun, and goes on in any case.
        assert_eq!(other.delete(&path).status, 200, "{what}");
        assert!(!other.snapshot_ids().contains(&id), "{what}");
        let contents = test.disk_contents();
        test.confirmed.insert(other.take_snapshot_id(), contents);
        test.restart(Fault::KillBefore);
        assert_eq!(test.check(&what, None), None, "{what}");
    }
}
