//! The status, the cost of snapshots, and the audit lines in the log.

use std::fs::File;
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Client, MB, PASSWORD, SNAPSHOTS, USER, VM, World, eventually, run, text, volume_space, write_at};
use crate::needs_root;

fn costs(client: &Client) -> Vec<(String, Option<u64>)> {
    let status = client.get("/status?cost=true").ok();
    let snapshots = status["snapshots"].as_array().unwrap().iter();
    snapshots.map(|snapshot| (text(&snapshot["id"]), snapshot["exclusive_bytes"].as_u64())).collect()
}

#[test]
fn snapshot_cost_is_the_space_its_deletion_frees() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", 32 * MB)])[0];
    let write = |at: u64, megabytes: u64| {
        write_at(disk, at * MB, &vec![7; usize::try_from(megabytes * MB).unwrap()]);
        File::open(disk).unwrap().sync_all().unwrap();
    };
    write(0, 20);
    let client = world.client();
    let take = || client.take_snapshot_id();
    let first = take();
    assert_eq!(costs(&client), [(first.clone(), Some(0))], "everything is shared");
    write(0, 3); // overwrites blocks of the first only
    let second = take();
    write(2, 4); // overwrites 1 MiB of the second only, and 3 MiB of both
    let third = take();
    write(10, 1); // overwrites blocks of all three
    let expected = [(first.clone(), Some(3 * MB)), (second.clone(), Some(MB)), (third.clone(), Some(0))];
    assert_eq!(costs(&client), expected);

    let free = || {
        world.volume.sync();
        volume_space(&world.repository)
    };
    let before = free();
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
    // XFS frees blocks in the background.
    eventually("3 MiB are freed", || free() >= before + 3 * MB);
    assert!(free() < before + 3 * MB + MB / 4, "{} freed", free() - before);
    // The blocks shared by both now belong to the second only.
    assert_eq!(costs(&client), [(second.clone(), Some(4 * MB)), (third.clone(), Some(0))]);
    // A copy outside the snapshots shares the blocks.
    let file = world.snapshot_folder(&second).join("a.img");
    run(Command::new("cp").arg("--reflink=always").arg(&file).arg(world.repository.join("copy")));
    assert_eq!(costs(&client)[0], (second.clone(), Some(0)));
    // With a lost snapshot all costs are unknown, since its shared blocks are.
    std::fs::remove_file(&file).unwrap();
    let status = client.get("/status?cost=true").ok();
    for snapshot in status["snapshots"].as_array().unwrap() {
        assert_eq!(snapshot["exclusive_bytes"], Value::Null);
        assert!(text(&snapshot["reason"]).contains("missing"), "{snapshot}");
    }
}

#[test]
fn status_is_json_or_text() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let id = client.take_snapshot_id();
    let status = client.get("/status").ok();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["creates"], json!({"limit": 2, "running": [], "waiting": []}));
    assert_eq!(status["exports"], json!({"limit": 12, "running": [], "waiting": []}));
    assert_eq!(status["log_ins"], json!({"limit": 16, "running": [], "waiting": []}));
    assert_eq!(status["cost_requests"], json!({"limit": 1, "running": [], "waiting": []}));
    assert_eq!(status["snapshots"], Value::Null, "costs are computed only on request");
    let repository = &status["repositories"][0];
    assert_eq!((&repository["snapshots"], &repository["status"]), (&json!(1), &json!("ok")));
    let total = repository["total_bytes"].as_u64().unwrap();
    assert_eq!(repository["min_free_bytes"], json!(total / 20));

    let page = |accept: &str, query: &str| {
        let request = client.request(Method::GET, &format!("/api/v1/status{query}"));
        client.send(request.header("Accept", accept))
    };
    for json in ["*/*", "application/json", "application/json, text/plain;q=0.5", "text/html"] {
        assert_eq!(page(json, "").header("content-type"), "application/json", "{json}");
    }
    let text_page = page("text/plain", "?cost=1");
    assert_eq!(text_page.header("content-type"), "text/plain; charset=utf-8");
    let text_page = String::from_utf8(text_page.body).unwrap();
    let cost = format!("{id} ");
    for expected in
        ["snapshots being created: 0 of 2", "exports: 0 of 12", "log-ins: 0 of 16", "1 snapshots", &cost, ": 0 B\n"]
    {
        assert!(text_page.contains(expected), "{text_page} lacks {expected:?}");
    }
    let of_vm = client.get(&format!("/status?cost=true&vm={VM}")).ok();
    assert_eq!(of_vm["snapshots"].as_array().unwrap().len(), 1);
    assert_eq!(client.get(&format!("/status?cost=true&vm={}", "f".repeat(32))).error(404), "not_found");
    for wrong in ["?cost=perhaps", "?vm=web-1&cost=true"] {
        assert_eq!(client.get(&format!("/status{wrong}")).error(400), "bad_request");
    }
    assert_eq!(world.anonymous_client().get("/status").error(401), "unauthorized");
    // The status works while the repository is unmounted.
    world.volume.unmount();
    let status = client.get("/status").ok();
    assert_eq!(status["repositories"][0]["status"], "error");
    world.volume.mount();
}

