//! Which files are disks of a VM, and the agreement of the VM list with the creation of snapshots.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{MB, OTHER_VM, Random, VM, World, define_vm, define_vm_with, make_disk, text, write_at};
use crate::needs_root;

fn disk_entry(path: &Path, device: &str, mode: &str) -> String {
    // With Python's escapes, as the manager writes it.
    let path = path.to_str().unwrap().replace('\\', "\\\\").replace('\'', "\\'").replace('\t', "\\t");
    format!("'file:{path},{device},{mode}'")
}

/// Checks that the list and a creation reject the disk `device` of `vm` for the same reason.
fn check_refused(world: &World, vm: &str, device: &str, reason: &str) {
    let client = world.client();
    let listed = client.get(&format!("/vms/{vm}")).ok();
    assert_eq!((&listed["status"], &listed["snapshot_compatible"]), (&json!("ok"), &json!(false)), "{listed}");
    let listed_reason = text(&listed["reason"]);
    assert!(listed_reason.starts_with(&format!("{device}: ")) && listed_reason.contains(reason), "{listed}");
    let disks = listed["disks"].as_array().unwrap();
    let disk = disks.iter().find(|disk| disk["device_name"] == device).unwrap();
    assert_eq!(disk["snapshot_compatible"], false, "{disk}");
    assert!(text(&disk["incompatible_reason"]).contains(reason), "{disk}");
    assert!(client.get("/vms").ok().as_array().unwrap().contains(&listed), "the VM's own route and the list differ");
    let refused = client.post(&format!("/vms/{vm}/snapshots"));
    assert_eq!(refused.error(400), "not_snapshottable", "{listed}");
    assert!(
        text(&refused.json()["details"]).ends_with(&listed_reason),
        "{:?} is not {listed_reason:?}",
        refused.json()
    );
}

#[test]
fn files_of_other_owners_are_not_disks() {
    needs_root!();
    let world = World::new(512);
    let repository = &world.repository;
    let own = make_disk(repository, "own.img", MB);
    write_at(&own, 0, &[7; 4096]);
    define_vm(repository, VM, std::slice::from_ref(&own));
    let client = world.client();
    let taken = client.take_snapshot();
    let snapshot = taken["disks"][0]["path"].as_str().map(Path::new).unwrap();
    let linked = repository.join("VirtualDisks/linked.img");
    fs::hard_link(snapshot, &linked).unwrap();
    fs::write(repository.join(".ovsmeta"), "{}").unwrap();
    fs::write(repository.join("notes.cfg"), "a definition").unwrap();
    let cases = [
        (snapshot.to_owned(), "is in a folder of snapshots"),
        (snapshot.with_file_name(".manifest.json"), "is in a folder of snapshots"),
        (repository.join("VirtualMachines").join(VM).join("vm.cfg"), "is a definition, not a disk"),
        (repository.join("notes.cfg"), "is a definition, not a disk"),
        (repository.join(".ovsmeta"), "is hidden at the top of the repository"),
        (linked.clone(), "belongs to snapshot"),
    ];
    let fine = make_disk(repository, "fine.img", MB);
    for (path, reason) in cases {
        define_vm_with(repository, OTHER_VM, &[disk_entry(&fine, "xvda", "w"), disk_entry(&path, "xvdb", "w")]);
        check_refused(&world, OTHER_VM, "xvdb", reason);
        // Also if it is requested by name, or read-only.
        let read_only = [disk_entry(&fine, "xvda", "w"), disk_entry(&path, "xvdb", "r")];
        define_vm_with(repository, OTHER_VM, &read_only);
        let body = json!({"disks": ["xvdb"]}).to_string();
        let request = client.request(reqwest::Method::POST, &format!("/api/v1/vms/{OTHER_VM}/snapshots")).body(body);
        assert_eq!(client.send(request).error(400), "unfit_disk", "{path:?}");
        let made = client.post(&format!("/vms/{OTHER_VM}/snapshots")).ok();
        assert_eq!(made["disks"].as_array().unwrap().len(), 1, "{made}");
    }
    // A hard link between disks is a disk.
    fs::remove_file(&linked).unwrap();
    fs::hard_link(&fine, &linked).unwrap();
    define_vm(repository, OTHER_VM, std::slice::from_ref(&linked));
    assert_eq!(client.post(&format!("/vms/{OTHER_VM}/snapshots")).status, 200);
}

