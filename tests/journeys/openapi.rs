//! The service answers as `tests/openapi.json` says, whatever is sent. Schemathesis makes the requests: those that the
//! document permits, those that it does not, and sequences in which one answer leads to the next request.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::access::{rule, user, world_with};
use crate::harness::{MB, PASSWORD, SNAPSHOTS, USER, VM, World, define_vm, make_disk, text, write_at};
use crate::{needs, needs_root};

/// Seconds of the test as an operator, and as an administrator on the routes that only that role has.
const SECONDS: [&str; 2] = ["90", "20"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn schemathesis() -> PathBuf {
    root().join("target/schemathesis/bin/schemathesis")
}

/// The document, in which the schemas at these places in `components` often permit only what the service has.
fn document(known: &[(&str, &Value)]) -> Value {
    let mut document: Value = serde_json::from_slice(&fs::read(root().join("tests/openapi.json")).unwrap()).unwrap();
    for (place, value) in known {
        let schema = document["components"].pointer_mut(place).unwrap_or_else(|| panic!("there is no {place}"));
        *schema = json!({"anyOf": [{"enum": [value]}, schema]});
    }
    document
}

/// Runs Schemathesis as this user.
fn run(world: &World, document: &Path, name: &str, more: &[&str]) {
    let output = Command::new(schemathesis())
        .current_dir(document.parent().unwrap())
        .arg("--config-file")
        .arg(root().join("tests/schemathesis.toml"))
        .args(["run", "--checks", "all", "--continue-on-failure", "--no-color", "--generation-database", "none"])
        .args(["--suppress-health-check", "all", "--request-timeout", "60", "--tls-verify"])
        .arg(world.certificates.ca())
        .args(["--url", &format!("https://localhost:{}", world.exporter.port)])
        .args(["--header", &format!("Authorization: Bearer {}", user(world, name).token)])
        .args(more)
        .arg(document)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    // Otherwise the requests never reached what they are to test.
    let cases = printed.lines().find_map(|line| line.trim().split_once(" generated, ")?.0.parse::<u32>().ok());
    assert!(cases.is_some_and(|cases| cases > 100), "{printed}");
}

#[test]
fn service_answers_as_documented() {
    needs_root!();
    needs!(schemathesis().exists(), "Schemathesis (make schemathesis)");
    let rules = rule("test-operator", "operator", "") + &rule("test-admin", "admin", "") + &rule("admin", "admin", "");
    let world = world_with(&rules, "[metrics]\nenabled = true\nrequire_token = true\n");
    let disks = [("a.img", 7), ("c.img", 9)].map(|(name, byte)| {
        let disk = make_disk(&world.repository, name, MB);
        (0..8).for_each(|number| write_at(&disk, number * 100_000, &[byte; 8192]));
        disk
    });
    define_vm(&world.repository, VM, &disks);
    let client = world.client();
    let base = client.take_snapshot();
    write_at(&disks[0], 50_000, &[1; 4096]);
    let newer = client.take_snapshot();
    let known = [
        ("/parameters/vm/schema", &json!(VM)),
        ("/parameters/costOf/schema", &json!(VM)),
        ("/parameters/snapshot/schema", &newer["id"]),
        ("/parameters/compareTo/schema", &base["id"]),
        ("/parameters/disk/schema", &json!("a.img")),
        ("/schemas/VmName", &json!(VM)),
        ("/schemas/DiskName", &json!("a.img")),
        ("/schemas/Login", &json!({"username": USER, "password": PASSWORD})),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("openapi.json");
    fs::write(&path, document(&known).to_string()).unwrap();
    // These snapshots are another user's, so an operator may not delete them.
    run(&world, &path, "test-operator", &["--max-time", SECONDS[0]]);
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{}", text(&newer["id"]))).status, 200);
    let routes = ["/api/v1/adopt", "/api/v1/database", "/metrics"].map(|route| ["--include-path", route]).concat();
    // None of these routes leads to another one.
    let options = ["--max-time", SECONDS[1], "--phases", "examples,coverage,fuzzing"];
    run(&world, &path, "test-admin", &[&options, &routes[..]].concat());
    let log = world.exporter.log();
    assert!(!log.contains("panic") && !log.contains(" ERROR "), "{log}");
}