#[test]
fn audit_lines_name_user_address_action_and_outcome() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.environment.push(("RUST_LOG".to_owned(), "off".to_owned()));
        settings.policy = "max_snapshots_per_vm = 1".to_owned();
    });
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let id = client.take_snapshot_id();
    assert_eq!(client.post(SNAPSHOTS).status, 409);
    let lease = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}/{id}/lease"));
    client.send(lease.body(r#"{"ttl": "1h"}"#)).ok();
    client.delete(&format!("{SNAPSHOTS}/{id}/lease"));
    assert_eq!(client.post("/adopt").status, 200);
    client.delete(&format!("{SNAPSHOTS}/{id}"));
    client.delete(SNAPSHOTS);
    let stranger = world.anonymous_client();
    assert_eq!(stranger.get("/vms").status, 401);
    let wrong = json!({"username": "not-a-name-but-a-password", "password": "x"}).to_string();
    let login = stranger.request(Method::POST, "/api/v1/auth/login").body(wrong);
    assert_eq!(stranger.send(login).status, 401);

    let log = world.exporter.log();
    let mut lines: Vec<&str> = log.lines().filter(|line| line.contains(" audit ")).collect();
    let start = lines.remove(0);
    assert!(start.contains("action=\"start\" user=\"service\" address=- "), "{start}");
    assert!(client.get("/status").ok().get("audit").is_none(), "there is no audit file");
    let expected = [
        ("log-in", USER, "".to_owned(), "done"),
        ("create", USER, format!("{VM}/{id}"), "done"),
        ("create", USER, format!("{VM}/-"), "refused"),
        ("lease", USER, format!("{VM}/{id}"), "done"),
        ("lease-end", USER, format!("{VM}/{id}"), "done"),
        ("adopt", USER, "".to_owned(), "done"),
        ("delete", USER, format!("{VM}/{id}"), "done"),
        ("delete-all", USER, VM.to_owned(), "done"),
        ("request", "-", "/api/v1/vms".to_owned(), "refused"),
        ("log-in", "-", "".to_owned(), "refused"),
    ];
    assert_eq!(lines.len(), expected.len(), "{log}");
    for (line, (action, user, what, outcome)) in lines.iter().zip(expected) {
        for part in [
            format!("action=\"{action}\""),
            format!("user=\"{user}\""),
            "address=127.0.0.1".to_owned(),
            format!("what=\"{what}\""),
            format!("outcome=\"{outcome}\""),
        ] {
            assert!(line.contains(&part), "{line} lacks {part}");
        }
    }
    assert!(lines[2].contains("max_snapshots_per_vm"), "{}", lines[2]);
    assert!(!log.contains("not-a-name") && !log.contains(PASSWORD), "{log}");
}
