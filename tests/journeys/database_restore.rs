//! A copy of the database is restored, by the steps of docs/operations.md.

use std::fs;

use reqwest::Method;
use serde_json::json;

use crate::harness::{Clock, MB, SNAPSHOTS, World, eventually, write_at};
use crate::needs_root;

#[test]
fn snapshots_and_leases_after_the_copy_are_taken_back() {
    needs_root!();
    let clock = Clock::new();
    let mut world = World::with(512, |settings| clock.load_into(settings));
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[7; 8192]);
    let client = world.client();
    let [deleted, kept] = [(); 2].map(|()| client.take_snapshot_id());
    let [leased, expiring] = ["1h", "1h"].map(|ttl| client.take_snapshot_with_ttl(ttl));
    let newest_of_copy = client.take_snapshot_id();
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("exporter.db");
    let (status, output) = world.exporter.command(&["backup-db", copy.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{output}");
    // After the copy.
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{deleted}")).status, 200);
    let lease = |client: &crate::harness::Client, id: &str| {
        let path = format!("/api/v1{SNAPSHOTS}/{id}/lease");
        client.send(client.request(Method::POST, &path).json(&json!({"ttl": "6h"}))).ok()
    };
    lease(&client, &leased);
    let after = client.take_snapshot_id();
    world.exporter.kill();

    // 1. The copy takes the place of the database.
    let db_file = world.exporter.db_file();
    fs::rename(&db_file, dir.path().join("old.db")).unwrap();
    fs::copy(&copy, &db_file).unwrap();
    clock.pass(2);
    // 2. The service forgets the deleted snapshot, and counts the new one.
    world.exporter.restart();
    let client = world.lasting_client();
    eventually("the deleted snapshot is forgotten", || !client.snapshot_ids().contains(&deleted));
    let readiness = client.send(client.request(Method::GET, "/readyz"));
    assert_eq!(readiness.json()["problems"], json!(["snapshots in a repository are not in the database"]));
    assert_eq!(client.get("/status").ok()["repositories"][0]["unknown_snapshots"], 1);
    // 3. Nothing expires in the first minutes, so leases can be taken again.
    for id in [&leased, &expiring] {
        assert!(client.snapshot_ids().contains(id), "{id} was deleted at once");
    }
    let document = client.get(&format!("{SNAPSHOTS}/{leased}")).ok();
    assert_eq!(document["leased_until"], json!(null), "the copy is older than the lease");
    lease(&client, &leased);
    // 4. The snapshots that were created after the copy are adopted.
    let (status, output) = world.exporter.command(&["adopt", "--manifests"]);
    assert_eq!(status, Some(0), "{output}");
    assert_eq!(client.send(client.request(Method::GET, "/readyz")).status, 200);
    let all = [kept.clone(), leased.clone(), expiring.clone(), newest_of_copy.clone(), after.clone()];
    assert_eq!(client.snapshot_ids(), all);
    // 5. Backups go on.
    let next = client.take_snapshot_id();
    assert_eq!(client.snapshot_ids().last(), Some(&next));
    client.compare(&next, &after);
    assert_eq!(client.disk(&kept, "a.img")[..8192], [7; 8192]);
    clock.pass(1);
    clock.rounds(&world, 1);
    let client = world.lasting_client();
    eventually("the expired snapshot is swept", || !client.snapshot_ids().contains(&expiring));
    assert!(client.snapshot_ids().contains(&leased), "the lease was taken again");
}
