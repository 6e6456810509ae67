//! Snapshots: create, list, get, delete.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Client, MB, OTHER_VM, SNAPSHOTS, USER, VM, Volume, World, chunks, connect, data, define_vm, eventually, ids,
    make_disk, snapshot_folders, text, write_at, zero,
};
use crate::needs_root;

/// [`VM`] with one disk in each of two repositories.
fn with_a_disk_in_each() -> (Volume, PathBuf, World) {
    let (xfs, second, world) = World::with_two_repositories(512);
    let disks = [make_disk(&world.repository, "a.img", MB), make_disk(&second, "b.img", MB)];
    disks.iter().for_each(|disk| write_at(disk, 0, &[1; 4096]));
    define_vm(&world.repository, VM, &disks);
    (xfs, second, world)
}

fn list(client: &Client) -> Vec<String> {
    ids(&client.get(SNAPSHOTS).ok())
}

fn manifest(repository: &Path, id: &str) -> Value {
    let path = repository.join("CoriolisSnapshots").join(id).join(".manifest.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The names of the snapshot folders in a repository.
fn folders(repository: &Path) -> HashSet<String> {
    let names = snapshot_folders(repository).into_iter().map(|path| path.file_name().unwrap().to_owned());
    names.map(|name| name.into_string().unwrap()).collect()
}

#[test]
fn snapshot_is_created_compared_and_deleted() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    let client = world.client();
    write_at(disk, 8 * MB, &[7; 65536]);

    let first = client.take_snapshot();
    assert_eq!(chunks(&first["disks"][0]), [data(8 * MB, 65536)]);
    let id = text(&first["id"]);
    assert_eq!(client.disk(&id, "a.img"), fs::read(disk).unwrap());

    write_at(disk, 8 * MB + 4096, &[8; 4096]);
    let second = client.take_snapshot_id();
    assert_eq!(client.get(&format!("/vms/{VM}")).ok()["snapshots"], json!([id, second]));
    let changes = client.compare(&second, &id);
    assert_eq!(chunks(&changes["disks"][0]), [data(8 * MB + 4096, 4096)]);
    assert_eq!(client.disk_range(&second, "a.img", 8 * MB + 4096, 4096), [8; 4096]);
    assert_eq!(client.delete(SNAPSHOTS).status, 200);
    assert_eq!(client.get(SNAPSHOTS).ok(), json!([]));
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
}

#[test]
fn document_has_all_fields() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", 8 * MB)])[0];
    write_at(disk, MB, &[7; 65536]);
    let client = world.client();

    let before = jiff::Timestamp::now() - Duration::from_millis(1); // the timestamp has milliseconds
    let made = client.take_snapshot();
    let created_at = text(&made["created_at"]);
    assert!(created_at.ends_with('Z'), "{created_at} is not UTC");
    let created_at: jiff::Timestamp = created_at.parse().unwrap();
    assert!(before <= created_at && created_at <= jiff::Timestamp::now());

    let id = text(&made["id"]);
    assert!(id.parse::<uuid::Uuid>().is_ok(), "{id}");
    assert_eq!((&made["vm_id"], &made["vmID"]), (&json!(VM), &json!(VM)));
    assert_eq!((&made["created_by"], &made["consistency"]), (&json!(USER), &json!("crash")));
    assert_eq!(made["hooks"], json!([]));

    let folder = world.snapshot_folder(&id);
    let part = &made["disks"][0];
    for (field, expected) in [
        ("name", json!("a.img")),
        ("snapshot_id", json!(id)),
        ("snapshotID", json!(id)),
        ("parent_path", json!(disk)),
        ("path", json!(folder.join("a.img"))),
        ("repo_mountpoint", json!(world.repository)),
        ("size", json!(8 * MB)),
        ("data_bytes", json!(65536)),
        ("zero_bytes", json!(8 * MB - 65536)),
        ("mode", json!("full")),
    ] {
        assert_eq!(part[field], expected, "{field}");
    }
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}")).ok(), made, "the documents of POST and GET differ");
    assert_eq!(client.get(&format!("{SNAPSHOTS}?definition=true")).ok(), json!([made]));
}

