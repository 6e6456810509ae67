//! A damaged database is found at the start and at night. It is set aside and rebuilt if the config says so.

use std::fs;
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::json;

use crate::harness::{Client, Clock, MB, OTHER_VM, SNAPSHOTS, World, define_vm, eventually, make_disk, text, write_at};
use crate::needs_root;

/// Zeros the pages with the tables, as a faulty disk may.
pub fn damage(db_file: &Path) -> Vec<u8> {
    let mut bytes = fs::read(db_file).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[8192..used].fill(0);
    fs::write(db_file, &bytes).unwrap();
    bytes
}

/// Defines a VM in each of two repositories, and starts the service again: with this clock, and so that it rebuilds a
/// damaged database.
pub fn start_rebuilding_service(world: &mut World, second: &Path, clock: &Clock) -> Client {
    clock.load_into(world.exporter.settings());
    world.exporter.settings().top = "db_rebuild = true\n".to_owned();
    world.define_vm(&[("a.img", MB)]);
    define_vm(second, OTHER_VM, &[make_disk(second, "b.img", MB)]);
    world.exporter.restart();
    world.client()
}

/// The files of damaged databases that were set aside.
fn set_aside(db_file: &Path) -> Vec<PathBuf> {
    let name = format!("{}.damaged-", db_file.file_name().unwrap().to_str().unwrap());
    let mut found: Vec<_> =
        fs::read_dir(db_file.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&name));
    found
}

fn problems(client: &Client) -> serde_json::Value {
    client.send(client.request(Method::GET, "/readyz")).json()["problems"].clone()
}

/// A service that rebuilds its database, and a VM with a disk.
fn rebuilding_world(clock: &Clock) -> World {
    let world = World::with(512, |settings| {
        clock.load_into(settings);
        settings.top = "db_rebuild = true\n".to_owned();
        settings.sections = "[metrics]\nenabled = true\n".to_owned();
    });
    write_at(&world.define_vm(&[("a.img", MB)])[0], 0, &[7; 8192]);
    world
}

