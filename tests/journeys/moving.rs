//! The service moves to another host, and the manager goes away: the steps of docs/operations.md.

use std::fs;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

use crate::harness::{Client, MB, ManagerBehavior, PASSWORD, SNAPSHOTS, USER, World, text, write_at};
use crate::needs_root;

/// Starts the service with the id of another machine.
const OTHER_MACHINE: &str = "echo 0123456789abcdef0123456789abcdef >\"$0/machine-id\" && \
                             mount --bind \"$0/machine-id\" /etc/machine-id && exec \"$@\"";

#[test]
fn another_host_continues_the_snapshots() {
    needs_root!();
    let mut world = World::new(512);
    let disk = &world.define_vm(&[("a.img", 4 * MB)])[0];
    write_at(disk, 0, &[1; 65536]);
    let client = world.client();
    let [base, unused] = [(); 2].map(|()| client.take_snapshot_id());
    let tickets = format!("/api/v1{SNAPSHOTS}/{base}/disks/a.img/tickets");
    let ticket = client.send(client.request(Method::POST, &tickets).json(&json!({}))).ok();
    let ticket = text(&ticket["path"]);
    // 1. The old host stops.
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(std::time::Duration::from_secs(60)).code(), Some(0));
    write_at(disk, MB, &[2; 4096]);
    // 2. The database and its key, on the new host in another folder.
    let dir = tempfile::tempdir().unwrap();
    let db_file = dir.path().join("moved.db");
    fs::copy(world.exporter.db_file(), &db_file).unwrap();
    // 3. and 4.
    let settings = world.exporter.settings();
    settings.db_file = Some(db_file);
    let words = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", OTHER_MACHINE];
    settings.launcher = words.map(str::to_owned).to_vec();
    settings.launcher.push(dir.path().display().to_string());
    world.exporter.restart();
    assert_eq!(client.send(client.request(Method::GET, "/readyz")).status, 200);
    // The token of the old host is valid, and so is the ticket.
    assert_eq!(client.snapshot_ids(), [base.clone(), unused.clone()]);
    let mut stranger = world.anonymous_client();
    stranger.token.clear();
    assert_eq!(stranger.send(stranger.request(Method::GET, &ticket)).status, 200);
    // The next increment is based on a snapshot of the old host.
    let next = client.take_snapshot_id();
    let changes = client.compare(&next, &base).to_string();
    assert!(changes.contains("\"start\":1048576") && !changes.contains("\"mode\":\"full\""), "{changes}");
    assert_eq!(client.disk(&next, "a.img")[..65536], [1; 65536]);
    // It removes what the old host has made.
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{unused}")).status, 200);
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{base}")).status, 200);
    let left = world.snapshot_files();
    assert!(left.iter().all(|path| path.display().to_string().contains(&next)), "{left:?}");
    assert_eq!(client.get("/status").ok()["repositories"][0]["unknown_snapshots"], 0);
}

#[test]
fn without_the_manager_only_log_ins_fail() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let id = client.take_snapshot_id();
    world.manager.set_behavior(ManagerBehavior::ServerError);
    assert_eq!(client.try_log_in(USER, PASSWORD).error(502), "manager_unavailable");
    // Tokens and the Unix socket work, and a backup with a token goes on.
    let next = client.take_snapshot_id();
    client.compare(&next, &id);
    assert_eq!(client.disk(&next, "a.img").len() as u64, MB);
    assert_eq!(Client::local(&world.exporter).snapshot_ids(), [id, next]);
    let (status, printed) = world.exporter.command(&["snapshots", "create", crate::harness::VM]);
    assert_eq!(status, Some(0), "{printed}");
}
