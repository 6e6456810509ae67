//! What a user with access rules learns about VMs and snapshots that the rules hide.

use std::fs;
use std::io::Read;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::access::{create, lacks, rename, rule, user, world};
use crate::harness::{
    Answer, Client, Connection, HungMount, MB, OTHER_VM, SNAPSHOTS, VM, World, define_vm, eventually, make_disk, text,
    write_at,
};
use crate::{needs, needs_root};

const MISSING: &str = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d";

/// The answer without the id of its request.
fn said(answer: &Answer) -> (u16, Value) {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    (answer.status, json!([body["code"], body["details"]]))
}

#[test]
fn answers_name_only_vms_that_the_user_may_see() {
    needs_root!();
    let rules = rule("test-web", "operator", "vms = [\"web-1\"]");
    let world = world(&format!("default_role = \"admin\"\n{rules}"));
    let shared = make_disk(&world.repository, "shared.img", MB);
    define_vm(&world.repository, VM, std::slice::from_ref(&shared));
    define_vm(&world.repository, OTHER_VM, std::slice::from_ref(&shared));
    rename(&world, OTHER_VM, "web-1", "db-1");
    let (admin, web) = (world.client(), user(&world, "test-web"));
    for (client, named) in [(&admin, format!("is also a disk of VM {OTHER_VM}")), (&web, "of another VM,".to_owned())] {
        let listed = client.get("/vms").ok();
        let one = client.get(&format!("/vms/{VM}")).ok();
        let refused = create(client, VM, &json!({}));
        assert_eq!(refused.error(400), "not_snapshottable");
        for answer in [&listed[0], &one, &refused.json()] {
            assert!(answer.to_string().contains(&named), "{answer}");
        }
        if named.starts_with("of") {
            let all = format!("{listed}{one}{}", refused.json());
            assert!(!all.contains(OTHER_VM), "{all}");
        }
    }
    // A disk that the request names.
    let device = text(&admin.get(&format!("/vms/{VM}")).ok()["disks"][0]["device_name"]);
    let refused = create(&web, VM, &json!({"disks": [device]}));
    assert!(refused.status == 400 && !refused.json().to_string().contains(OTHER_VM), "{refused:?}");

    // Of two VMs with one uuid, only the visible one counts.
    let uuid = "0004fb00-0006-0000-0000-00000000abcd";
    for vm in [VM, OTHER_VM] {
        let path = world.repository.join("VirtualMachines").join(vm).join("vm.cfg");
        fs::write(&path, fs::read_to_string(&path).unwrap() + &format!("uuid = '{uuid}'\n")).unwrap();
    }
    let refused = admin.get(&format!("/vms/{uuid}"));
    assert!(refused.status == 400 && refused.json().to_string().contains("both have this uuid"), "{refused:?}");
    assert_eq!(web.get(&format!("/vms/{uuid}")).ok()["name"], VM);
}

#[test]
fn a_deletion_tells_nothing_about_hidden_snapshots() {
    needs_root!();
    let rules = rule("test-web", "operator", "vms = [\"web-1\"]")
        + &rule("test-label", "operator", "labels = { env = \"test\" }");
    let world = world(&format!("default_role = \"admin\"\n{rules}"));
    let admin = world.client();
    let other = text(&create(&admin, OTHER_VM, &json!({})).ok()["id"]);
    let unlabelled = admin.take_snapshot_id();
    // Folders that the database does not know: without a manifest, and with one of another VM, but without its disk.
    let folders = world.repository.join("CoriolisSnapshots");
    let (no_manifest, of_other) = ("11111111-9f3c-4f0e-8a52-0c3f3a1b2c4d", "22222222-9f3c-4f0e-8a52-0c3f3a1b2c4d");
    fs::create_dir(folders.join(no_manifest)).unwrap();
    fs::write(folders.join(no_manifest).join("a.img"), "x").unwrap();
    fs::create_dir(folders.join(of_other)).unwrap();
    let manifest = fs::read_to_string(folders.join(&other).join(".manifest.json")).unwrap();
    fs::write(folders.join(of_other).join(".manifest.json"), manifest.replace(&other, of_other)).unwrap();
    let delete = |client: &Client, id: &str| said(&client.delete(&format!("{SNAPSHOTS}/{id}")));
    for name in ["test-web", "test-label"] {
        let client = user(&world, name);
        let expected = delete(&client, MISSING);
        assert_eq!(expected.0, 404);
        for hidden in [&*other, no_manifest, of_other] {
            assert_eq!(delete(&client, hidden), expected, "{name} {hidden}");
        }
    }
    let labelled = user(&world, "test-label");
    assert_eq!(delete(&labelled, &unlabelled), delete(&labelled, MISSING));
    // A user who may see all VMs learns more.
    assert_eq!(delete(&admin, MISSING).0, 200);
    let code = |id: &str| admin.delete(&format!("{SNAPSHOTS}/{id}")).error(409);
    assert_eq!([code(&other), code(no_manifest), code(of_other)], ["other_vm", "not_adopted", "not_adopted"]);
    // The user's own is deleted, and a repetition succeeds.
    let web = user(&world, "test-web");
    let own = web.take_snapshot_id();
    assert_eq!((delete(&web, &own).0, delete(&web, &own).0), (200, 200));
}

