//! How a VM is found by name and UUID, and the snapshots of deleted VMs.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::harness::{Client, MB, OTHER_VM, SNAPSHOTS, VM, World, chunks, data, define_vm, ids, text, write_at};
use crate::needs_root;

fn list(client: &Client) -> Vec<String> {
    ids(&client.get(SNAPSHOTS).ok())
}

#[test]
fn deleted_vm_keeps_its_snapshots() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 4096, &[1; 4096]);
    let client = world.client();
    let (first, second) = (client.take_snapshot_id(), client.take_snapshot_id());
    fs::remove_dir_all(world.repository.join("VirtualMachines").join(VM)).unwrap();

    assert_eq!(client.get(&format!("/vms/{VM}")).error(404), "not_found");
    assert_eq!(client.get("/vms").ok(), json!([]));
    assert_eq!(client.post(SNAPSHOTS).error(404), "not_found");
    assert_eq!(list(&client), [first.as_str(), &second]);
    assert_eq!(chunks(&client.get(&format!("{SNAPSHOTS}/{first}")).ok()["disks"][0]), [data(4096, 4096)]);
    assert_eq!(client.compare(&second, &first)["disks"][0]["chunks"], json!([]));
    assert_eq!(client.disk(&second, "a.img"), fs::read(disk).unwrap());
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
    assert_eq!(list(&client), [second.as_str()]);
    assert_eq!(client.delete(SNAPSHOTS).status, 200);
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
}

#[test]
fn vm_name_takes_precedence_over_a_uuid() {
    needs_root!();
    let world = World::new(512);
    let disk = world.define_vm(&[("a.img", MB)]).remove(0);
    let client = world.client();
    let kept = client.take_snapshot_id();
    // The VM is deleted, and another one has its name as UUID.
    let machines = world.repository.join("VirtualMachines");
    fs::remove_dir_all(machines.join(VM)).unwrap();
    define_vm(&world.repository, OTHER_VM, &[disk]);
    let add_uuid = |vm: &str| {
        let path = machines.join(vm).join("vm.cfg");
        fs::write(&path, fs::read_to_string(&path).unwrap() + &format!("uuid = '{VM}'\n")).unwrap();
    };
    add_uuid(OTHER_VM);
    let of_other = text(&client.post(&format!("/vms/{OTHER_VM}/snapshots")).ok()["id"]);

    assert_eq!(list(&client), [kept.as_str()]);
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{of_other}")).error(409), "other_vm");
    assert_eq!(client.delete(SNAPSHOTS).status, 200);
    // Without snapshots of the old VM, the UUID means the other one.
    assert_eq!(list(&client), [of_other.as_str()]);
    // A UUID of two VMs is ambiguous.
    let third = "0004fb00000600000000000000000003";
    define_vm(&world.repository, third, &[world.repository.join("VirtualDisks/a.img")]);
    add_uuid(third);
    for answer in [client.get(SNAPSHOTS), client.delete(SNAPSHOTS), client.post(SNAPSHOTS)] {
        assert_eq!(answer.error(400), "bad_request");
    }
    assert_eq!(client.get(&format!("/vms/{OTHER_VM}/snapshots")).ok()[0]["id"], of_other.as_str());
}

#[test]
fn manually_removed_snapshot_folder_leaves_no_record() {
    needs_root!();
    let mut world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    client.take_snapshot_id();
    fs::remove_dir_all(world.repository.join("CoriolisSnapshots")).unwrap();
    assert_eq!(client.delete(SNAPSHOTS).status, 200);
    world.exporter.restart();
    assert!(!world.exporter.log().contains("removing an unfinished snapshot"), "{}", world.exporter.log());
}