#[test]
fn snapshot_honors_squash_zero_and_chunks_options() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    let client = world.client();
    write_at(disk, 65536, &[1; 65536]);
    let pin = client.take_snapshot_id();
    // The write to shared blocks goes elsewhere: three adjacent extents.
    write_at(disk, 65536 + 16384, &[2; 4096]);
    let made = client.take_snapshot();
    let id = text(&made["id"]);
    let get = |query: &str| client.get(&format!("{SNAPSHOTS}/{id}{query}")).ok()["disks"][0].clone();

    let apart = [data(65536, 16384), data(81920, 4096), data(86016, 45056)];
    assert_eq!(chunks(&made["disks"][0]), apart, "a new snapshot's chunks are not squashed");
    for no in ["0", "f", "F", "FALSE", "false", "False"] {
        assert_eq!(chunks(&get(&format!("?squashChunks={no}"))), apart);
    }
    let joined = get("");
    assert_eq!(chunks(&joined), [data(65536, 65536)]);
    assert_eq!(joined["chunks"][0]["physical_start"], made["disks"][0]["chunks"][0]["physical_start"]);
    for yes in ["1", "t", "T", "TRUE", "true", "True"] {
        assert_eq!(get(&format!("?squashChunks={yes}&unknown=1&compareTo=")), joined);
    }
    let list = client.get(SNAPSHOTS).ok();
    assert_eq!(ids(&list), [pin.as_str(), &id], "oldest first");
    assert_eq!(list[1]["disks"][0], joined, "squashed");

    let with_zeros = [zero(0, 65536), data(65536, 65536), zero(131_072, MB - 131_072)];
    assert_eq!(chunks(&get("?zero=include")), with_zeros);
    assert_eq!(chunks(&client.get(&format!("{SNAPSHOTS}?zero=include")).ok()[1]["disks"][0]), with_zeros);
    assert_eq!(chunks(&get("?zero=omit")), [data(65536, 65536)]);
    assert_eq!(get("?zero=include")["zero_bytes"], get("?zero=omit")["zero_bytes"]);

    let bare = get("?chunks=false");
    assert_eq!((&bare["chunks"], &bare["size"]), (&Value::Null, &json!(MB)));
    for snapshot in client.get(&format!("{SNAPSHOTS}?chunks=False")).ok().as_array().unwrap() {
        assert_eq!(snapshot["disks"][0]["chunks"], Value::Null);
    }
    for wrong in ["?squashChunks=yes", "?squashChunks=", "?chunks=2", "?zero=maybe"] {
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}{wrong}")).error(400), "bad_request", "{wrong}");
        assert_eq!(client.get(&format!("{SNAPSHOTS}{wrong}")).error(400), "bad_request", "{wrong}");
    }
}

#[test]
fn disks_with_one_name_in_two_repositories_are_kept_apart() {
    needs_root!();
    let (_xfs, second, world) = World::with_two_repositories(512);
    let disks = [
        make_disk(&world.repository, "a.img", MB),
        make_disk(&second, "a.img", 2 * MB),
        make_disk(&second, "b.img", MB),
    ];
    for (disk, byte) in disks.iter().zip(1..) {
        write_at(disk, 8192, &[byte; 12288]);
    }
    define_vm(&world.repository, VM, &disks);
    let client = world.client();

    let mut sequences = Vec::new();
    for _ in 0..3 {
        let made = client.take_snapshot();
        let id = text(&made["id"]);
        let made = made["disks"].as_array().unwrap();
        assert_eq!(made.iter().map(|disk| text(&disk["name"])).collect::<HashSet<_>>().len(), 3, "{made:?}");
        assert_eq!((&made[0]["name"], &made[2]["name"]), (&json!("a.img"), &json!("b.img")));
        for ((disk, made), repository) in disks.iter().zip(made).zip([&world.repository, &second, &second]) {
            let name = text(&made["name"]);
            assert_eq!((&made["parent_path"], &made["repo_mountpoint"]), (&json!(disk), &json!(repository)));
            assert_eq!(made["path"], json!(repository.join("CoriolisSnapshots").join(&id).join(&name)));
            assert_eq!(client.disk(&id, &name), fs::read(disk).unwrap(), "{name}");
        }

        let note = manifest(&world.repository, &id);
        assert_eq!(manifest(&second, &id), note, "the manifests of the two repositories differ");
        assert_eq!((&note["version"], &note["snapshot_id"], &note["vm_id"]), (&json!(1), &json!(id), &json!(VM)));
        for ((disk, made), noted) in disks.iter().zip(made).zip(note["disks"].as_array().unwrap()) {
            let file = fs::metadata(text(&made["path"])).unwrap();
            assert_eq!((&noted["name"], &noted["size"]), (&made["name"], &json!(file.len())));
            assert_eq!(noted["inode"], json!(std::os::unix::fs::MetadataExt::ino(&file)));
            assert!(noted["changed_at"].is_string());
            assert_eq!(noted["source"], json!(Path::new("VirtualDisks").join(disk.file_name().unwrap())));
        }
        sequences.push(note["sequence"].as_u64().unwrap());
    }
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
    assert_eq!(client.delete(SNAPSHOTS).status, 200);
    assert_eq!((folders(&world.repository), folders(&second)), (HashSet::new(), HashSet::new()));
}

