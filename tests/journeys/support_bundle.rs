//! `support-bundle`: what a report about a fault needs, and no secret.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Exporter, MB, PASSWORD, SECRET, USER, VM, Volume, World, eventually, output, text, write_at};
use crate::hung_device::TwoRepositories;
use crate::{needs, needs_root};

/// Makes a bundle. Returns its files by name, and what the command printed.
fn bundle(exporter: &Exporter, archive: &Path) -> (BTreeMap<String, String>, String) {
    let (status, printed) = exporter.command(&["support-bundle", "--output", archive.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{printed}");
    assert_eq!(archive.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    let dir = tempfile::tempdir().unwrap();
    output(Command::new("tar").arg("-xf").arg(archive).args(["--strip-components=1", "-C"]).arg(dir.path()));
    let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let bytes = fs::read(&path).unwrap();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), String::from_utf8_lossy(&bytes).into_owned())
    };
    (entries.map(read).collect(), printed)
}

fn has_none(files: &BTreeMap<String, String>, secrets: &[&str]) {
    for secret in secrets {
        assert!(secret.len() > 8, "{secret:?}");
        for (name, found) in files {
            assert!(!found.contains(secret), "{secret:?} is in {name}");
        }
    }
}

#[test]
fn bundle_has_what_a_report_needs_and_no_secret() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("logs");
    fs::create_dir(&log).unwrap();
    let mut world = World::with(512, |settings| {
        settings.top = format!("log_file = {:?}\n", log.join("exporter.log"));
        settings.jwt = "recheck_after = \"1h\"\n".to_owned();
        settings.sections = "[hooks.sync]\nsecret = \"sync-secret-4711\"\n[metrics]\nenabled = true\n".to_owned();
    });
    let disk = &world.define_vm(&[("a.img", 4 * MB)])[0];
    (0..4).for_each(|n| write_at(disk, 2 * n * 65536, &[1; 4096]));
    world.volume.sync();
    let client = world.client();
    let id = client.take_snapshot_id();
    let login = json!({"username": USER, "password": PASSWORD, "refresh": true}).to_string();
    let login = client.send(client.request(Method::POST, "/api/v1/auth/login").body(login)).json();
    let tickets = format!("/api/v1/vms/{VM}/snapshots/{id}/disks/a.img/tickets");
    let ticket = client.send(client.request(Method::POST, &tickets).json(&json!({}))).ok();
    let url = text(&ticket["url"]);
    let ticket = url.split('/').max_by_key(|part| part.len()).unwrap();
    assert!(ticket.len() > 30, "{url}");
    client.try_log_in(USER, "wrong-password-0815");

    let archive = dir.path().join("bundle.tar");
    let (files, printed) = bundle(&world.exporter, &archive);
    assert!(printed.contains("names of VMs") && printed.contains("no secrets"), "{printed}");
    let has = |name: &str, expected: &str| {
        let found = files.get(name).unwrap_or_else(|| panic!("{name}: {}", files["about.txt"]));
        assert!(found.contains(expected), "{name} lacks {expected:?}: {found}");
    };
    has("config.toml", "secret = \"(not shown ");
    has("config.toml", "snapshot_concurrency = 2");
    has("config-faults.txt", "");
    has("log.txt", "snapshot created");
    has("status.json", "\"owed_hooks\"");
    has("readyz.json", "\"status\"");
    has("vms.json", VM);
    has("repositories.json", "0004fb0000030000");
    has("metrics.txt", "ovm_exporter_snapshots_total");
    has("capabilities.json", "export_concurrency");
    has("versions.txt", env!("CARGO_PKG_VERSION"));
    has("versions.txt", "Linux version");
    has("mounts.txt", "xfs");
    has("database.txt", "in use by the service");
    has("process-limits.txt", "Max open files");
    has("repository-1.txt", "xfs at ");
    has("repository-1.txt", "1 disks\n4 extents, 4194304 bytes: \"a.img\"\n");
    has("repository-1.txt", "reflink=1");
    serde_json::from_str::<Value>(&files["status.json"]).unwrap();
    let tls_key = fs::read_to_string(world.certificates.path("server.key")).unwrap();
    let mut secrets = vec![
        SECRET,
        PASSWORD,
        "sync-secret-4711",
        "c3luYy1zZWNyZXQtNDcxMQ", // in base64, as it is sent to guests
        "wrong-password-0815",
        client.token.as_str(),
        ticket,
        login["token"].as_str().unwrap(),
        login["refresh_token"].as_str().unwrap(),
    ];
    secrets.extend(tls_key.lines().filter(|line| !line.starts_with("-----")));
    has_none(&files, &secrets);
    // An archive is never replaced.
    let (status, printed) = world.exporter.command(&["support-bundle", "--output", archive.to_str().unwrap()]);
    assert!(status == Some(1) && printed.contains("File exists"), "{printed}");

    // Without the service, with a wrong config, and with a key of the service's own.
    world.exporter.settings().secret = String::new();
    world.exporter.restart();
    let key = fs::read_to_string(format!("{}.jwt-secret", world.exporter.db_file().display())).unwrap();
    let client = world.client();
    client.get("/vms").ok();
    world.exporter.signal(Signal::SIGTERM);
    world.exporter.wait(std::time::Duration::from_secs(60));
    world.exporter.settings().policy = "snapshot_concurrency = 0\n".to_owned();
    world.exporter.settings().ovm_endpoint = "https://root:hidden-word@127.0.0.1".to_owned();
    world.exporter.write_config();
    let (files, printed) = bundle(&world.exporter, &dir.path().join("stopped.tar"));
    assert!(printed.contains("status.json  missing: the service: "), "{printed}");
    assert!(files["about.txt"].contains("status.json: the state of the service (GET /api/v1/status); MISSING: "));
    assert!(files["config-faults.txt"].contains("policy.snapshot_concurrency: invalid number 0"));
    assert!(files["database.txt"].contains("whole, and closed"), "{}", files["database.txt"]);
    assert!(files["log.txt"].contains("stopped"));
    has_none(&files, &["hidden-word", key.trim(), client.token.as_str()]);
}

#[test]
fn a_hung_repository_is_left_out() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let TwoRepositories { device, volume, world, .. } = TwoRepositories::new();
    volume.unmount();
    volume.mount();
    let hanging = device.hang();
    let dir = tempfile::tempdir().unwrap();
    let (files, printed) = bundle(&world.exporter, &dir.path().join("bundle.tar"));
    assert!(printed.contains(".txt  missing: it took longer than 10 s"), "{printed}");
    let found: Vec<_> = files.iter().filter(|(name, _)| name.starts_with("repository-")).collect();
    assert!(found.len() == 1 && found[0].1.contains("1 disks"), "{found:?}");
    assert!(files.contains_key("status.json"), "{printed}");
    // The command has ended, but what it left in the repository still hangs.
    let left = left_behind(&volume);
    assert_eq!(left.len(), 1, "{left:?}");
    drop(hanging);
    eventually("what was left behind ends", || left_behind(&volume).is_empty());
}

/// The processes of `support-bundle` that examine a repository of the volume, and their states.
fn left_behind(volume: &Volume) -> Vec<String> {
    let path = volume.mount_point.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let is_one = |process: &PathBuf| {
        let words = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
        words.contains("\0support-item\0repository\0") && words.contains(path)
    };
    let state = |process: PathBuf| fs::read_to_string(process.join("stat")).unwrap_or_default();
    processes.filter(is_one).map(state).collect()
}
