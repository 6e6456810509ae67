//! The service answers as `tests/openapi.json` says, whatever is sent. Schemathesis makes the requests: those that the
//! document permits, those that it does not, and sequences in which one answer leads to the next request.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::access::{certificate_rule, rule, user, world_with};
use crate::harness::{MB, PASSWORD, SNAPSHOTS, USER, VM, World, define_vm, make_disk, text, write_at};
use crate::{needs, needs_root};

/// Seconds of the test as an operator; as an administrator, on the routes that only that role has; and as one with a
/// certificate, on the routes that end log-ins.
const SECONDS: [&str; 3] = ["90", "20", "10"];

const LOG_OUT: &str = "/api/v1/auth/logout";
const REVOKE: &str = "/api/v1/auth/revoke";

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

/// Runs Schemathesis.
fn run(world: &World, document: &Path, more: &[&str]) {
    let output = Command::new(schemathesis())
        .current_dir(document.parent().unwrap())
        .arg("--config-file")
        .arg(root().join("tests/schemathesis.toml"))
        .args(["run", "--checks", "all", "--continue-on-failure", "--no-color", "--generation-database", "none"])
        .args(["--suppress-health-check", "all", "--request-timeout", "60", "--tls-verify"])
        .arg(world.certificates.ca())
        .args(["--url", &format!("https://localhost:{}", world.exporter.port)])
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
    let rules = rule("test-operator", "operator", "")
        + &rule("test-admin", "admin", "")
        + &rule("admin", "admin", "")
        + &certificate_rule("test-certificate", "admin");
    // Wrong passwords must not keep the log-ins from being tested.
    let sections = "[metrics]\nenabled = true\nrequire_token = true\n\
                    [login]\nfailures_per_address = 0\nfailures_per_account = 0\n";
    let mut world = world_with(&rules, sections);
    let ca = world.certificates.ca();
    world.exporter.settings().tls = format!("client_auth = \"optional\"\nca_certificate = {ca:?}\n");
    world.exporter.restart();
    world.certificates.issue("test-certificate");
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
    let tickets = format!("/api/v1{SNAPSHOTS}/{}/disks/a.img/tickets", text(&newer["id"]));
    let ticket = client.request(Method::POST, &tickets).body(r#"{"ops": ["read", "map"]}"#);
    let ticket = client.send(ticket).ok();
    let path = text(&ticket["path"]);
    let secret = path.split('/').nth(2).unwrap();
    let known = [
        ("/parameters/vm/schema", &json!(VM)),
        ("/parameters/costOf/schema", &json!(VM)),
        ("/parameters/snapshot/schema", &newer["id"]),
        ("/parameters/compareTo/schema", &base["id"]),
        ("/parameters/disk/schema", &json!("a.img")),
        ("/parameters/secret/schema", &json!(secret)),
        ("/schemas/VmName", &json!(VM)),
        ("/schemas/DiskName", &json!("a.img")),
        ("/schemas/Login", &json!({"username": USER, "password": PASSWORD, "refresh": true})),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("openapi.json");
    fs::write(&path, document(&known).to_string()).unwrap();
    let header = |name: &str| format!("Authorization: Bearer {}", user(&world, name).token);
    let (operator, admin) = (header("test-operator"), header("test-admin"));
    // These snapshots are another user's, so an operator may not delete them. The log-out would end the test's log-in.
    run(&world, &path, &["--header", &operator, "--max-time", SECONDS[0], "--exclude-path", LOG_OUT]);
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{}", text(&newer["id"]))).status, 200);
    let routes = ["/api/v1/adopt", "/api/v1/database", "/metrics"].map(|route| ["--include-path", route]).concat();
    // None of these routes leads to another one.
    let phases = ["--phases", "examples,coverage,fuzzing"];
    run(&world, &path, &[&["--header", &admin, "--max-time", SECONDS[1]], &phases[..], &routes].concat());
    // This ends log-ins, but no certificate. Requests without a token are permitted here.
    let [certificate, key] =
        ["pem", "key"].map(|kind| world.certificates.path(format!("test-certificate.{kind}")).display().to_string());
    let identity = ["--request-cert", &certificate, "--request-cert-key", &key, "--exclude-checks", "ignored_auth"];
    let routes = ["--include-path", LOG_OUT, "--include-path", REVOKE];
    run(&world, &path, &[&identity, &phases[..], &["--max-time", SECONDS[2]], &routes].concat());
    assert_eq!(client.get("/vms").status, 401, "the test has revoked no token");
    let log = world.exporter.log();
    assert!(!log.contains("panic") && !log.contains(" ERROR "), "{log}");
}
