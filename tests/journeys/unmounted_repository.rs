//! A repository that is unmounted, also during a download, and mounted again; a frozen and a read-only one.

use std::io::Read;
use std::process::Command;

use reqwest::Method;

use crate::harness::{VM, World, define_vm, eventually, make_disk, run, text, write_at};
use crate::needs_root;

const SIZE: usize = 64 << 20;

#[test]
fn unmounted_repository_keeps_its_snapshots() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", SIZE as u64)])[0];
    let expected: Vec<u8> = (0..SIZE / 8).flat_map(|number| (number as u64).to_le_bytes()).collect();
    write_at(disk, 0, &expected);
    let client = world.client();
    let base = client.take_snapshot_id();
    let id = client.take_snapshot_id();
    let bytes = format!("/api/v1/vms/{VM}/snapshots/{id}/disks/a.img");
    let start = || {
        let mut response = client.request(Method::GET, &bytes).send().unwrap();
        let mut body = vec![0; 4096];
        response.read_exact(&mut body).unwrap();
        (response, body)
    };

    // Lazily unmounted while a file is open: the download completes.
    let (mut response, mut body) = start();
    run(Command::new("umount").arg("--lazy").arg(&world.volume.mount_point));
    response.read_to_end(&mut body).unwrap();
    assert!(body == expected, "the disk differs");
    drop(response);

    // Snapshots are unavailable, not lost, and nothing is written into the mount point.
    let document = format!("/vms/{VM}/snapshots/{id}");
    for path in [document.clone(), format!("{document}?compareTo={base}"), format!("{document}/disks/a.img")] {
        assert_eq!(client.get(&path).error(503), "repository_unavailable", "{path}");
    }
    assert_eq!(client.get(&format!("/vms/{VM}/snapshots")).ok()[0]["disks"][0]["status"], "error");
    let refused = client.post(&format!("/vms/{VM}/snapshots"));
    // An unavailable VM is not an unknown VM.
    assert_eq!(refused.error(503), "repository_unavailable");
    assert!(text(&refused.json()["details"]).contains("is it mounted?"), "{}", refused.json());
    let listed = &client.get("/vms").ok()[0];
    assert_eq!((&listed["name"], &listed["status"]), (&VM.into(), &"error".into()), "{listed}");
    let listed = client.get("/repositories").ok();
    assert_eq!(listed[0]["status"], "error", "{listed}");
    assert_eq!(client.send(client.request(Method::GET, "/readyz")).status, 503);
    assert_eq!(std::fs::read_dir(&world.volume.mount_point).unwrap().count(), 0);

    // Mounted again.
    world.volume.mount();
    assert_eq!(client.compare(&id, &base)["disks"][0]["chunks"], serde_json::json!([]));
    assert_eq!(client.send(client.request(Method::GET, "/readyz")).status, 200);

    // The device fails: the body ends early, and the log has the reason.
    let (mut response, mut body) = start();
    world.volume.shut_down();
    let ended = response.read_to_end(&mut body);
    assert!(ended.is_err() && body.len() < expected.len(), "{} bytes received", body.len());
    assert!(expected.starts_with(&body), "the service sent bytes that are not the snapshot's");
    assert!(world.exporter.log().contains("cannot read the disk; cutting the connection"));
    let refused = client.get(&document);
    assert!(refused.status == 500 || refused.status == 503, "{}", refused.status);
    let listed = client.get("/repositories").ok();
    assert_eq!((&listed[0]["status"], &listed[0]["reflink"]), (&"error".into(), &false.into()), "{listed}");
    drop(response);

    world.volume.unmount();
    world.volume.mount();
    assert!(client.disk(&id, "a.img") == expected, "the disk differs after the failure");
}

#[test]
fn frozen_repository_does_not_block_others() {
    needs_root!();
    let (volume, second, world) = World::with_two_repositories(512);
    let good = world.define_vm(&[("a.img", 1 << 20)]).remove(0);
    let other = "0004fb00000600000000000000000002";
    define_vm(&second, other, &[make_disk(&second, "b.img", 1 << 20)]);
    let client = world.client();
    {
        // Writes block, other requests do not.
        let _frozen = volume.freeze();
        let listed = client.get("/repositories").ok();
        let entry = listed.as_array().unwrap().iter().find(|entry| entry["reflink"] == false).unwrap();
        assert!(text(&entry["reason"]).contains("does not respond"), "{listed}");
        assert_eq!(client.get(&format!("/vms/{VM}")).ok()["snapshot_compatible"], true);
        let id = client.take_snapshot_id();
        assert!(client.disk(&id, "a.img") == std::fs::read(&good).unwrap());
        // The VM of the frozen repository cannot be snapshotted.
        assert_ne!(client.post(&format!("/vms/{other}/snapshots")).status, 200);
    }
    // After the thaw.
    eventually("the repository answers", || client.get(&format!("/vms/{other}")).json()["snapshot_compatible"] == true);
    assert_eq!(client.post(&format!("/vms/{other}/snapshots")).status, 200);
}

#[test]
fn read_only_repository_is_an_error() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", 1 << 20)]);
    let client = world.client();
    world.volume.remount("ro");
    let listed = client.get("/repositories").ok();
    assert_eq!((&listed[0]["status"], &listed[0]["reflink"]), (&"error".into(), &false.into()), "{listed}");
    assert!(text(&listed[0]["reason"]).contains("Read-only"), "{listed}");
    let (status, table) = world.exporter.command(&["check-config"]);
    assert!(status == Some(1) && table.contains("Read-only"), "{table}");
    assert_eq!(client.post(&format!("/vms/{VM}/snapshots")).error(503), "read_only");
    world.volume.remount("rw");
    client.take_snapshot();
}
