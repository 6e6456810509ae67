//! What is listed, and what of it can be snapshotted.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::Value;

use crate::harness::{self, VM, World, Xfs, define_vm, define_vm_with, make_disk, make_repository, text};
use crate::needs_root;

fn vm_name(number: usize) -> String {
    format!("0004fb000006000000000000000000{number:02x}")
}

fn entry<'a>(vms: &'a Value, name: &str) -> &'a Value {
    let found = vms.as_array().unwrap().iter().find(|vm| vm["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {vms}"))
}

#[test]
fn every_vm_is_an_entry_and_only_good_ones_are_snapshotted() {
    needs_root!();
    let world = World::new(1024);
    let repository = &world.repository;
    let good = make_disk(repository, "good.img", 1 << 20);
    let path = repository.display();
    let outside = repository.parent().unwrap().join("outside.img");
    fs::write(&outside, "not a disk").unwrap();
    symlink(&outside, repository.join("VirtualDisks/link.img")).unwrap();
    fs::write(repository.join("ISOs/a.iso"), "an ISO").unwrap();
    fs::create_dir(repository.with_extension("x")).unwrap();
    fs::write(repository.with_extension("x").join("a.img"), "a neighbour").unwrap();
    fs::write(
        repository.join(".ovsmeta"),
        r#"{"good.img": {"OBJECT_TYPE": "VIRTUAL_DISK", "SIMPLE_NAME": "system"},
        "template.img": {"OBJECT_TYPE": "TEMPLATE"}}"#,
    )
    .unwrap();
    make_disk(repository, "template.img", 1 << 20);

    let good_entry = format!("'file:{},xvda,w'", good.display());
    // The entries of `disk`, and what the reason says; nothing where a snapshot can be made.
    let cases: &[(Vec<String>, Option<&str>)] = &[
        (vec![good_entry.clone()], None),
        (
            vec![good_entry.clone(), format!("'file:{path}/ISOs/a.iso,xvdb:cdrom,r'"), "'file:,xvdc:cdrom,r'".into()],
            None,
        ),
        (vec![good_entry.clone(), "'file:/nowhere/a.iso,xvdb:cdrom,r'".into()], None),
        (vec![good_entry.clone(), format!("'file:{path}/VirtualDisks/template.img,xvdb,w'")], None),
        (vec![good_entry.clone(), "'phy:/dev/mapper/3600,xvdb,w'".into()], Some("no file in a repository")),
        (vec![format!("'file:{path}/VirtualDisks/missing.img,xvda,w'")], Some("No such file")),
        (vec![good_entry.clone(), format!("'file:{path}/../outside.img,xvdb,w'")], Some("outside of every repository")),
        (
            vec![good_entry.clone(), format!("'file:{path}/VirtualDisks/link.img,xvdb,w!'")],
            Some("outside of every repository"),
        ),
        (vec![good_entry.clone(), format!("'file:{path}.x/a.img,xvdb,w'")], Some("outside of every repository")),
        (vec![format!("'file:{path}/VirtualDisks,xvda,w'")], Some("not a regular file")),
        (vec![], Some("no disk to snapshot")),
    ];
    for (number, (disks, _)) in cases.iter().enumerate() {
        define_vm_with(repository, &vm_name(number), disks);
    }
    for (number, text) in [(0x40, "disk = ['file:/x"), (0x41, "name = __import__('os')"), (0x42, "")] {
        define_vm(repository, &vm_name(number), &[]);
        fs::write(repository.join("VirtualMachines").join(vm_name(number)).join("vm.cfg"), text).unwrap();
    }
    let client = world.client();
    let vms = client.get("/vms").ok();
    assert_eq!(vms.as_array().unwrap().len(), cases.len() + 3);
    for (number, (disks, reason)) in cases.iter().enumerate() {
        let vm = entry(&vms, &vm_name(number));
        assert_eq!(vm["status"], "ok", "{vm}");
        assert_eq!(vm["snapshot_compatible"], reason.is_none(), "{vm}");
        assert_eq!(vm["disks"].as_array().unwrap().len(), disks.len());
        let files = world.snapshot_files();
        let answer = client.post(&format!("/vms/{}/snapshots", vm_name(number)));
        match reason {
            None => {
                let snapshot = answer.ok();
                assert_eq!(snapshot["disks"].as_array().unwrap().len(), 1, "{snapshot}");
                assert_eq!(snapshot["disks"][0]["name"], "good.img");
            }
            Some(reason) => {
                assert!(text(&vm["reason"]).contains(reason), "{vm} lacks {reason:?}");
                assert_eq!(answer.error(400), "not_snapshottable", "{vm}");
                assert!(text(&answer.json()["details"]).contains(reason), "{vm}");
                assert_eq!(world.snapshot_files(), files, "something was written");
            }
        }
    }
    let good_vm = entry(&vms, &vm_name(0));
    assert_eq!(good_vm["friendly_name"], "web-1");
    assert_eq!(good_vm["disks"][0]["friendly_name"], "system");
    assert_eq!(good_vm["disks"][0]["size"], 1 << 20);
    assert_eq!(good_vm["disks"][0]["device_name"], "xvda");
    for broken in [0x40, 0x41] {
        let vm = entry(&vms, &vm_name(broken));
        assert_eq!((&vm["status"], &vm["snapshot_compatible"]), (&"error".into(), &false.into()), "{vm}");
        assert!(text(&vm["reason"]).contains("line 1"), "{vm}");
        assert_eq!(client.get(&format!("/vms/{}", vm_name(broken))).ok(), *vm);
        assert_eq!(client.post(&format!("/vms/{}/snapshots", vm_name(broken))).error(400), "not_snapshottable");
    }

    // By uuid, dashed and in capitals.
    let dashed = text(&good_vm["uuid"]).to_uppercase();
    let named = client.get(&format!("/vms/{dashed}")).ok();
    assert_eq!(named["name"], vm_name(0));
    assert_eq!(client.get(&format!("/vms/{dashed}/snapshots?chunks=false")).ok()[0]["vm_id"], vm_name(0));
    let id = text(&named["snapshots"][0]);
    assert_eq!(client.get(&format!("/vms/{dashed}/snapshots/{id}/disks/good.img")).status, 200);
}

