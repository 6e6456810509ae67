//! The audit file: its lines, their aggregation, and its rotation.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, MB, PASSWORD, SNAPSHOTS, USER, VM, Volume, World, eventually, text, write_at};
use crate::needs_root;

/// The lines about clients.
fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let all = text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    all.filter(|line: &Value| line["who"] != "service").collect()
}

fn with_action<'a>(lines: &'a [Value], action: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["action"] == action).collect()
}

/// A service that writes its audit file in this folder.
fn world(folder: &Path, more: &str) -> (World, PathBuf) {
    let file = folder.join("audit.json");
    let world = World::with(512, |settings| {
        settings.sections = format!("[audit]\nfile = {file:?}\n{more}\n[metrics]\nenabled = true\n");
    });
    let disk = &world.define_vm(&[("a.img", 16 * MB)])[0];
    write_at(disk, 0, &vec![7; 16 << 20]);
    (world, file)
}

#[test]
fn audit_file_contains_json_lines() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let (mut world, file) = world(folder.path(), "");
    let client = world.client();
    let created = client.post(SNAPSHOTS);
    let first = text(&created.json()["id"]);
    let second = client.take_snapshot_id();
    let snapshot = format!("{SNAPSHOTS}/{second}");
    let disk = format!("{snapshot}/disks/a.img");
    client.get(&format!("{snapshot}?compareTo={first}")).ok();
    client.get(&format!("{disk}/chunks")).ok();
    client.get(&format!("{disk}/checksum")).ok();
    client.get(&format!("{snapshot}?compareTo={second}")).error(400);
    let stranger = world.anonymous_client();
    let hidden = "a-password-for-a-name";
    let refused: Vec<Answer> =
        ["root", "root", hidden].into_iter().map(|user| stranger.try_log_in(user, "wrong")).collect();
    assert!(refused.iter().all(|answer| answer.status == 401));
    assert_eq!(stranger.get("/vms").status, 401);
    assert_eq!(client.disk(&second, "a.img").len() as u64, 16 * MB);
    eventually("the export is in the audit file", || !with_action(&lines(&file), "export").is_empty());

    let all = lines(&file);
    for line in &all {
        for field in ["time", "who", "address", "action", "what", "outcome", "reason", "bytes", "ranges", "request_id"]
            .into_iter()
            .chain(["seq", "prev", "key", "mac", "hash"])
        {
            assert!(line.get(field).is_some(), "{field} is not in {line}");
        }
        assert!(text(&line["time"]).ends_with('Z') && line["address"] == "127.0.0.1", "{line}");
    }
    let one = |action: &str| {
        let found = with_action(&all, action);
        assert_eq!(found.len(), 1, "{action}: {found:?}");
        found[0].clone()
    };
    let create = with_action(&all, "create")[0];
    assert_eq!((&create["who"], &create["outcome"]), (&json!(USER), &json!("done")));
    assert_eq!(create["what"], format!("{VM}/{first}"));
    assert_eq!(create["request_id"], created.header("x-request-id"));
    let compared = with_action(&all, "compare");
    assert_eq!(compared.len(), 2, "{compared:?}");
    assert_eq!(compared[0]["what"], format!("{VM}/{second} since {first}"));
    assert_eq!((&compared[1]["outcome"], compared[1]["reason"].is_string()), (&json!("refused"), true));
    for action in ["chunks", "checksum"] {
        assert_eq!(one(action)["what"], format!("{VM}/{second}/a.img"));
    }
    let export = one("export");
    assert_eq!((&export["bytes"], &export["ranges"], &export["outcome"]), (&json!(16 * MB), &json!(1), &json!("done")));
    assert_eq!((&export["who"], &export["what"]), (&json!(USER), &json!(format!("{VM}/{second}/a.img"))));
    let request = one("request");
    assert_eq!((&request["who"], &request["what"]), (&Value::Null, &json!("/api/v1/vms")));
    // Failed log-ins show a hash instead of the name. The second failure is counted and written later.
    let failed = || -> Vec<Value> {
        let all = lines(&file);
        with_action(&all, "log-in").into_iter().filter(|line| line["outcome"] == "refused").cloned().collect()
    };
    eventually("the failed log-ins are in the audit file", || failed().len() == 3);
    let failed = failed();
    let accounts: Vec<String> = failed.iter().map(|line| text(&line["account"])).collect();
    assert!(accounts[0] == accounts[2] && accounts[0] != accounts[1], "{accounts:?}");
    assert!(failed.iter().all(|line| line["who"].is_null() && line["reason"].is_string()), "{failed:?}");
    for (line, answer) in failed.iter().zip([&refused[0], &refused[2], &refused[1]]) {
        assert_eq!(line["request_id"], answer.header("x-request-id"));
    }
    let (raw, log) = (fs::read_to_string(&file).unwrap(), world.exporter.log());
    for secret in [hidden, "root", PASSWORD, &client.token] {
        assert!(!raw.contains(secret), "{secret} is in the audit");
    }
    assert!(!log.contains(" audit action="), "the log contains audit lines, too");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // The hash is the same after a restart; SIGHUP reopens the file.
    world.exporter.restart();
    let stranger = world.anonymous_client();
    stranger.try_log_in("root", "wrong");
    let last = || lines(&file).last().map(|line| line["account"].clone()).unwrap_or_default();
    eventually("the account has the same hash", || last() == accounts[0].as_str());
    fs::rename(&file, folder.path().join("moved")).unwrap();
    world.exporter.signal(Signal::SIGHUP);
    eventually("a new file exists", || file.exists());
    stranger.try_log_in("root", "wrong");
    eventually("the new file is written to", || lines(&file).len() == 1);
}