#[test]
fn disk_of_two_vms_is_snapshotted_if_both_mark_it_shared() {
    needs_root!();
    let world = World::new(512);
    let repository = &world.repository;
    let disk = make_disk(repository, "a.img", MB);
    write_at(&disk, 0, &[7; 4096]);
    let own = make_disk(repository, "own.img", MB);
    let linked = repository.join("VirtualDisks/linked.img");
    fs::hard_link(&disk, &linked).unwrap();
    let client = world.client();
    for (first, second, are_taken) in [("w", "w", false), ("w!", "w", false), ("w", "r", false), ("w!", "w!", true)] {
        for path in [&disk, &linked, &repository.join("VirtualDisks/../VirtualDisks/./a.img")] {
            define_vm_with(repository, VM, &[disk_entry(&disk, "xvda", first)]);
            define_vm_with(repository, OTHER_VM, &[disk_entry(&own, "xvda", "w"), disk_entry(path, "xvdb", second)]);
            if are_taken {
                for vm in [VM, OTHER_VM] {
                    assert_eq!(client.get(&format!("/vms/{vm}")).ok()["snapshot_compatible"], true, "{path:?}");
                    assert_eq!(client.post(&format!("/vms/{vm}/snapshots")).status, 200, "{path:?}");
                    assert_eq!(client.delete(&format!("/vms/{vm}/snapshots")).status, 200);
                }
                continue;
            }
            check_refused(&world, VM, "xvda", &format!("is also a disk of VM {OTHER_VM}"));
            if second == "r" {
                let listed = client.get(&format!("/vms/{OTHER_VM}")).ok();
                let reason = text(&listed["disks"][1]["incompatible_reason"]);
                assert!(reason.contains(&format!("is also a disk of VM {VM}")), "{listed}");
            } else {
                check_refused(&world, OTHER_VM, "xvdb", &format!("is also a disk of VM {VM}"));
            }
        }
    }
    // VMs may share an ISO.
    let iso = repository.join("ISOs/a.iso");
    fs::write(&iso, "an ISO").unwrap();
    for (vm, disk) in [(VM, &disk), (OTHER_VM, &own)] {
        define_vm_with(repository, vm, &[disk_entry(disk, "xvda", "w"), disk_entry(&iso, "xvdb:cdrom", "r")]);
    }
    for vm in [VM, OTHER_VM] {
        assert_eq!(client.post(&format!("/vms/{vm}/snapshots")).status, 200);
    }
}

/// Random definitions: each VM listed as compatible is snapshotted, and all others are refused with the reason in the
/// list.
#[test]
fn vm_list_and_creation_agree() {
    needs_root!();
    let (_second_volume, second, world) = World::with_two_repositories(512);
    let repository = &world.repository;
    let long = "x".repeat(240);
    let mut files = Vec::new();
    for name in ["a.img", "b.img", "shared.img", ".hidden.img", "a\tb.img", "with space,comma.img", "é.img", &long] {
        for repository in [repository, &second] {
            files.push(make_disk(repository, name, MB));
        }
    }
    let at = |name: &str| repository.join("VirtualDisks").join(name);
    symlink(at("a.img"), at("link.img")).unwrap();
    fs::create_dir(at("folder.img")).unwrap();
    nix::unistd::mkfifo(&at("pipe.img"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::hard_link(at("b.img"), at("hard.img")).unwrap();
    fs::write(repository.join("ISOs/a.iso"), "an ISO").unwrap();
    let unusual =
        ["link.img", "folder.img", "pipe.img", "hard.img", "missing.img", "../ISOs/a.iso", "../vm.cfg", "../../x.img"];
    files.extend(unusual.map(at));
    let client = world.client();
    let (mut compatible, mut incompatible) = (0, 0);
    for round in 0..8 {
        let vms: Vec<String> = (0..12).map(|number| format!("0004fb000006000000000000000000{number:02x}")).collect();
        for (number, vm) in vms.iter().enumerate() {
            let bytes = Random(1 + round * 100 + number as u64).bytes(16);
            let pick = |index: usize, of: usize| usize::from(bytes[index]) % of;
            let entry = |index: usize| {
                let mode = ["w", "w", "w!", "r"][pick(3 * index + 1, 4)];
                let device =
                    format!("xvd{}{}", (b'a' + index as u8) as char, ["", "", ":cdrom"][pick(3 * index + 2, 3)]);
                disk_entry(&files[pick(3 * index, files.len())], &device, mode)
            };
            let entries: Vec<String> = (0..=pick(15, 3)).map(entry).collect();
            define_vm_with(repository, vm, &entries);
        }
        let list = client.get("/vms").ok();
        for vm in &vms {
            let listed = list.as_array().unwrap().iter().find(|one| one["name"] == **vm).unwrap();
            let answer = client.post(&format!("/vms/{vm}/snapshots"));
            let names = |of: &Value| -> usize { of["disks"].as_array().unwrap().len() };
            if listed["snapshot_compatible"] == true {
                let disks = listed["disks"].as_array().unwrap();
                let taken: Vec<&Value> = disks.iter().filter(|disk| disk["snapshot_compatible"] == true).collect();
                let made = answer.ok();
                let mut paths: Vec<String> = taken.iter().map(|disk| text(&disk["path"])).collect();
                paths.sort();
                paths.dedup();
                assert_eq!(names(&made), paths.len(), "{listed} {made}");
                compatible += 1;
            } else {
                let details = match answer.error(400).as_str() {
                    "not_snapshottable" => text(&answer.json()["details"]),
                    code => panic!("{code}: {listed}"),
                };
                assert!(details.ends_with(&text(&listed["reason"])), "{details} {listed}");
                incompatible += 1;
            }
            assert_eq!(client.delete(&format!("/vms/{vm}/snapshots")).status, 200);
        }
    }
    assert!(
        compatible > 5 && incompatible > 20,
        "{compatible} compatible and {incompatible} incompatible VMs: too few"
    );
}