#[test]
fn a_file_system_that_cannot_clone_is_named() {
    needs_root!();
    let tmpfs = tempfile::tempdir().unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(tmpfs.path()).status().unwrap();
    assert!(status.success());
    let plain = Xfs::made_with(512, &["-m", "reflink=0"]);
    let on_tmpfs = make_repository(tmpfs.path(), "0004fb0000030000000000000000000a");
    let on_plain = make_repository(&plain.mount_point, "0004fb0000030000000000000000000b");
    let world = World::with(512, |settings| settings.paths.extend([on_tmpfs.clone(), on_plain.clone()]));
    let client_disk = make_disk(&world.repository, "a.img", 1 << 20);
    // The definition of the first lies on XFS with reflinks, one of its disks does not.
    define_vm(&world.repository, VM, &[client_disk, make_disk(&on_tmpfs, "b.img", 1 << 20)]);
    define_vm(&on_plain, &vm_name(2), &[make_disk(&on_plain, "c.img", 1 << 20)]);
    let client = world.client();
    for (vm, reason) in [(VM.to_owned(), "tmpfs"), (vm_name(2), "made without reflinks")] {
        let listed = client.get(&format!("/vms/{vm}")).ok();
        assert_eq!(listed["snapshot_compatible"], false);
        assert!(text(&listed["reason"]).contains(reason), "{listed}");
        assert_eq!(client.post(&format!("/vms/{vm}/snapshots")).error(400), "not_snapshottable");
    }
    assert_eq!(client.get(&format!("/vms/{VM}")).ok()["disks"][0]["snapshot_compatible"], true);
    assert_eq!(world.snapshot_files(), Vec::<std::path::PathBuf>::new());
    assert!(harness::USER == "admin" && !on_tmpfs.join("CoriolisSnapshots").exists());
    drop(world);
    let _ = Command::new("umount").arg("--lazy").arg(tmpfs.path()).status();
}
