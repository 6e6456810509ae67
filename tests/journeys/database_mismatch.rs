//! The database and the repository differ: another service has deleted a snapshot, or has made one.

use std::fs;

use reqwest::Method;

use crate::harness::{Client, Exporter, HookDir, SNAPSHOTS, VM, Volume, World, define_vm, eventually, make_disk, text};
use crate::needs_root;

fn world() -> (World, Client) {
    let world = World::new(512);
    world.define_vm(&[("a.img", 1 << 20)]);
    let client = world.client();
    (world, client)
}

/// Another service on the same repository.
fn other_service(world: &World) -> (Exporter, Client) {
    let exporter = world.second_service(|_| {});
    let client = Client::logged_in(&exporter, &world.certificates);
    (exporter, client)
}

/// Checks that all routes of a deleted snapshot answer 404.
fn check_not_found(client: &Client, id: &str) {
    for query in ["", "?chunks=false", "?summary=true"] {
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}{query}")).error(404), "not_found", "{query}");
    }
    for route in ["disks/a.img", "disks/a.img/chunks", "disks/a.img/checksum"] {
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}/{route}")).error(404), "not_found", "{route}");
    }
}

#[test]
fn snapshot_deleted_by_another_service_leaves_the_list() {
    needs_root!();
    let (mut world, client) = world();
    let (_exporter, other) = other_service(&world);
    let [first, second] = std::array::from_fn(|_| client.take_snapshot_id());
    // The other service does not know the snapshot, and deletes it nevertheless.
    assert_eq!(other.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
    assert!(!world.snapshot_folder(&first).exists());
    check_not_found(&client, &first);
    assert_eq!(client.snapshot_ids(), std::slice::from_ref(&second));
    let base_is_gone = client.get(&format!("{SNAPSHOTS}/{second}?compareTo={first}"));
    assert!([404, 409].contains(&base_is_gone.status), "{base_is_gone:?}");
    eventually("the record is removed, too", || {
        client.get(&format!("/vms/{VM}")).ok()["snapshots"] == serde_json::json!([second])
    });
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200, "a repeated deletion");
    // The record was removed together with the files.
    world.exporter.restart();
    assert_eq!(world.client().snapshot_ids(), [second]);
    assert!(other.snapshot_ids().is_empty());
}

#[test]
fn hooks_run_around_the_deletion_of_an_unknown_snapshot() {
    needs_root!();
    let (world, client) = world();
    let id = client.take_snapshot_id();
    let hooks = HookDir::new();
    hooks.put("note", "echo $1 $2 $EXPORTER_SNAPSHOT >> $OUT/calls");
    let exporter = world.second_service(|settings| settings.sections = hooks.section(""));
    let other = Client::logged_in(&exporter, &world.certificates);
    assert_eq!(other.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
    assert_eq!(hooks.read("calls"), format!("snapshot-delete pre {id}\nsnapshot-delete post {id}\n"));
    assert!(!world.snapshot_folder(&id).exists());
}

#[test]
fn deletion_of_an_incomplete_unknown_snapshot_is_refused() {
    needs_root!();
    let (world, client) = world();
    let neighbour = "0004fb0000060000000000000000000a";
    define_vm(&world.repository, neighbour, &[make_disk(&world.repository, "b.img", 1 << 20)]);
    let (_exporter, other) = other_service(&world);
    let [whole, bare, half, damaged] = std::array::from_fn(|_| client.take_snapshot_id());
    fs::remove_file(world.snapshot_folder(&bare).join(".manifest.json")).unwrap();
    fs::write(world.snapshot_folder(&half).join(".making"), "").unwrap();
    fs::write(world.snapshot_folder(&damaged).join(".manifest.json"), "{").unwrap();
    for (id, word) in [(&bare, "no manifest"), (&half, "is unfinished"), (&damaged, "cannot be read")] {
        let refused = other.delete(&format!("{SNAPSHOTS}/{id}"));
        assert_eq!(refused.error(409), "not_adopted");
        assert!(text(&refused.json()["details"]).contains(word), "{refused:?}");
        assert!(world.snapshot_folder(id).join("a.img").exists());
    }
    assert_eq!(other.delete(&format!("/vms/{neighbour}/snapshots/{whole}")).error(409), "other_vm");
    assert!(world.snapshot_folder(&whole).join("a.img").exists());
    assert_eq!(other.delete(&format!("{SNAPSHOTS}/{}", uuid::Uuid::new_v4())).status, 200, "an id without a folder");
}

#[test]
fn unavailable_snapshot_is_not_reported_as_deleted() {
    needs_root!();
    let (world, client) = world();
    let [id, deleted] = std::array::from_fn(|_| client.take_snapshot_id());
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{deleted}")).status, 200);
    let check_unavailable = |what: &str| {
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}")).error(503), "repository_unavailable", "{what}");
        assert_eq!(client.snapshot_ids(), std::slice::from_ref(&id), "{what}");
        let unknown = client.delete(&format!("{SNAPSHOTS}/{}", uuid::Uuid::new_v4()));
        assert_eq!(client.delete(&format!("{SNAPSHOTS}/{deleted}")).status, 200, "{what}: a repeated deletion");
        unknown
    };
    world.volume.unmount();
    assert_eq!(check_unavailable("unmounted").error(503), "repository_unavailable");
    // Another file system is mounted in its place.
    let other = Volume::xfs(512);
    let bind = |volume: &Volume| {
        crate::harness::run(
            std::process::Command::new("mount").arg("--bind").arg(&volume.mount_point).arg(&world.volume.mount_point),
        );
    };
    fs::create_dir(other.mount_point.join(world.repository.file_name().unwrap())).unwrap();
    for name in ["VirtualDisks", "VirtualMachines"] {
        fs::create_dir(other.mount_point.join(world.repository.file_name().unwrap()).join(name)).unwrap();
    }
    bind(&other);
    check_unavailable("another file system");
    world.volume.unmount();
    world.volume.mount();
    client.get(&format!("{SNAPSHOTS}/{id}")).ok();
    // One missing file means a lost snapshot; a missing folder means a deleted one.
    fs::remove_file(world.snapshot_folder(&id).join("a.img")).unwrap();
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}")).error(409), "snapshot_lost");
    assert_eq!(client.snapshot_ids(), std::slice::from_ref(&id));
    fs::remove_dir_all(world.snapshot_folder(&id)).unwrap();
    check_not_found(&client, &id);
    assert!(client.snapshot_ids().is_empty());
    let request = client.request(Method::GET, "/readyz");
    assert_eq!(client.send(request).status, 200);
}
