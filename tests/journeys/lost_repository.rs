//! A repository is destroyed, or restored from a backup: the table in docs/operations.md.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Client, MB, SNAPSHOTS, VM, World, make_repository, run, write_at};
use crate::needs_root;

/// The states of the first disk of each snapshot.
fn states(client: &Client) -> Vec<Value> {
    client.get(SNAPSHOTS).ok().as_array().unwrap().iter().map(|found| found["disks"][0]["status"].clone()).collect()
}

fn leftovers(client: &Client) -> usize {
    client.get("/status").ok()["leftovers"].as_array().unwrap().len()
}

#[test]
fn destroyed_repository_is_replaced() {
    needs_root!();
    let mut world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let [kept, deleted] = [(); 2].map(|()| client.take_snapshot_id());
    world.volume.unmount();
    assert_eq!(states(&client), ["error", "error"]);
    assert_eq!((client.delete(&format!("{SNAPSHOTS}/{deleted}")).status, leftovers(&client)), (200, 1));

    run(Command::new("mkfs.xfs").args(["-q", "-f", "-m", "reflink=1"]).arg(world.volume.image()));
    world.volume.mount();
    make_repository(&world.volume.mount_point, world.repository.file_name().unwrap().to_str().unwrap());
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[2; 8192]);
    // Another file system at the same place may be a mistake.
    let refused = client.post(SNAPSHOTS);
    assert_eq!(refused.error(503), "repository_unavailable");
    assert!(refused.json()["details"].to_string().contains("or restart the service"), "{}", refused.json());
    world.exporter.restart();
    let new = client.take_snapshot_id();
    assert_eq!(client.disk(&new, "a.img")[..8192], [2; 8192]);
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{new}?compareTo={kept}")).error(503), "repository_unavailable");
    // The old snapshots never touch the new file system.
    assert_eq!((client.delete(&format!("{SNAPSHOTS}/{kept}")).status, leftovers(&client)), (200, 2));
    assert_eq!(client.snapshot_ids(), [new.as_str()]);
    assert!(world.snapshot_files().iter().all(|path| path.display().to_string().contains(&new)));
}

#[test]
fn files_from_a_backup_are_no_snapshot() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[1; 8192]);
    let client = world.client();
    let lost = client.take_snapshot_id();
    // As a restore does: the same bytes in other files.
    for path in [disk.clone(), world.snapshot_folder(&lost).join("a.img")] {
        let restored = path.with_extension("restored");
        fs::copy(&path, &restored).unwrap();
        fs::rename(&restored, &path).unwrap();
    }
    let disk = client.get(&format!("{SNAPSHOTS}/{lost}/disks/a.img"));
    assert_eq!(disk.error(409), "snapshot_lost");
    let new = client.take_snapshot_id();
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{new}?compareTo={lost}")).error(409), "base_lost");
    assert_eq!(client.get(&format!("/vms/{VM}")).ok()["snapshot_compatible"], true);
    // The service does not remove files that are not its own.
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{lost}")).error(409), "not_removed");
    assert!(world.snapshot_folder(&lost).join("a.img").exists());
}
