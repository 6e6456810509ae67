//! The VM list: its entries, and which VMs can be snapshotted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Tmpfs, VM, Volume, World, define_vm, define_vm_with, make_disk, make_repository, text};
use crate::needs_root;

fn vm_name(number: usize) -> String {
    format!("0004fb000006000000000000000000{number:02x}")
}

fn entry<'a>(vms: &'a Value, name: &str) -> &'a Value {
    let found = vms.as_array().unwrap().iter().find(|vm| vm["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {vms}"))
}

#[test]
fn every_vm_is_listed_and_only_compatible_ones_are_snapshotted() {
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
        r#"{"good.img": {"OBJECT_TYPE": "VIRTUAL_DISK", "SIMPLE_NAME": "system"}, "a.iso": {"SIMPLE_NAME": "tools"},
        "template.img": {"OBJECT_TYPE": "TEMPLATE"}}"#,
    )
    .unwrap();
    make_disk(repository, "template.img", 1 << 20);

    // Each VM has its own disk, all with the same name.
    let own_disk = |number: usize| {
        let folder = repository.join("VirtualDisks").join(number.to_string());
        fs::create_dir(&folder).unwrap();
        let own = folder.join("good.img");
        if number == 0 {
            fs::rename(&good, &own).unwrap()
        } else {
            fs::write(&own, [7; 4096]).unwrap()
        }
        own
    };
    let good_entry = "<own disk>".to_owned();
    // The entries of `disk`, and the expected reason; `None` if a snapshot can be made.
    let cases: &[(Vec<String>, Option<&str>)] = &[
        (vec![good_entry.clone()], None),
        (
            vec![good_entry.clone(), format!("'file:{path}/ISOs/a.iso,xvdb:cdrom,r'"), "'file:,xvdc:cdrom,r'".into()],
            None,
        ),
        (vec![good_entry.clone(), "'file:/nowhere/a.iso,xvdb:cdrom,r'".into()], None),
        (vec![good_entry.clone(), format!("'file:{path}/VirtualDisks/template.img,xvdb,w'")], None),
        (vec![good_entry.clone(), format!("'file:{path}/VirtualDisks/missing.img,xvdb,r'")], None),
        (vec![good_entry.clone(), "'phy:/dev/mapper/3600,xvdb,w'".into()], Some("not a file in a repository")),
        (vec![format!("'file:{path}/VirtualDisks/missing.img,xvda,w'")], Some("No such file")),
        (vec![good_entry.clone(), format!("'file:{path}/../outside.img,xvdb,w'")], Some("outside of every repository")),
        (
            vec![good_entry.clone(), format!("'file:{path}/VirtualDisks/link.img,xvdb,w!'")],
            Some("is a symbolic link, which is not followed"),
        ),
        (vec![good_entry.clone(), format!("'file:{path}.x/a.img,xvdb,w'")], Some("outside of every repository")),
        (vec![format!("'file:{path}/VirtualDisks,xvda,w'")], Some("not a regular file")),
        (vec![], Some("no disk to snapshot")),
    ];
    for (number, (disks, _)) in cases.iter().enumerate() {
        let own = own_disk(number);
        let own =
            |disk: &String| if *disk == good_entry { format!("'file:{},xvda,w'", own.display()) } else { disk.clone() };
        define_vm_with(repository, &vm_name(number), &disks.iter().map(own).collect::<Vec<_>>());
    }
    for (number, text) in [(0x40, "disk = ['file:/x"), (0x41, "name = __import__('os')"), (0x42, "")] {
        define_vm(repository, &vm_name(number), &[]);
        fs::write(repository.join("VirtualMachines").join(vm_name(number)).join("vm.cfg"), text).unwrap();
    }
    // A missing definition, and a folder in its place.
    fs::create_dir(repository.join("VirtualMachines").join(vm_name(0x43))).unwrap();
    fs::create_dir_all(repository.join("VirtualMachines").join(vm_name(0x44)).join("vm.cfg")).unwrap();
    let client = world.client();
    let vms = client.get("/vms").ok();
    assert_eq!(vms.as_array().unwrap().len(), cases.len() + 5);
    for (number, (disks, reason)) in cases.iter().enumerate() {
        let vm = entry(&vms, &vm_name(number));
        assert_eq!(vm["status"], "ok", "{vm}");
        assert_eq!(vm["snapshot_compatible"], reason.is_none(), "{vm}");
        assert_eq!(vm["disks"].as_array().unwrap().len(), disks.len());
        assert_eq!(
            client.get(&format!("/vms/{}", vm_name(number))).ok(),
            *vm,
            "the VM's own route and the list differ"
        );
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
    // Disks that are listed but not snapshotted, with the reason.
    let iso = repository.join("ISOs/a.iso");
    let (with_cds, with_template) = (&entry(&vms, &vm_name(1))["disks"], &entry(&vms, &vm_name(3))["disks"]);
    for (disk, name, path, device, mode, reason) in [
        (&with_cds[1], json!("a.iso"), json!(iso), "xvdb", "r", "CD-ROM"),
        (&with_cds[2], json!(""), json!(""), "xvdc", "r", "no medium"),
        (
            &with_template[1],
            json!("template.img"),
            json!(repository.join("VirtualDisks/template.img")),
            "xvdb",
            "w",
            "TEMPLATE",
        ),
    ] {
        assert_eq!((&disk["name"], &disk["path"]), (&name, &path));
        assert_eq!((&disk["device_name"], &disk["mode"]), (&json!(device), &json!(mode)));
        assert_eq!(disk["snapshot_compatible"], false, "{disk}");
        assert!(text(&disk["incompatible_reason"]).contains(reason), "{disk}");
    }
    assert_eq!((&with_cds[1]["friendly_name"], &with_cds[1]["size"]), (&json!("tools"), &json!(6)));
    let shared = &entry(&vms, &vm_name(8))["disks"][1];
    assert_eq!((&shared["mode"], &shared["snapshot_compatible"]), (&json!("w!"), &json!(false)), "{shared}");

    let good_vm = entry(&vms, &vm_name(0));
    assert_eq!(good_vm["disks"][0]["path"], json!(repository.join("VirtualDisks/0/good.img")));
    assert_eq!(good_vm["disks"][0]["repository"], json!(repository.file_name().unwrap().to_str()));
    assert_eq!((&good_vm["disks"][0]["mode"], &good_vm["snapshots"]), (&json!("w"), &json!([])));
    assert_eq!(good_vm["friendly_name"], "web-1");
    assert_eq!(good_vm["disks"][0]["friendly_name"], "system");
    assert_eq!(good_vm["disks"][0]["size"], 1 << 20);
    assert_eq!(good_vm["disks"][0]["device_name"], "xvda");
    let files = world.snapshot_files();
    for (broken, reason) in [(0x40, "line 1"), (0x41, "line 1"), (0x43, "cannot be read"), (0x44, "cannot be read")] {
        let vm = entry(&vms, &vm_name(broken));
        assert_eq!((&vm["status"], &vm["snapshot_compatible"]), (&"error".into(), &false.into()), "{vm}");
        assert!(text(&vm["reason"]).contains(reason), "{vm}");
        assert_eq!(client.get(&format!("/vms/{}", vm_name(broken))).ok(), *vm);
        assert_eq!(client.post(&format!("/vms/{}/snapshots", vm_name(broken))).error(400), "not_snapshottable");
    }
    // An empty definition is a truncated one: no snapshot can be made.
    let cut = entry(&vms, &vm_name(0x42));
    assert_eq!((&cut["snapshot_compatible"], &cut["disks"]), (&json!(false), &json!([])), "{cut}");
    assert!(!text(&cut["reason"]).is_empty());
    assert_eq!(client.post(&format!("/vms/{}/snapshots", vm_name(0x42))).error(400), "not_snapshottable");
    assert_eq!(world.snapshot_files(), files, "something was written");

    // By UUID, with dashes and in capitals.
    let dashed = text(&good_vm["uuid"]).to_uppercase();
    let named = client.get(&format!("/vms/{dashed}")).ok();
    assert_eq!(named["name"], vm_name(0));
    assert_eq!(client.get(&format!("/vms/{dashed}/snapshots?chunks=false")).ok()[0]["vm_id"], vm_name(0));
    let id = text(&named["snapshots"][0]);
    assert_eq!(client.get(&format!("/vms/{dashed}/snapshots/{id}/disks/good.img")).status, 200);
}

