//! `compareTo` with `reverse=true`: the chunks that turn a copy of the newer snapshot back into the base.

use std::fs::{self, File};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Client, MB, SNAPSHOTS, VM, World, chunks, data, define_vm, eventually, make_disk, text, write_at, zero,
};
use crate::needs_root;

/// The document of `newer`, compared to `older`, on the way back.
fn way_back(client: &Client, newer: &str, older: &str, query: &str) -> Value {
    client.get(&format!("{SNAPSHOTS}/{newer}?compareTo={older}&reverse=true{query}")).ok()
}

fn resize(disk: &std::path::Path, size: u64) {
    File::options().write(true).open(disk).unwrap().set_len(size).unwrap();
}

#[test]
fn the_way_back_restores_the_older_content_and_size() {
    needs_root!();
    let audit = tempfile::NamedTempFile::new().unwrap();
    let world = World::with(512, |settings| settings.sections = format!("[audit]\nfile = {:?}\n", audit.path()));
    let disk = &world.define_vm(&[("a.img", 4 * MB)])[0];
    write_at(disk, MB, &[1; 8192]);
    let client = world.client();
    let older = client.take_snapshot_id();
    let was = fs::read(disk).unwrap();
    // New data, data that becomes zeros, and another size.
    write_at(disk, 0, &[2; 4096]);
    crate::harness::xfs_io(disk, &["fpunch 1052672 4096"]);
    for size in [6 * MB, 3 * MB, MB + 100] {
        resize(disk, size);
        let newer = client.take_snapshot_id();
        let now = fs::read(disk).unwrap();
        let document = way_back(&client, &newer, &older, "");
        let [id, base, direction] = ["id", "compare_to", "reverse"].map(|name| &document[name]);
        assert_eq!((id, base, direction), (&json!(newer), &json!(older), &json!(true)));
        let back = &document["disks"][0];
        assert_eq!((&back["size"], &back["snapshot_id"]), (&json!(4 * MB), &json!(older)), "{back}");
        assert!(client.patched(back, &now) == was, "{back}");
        assert!(client.patched(&client.compare(&newer, &older)["disks"][0], &was) == now);
        // What was a hole is a zero chunk, and what was data has to be read from the base.
        let expected = if size > MB + 8192 { vec![zero(0, 4096), data(MB + 4096, 4096)] } else { chunks(back) };
        assert_eq!(chunks(back), expected);
        let omitted = way_back(&client, &newer, &older, "&zero=omit")["disks"][0].clone();
        let only_data: Vec<_> = expected.into_iter().filter(|chunk| !chunk.zero).collect();
        assert_eq!((chunks(&omitted), &omitted["zero_bytes"]), (only_data, &back["zero_bytes"]));
        let sums = way_back(&client, &newer, &older, "&summary=true")["disks"][0].clone();
        assert_eq!((&sums["data_bytes"], &sums["chunks"]), (&back["data_bytes"], &Value::Null));
        let page = format!("{SNAPSHOTS}/{newer}/disks/a.img/chunks?compareTo={older}&reverse=true");
        let page = client.get(&page).ok();
        assert_eq!((&page["size"], &page["reverse"], &page["chunks"]), (&json!(4 * MB), &json!(true), &back["chunks"]));
        let line = format!("{newer} back to {older}");
        eventually("the audit has the direction", || fs::read_to_string(audit.path()).unwrap().contains(&line));
    }
    assert_eq!(client.take_snapshot()["reverse"], Value::Null, "the member is only on the way back");
}

