//! A fault of one repository is reported, and does not affect the others.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;

use crate::harness::{
    Certificates, Client, Exporter, HungMount, MB, Manager, OTHER_VM, ProcessStats, Random, Settings, VM, Volume,
    World, define_vm, eventually, eventually_within, make_disk, make_repository, snapshot_folders, text, write_at,
};
use crate::hung_device::TwoRepositories;
use crate::{needs, needs_root};

/// A VM that is defined in the healthy repository and has a disk in the other.
const BOTH: &str = "0004fb00000600000000000000000002";
/// A VM in the other repository.
const OTHER: &str = "0004fb00000600000000000000000003";
const SECOND: &str = "0004fb00000300000000000000000002";

fn entry<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found = list.as_array().unwrap().iter().find(|entry| entry["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}"))
}

/// A healthy repository and another one, with the three VMs.
fn two_repositories() -> (Volume, PathBuf, World) {
    let (volume, second, world) = World::with_two_repositories(512);
    let own = world.define_vm(&[("a.img", 4 * MB)]).remove(0);
    write_at(&own, 0, &Random(1).bytes(MB));
    let disks = [make_disk(&world.repository, "b.img", MB), make_disk(&second, "c.img", MB)];
    define_vm(&world.repository, BOTH, &disks);
    define_vm(&second, OTHER, &[make_disk(&second, "d.img", 4 * MB)]);
    (volume, second, world)
}

/// Checks that all operations work in the healthy repository.
fn check_healthy_repository(world: &World, client: &Client) {
    assert_eq!(entry(&client.get("/vms").ok(), VM)["snapshot_compatible"], true);
    assert_eq!(client.get(&format!("/vms/{VM}")).ok()["snapshot_compatible"], true);
    let id = client.take_snapshot_id();
    assert_eq!(client.disk(&id, "a.img").len() as u64, 4 * MB);
    assert_eq!(client.delete(&format!("/vms/{VM}/snapshots/{id}")).status, 200);
    assert_eq!(world.client().get("/capabilities").status, 200, "a log-in fails");
}

#[test]
fn repository_hung_at_the_start_is_reported_and_blocks_nothing() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let (volume, second, mut world) = two_repositories();
    world.exporter.kill();
    let hung = HungMount::at(&second);
    world.exporter.restart();
    let client = world.client();

    // The VM with a disk there is listed with the reason; an entry says that the VMs defined there are unknown.
    let listed = client.get("/vms").ok();
    let both = entry(&listed, BOTH);
    assert_eq!((&both["snapshot_compatible"], &both["status"]), (&false.into(), &"ok".into()), "{both}");
    assert!(text(&both["disks"][1]["incompatible_reason"]).contains("does not respond"), "{both}");
    let unknown = entry(&listed, SECOND);
    assert_eq!((&unknown["status"], &unknown["unavailable_repository"]), (&"error".into(), &SECOND.into()));
    for (method, path) in [(Method::GET, ""), (Method::POST, "/snapshots"), (Method::GET, "/snapshots")] {
        let answer = client.send(client.request(method.clone(), &format!("/api/v1/vms/{OTHER}{path}")));
        assert_eq!(answer.error(503), "repository_unavailable", "{method} {path}");
        assert!(!answer.header("retry-after").is_empty());
    }
    assert_eq!(client.post(&format!("/vms/{BOTH}/snapshots")).error(503), "repository_unavailable");
    let ready = client.send(client.request(Method::GET, "/readyz"));
    assert!(ready.status == 503 && ready.json()["problems"].to_string().contains(SECOND), "{}", ready.json());
    check_healthy_repository(&world, &client);

    // Disconnected clients leave no blocked threads.
    let before = ProcessStats::of(&world.exporter).threads();
    for _ in 0..200 {
        drop(world.send_get(&client, "/vms"));
    }
    eventually("the threads of disconnected clients end", || {
        ProcessStats::of(&world.exporter).threads() <= before + 40
    });
    let started = Instant::now();
    check_healthy_repository(&world, &client);
    // Much less than if each request waited for the hung repository.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());

    // The recovery is noticed without a restart.
    drop(hung);
    eventually("the repository is available", || client.get(&format!("/vms/{OTHER}")).status == 200);
    assert_eq!(client.post(&format!("/vms/{BOTH}/snapshots")).status, 200);
    eventually("the service is ready", || client.send(client.request(Method::GET, "/readyz")).status == 200);
    drop(volume);
}

