//! What changes while the confined service runs, or between two starts: files that replace others, a damaged database,
//! repositories and a config that name other places.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{
    AgentDb, Certificates, Client, Exporter, MB, Manager, Settings, VM, Volume, World, define_vm, eventually,
    eventually_some, make_disk, make_repository, text, write_at,
};
use crate::needs_root;

#[test]
fn files_that_replace_others_are_used() {
    needs_root!();
    let certificates_of = |world: &World, name: &str| world.certificates.path(name);
    let logs = tempfile::tempdir().unwrap();
    let (log, audit) = (logs.path().join("log/exporter.log"), logs.path().join("audit/audit.json"));
    for file in [&log, &audit] {
        fs::create_dir(file.parent().unwrap()).unwrap();
    }
    let db = tempfile::tempdir().unwrap();
    let db_file = db.path().join("exporter.db");
    let world = World::with(512, |settings| {
        // The first start creates the database and the key of tokens.
        settings.secret.clear();
        settings.db_file = Some(db_file.clone());
        settings.top = format!("log_file = {log:?}\n");
        settings.sections = format!("[log]\nmax_size = 2000\n[audit]\nfile = {audit:?}\nmax_size = 500\n");
        settings.environment.push(("RUST_LOG".to_owned(), "debug".to_owned()));
    });
    assert_eq!(fs::metadata(db.path().join("exporter.db.jwt-secret")).unwrap().permissions().mode() & 0o777, 0o600);
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[1; 4096]);
    let client = world.client();
    let first = client.take_snapshot_id();
    // A repository that is mounted again has another root folder.
    world.volume.unmount();
    world.volume.mount();
    let second = client.take_snapshot_id();
    client.compare(&second, &first);
    // Rotation renames files and creates others.
    for file in [&log, &audit] {
        let rotated = PathBuf::from(format!("{}.1", file.display()));
        eventually("the file is rotated", || {
            client.get("/vms").ok();
            client.get("/vms/x");
            rotated.exists()
        });
    }
    // A renewed certificate and key replace the files.
    world.certificates.issue("renewed");
    for ending in ["pem", "key"] {
        let (from, to) = (
            certificates_of(&world, &format!("renewed.{ending}")),
            certificates_of(&world, &format!("server.{ending}")),
        );
        fs::rename(from, to).unwrap();
    }
    world.exporter.signal(Signal::SIGHUP);
    eventually("the certificate is reloaded", || {
        fs::read_dir(log.parent().unwrap()).unwrap().any(|entry| {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
            text.contains("certificate reloaded")
        })
    });
    world.client().get("/vms").ok();
    assert_eq!(client.get("/status").ok()["confinement"]["files"], true);
}

/// The copies that are being made of the database.
fn copies(db_file: &Path) -> usize {
    fs::read_dir(format!("{}.copies", db_file.display())).unwrap().count()
}