#[test]
fn small_requests_are_aggregated_in_the_audit() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let (mut world, file) = world(folder.path(), "max_size = \"64KiB\"\nmax_files = 2");
    let client = world.client();
    let id = client.take_snapshot_id();
    let before = world.exporter.log().len();
    let requests = 1000;
    for n in 0..requests {
        client.disk_range(&id, "a.img", n * 4096, 4096);
    }
    let path = format!("/api/v1{SNAPSHOTS}/{id}/disks/a.img");
    let several = client.request(Method::GET, &path).header("Range", "bytes=0-9,20-29,40-49");
    assert_eq!(client.send(several).status, 206);
    let stranger = world.anonymous_client();
    for n in 0..requests {
        assert_eq!(stranger.get(&format!("/vms/{n}")).status, 401);
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}?squashChunks=true")).status, 200);
    }
    let all_counted = || {
        let all = lines(&file);
        let sum = |field: &str| with_action(&all, "export").iter().filter_map(|line| line[field].as_u64()).sum::<u64>();
        // A multipart body also contains part headers.
        sum("ranges") == requests + 3 && sum("requests") == requests + 1 && sum("bytes") > requests * 4096
    };
    eventually("all ranges are in the audit", all_counted);
    let all = lines(&file);
    assert!(with_action(&all, "export").len() <= 5, "{all:?}");
    assert!(with_action(&all, "request").len() <= 5 && with_action(&all, "chunks").len() <= 5, "{all:?}");
    assert!(!folder.path().join("audit.json.1").exists(), "the file was rotated");
    // At the default level, RUST_LOG=info, the log has no line per range either.
    let log = world.exporter.log();
    let answered = log[before..].lines().filter(|line| line.contains("answered") && line.contains("status=206"));
    assert!(answered.clone().count() > 0 && answered.clone().all(|line| line.contains("DEBUG")));

    // The remaining counts are written when the service stops.
    client.disk_range(&id, "a.img", 0, 4096);
    world.exporter.signal(Signal::SIGTERM);
    world.exporter.wait(Duration::from_secs(60));
    let all = lines(&file);
    let last = with_action(&all, "export").pop().unwrap();
    assert_eq!((&last["ranges"], &last["bytes"]), (&json!(1), &json!(4096)));
}

#[test]
fn audit_file_is_rotated_and_keeps_its_mode() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let (world, file) = world(folder.path(), "max_size = \"4KiB\"\nmax_files = 2");
    let client = world.client();
    let old = |n: u32| folder.path().join(format!("audit.json.{n}"));
    eventually("two old files exist", || {
        // Each copy has a line of its own.
        assert_eq!(client.get("/database").status, 200);
        old(2).exists()
    });
    for path in [file, old(1), old(2)] {
        assert!(lines(&path).iter().all(|line| line["action"] == "backup-db" || line["action"] == "log-in"));
        let metadata = fs::metadata(&path).unwrap();
        assert!(metadata.len() <= 4096 && metadata.permissions().mode() & 0o777 == 0o600, "{path:?}: {metadata:?}");
    }
    assert!(!old(3).exists());
}

#[test]
fn blocked_audit_file_does_not_block_requests() {
    needs_root!();
    let volume = Volume::xfs(512);
    let (world, file) = world(&volume.mount_point, "");
    let client = world.client();
    eventually("the log-in is in the audit file", || lines(&file).len() == 1);
    let frozen = volume.freeze();
    for _ in 0..100 {
        assert_eq!(client.get("/database").status, 200);
    }
    client.take_snapshot();
    assert_eq!(lines(&file).len(), 1, "the file system is not frozen");
    drop(frozen);
    eventually("the lines are written after the thaw", || lines(&file).len() == 102);
    let metrics = client.send(client.request(Method::GET, "/metrics")).body;
    assert!(String::from_utf8(metrics).unwrap().contains("ovm_exporter_audit_lines_dropped_total 0"));
}