#[test]
fn vms_of_a_hung_repository_stay_in_the_list() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let (_volume, second, world) = two_repositories();
    let client = world.client();
    assert_eq!(entry(&client.get("/vms").ok(), OTHER)["status"], "ok");
    let id = text(&client.post(&format!("/vms/{OTHER}/snapshots")).ok()["id"]);
    let hung = HungMount::at(&second);
    let listed = client.get("/vms").ok();
    let other = entry(&listed, OTHER);
    assert_eq!((&other["status"], &other["snapshot_compatible"]), (&"error".into(), &false.into()), "{other}");
    assert!(text(&other["reason"]).contains("does not respond"), "{other}");
    assert_eq!(other["snapshots"], serde_json::json!([id]));
    assert_eq!(client.post(&format!("/vms/{OTHER}/snapshots")).error(503), "repository_unavailable");
    // Deletions do not wait for it.
    let path = format!("/vms/{OTHER}/snapshots/{id}");
    assert_eq!(client.delete(&path).status, 200);
    assert_eq!(client.delete(&path).status, 200);
    let status = client.get("/status").ok();
    assert_eq!(status["leftovers"][0]["id"], id, "{status}");
    check_healthy_repository(&world, &client);
    drop(hung);
    // The files are removed when the repository responds again, without a restart.
    let folder = second.join("CoriolisSnapshots").join(&id);
    assert!(folder.exists());
    eventually("the files are removed", || !folder.exists());
    eventually("no leftovers are listed", || client.get("/status").ok()["leftovers"] == serde_json::json!([]));
}

#[test]
fn start_does_not_wait_for_leftovers_in_a_hung_repository() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let (volume, second, mut world) = two_repositories();
    let client = world.client();
    let id = text(&client.post(&format!("/vms/{OTHER}/snapshots")).ok()["id"]);
    // The snapshot is deleted, its files are not.
    volume.unmount();
    assert_eq!(client.delete(&format!("/vms/{OTHER}/snapshots/{id}")).status, 200);
    world.exporter.kill();
    volume.mount();
    let hung = HungMount::at(&second);
    world.exporter.restart();
    let client = world.client();
    check_healthy_repository(&world, &client);
    assert_eq!(client.get("/status").ok()["leftovers"][0]["id"], id);
    drop(hung);
    let folder = second.join("CoriolisSnapshots").join(&id);
    eventually("the files are removed", || !folder.exists());
}

#[test]
fn failed_device_affects_only_its_vms() {
    needs_root!();
    let (volume, _second, world) = two_repositories();
    let client = world.client();
    assert_eq!(client.get("/vms").ok().as_array().unwrap().len(), 3);
    volume.shut_down();
    let listed = client.get("/vms").ok();
    for vm in [BOTH, OTHER] {
        let entry = entry(&listed, vm);
        assert!(entry["snapshot_compatible"] == false && !text(&entry["reason"]).is_empty(), "{entry}");
    }
    check_healthy_repository(&world, &client);
    for vm in [BOTH, OTHER] {
        let refused = client.post(&format!("/vms/{vm}/snapshots"));
        assert_eq!(refused.error(503), "repository_unavailable", "{vm}");
    }
}