#[test]
fn snapshot_contains_all_disks_or_fails() {
    needs_root!();
    let (xfs, second, world) = with_a_disk_in_each();
    let client = world.client();
    // The service now knows that the repository can clone; its snapshot folder does not exist yet.
    assert_eq!(client.get(&format!("/vms/{VM}")).ok()["snapshot_compatible"], true);
    let refused = || {
        xfs.remount("ro");
        assert_eq!(client.post(SNAPSHOTS).error(503), "read_only");
        xfs.remount("rw");
    };
    refused();
    assert_eq!((folders(&world.repository), folders(&second)), (HashSet::new(), HashSet::new()));
    assert_eq!(list(&client), Vec::<String>::new());

    let id = client.take_snapshot_id();
    refused();
    let left = HashSet::from([id.clone()]);
    assert_eq!((folders(&world.repository), folders(&second)), (left.clone(), left));
    assert_eq!(list(&client), [id.as_str()]);
    assert_eq!(client.get(&format!("/vms/{VM}")).ok()["snapshots"], json!([id]));
    client.take_snapshot_id();
}

#[test]
fn concurrent_creations_are_serialized() {
    needs_root!();
    let world = World::new(512);
    write_at(&world.define_vm(&[("a.img", MB)])[0], 0, &[1; 4096]);
    let clients: Vec<Client> = (0..4).map(|_| world.client()).collect();
    let made: HashSet<String> = std::thread::scope(|scope| {
        let running: Vec<_> = clients.iter().map(|client| scope.spawn(|| client.take_snapshot_id())).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let listed = list(&clients[0]);
    assert_eq!((made.len(), listed.iter().cloned().collect::<HashSet<_>>()), (4, made));
    let sequence = |id: &String| manifest(&world.repository, id)["sequence"].as_u64().unwrap();
    assert!(listed.iter().map(sequence).is_sorted_by(|a, b| a < b));
}

#[test]
fn started_creation_completes_after_a_disconnect() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[1; 4096]);
    let client = &world.client();
    {
        // The frozen file system blocks the first creation. The second request is queued; its client disconnects
        // first, which cancels it.
        let _frozen = world.volume.freeze();
        let creates = || {
            let creates = client.get("/status").ok()["creates"].clone();
            ["running", "waiting"].map(|state| creates[state].as_array().unwrap().len())
        };
        let head = format!(
            "POST /api/v1{SNAPSHOTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 0\r\n\r\n",
            client.token
        );
        let mut streams = Vec::new();
        for counts in [[1, 0], [1, 1]] {
            let mut stream = connect(&world.exporter, &world.certificates);
            stream.write_all(head.as_bytes()).unwrap();
            stream.flush().unwrap();
            streams.push(stream);
            eventually("the request runs or is queued", || creates() == counts);
        }
        streams.pop();
        eventually("the queued request is cancelled", || creates() == [1, 0]);
        streams.pop();
        assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
    }
    eventually("the snapshot is made", || !list(client).is_empty());
    // Creations of a VM are serialized, so any other snapshot would be listed by now.
    let last = client.take_snapshot_id();
    assert_eq!(list(client).len(), 2, "the cancelled request made a snapshot");
    assert_eq!(list(client)[1], last);
    list(client).iter().for_each(|id| assert_eq!(client.disk(id, "a.img"), fs::read(disk).unwrap()));
}