#[test]
fn the_way_back_has_the_disks_of_the_base() {
    needs_root!();
    let (_volume, second, world) = World::with_two_repositories(512);
    let disk = |name: &str, byte: u8| {
        let path = make_disk(&world.repository, name, MB);
        write_at(&path, 8192, &[byte; 4096]);
        path
    };
    let (kept, removed, replaced) = (disk("kept.img", 1), disk("removed.img", 2), disk("other.img", 3));
    define_vm(&world.repository, VM, &[kept.clone(), removed.clone(), replaced.clone()]);
    let client = world.client();
    let older = client.take_snapshot_id();
    // A new disk, and another one of the same name.
    let (new, other) = (disk("new.img", 4), make_disk(&second, "other.img", MB));
    define_vm(&world.repository, VM, &[kept.clone(), new, other]);
    write_at(&kept, 0, &[9; 4096]);
    let newer = client.take_snapshot_id();

    let back = way_back(&client, &newer, &older, "");
    let found: Vec<_> = back["disks"].as_array().unwrap().iter().map(|disk| (&disk["name"], &disk["mode"])).collect();
    let [incremental, full] = [json!("incremental"), json!("full")];
    let names = ["kept.img", "removed.img", "other.img"].map(|name| json!(name));
    assert_eq!(found, [(&names[0], &incremental), (&names[1], &full), (&names[2], &full)]);
    assert_eq!(back["disks"][1]["reason"], "the newer snapshot has no such disk");
    assert_eq!(back["disks"][2]["reason"], "the newer snapshot's disk of this name is another disk");
    let now = fs::read(&kept).unwrap();
    assert!(client.patched(&back["disks"][0], &now) == client.disk(&older, "kept.img"));
    for (index, path) in [(1, &removed), (2, &replaced)] {
        // Onto any older copy, because zeros are listed too.
        let patched = client.patched(&back["disks"][index], &vec![0xee; 2 << 20]);
        assert!(patched == fs::read(path).unwrap(), "{path:?}");
    }
    let chunks =
        |disk: &str| client.get(&format!("{SNAPSHOTS}/{newer}/disks/{disk}/chunks?compareTo={older}&reverse=true"));
    assert_eq!(chunks("removed.img").ok()["mode"], "full");
    let missing = chunks("new.img");
    assert_eq!(missing.error(404), "not_found");
    assert!(text(&missing.json()["details"]).contains("the base has no such disk"));
}

#[test]
fn errors_of_the_way_back_name_the_right_snapshot() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[1; 4096]);
    let client = world.client();
    let (older, newer) = (client.take_snapshot_id(), client.take_snapshot_id());
    let get = |path: &str| client.get(path);
    for (path, expected) in [
        (format!("{SNAPSHOTS}/{newer}?reverse=true"), "reverse=true requires compareTo"),
        (format!("{SNAPSHOTS}/{newer}?compareTo=&reverse=true"), "reverse=true requires compareTo"),
        (format!("{SNAPSHOTS}/{newer}?compareTo={older}&reverse=yes"), "reverse"),
        (format!("{SNAPSHOTS}/{newer}?compareTo={older}&revers=true"), "did you mean reverse?"),
        (format!("{SNAPSHOTS}/{newer}/disks/a.img/chunks?reverse=1"), "reverse=true requires compareTo"),
        (format!("{SNAPSHOTS}?reverse=true"), "reverse=true requires compareTo"),
    ] {
        let answer = get(&path);
        assert_eq!(answer.error(400), "bad_request", "{path}");
        assert!(text(&answer.json()["details"]).contains(expected), "{path}: {}", answer.json());
    }
    let creation = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}?reverse=true"));
    assert_eq!(client.send(creation).error(400), "bad_request");
    // The base is the older one in both directions.
    let swapped = format!("{SNAPSHOTS}/{older}?compareTo={newer}&reverse=true");
    assert_eq!(get(&swapped).error(400), "base_not_older");
    client.get(&format!("{SNAPSHOTS}/{newer}?compareTo={older}&reverse=false")).ok();

    // The bytes of the base are served, and those of the newer snapshot only compared.
    let back = format!("{SNAPSHOTS}/{newer}?compareTo={older}&reverse=true");
    let file = |id: &str| world.snapshot_folder(id).join("a.img");
    write_at(&file(&newer), 0, &[3; 4096]);
    assert_eq!(get(&back).error(409), "base_lost");
    let newest = client.take_snapshot_id();
    write_at(&file(&older), 0, &[3; 4096]);
    let back = format!("{SNAPSHOTS}/{newest}?compareTo={older}&reverse=true");
    assert_eq!(get(&back).error(409), "snapshot_lost");
}