#[test]
fn vm_list_fails_if_the_only_repository_hangs() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let dir = tempfile::tempdir().unwrap();
    let repository = make_repository(dir.path(), SECOND);
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let _hung = HungMount::at(&repository);
    let exporter = Exporter::start(Settings::new(&certificates, &manager, &[&repository]));
    let client = Client::logged_in(&exporter, &certificates);
    for path in ["/vms".to_owned(), format!("/vms/{VM}"), format!("/vms/{VM}/snapshots")] {
        assert_eq!(client.get(&path).error(503), "repository_unavailable", "{path}");
    }
    assert_eq!(client.send(client.request(Method::GET, "/healthz")).status, 200);
}

#[test]
fn truncated_definitions_do_not_hide_other_vms() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    // Forty truncated definitions with a modification time in the future.
    let later = std::time::SystemTime::now() + Duration::from_secs(30);
    for number in 0..40 {
        let folder = world.repository.join("VirtualMachines").join(format!("{number:032x}"));
        fs::create_dir(&folder).unwrap();
        let mut file = fs::File::create(folder.join("vm.cfg")).unwrap();
        file.write_all(b"disk = ['file:/").unwrap();
        file.set_modified(later).unwrap();
    }
    let client = world.client();
    let listed = client.get("/vms").ok();
    assert_eq!(listed.as_array().unwrap().len(), 41);
    assert_eq!(entry(&listed, VM)["snapshot_compatible"], true);
    assert_eq!(client.get(&format!("/vms/{VM}")).status, 200);
    client.take_snapshot();
}

#[test]
fn files_hidden_by_a_stray_folder_are_not_reported_as_deleted() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let ids: Vec<String> = (0..4).map(|_| client.take_snapshot_id()).collect();
    world.volume.unmount();
    make_repository(world.repository.parent().unwrap(), world.repository.file_name().unwrap().to_str().unwrap());
    // The definitions are not reported as deleted either.
    let listed = client.get("/vms").ok();
    let reason = text(&entry(&listed, VM)["reason"]);
    assert!(reason.contains("is not mounted: its folder is on another file system than before"), "{listed}");
    assert_eq!(client.post(&format!("/vms/{VM}/snapshots")).error(503), "repository_unavailable");
    for id in &ids {
        assert_eq!(client.delete(&format!("/vms/{VM}/snapshots/{id}")).status, 200);
    }
    let left = client.get("/status").ok()["leftovers"].clone();
    assert_eq!(left.as_array().unwrap().len(), ids.len(), "{left}");
    world.volume.mount();
    let folders = || snapshot_folders(&world.repository).len();
    assert_eq!(folders(), ids.len());
    // One round removes the files of one VM.
    eventually("some files are removed", || folders() < ids.len());
    eventually_within(Duration::from_secs(45), "all files are removed", || folders() == 0);
}

#[test]
fn checksums_of_a_hung_repository_do_not_block_others() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let TwoRepositories { device, volume, world, client, healthy_id, id, .. } = TwoRepositories::new();
    volume.unmount();
    volume.mount();
    // Now the metadata is cached, but not the data.
    let disk_path = format!("/vms/{OTHER_VM}/snapshots/{id}/disks/b.img");
    let first = client.request(Method::GET, &format!("/api/v1{disk_path}")).header("Range", "bytes=0-4095");
    assert_eq!(client.send(first).status, 206);
    let hanging = device.hang();
    let ask = |query: &str| world.send_get(&client, &format!("{disk_path}/{query}"));
    let requests: Vec<_> = (0..8).map(|number| ask(&format!("checksum?start={}", number * 4096))).collect();
    let sum = || client.get(&format!("/vms/{VM}/snapshots/{healthy_id}/disks/a.img/checksum"));
    assert_eq!(sum().status, 200);
    drop(requests);
    assert_eq!(
        client.get(&format!("/vms/{VM}/snapshots/{healthy_id}/disks/a.img/checksum?algorithm=sha256")).status,
        200
    );
    drop(hanging);
    eventually("the device responds again", || {
        client.get(&format!("/vms/{OTHER_VM}/snapshots/{id}/disks/b.img/checksum")).status == 200
    });
}