#[test]
fn a_damaged_database_is_copied_and_rebuilt_inside_of_the_confinement() {
    needs_root!();
    let mut world = World::with(512, |settings| settings.top = "db_rebuild = true\n".to_owned());
    write_at(&world.define_vm(&[("a.img", MB)])[0], 0, &[7; 8192]);
    let first = world.client().take_snapshot_id();
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy.db");
    let (status, output) = world.exporter.command(&["backup-db", copy.to_str().unwrap()]);
    assert_eq!((status, copies(&world.exporter.db_file())), (Some(0), 0), "{output}");

    world.exporter.kill();
    let db_file = world.exporter.db_file();
    let mut bytes = fs::read(&db_file).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[8192..used].fill(0);
    fs::write(&db_file, &bytes).unwrap();
    world.exporter.restart();
    let client = world.client();
    assert_eq!(client.snapshot_ids(), std::slice::from_ref(&first));
    let log = world.exporter.log();
    assert!(log.contains("has been set aside") && log.contains("the database has been rebuilt"), "{log}");
    assert_eq!(client.get("/status").ok()["confinement"]["problems"], json!([]));
    // The new file is the one that the service may write and copy.
    let second = client.take_snapshot_id();
    client.compare(&second, &first);
    let (status, output) = world.exporter.command(&["backup-db", copy.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{output}");
    world.exporter.kill();
    world.exporter.settings().db_file = Some(copy);
    world.exporter.restart();
    assert_eq!(world.client().snapshot_ids(), [first, second]);
}

/// ovs-agent's entry for the repository at `mount_point`.
fn write_entries(agent: &AgentDb, mount_points: &[&Path]) {
    let fields: Vec<_> = mount_points.iter().map(|path| [("mount_point", path.to_str().unwrap())]).collect();
    let names = mount_points.iter().map(|path| path.file_name().unwrap().to_str().unwrap());
    let entries: Vec<(&str, &[(&str, &str)])> = names.zip(&fields).map(|(name, fields)| (name, &fields[..])).collect();
    agent.write_repositories(&entries);
}

#[test]
fn a_new_repository_elsewhere_needs_a_restart_and_says_so() {
    needs_root!();
    const IDS: [&str; 3] =
        ["0004fb0000030000a1b2c3d4e5f60001", "0004fb0000030000a1b2c3d4e5f60002", "0004fb0000030000a1b2c3d4e5f60003"];
    let (volume, other) = (Volume::xfs(512), Volume::xfs(512));
    let known = make_repository(&volume.mount_point, IDS[0]);
    let agent = AgentDb::new();
    write_entries(&agent, &[&known]);
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let mut settings = Settings::new(&certificates, &manager, &[]);
    settings.agent_db = Some(agent.path().to_owned());
    let mut exporter = Exporter::start(settings);
    let client = Client::logged_in(&exporter, &certificates);
    // Beside the known one it needs none.
    let beside = make_repository(&volume.mount_point, IDS[1]);
    define_vm(&beside, VM, &[make_disk(&beside, "a.img", MB)]);
    let elsewhere = make_repository(&other.mount_point, IDS[2]);
    write_entries(&agent, &[&known, &beside, &elsewhere]);
    let entry = |client: &Client, id: &str| {
        let list = client.get("/repositories").ok();
        list.as_array().unwrap().iter().find(|entry| entry["id"] == id).cloned()
    };
    let refused = eventually_some("the repository is listed", || entry(&client, IDS[2]));
    assert!(refused["status"] == "error" && text(&refused["reason"]).contains("restart the service"), "{refused}");
    assert_eq!(entry(&client, IDS[1]).unwrap()["status"], "ok");
    exporter.wait_for_log("unusable repository");
    client.take_snapshot_id();
    let (_, status) = exporter.command(&["status"]);
    assert!(status.contains("restart the service"), "{status}");
    exporter.restart();
    let client = Client::logged_in(&exporter, &certificates);
    assert_eq!(entry(&client, IDS[2]).unwrap()["status"], "ok");
}

#[test]
fn a_changed_config_that_names_other_places_needs_a_restart_and_says_so() {
    needs_root!();
    let mut world = World::new(512);
    let elsewhere = tempfile::tempdir().unwrap();
    let place = |name: &str| elsewhere.path().join(name);
    fs::create_dir_all(place("mounts/repository")).unwrap();
    // A changed config that needs none of this is loaded.
    world.exporter.settings().sections = "[[access.rules]]\nusers = [\"x\"]\nrole = \"viewer\"\n".to_owned();
    world.exporter.write_config();
    world.exporter.signal(Signal::SIGHUP);
    world.exporter.wait_for_log("config reloaded");
    assert!(!world.exporter.log().contains("may not use"), "{}", world.exporter.log());

    let repository = place("mounts/repository");
    world.exporter.settings().paths.push(repository.clone());
    world.exporter.settings().top = format!("log_file = {:?}\n", place("exporter.log"));
    world.exporter.write_config();
    world.exporter.signal(Signal::SIGHUP);
    for (key, path) in [("repositories.paths", repository), ("log_file", place("exporter.log"))] {
        world.exporter.wait_for_log(&format!("{key}: the running service may not use {}", path.display()));
    }
    world.exporter.wait_for_log("restart the service");
    world.client().get("/vms").ok();
}
