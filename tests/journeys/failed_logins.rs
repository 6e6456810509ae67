//! Failed log-ins are aggregated in the audit.

use std::fs;

use serde_json::Value;

use crate::harness::{SNAPSHOTS, World, eventually};
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