#[test]
fn damaged_database_keeps_the_service_from_starting() {
    needs_root!();
    let mut world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    world.client().take_snapshot_id();
    world.exporter.kill();
    let db_file = world.exporter.db_file();
    let bytes = damage(&db_file);
    let status = world.exporter.try_restart().unwrap_err();
    assert_eq!(status.code(), Some(78));
    let log = world.exporter.log();
    for part in ["is damaged and is left untouched", "backup-db", "db_rebuild = true", "adopt --manifests"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(fs::read(&db_file).unwrap() == bytes && set_aside(&db_file).is_empty());
    let (status, output) = world.exporter.command(&["check-config"]);
    assert!(status == Some(1) && output.contains("is damaged"), "{output}");
    assert!(fs::read(&db_file).unwrap() == bytes);
}

#[test]
fn damaged_database_is_rebuilt_from_the_manifests() {
    needs_root!();
    let mut world = rebuilding_world(&Clock::new());
    let client = world.client();
    let expiring = client.take_snapshot_with_ttl("1h");
    let other = client.take_snapshot_id();
    // Another service's snapshot is not taken.
    define_vm(&world.repository, OTHER_VM, &[make_disk(&world.repository, "b.img", MB)]);
    let stranger = world.second_service(|_| {});
    let of_stranger = Client::logged_in(&stranger, &world.certificates).post(&format!("/vms/{OTHER_VM}/snapshots"));
    let of_stranger = text(&of_stranger.ok()["id"]);
    world.exporter.kill();
    let db_file = world.exporter.db_file();
    let bytes = damage(&db_file);
    world.exporter.restart();

    // Which tokens were revoked is lost, so all of them are.
    let mut old = world.anonymous_client();
    old.token.clone_from(&client.token);
    assert_eq!(old.get("/vms").error(401), "unauthorized");
    let client = world.client();
    assert_eq!(client.snapshot_ids(), [expiring.clone(), other.clone()]);
    let [aside] = &set_aside(&db_file)[..] else { panic!("not one database was set aside") };
    assert!(fs::read(aside).unwrap() == bytes, "the damaged database was changed");
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{expiring}")).ok()["expires_at"], json!(null));
    assert_eq!(client.disk(&other, "a.img")[..8192], [7; 8192]);
    assert!(client.get(&format!("/vms/{OTHER_VM}")).ok()["snapshots"].as_array().unwrap().is_empty());
    let status = client.get("/status").ok();
    assert_eq!(status["repositories"][0]["unknown_snapshots"], 1);
    let database = &status["database"];
    assert_eq!((&database["status"], &database["rebuilding"]), (&json!("ok"), &json!(false)));
    assert!(database["rebuilt_at"].is_string() && database["lost"].as_array().unwrap().contains(&json!("leases")));
    let log = world.exporter.log();
    for part in ["has been set aside", aside.to_str().unwrap(), "these are lost", "the database has been rebuilt"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert_eq!(problems(&client), json!([]));
    // Backups continue: the next snapshot is newer than those before.
    let next = client.take_snapshot_id();
    assert_eq!(client.snapshot_ids(), [expiring, other.clone(), next.clone()]);
    client.compare(&next, &other);
    world.exporter.restart();
    assert_eq!(world.client().snapshot_ids().len(), 3);
    assert_eq!(set_aside(&db_file).len(), 1, "a whole database was set aside");
    assert!(world.snapshot_folder(&of_stranger).join("b.img").exists());
}

#[test]
fn rebuilding_continues_when_a_repository_is_mounted_again() {
    needs_root!();
    let clock = Clock::new();
    let (volume, second, mut world) = World::with_two_repositories(512);
    let client = start_rebuilding_service(&mut world, &second, &clock);
    let here = client.take_snapshot_id();
    let there = text(&client.post(&format!("/vms/{OTHER_VM}/snapshots")).ok()["id"]);
    world.exporter.kill();
    damage(&world.exporter.db_file());
    volume.unmount();
    world.exporter.restart();
    let client = world.lasting_client();
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{here}")).ok()["id"], json!(here));
    // The other repository may have more of this VM.
    assert_eq!(client.get(SNAPSHOTS).error(503), "database_rebuilding");
    assert_eq!(client.get("/status").ok()["database"]["rebuilding"], true);
    // A stop in between does not end it.
    world.exporter.restart();
    assert_eq!(world.lasting_client().get("/status").ok()["database"]["rebuilding"], true);
    volume.mount();
    clock.rounds(&world, 1);
    eventually("the rebuilding is complete", || {
        world.lasting_client().get("/status").ok()["database"]["rebuilding"] == false
    });
    let vm = world.lasting_client().get(&format!("/vms/{OTHER_VM}")).ok();
    assert_eq!(vm["snapshots"], json!([there]));
    assert_eq!(world.lasting_client().snapshot_ids(), [here]);
}

/// The value of a metric.
fn metric(world: &World, name: &str) -> f64 {
    let client = world.anonymous_client();
    let text = String::from_utf8(client.send(client.request(Method::GET, "/metrics")).body).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("ovm_exporter_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn damage_while_the_service_runs_is_found_by_the_regular_check() {
    needs_root!();
    let clock = Clock::new();
    let world = World::with(512, |settings| {
        clock.load_into(settings);
        settings.sections = "[metrics]\nenabled = true\n".to_owned();
    });
    world.define_vm(&[("a.img", MB)]);
    let id = world.client().take_snapshot_id();
    let database = || world.lasting_client().get("/status").ok()["database"].clone();
    let at_start = database();
    assert_eq!((&at_start["status"], metric(&world, "database_damaged")), (&json!("ok"), 0.0));
    clock.pass(49);
    eventually("the database is checked", || database()["checked_at"] != at_start["checked_at"]);
    assert_eq!(database()["status"], "ok");
    assert!(metric(&world, "database_check_time_seconds") > 1.7e9);
    damage(&world.exporter.db_file());
    clock.pass(49);
    eventually("the damage is found", || database()["status"] == "error");
    assert!(text(&database()["problem"]).contains("is damaged"));
    assert_eq!(metric(&world, "database_damaged"), 1.0);
    let client = world.lasting_client();
    assert!(problems(&client).as_array().unwrap().contains(&json!("the database is damaged")));
    // What is in memory is still served.
    assert_eq!(client.snapshot_ids(), [id]);
}

#[test]
fn service_stops_for_the_rebuilding_of_its_database() {
    needs_root!();
    let clock = Clock::new();
    let mut world = rebuilding_world(&clock);
    let id = world.client().take_snapshot_id();
    damage(&world.exporter.db_file());
    clock.pass(49);
    let (client, mut ended) = (world.lasting_client(), None);
    eventually("the service stops", || {
        // The runtime notices the new time when a request wakes it up.
        let _ = client.try_send(client.request(Method::GET, "/healthz"));
        ended = world.exporter.ended();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(1), "a service manager restarts it");
    world.exporter.restart();
    let client = world.lasting_client();
    assert_eq!(client.snapshot_ids(), [id]);
    assert_eq!(set_aside(&world.exporter.db_file()).len(), 1);
    assert_eq!(problems(&client), json!([]));
}

#[test]
fn file_of_another_program_is_never_set_aside() {
    needs_root!();
    let mut world = rebuilding_world(&Clock::new());
    world.exporter.kill();
    let db_file = world.exporter.db_file();
    fs::write(&db_file, "notes of an operator").unwrap();
    assert_eq!(world.exporter.try_restart().unwrap_err().code(), Some(78));
    assert_eq!(fs::read(&db_file).unwrap(), b"notes of an operator");
    assert!(set_aside(&db_file).is_empty() && !db_file.with_extension("db.new").exists());
}