#[test]
fn deletion_is_idempotent() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB), ("b.img", MB)]);
    let client = world.client();
    let delete = |id: &str| client.delete(&format!("{SNAPSHOTS}/{id}"));
    let [twice, no_file, no_folder, foreign, stays] = std::array::from_fn(|_| client.take_snapshot_id());
    let folder = |id: &str| world.snapshot_folder(id);
    fs::remove_file(folder(&no_file).join("a.img")).unwrap();
    fs::remove_dir_all(folder(&no_folder)).unwrap();
    fs::write(folder(&foreign).join("notes.txt"), "not ours").unwrap();

    for id in [&twice, &no_file, &no_folder, &foreign, &twice] {
        let answer = delete(id);
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{}", String::from_utf8_lossy(&answer.body));
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}")).error(404), "not_found");
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}/disks/b.img")).error(404), "not_found");
    }
    assert_eq!(delete(&uuid::Uuid::nil().to_string()).status, 200);
    assert_eq!(list(&client), [stays.as_str()]);
    assert_eq!(folders(&world.repository), HashSet::from([stays.clone(), foreign.clone()]));
    assert_eq!(fs::read_dir(folder(&foreign)).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(folder(&foreign).join("notes.txt")).unwrap(), "not ours");
    assert_eq!(client.disk(&stays, "a.img").len() as u64, MB);
}

#[test]
fn snapshots_are_not_reachable_through_another_vm() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    define_vm(&world.repository, OTHER_VM, &[make_disk(&world.repository, "other.img", MB)]);
    let client = world.client();
    let id = client.take_snapshot_id();
    let others = format!("/vms/{OTHER_VM}/snapshots");
    let other = text(&client.post(&others).ok()["id"]);
    for path in [format!("{others}/{id}"), format!("{others}/{id}/disks/a.img")] {
        assert_eq!(client.get(&path).error(409), "other_vm");
    }
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}?compareTo={other}")).error(409), "other_vm");
    assert_eq!(client.delete(&format!("{others}/{id}")).error(409), "other_vm");
    assert_eq!((list(&client), ids(&client.get(&others).ok())), (vec![id.clone()], vec![other.clone()]));
    assert_eq!(client.delete(SNAPSHOTS).status, 200, "deletes only the snapshots of this VM");
    assert_eq!((list(&client), ids(&client.get(&others).ok())), (vec![], vec![other]));
    let unknown = format!("/vms/{}/snapshots", "f".repeat(32));
    for answer in [client.get(&unknown), client.post(&unknown), client.delete(&unknown)] {
        assert_eq!(answer.error(404), "not_found");
    }
}

#[test]
fn lost_snapshot_is_reported_and_does_not_fail_the_list() {
    needs_root!();
    let world = World::new(512);
    write_at(&world.define_vm(&[("a.img", MB)])[0], 4096, &[1; 4096]);
    let client = world.client();
    let (lost, whole) = (client.take_snapshot(), client.take_snapshot_id());
    let id = text(&lost["id"]);
    fs::remove_file(text(&lost["disks"][0]["path"])).unwrap();

    for query in ["", "?chunks=false"] {
        let list = client.get(&format!("{SNAPSHOTS}{query}")).ok();
        assert_eq!(ids(&list), [id.as_str(), &whole]);
        let (bad, good) = (&list[0]["disks"][0], &list[1]["disks"][0]);
        assert_eq!((&bad["status"], &good["status"]), (&json!("error"), &json!("ok")), "{query}");
        assert!(text(&bad["status_reason"]).contains("missing"), "{bad}");
        assert_ne!(bad["chunks"], json!([]), "a client that ignores the status would take the disk for empty");
    }
    let one = format!("{SNAPSHOTS}/{id}");
    for query in ["", "?zero=include", "?chunks=false"] {
        assert_eq!(client.get(&format!("{one}{query}")).error(409), "snapshot_lost", "{query}");
    }
    assert_eq!(client.get(&format!("{one}/disks/a.img")).error(409), "snapshot_lost");
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{whole}?compareTo={id}")).error(409), "base_lost");
    assert_eq!(client.delete(&one).status, 200);
    assert_eq!(list(&client), [whole]);
}

#[test]
fn deleted_files_are_removed_when_the_repository_is_mounted_again() {
    needs_root!();
    let (xfs, second, mut world) = with_a_disk_in_each();
    let client = world.client();
    let (deleted, stays) = (client.take_snapshot_id(), client.take_snapshot_id());
    xfs.unmount();
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{deleted}")).status, 200);
    assert_eq!(list(&client), [stays.as_str()]);
    assert_eq!(folders(&world.repository), HashSet::from([stays.clone()]));
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{deleted}")).status, 200);
    world.exporter.restart(); // while it is unmounted: the pending deletion is kept
    xfs.mount();
    assert_eq!(folders(&second), HashSet::from([deleted, stays.clone()]));
    world.exporter.restart();
    assert_eq!(folders(&second), HashSet::from([stays.clone()]));
    assert_eq!(list(&world.client()), [stays]);
}