#[test]
fn unsupported_file_system_is_the_reason() {
    needs_root!();
    let tmpfs = Tmpfs::new("size=16m");
    let plain = Volume::xfs_with(512, &["-m", "reflink=0"]);
    let on_tmpfs = make_repository(tmpfs.path(), "0004fb0000030000000000000000000a");
    let on_plain = make_repository(&plain.mount_point, "0004fb0000030000000000000000000b");
    let world = World::with(512, |settings| settings.paths.extend([on_tmpfs.clone(), on_plain.clone()]));
    // Another file system, mounted inside the repository.
    let inside = world.repository.join("VirtualDisks/inside");
    fs::create_dir(&inside).unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&inside).status().unwrap();
    assert!(status.success());
    let on_inside = inside.join("d.img");
    fs::write(&on_inside, [1; 4096]).unwrap();
    let goods: Vec<PathBuf> =
        (0..4).map(|number| make_disk(&world.repository, &format!("{number}.img"), 1 << 20)).collect();
    let (third, fourth, fifth) = (vm_name(3), vm_name(4), vm_name(5));
    let second = vm_name(2);
    // The first VM is defined on XFS with reflinks, and has a disk on tmpfs.
    define_vm(&world.repository, VM, &[goods[0].clone(), make_disk(&on_tmpfs, "b.img", 1 << 20)]);
    define_vm(&on_plain, &second, &[make_disk(&on_plain, "c.img", 1 << 20)]);
    define_vm(&world.repository, &third, &[goods[1].clone(), on_inside]);
    // Read-only disks need no clone.
    let read_only = format!("'file:{},xvdb,r'", make_disk(&on_tmpfs, "read.img", 1 << 20).display());
    define_vm_with(&world.repository, &fourth, &[format!("'file:{},xvda,w'", goods[2].display()), read_only]);
    // Defined on tmpfs, with a disk that can be cloned.
    define_vm(&on_tmpfs, &fifth, std::slice::from_ref(&goods[3]));

    let client = world.client();
    for (vm, disk, reason) in [
        (VM.to_owned(), 1, "the file system tmpfs is not supported"),
        (second, 0, "made without reflinks"),
        (third, 1, "another file system"),
    ] {
        let listed = client.get(&format!("/vms/{vm}")).ok();
        assert_eq!((&listed["status"], &listed["snapshot_compatible"]), (&json!("ok"), &json!(false)), "{listed}");
        assert!(text(&listed["reason"]).contains(reason), "{listed}");
        for (number, entry) in listed["disks"].as_array().unwrap().iter().enumerate() {
            assert_eq!(entry["snapshot_compatible"], json!(number != disk), "{listed}");
        }
        assert!(text(&listed["disks"][disk]["incompatible_reason"]).contains(reason), "{listed}");
        let refused = client.post(&format!("/vms/{vm}/snapshots"));
        assert_eq!(refused.error(400), "not_snapshottable");
        assert!(text(&refused.json()["details"]).contains(reason), "{listed}");
    }
    let nothing = |repository: &Path| !repository.join("CoriolisSnapshots").exists();
    assert!(nothing(&world.repository) && nothing(&on_tmpfs) && nothing(&on_plain), "something was written");
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
    for (vm, good) in [(fourth, &goods[2]), (fifth, &goods[3])] {
        let taken = client.post(&format!("/vms/{vm}/snapshots")).ok();
        assert_eq!(taken["disks"].as_array().unwrap().len(), 1, "{taken}");
        assert_eq!(taken["disks"][0]["parent_path"], json!(good));
    }
    let _ = Command::new("umount").arg("--lazy").arg(&inside).status();
}
