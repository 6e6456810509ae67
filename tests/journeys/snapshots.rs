//! From a VM to its snapshots and back: create, list, get, compare, delete.

use std::fs;

use serde_json::json;

use crate::harness::{self, VM, World, text, write_at};
use crate::needs_root;

const MB: u64 = 1 << 20;

#[test]
fn the_main_job() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    let client = world.client();
    write_at(disk, 8 * MB, &[7; 65536]);

    let vms = client.get("/vms").ok();
    assert_eq!(vms[0]["name"], VM);
    assert_eq!(vms[0]["snapshot_compatible"], true);

    let first = client.take_snapshot();
    let chunk = &first["disks"][0]["chunks"][0];
    assert_eq!((&chunk["start"], &chunk["length"], &chunk["type"]), (&json!(8 * MB), &json!(65536), &json!("data")));
    let id = text(&first["id"]);
    assert_eq!(client.disk(&id, "a.img"), fs::read(disk).unwrap());

    write_at(disk, 8 * MB + 4096, &[8; 4096]);
    let second = text(&client.take_snapshot()["id"]);
    let changes = client.compare(&second, &id);
    let chunks = changes["disks"][0]["chunks"].as_array().unwrap();
    assert_eq!(chunks.len(), 1);
    assert_eq!((&chunks[0]["start"], &chunks[0]["length"]), (&json!(8 * MB + 4096), &json!(4096)));
    assert_eq!(client.disk_range(&second, "a.img", 8 * MB + 4096, 4096), [8; 4096]);

    assert_eq!(client.delete(&format!("/vms/{VM}/snapshots")).status, 200);
    assert_eq!(client.get(&format!("/vms/{VM}/snapshots")).ok(), json!([]));
    assert_eq!(world.snapshot_files(), Vec::<std::path::PathBuf>::new());
    let _ = harness::USER;
}
