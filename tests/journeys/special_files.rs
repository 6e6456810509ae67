//! Pipes, sockets, devices and huge sparse files in a repository: the service neither blocks on them nor reads them.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use reqwest::Method;

use crate::harness::{MB, SNAPSHOTS, VM, World, memory_kib, run, text, write_at};
use crate::needs_root;

/// Functions that replace a file by a special one.
const SPECIAL: [(&str, fn(&Path)); 6] = [
    ("a pipe", |path| nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap()),
    ("a socket", bind),
    ("a device", |path| mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap()),
    ("a link to a device", |path| symlink("/dev/zero", path).unwrap()),
    ("a folder", |path| fs::create_dir(path).unwrap()),
    ("a sparse file", |path| fs::File::create(path).unwrap().set_len(2 << 30).unwrap()),
];

/// Makes a socket, even if the path is too long for bind(2).
fn bind(path: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    run(Command::new("mv").arg(dir.path().join("socket")).arg(path));
}

fn remove(path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap();
    if metadata.is_dir() { fs::remove_dir(path).unwrap() } else { fs::remove_file(path).unwrap() }
}

#[test]
fn special_ovsmeta_file_loses_only_the_friendly_names() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let (client, meta) = (world.client(), world.repository.join(".ovsmeta"));
    fs::write(&meta, r#"{"a.img": {"OBJECT_TYPE": "VIRTUAL_DISK", "SIMPLE_NAME": "system"}}"#).unwrap();
    assert_eq!(client.get(&format!("/vms/{VM}")).ok()["disks"][0]["friendly_name"], "system");
    remove(&meta);
    for (what, make) in SPECIAL {
        make(&meta);
        let lines = world.exporter.log().lines().count();
        let vms = client.get("/vms").ok();
        assert_eq!(vms[0]["snapshot_compatible"], true, "{what}: {vms}");
        assert!(vms[0]["disks"][0]["friendly_name"].is_null(), "{what}: {vms}");
        let id = client.take_snapshot_id();
        assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200, "{what}");
        let log = world.exporter.log();
        let warned = |line: &str| line.contains(" WARN ") && line.contains(".ovsmeta");
        assert!(log.lines().skip(lines).any(warned), "{what}: no warning in the log");
        remove(&meta);
    }
    assert!(memory_kib(world.exporter.pid(), "VmHWM") < 512 << 10, "the sparse file was read completely");
}

#[test]
fn special_definition_file_is_listed_as_an_error() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let other = "0004fb00000600000000000000000002";
    let (client, folder) = (world.client(), world.repository.join("VirtualMachines").join(other));
    fs::create_dir(&folder).unwrap();
    for (what, make) in SPECIAL {
        make(&folder.join("vm.cfg"));
        let vms = client.get("/vms").ok();
        let [good, broken] =
            [VM, other].map(|name| vms.as_array().unwrap().iter().find(|vm| vm["name"] == name).unwrap());
        assert_eq!((&good["status"], &broken["status"]), (&"ok".into(), &"error".into()), "{what}: {vms}");
        let expected = match what {
            "a sparse file" => "is larger than 1048576",
            "a link to a device" => "is a symbolic link, which is not followed",
            _ => "is not a regular file",
        };
        assert!(text(&broken["reason"]).contains(expected), "{what}: {broken}");
        assert_eq!(client.post(&format!("/vms/{other}/snapshots")).error(400), "not_snapshottable", "{what}");
        remove(&folder.join("vm.cfg"));
    }
}

#[test]
fn special_live_disk_file_blocks_nothing() {
    needs_root!();
    let world = World::new(512);
    let disk = world.define_vm(&[("a.img", MB)]).remove(0);
    write_at(&disk, 0, &[7; 4096]);
    let client = world.client();
    let id = client.take_snapshot_id();
    for (what, make) in SPECIAL {
        if what == "a sparse file" {
            continue;
        }
        remove(&disk);
        make(&disk);
        let vm = client.get(&format!("/vms/{VM}")).ok();
        let expected = if what == "a link to a device" { "symbolic link" } else { "not a regular file" };
        assert_eq!(vm["snapshot_compatible"], false, "{what}");
        assert!(text(&vm["disks"][0]["incompatible_reason"]).contains(expected), "{what}: {vm}");
        let cost = client.get("/status?cost=true").ok();
        let cost = cost["snapshots"].as_array().unwrap().iter().find(|one| one["id"] == *id).unwrap().clone();
        assert!(cost["exclusive_bytes"].is_null(), "{what}: {cost}");
        assert!(text(&cost["reason"]).contains(expected), "{what}: {cost}");
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}")).status, 200, "{what}");
    }
}

#[test]
fn special_file_in_a_snapshot_makes_it_lost() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[7; 4096]);
    let client = world.client();
    let file = |id: &str| -> PathBuf { world.snapshot_folder(id).join("a.img") };
    for (what, make) in SPECIAL {
        let (base, target) = (client.take_snapshot_id(), client.take_snapshot_id());
        fs::remove_file(file(&base)).unwrap();
        make(&file(&base));
        let disk = format!("{SNAPSHOTS}/{base}/disks/a.img");
        for path in [
            format!("{SNAPSHOTS}/{base}"),
            disk.clone(),
            format!("{disk}/chunks"),
            format!("{disk}/checksum"),
            format!("{disk}/checksum?blocks=true&blockSize=1048576"),
        ] {
            assert_eq!(client.get(&path).error(409), "snapshot_lost", "{what}: {path}");
        }
        let lines =
            client.request(Method::GET, &format!("/api/v1{disk}/chunks")).header("Accept", "application/x-ndjson");
        assert_eq!(client.send(lines).error(409), "snapshot_lost", "{what}");
        let range = client.request(Method::GET, &format!("/api/v1{disk}")).header("Range", "bytes=0-0");
        assert_eq!(client.send(range).error(409), "snapshot_lost", "{what}");
        assert_eq!(client.send(client.request(Method::HEAD, &format!("/api/v1{disk}"))).status, 409, "{what}");
        for path in [format!("{SNAPSHOTS}/{target}"), format!("{SNAPSHOTS}/{target}/disks/a.img/chunks")] {
            assert_eq!(client.get(&format!("{path}?compareTo={base}")).error(409), "base_lost", "{what}: {path}");
        }
        let list = client.get(SNAPSHOTS).ok();
        assert_eq!((&list[0]["disks"][0]["status"], list.as_array().unwrap().len()), (&"error".into(), 2), "{what}");
        remove(&file(&base));
        assert_eq!(client.delete(SNAPSHOTS).status, 200, "{what}");
    }
}
