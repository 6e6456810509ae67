//! A database that is removed, replaced or emptied, a full disk under it, a read-only repository: `/readyz` and the
//! log report it. Snapshots are restored from their manifests.

use std::fs;
use std::path::Path;
use std::process::Command;

use reqwest::Method;
use serde_json::Value;

use crate::harness::{Client, SNAPSHOTS, Tmpfs, World, text};
use crate::needs_root;

/// A service, and a VM with two snapshots.
fn world() -> (World, Client, [String; 2]) {
    let world = World::new(512);
    world.define_vm(&[("a.img", 1 << 20)]);
    let client = world.client();
    let ids = std::array::from_fn(|_| client.take_snapshot_id());
    (world, client, ids)
}

/// The problems that `/readyz` lists; checks that the status fits.
fn problems(client: &Client) -> Vec<String> {
    let answer = client.send(client.request(Method::GET, "/readyz"));
    let problems: Vec<String> = answer.json()["problems"].as_array().unwrap().iter().map(text).collect();
    assert_eq!(answer.status, if problems.is_empty() { 200 } else { 503 });
    problems
}

fn listed(client: &Client) -> usize {
    client.get(SNAPSHOTS).ok().as_array().unwrap().len()
}

fn repository(client: &Client) -> Value {
    client.get("/status").ok()["repositories"][0].clone()
}

#[test]
fn lost_database_is_reported_and_restored_from_the_manifests() {
    needs_root!();
    for lose in [|path: &Path| fs::remove_file(path).unwrap(), |path: &Path| fs::write(path, "").unwrap()] {
        let (mut world, client, ids) = world();
        assert_eq!(problems(&client), [""; 0]);
        assert_eq!(repository(&client)["unknown_snapshots"], 0);
        world.exporter.kill();
        lose(&world.exporter.db_file());
        world.exporter.restart();
        let client = world.client();
        assert_eq!(problems(&client), ["snapshots in a repository are not in the database"]);
        assert_eq!((listed(&client), repository(&client)["unknown_snapshots"].clone()), (0, 2.into()));
        let page = client.send(client.request(Method::GET, "/api/v1/status").header("Accept", "text/plain"));
        assert!(String::from_utf8_lossy(&page.body).contains("and 2 not in the database"), "{page:?}");
        let log = world.exporter.log();
        assert!(log.contains("lost=2") && log.contains("adopt --manifests"), "{log}");

        let (status, output) = world.exporter.command(&["adopt", "--manifests"]);
        assert_eq!(status, Some(0), "{output}");
        assert_eq!(problems(&client), [""; 0]);
        assert_eq!((listed(&client), repository(&client)["unknown_snapshots"].clone()), (2, 0.into()));
        client.compare(&ids[1], &ids[0]);
    }
}

#[test]
fn snapshots_of_another_service_are_counted_and_not_a_problem() {
    needs_root!();
    let (world, client, _) = world();
    let other = world.second_service(|_| {});
    let stranger = Client::logged_in(&other, &world.certificates);
    assert_eq!(problems(&stranger), [""; 0]);
    assert_eq!(repository(&stranger)["unknown_snapshots"], 2);
    assert_eq!(problems(&client), [""; 0]);
    assert!(other.log().contains("others=2"), "{}", other.log());
}

#[test]
fn removed_database_is_reported_and_stops_snapshots() {
    needs_root!();
    type Damage = fn(&Path);
    let removed: Damage = |path| fs::remove_file(path).unwrap();
    let replaced: Damage = |path| {
        let copy = path.with_extension("copy");
        fs::copy(path, &copy).unwrap();
        fs::rename(copy, path).unwrap();
    };
    let emptied: Damage = |path| fs::write(path, "").unwrap();
    for (damage, word) in [(removed, "removed"), (replaced, "replaced"), (emptied, "emptied")] {
        let (world, client, _) = world();
        damage(&world.exporter.db_file());
        let problems = problems(&client);
        assert!(problems.len() == 1 && problems[0].contains(word), "{problems:?}");
        assert!(!problems[0].contains('/'), "a public problem contains a path: {problems:?}");
        let log = world.exporter.log();
        assert!(log.contains(&problems[0]) && log.contains("adopt --manifests"), "{log}");
        // A new snapshot would be lost with the open database file.
        let files = world.snapshot_files();
        assert_eq!(client.post(SNAPSHOTS).error(503), "database_unavailable");
        assert_eq!(world.snapshot_files(), files);
    }
}

#[test]
fn full_database_disk_is_reported() {
    needs_root!();
    let (mut world, _, _) = world();
    let dir = Tmpfs::new("size=16m");
    world.exporter.settings().db_file = Some(dir.path().join("exporter.db"));
    world.exporter.restart();
    let client = world.client();
    assert_eq!(problems(&client), [""; 0]);
    let filler = dir.path().join("filler");
    let _ = Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display())).status();
    assert_eq!(problems(&client), ["the database's disk is full"]);
    fs::remove_file(filler).unwrap();
    assert_eq!(problems(&client), [""; 0]);
}

#[test]
fn read_only_repository_is_reported() {
    needs_root!();
    let (world, client, _) = world();
    world.volume.remount("ro");
    let id = world.repository.file_name().unwrap().to_str().unwrap();
    assert_eq!(problems(&client), [format!("the repository {id} is read-only")]);
    let seen = repository(&client);
    assert_eq!((seen["status"].clone(), text(&seen["reason"])), ("error".into(), "is mounted read-only".to_owned()));
    world.volume.remount("rw");
    assert_eq!(problems(&client), [""; 0]);
}
