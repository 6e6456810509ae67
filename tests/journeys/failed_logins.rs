//! Failed log-ins and refused requests are aggregated in the audit.

use std::fs;

use reqwest::Method;
use serde_json::Value;

use crate::harness::access::{self, rule, user};
use crate::harness::{Client, OTHER_VM, SNAPSHOTS, World, eventually};
use crate::needs_root;

#[test]
fn failed_logins_do_not_rotate_the_audit() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.json");
    let world = World::with(512, |settings| {
        settings.sections = format!("[audit]\nfile = {file:?}\nmax_size = \"32KiB\"\nmax_files = 1\n");
    });
    world.define_vm(&[("a.img", 1 << 20)]);
    world.client().take_snapshot();
    let stranger = world.anonymous_client();
    // One account many times, and many accounts once.
    let (of_one, accounts) = (100, 200);
    for n in 0..of_one {
        assert_eq!(stranger.try_log_in("root", "wrong").status, 401);
        assert_eq!(stranger.get(&format!("/vms/{n}")).status, 401);
    }
    for n in 0..accounts {
        assert_eq!(stranger.try_log_in(&format!("user{n}"), "wrong").status, 401);
    }
    let failed = || -> Vec<Value> {
        let text = fs::read_to_string(&file).unwrap();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|line| line["action"] == "log-in" && line["outcome"] == "refused").collect()
    };
    let requests = |lines: &[Value]| lines.iter().filter_map(|line| line["requests"].as_u64()).sum::<u64>();
    eventually("all failures are counted", || requests(&failed()) == of_one + accounts);
    let failed = failed();
    // One line each for eight accounts and for all others, and one more with each sum. A slow machine writes a few
    // more.
    assert!(failed.len() <= 30, "{} lines", failed.len());
    let root = &failed[0]["account"];
    let of_root: Vec<Value> = failed.iter().filter(|line| line["account"] == *root).cloned().collect();
    assert_eq!(requests(&of_root), of_one);
    let counted: u64 = failed.iter().filter_map(|line| line["accounts"].as_u64()).sum();
    assert!((150..=accounts).contains(&counted), "{counted} accounts");
    assert!(!folder.path().join("audit.json.1").exists(), "the file was rotated");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"create\"") && !text.contains("user1"), "{text}");
    assert_eq!(world.client().get(SNAPSHOTS).ok().as_array().unwrap().len(), 1);
}

#[test]
fn requests_without_effect_do_not_rotate_the_audit() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.json");
    let rules = rule("test-op", "operator", "vms = [\"web-1\"]") + &rule("test-all", "operator", "");
    let world = access::world_with(
        &format!("default_role = \"admin\"\n{rules}"),
        &format!("[audit]\nfile = {file:?}\nmax_size = \"96KiB\"\nmax_files = 1\n"),
    );
    world.client().take_snapshot();
    let (client, all) = (user(&world, "test-op"), user(&world, "test-all"));
    let id = client.take_snapshot_id();
    let lease = |client: &Client| {
        client.send(client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}/{id}/lease")).body("{\"ttl\": \"1h\"}"))
    };
    let count = 100_u64;
    for number in 0..count {
        let (vm, random) = (format!("{number:032x}"), format!("{number:08x}-9f3c-4f0e-8a52-0c3f3a1b2c4d"));
        assert_eq!(client.post(&format!("/vms/{vm}/snapshots")).status, 404);
        assert_eq!(client.delete(&format!("/vms/{vm}/snapshots/{random}")).status, 404);
        assert_eq!(client.get(&format!("/vms/{vm}")).status, 404);
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{random}/disks/a.img")).status, 404);
        // Of nothing, but with success.
        assert_eq!(all.delete(&format!("{SNAPSHOTS}/{random}")).status, 200);
        assert_eq!(all.delete(&format!("/vms/{OTHER_VM}/snapshots")).status, 200);
        lease(&client).ok();
    }
    assert_eq!(client.get("/status?cost=true&vm=ffff0000000000000000000000000000").status, 404);
    let of = |action: &str| -> Vec<Value> {
        let text = fs::read_to_string(&file).unwrap();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|line| line["action"] == action && line["who"] != "admin").collect()
    };
    let requests = |lines: &[Value]| lines.iter().filter_map(|line| line["requests"].as_u64()).sum::<u64>();
    let varied = [("create", count), ("delete", 2 * count), ("view", count), ("export", count)];
    for (action, expected) in varied.into_iter().chain([("delete-all", count), ("lease", count), ("cost", 1)]) {
        eventually(&format!("all of {action} are counted"), || requests(&of(action)) == expected);
        let lines = of(action);
        assert!(lines.len() <= 30, "{action}: {} lines", lines.len());
        // The line of all others does not say what they were about.
        let combined = lines.iter().filter(|line| line["what"] == "").count();
        assert_eq!(combined > 0, varied.contains(&(action, expected)), "{action}: {lines:?}");
    }
    let refused = of("export");
    assert!(refused.iter().all(|line| line["outcome"] == "refused" && line["role"] == "reader"), "{refused:?}");
    assert!(!folder.path().join("audit.json.1").exists(), "the file was rotated");
}
