//! The database and the repository disagree: another service has deleted a snapshot, or has one that the database
//! does not know.

use std::fs;
use std::path::PathBuf;

use reqwest::Method;

use crate::harness::{Client, Exporter, Settings, Shelf, VM, Volume, World, define_vm, eventually, make_disk, text};
use crate::needs_root;

const SNAPSHOTS: &str = "/vms/0004fb00000600000000000000000001/snapshots";

fn world() -> (World, Client) {
    let world = World::new(512);
    world.define_vm(&[("a.img", 1 << 20)]);
    let client = world.client();
    (world, client)
}

/// Another service on the same repository.
fn other_service(world: &World) -> (Exporter, Client) {
    let exporter = Exporter::start(Settings::new(&world.certificates, &world.manager, &[&world.repository]));
    let mut client = Client::new(&exporter, &world.certificates);
    client.log_in();
    (exporter, client)
}

fn folder(world: &World, id: &str) -> PathBuf {
    world.repository.join("CoriolisSnapshots").join(id)
}

fn listed(client: &Client) -> Vec<String> {
    let list = client.get(&format!("{SNAPSHOTS}?chunks=false")).ok();
    list.as_array().unwrap().iter().map(|snapshot| text(&snapshot["id"])).collect()
}

/// What is asked of a snapshot that is gone for good.
fn is_gone(client: &Client, id: &str) {
    for query in ["", "?chunks=false", "?summary=true"] {
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}{query}")).error(404), "not_found", "{query}");
    }
    for route in ["disks/a.img", "disks/a.img/chunks", "disks/a.img/checksum"] {
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}/{route}")).error(404), "not_found", "{route}");
    }
}

#[test]
fn what_another_service_deletes_goes_from_the_list() {
    needs_root!();
    let (mut world, client) = world();
    let (_exporter, other) = other_service(&world);
    let [first, second] = std::array::from_fn(|_| text(&client.take_snapshot()["id"]));
    // The other one does not know it, and removes it all the same, with its hooks.
    assert_eq!(other.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
    assert!(!folder(&world, &first).exists());
    is_gone(&client, &first);
    assert_eq!(listed(&client), std::slice::from_ref(&second));
    let base_is_gone = client.get(&format!("{SNAPSHOTS}/{second}?compareTo={first}"));
    assert!([404, 409].contains(&base_is_gone.status), "{base_is_gone:?}");
    eventually("the record goes as well", || {
        client.get(&format!("/vms/{VM}")).ok()["snapshots"] == serde_json::json!([second])
    });
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200, "nothing is left of it");
    // The other one's record has gone with the files.
    world.exporter.restart();
    assert_eq!(listed(&world.client()), [second]);
    assert!(listed(&other).is_empty());
}

#[test]
fn hooks_run_around_the_deletion_of_what_the_database_does_not_know() {
    needs_root!();
    let (world, client) = world();
    let id = text(&client.take_snapshot()["id"]);
    let shelf = Shelf::new();
    shelf.put("note", "echo $1 $2 $EXPORTER_SNAPSHOT >> $OUT/calls");
    let mut settings = Settings::new(&world.certificates, &world.manager, &[&world.repository]);
    settings.sections = shelf.section("");
    let exporter = Exporter::start(settings);
    let mut other = Client::new(&exporter, &world.certificates);
    other.log_in();
    assert_eq!(other.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
    assert_eq!(shelf.read("calls"), format!("snapshot-delete pre {id}\nsnapshot-delete post {id}\n"));
    assert!(!folder(&world, &id).exists());
}

#[test]
fn a_deletion_of_what_is_not_known_is_refused_where_it_is_not_certain_what_it_is() {
    needs_root!();
    let (world, client) = world();
    let neighbour = "0004fb0000060000000000000000000a";
    define_vm(&world.repository, neighbour, &[make_disk(&world.repository, "b.img", 1 << 20)]);
    let (_exporter, other) = other_service(&world);
    let [whole, bare, half, damaged] = std::array::from_fn(|_| text(&client.take_snapshot()["id"]));
    fs::remove_file(folder(&world, &bare).join(".manifest.json")).unwrap();
    fs::write(folder(&world, &half).join(".making"), "").unwrap();
    fs::write(folder(&world, &damaged).join(".manifest.json"), "{").unwrap();
    for (id, word) in [(&bare, "no manifest"), (&half, "half made"), (&damaged, "cannot be read")] {
        let refused = other.delete(&format!("{SNAPSHOTS}/{id}"));
        assert_eq!(refused.error(409), "not_adopted");
        assert!(text(&refused.json()["details"]).contains(word), "{refused:?}");
        assert!(folder(&world, id).join("a.img").exists());
    }
    assert_eq!(other.delete(&format!("/vms/{neighbour}/snapshots/{whole}")).error(409), "other_vm");
    assert!(folder(&world, &whole).join("a.img").exists());
    assert_eq!(other.delete(&format!("{SNAPSHOTS}/{}", uuid::Uuid::new_v4())).status, 200, "nobody has it");
}

#[test]
fn not_knowing_is_not_being_gone() {
    needs_root!();
    let (world, client) = world();
    let [id, deleted] = std::array::from_fn(|_| text(&client.take_snapshot()["id"]));
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{deleted}")).status, 200);
    let away = |what: &str| {
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}")).error(503), "repository_unavailable", "{what}");
        assert_eq!(listed(&client), std::slice::from_ref(&id), "{what}");
        let unknown = client.delete(&format!("{SNAPSHOTS}/{}", uuid::Uuid::new_v4()));
        assert_eq!(client.delete(&format!("{SNAPSHOTS}/{deleted}")).status, 200, "{what}: a repeated deletion");
        unknown
    };
    world.volume.unmount();
    assert_eq!(away("unmounted").error(503), "repository_unavailable");
    // Another file system in its place knows nothing of it.
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
    away("another file system");
    world.volume.unmount();
    world.volume.mount();
    client.get(&format!("{SNAPSHOTS}/{id}")).ok();
    // One file of it that is missing is a loss; all of it is none.
    fs::remove_file(folder(&world, &id).join("a.img")).unwrap();
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}")).error(409), "snapshot_lost");
    assert_eq!(listed(&client), std::slice::from_ref(&id));
    fs::remove_dir_all(folder(&world, &id)).unwrap();
    is_gone(&client, &id);
    assert!(listed(&client).is_empty());
    let request = client.request(Method::GET, "/readyz");
    assert_eq!(client.send(request).status, 200);
}
