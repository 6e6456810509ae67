//! What is on the disks of the host and in a backup directory contains no password, token or secret of a ticket, so a
//! thief of them cannot log in with them.

use std::fs;
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::json;

use crate::harness::{Backup, MB, PASSWORD, SECRET, SNAPSHOTS, USER, World, text, write_at};
use crate::needs_root;

/// The files below `folder` that contain one of `secrets`.
fn files_with(folder: &Path, secrets: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, secrets));
        } else if path.is_file() && contains(&fs::read(&path).unwrap(), secrets) {
            found.push(path);
        }
    }
    found
}

fn contains(bytes: &[u8], secrets: &[&str]) -> bool {
    secrets.iter().any(|secret| bytes.windows(secret.len()).any(|window| window == secret.as_bytes()))
}

#[test]
fn repositories_database_and_backups_contain_no_credentials() {
    needs_root!();
    let world = World::new(512);
    write_at(&world.define_vm(&[("a.img", MB)])[0], 0, &[7; 4096]);
    let client = world.client();
    let id = client.take_snapshot_id();
    let log_in = json!({"username": USER, "password": PASSWORD, "refresh": true}).to_string();
    let log_in = client.send(client.request(Method::POST, "/api/v1/auth/login").body(log_in)).ok();
    let ticket = client.post(&format!("{SNAPSHOTS}/{id}/disks/a.img/tickets")).ok();
    let ticket = text(&ticket["path"]).split('/').nth(2).unwrap().to_owned();
    let target = tempfile::tempdir().unwrap();
    let backup = Backup::new(&world, target.path());
    backup.back_up();

    let (token, refresh) = (text(&log_in["token"]), text(&log_in["refresh_token"]));
    let secrets = [PASSWORD, SECRET, &client.token, &token, &refresh, &ticket];
    // The search finds them where they are.
    assert!(contains(format!("x{refresh}").as_bytes(), &secrets));
    assert_eq!(files_with(&world.repository, &secrets), [""; 0].map(PathBuf::from));
    assert_eq!(files_with(target.path(), &secrets), [""; 0].map(PathBuf::from));
    assert!(!contains(&fs::read(world.exporter.db_file()).unwrap(), &secrets), "the database has a secret");
    assert!(!contains(world.exporter.log().as_bytes(), &secrets), "the log has a secret");
}