#[test]
fn a_download_ends_when_its_user_loses_the_role() {
    needs_root!();
    let access = |rules: &str| format!("default_role = \"admin\"\n{rules}");
    let mut world = world(&access(&rule("test-web", "reader", "vms = [\"web-1\"]")));
    let big = make_disk(&world.repository, "big.img", 64 * MB);
    write_at(&big, 0, &vec![9; 64 << 20]);
    define_vm(&world.repository, VM, &[big]);
    let (admin, web) = (world.client(), user(&world, "test-web"));
    let id = admin.take_snapshot_id();
    let path = format!("{SNAPSHOTS}/{id}/disks/big.img");
    // The clients read nothing yet.
    let start = |client: &Client| world.send_get_with(client, &path, "Connection: close\r\n");
    let (of_admin, of_web) = (start(&admin), start(&web));
    let running = || admin.get("/status").ok()["exports"]["running"].as_array().unwrap().len();
    eventually("the downloads run", || running() == 2);
    let reload = |world: &mut World, access: &str| {
        world.exporter.settings().sections = format!("[access]\n{access}");
        world.exporter.write_config();
        let before = world.exporter.log().matches("config reloaded").count();
        world.exporter.signal(Signal::SIGHUP);
        eventually("reloaded", || world.exporter.log().matches("config reloaded").count() > before);
    };
    // Rules that still permit it change nothing.
    reload(&mut world, &access(&rule("test-web", "operator", "vms = [\"web-*\"]")));
    assert_eq!(web.disk_range(&id, "big.img", 0, 4096), vec![9; 4096]);
    eventually("the downloads still run", || running() == 2);
    reload(&mut world, &access(&rule("test-web", "viewer", "vms = [\"web-1\"]")));
    eventually("the user's download has ended", || running() == 1);
    let received = |mut download: Connection| {
        let mut bytes = Vec::new();
        let _ = download.read_to_end(&mut bytes);
        bytes.len() as u64
    };
    assert!(received(of_web) < 64 * MB);
    assert!(received(of_admin) > 64 * MB);
    lacks(&web.get(&path), "reader");
    let cut = "reason=\"the user's roles no longer permit it\"";
    eventually("the audit has the reason", || {
        world.exporter.log().lines().any(|line| line.contains("outcome=\"cut\"") && line.contains(cut))
    });
}

#[test]
fn a_hung_repository_does_not_delay_downloads_of_vms_that_rules_name() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let (_volume, second, mut world) = World::with_two_repositories(512);
    write_at(&world.define_vm(&[("a.img", MB)])[0], 0, &[7; 8192]);
    define_vm(&second, OTHER_VM, &[make_disk(&second, "b.img", MB)]);
    world.exporter.settings().sections = format!("[access]\n{}", rule("test-web", "operator", "vms = [\"web-*\"]"));
    world.exporter.restart();
    let web = user(&world, "test-web");
    let id = web.take_snapshot_id();
    assert_eq!(web.disk_range(&id, "a.img", 0, 4096), vec![7; 4096]);
    let _hung = HungMount::at(&second);
    // For longer than the names are kept.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(7);
    while std::time::Instant::now() < end {
        assert_eq!(web.disk_range(&id, "a.img", 0, 4096), vec![7; 4096]);
    }
}
