//! The service answers as `docs/openapi.json` says, whatever is sent. Schemathesis makes the requests: those that the
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

/// The bodies of requests, in which unknown keys are ignored.
const LENIENT: [&str; 2] = ["Login", "Refresh"];

/// What is known about a schema or the values of a parameter.
enum Known {
    /// The value of this service, which requests often have.
    Often(Value),
    /// A narrower schema.
    Only(Value),
}

use Known::{Often, Only};

/// The document with what is true of this service only: it sends no other fields, an operation has only the codes that the
/// document lists, and what can be named here is at `known`: parameters, and schemas with a capital letter.
fn document(known: &[(&str, Known)]) -> Value {
    let mut document: Value = serde_json::from_slice(&fs::read(root().join("docs/openapi.json")).unwrap()).unwrap();
    let mut places: Vec<_> = known.iter().map(|(name, _)| (*name, false)).collect();
    for (name, schema) in document["components"]["schemas"].as_object_mut().unwrap() {
        if !LENIENT.contains(&name.as_str()) {
            close(schema);
        }
        replace(name, schema, known, &mut places);
    }
    for operation in document["paths"].as_object_mut().unwrap().values_mut().flat_map(operations) {
        for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
            let (name, place) = (text(&parameter["name"]), text(&parameter["in"]));
            let schema = &mut parameter["schema"];
            if schema["type"] == "boolean" {
                *schema = json!({"type": "string", "enum": BOOLEANS});
            } else if place == "query" && name != "label" {
                *schema = json!({"anyOf": [schema, {"type": "string", "enum": [""]}]});
            }
            replace(&name, schema, known, &mut places);
        }
        // Random conditions match nothing, and each text is a key. Other tests send them.
        if let Some(parameters) = operation.get_mut("parameters").and_then(Value::as_array_mut) {
            let is_random = |name: &str| name.starts_with("If-") || name == "Idempotency-Key";
            parameters.retain(|parameter| !is_random(&text(&parameter["name"])));
        }
        operation["responses"].as_object_mut().unwrap().values_mut().for_each(limit_codes);
    }
    document["components"]["responses"].as_object_mut().unwrap().values_mut().for_each(limit_codes);
    assert!(places.iter().all(|(_, found)| *found), "not all are in the document: {places:?}");
    document
}

/// A selection by a label.
const LABEL: &str = "^[A-Za-z0-9._/-]{1,63}(=[ -~]{0,100})?$";

/// What a Boolean parameter may be.
const BOOLEANS: [&str; 12] = ["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"];

fn operations(item: &mut Value) -> impl Iterator<Item = &mut Value> {
    item.as_object_mut().unwrap().values_mut()
}

/// Permits no other fields in an object.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.values_mut().for_each(close);
            if members.get("properties").is_some_and(Value::is_object) && !members.contains_key("additionalProperties")
            {
                members.insert("additionalProperties".to_owned(), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// Replaces a schema by a narrower one, or one that often permits only what the service has.
fn replace(name: &str, schema: &mut Value, known: &[(&str, Known)], places: &mut [(&str, bool)]) {
    for ((_, value), (_, found)) in known.iter().zip(places).filter(|((of, _), _)| *of == name) {
        *found = true;
        *schema = match value {
            Often(value) => json!({"anyOf": [{"enum": [value]}, schema]}),
            Only(narrower) => narrower.clone(),
        };
    }
}

/// Permits only the listed codes in an error.
fn limit_codes(response: &mut Value) {
    let codes = response["x-codes"].clone();
    if let Some(schema) = response.pointer_mut("/content/application~1json/schema").filter(|_| codes.is_array()) {
        *schema = json!({"allOf": [schema, {"type": "object", "properties": {"code": {"enum": codes}}}]});
    }
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
    let pattern = |pattern: &str| Only(json!({"type": "string", "pattern": pattern}));
    let known = [
        ("vm", Often(json!(VM))),
        ("snapshot", Often(newer["id"].clone())),
        ("compareTo", Often(base["id"].clone())),
        (
            "disk",
            Only(
                json!({"anyOf": [{"enum": ["a.img"]}, {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,200}$"}]}),
            ),
        ),
        ("secret", Often(json!(secret))),
        ("file", Often(json!("start.js"))),
        ("Range", pattern("^bytes=([0-9]{1,6}-|-[0-9]{1,5}|[0-9]{1,4}-[1-9][0-9]{4,5}(,[0-9]-1[0-9])?)$")),
        ("label", Only(json!({"type": "array", "maxItems": 32, "items": {"type": "string", "pattern": LABEL}}))),
        ("Duration", pattern("^([1-9][0-9]{0,2}h)?([1-9][0-9]?m)?([1-9][0-9]?s)$")),
        ("Ttl", pattern("^(none|([1-9][0-9]{0,2}h)?([1-9][0-9]?m)?([1-9][0-9]?s))$")),
        ("VmReference", Often(json!(VM))),
        ("DiskName", Often(json!("a.img"))),
        // So that the test revokes all tokens in any case.
        ("Revoke", Often(json!({"all": true}))),
        ("Login", Often(json!({"username": USER, "password": PASSWORD, "refresh": true}))),
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
