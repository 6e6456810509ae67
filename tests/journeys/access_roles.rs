//! Roles: what each may do, how they are reloaded, and how refusals are reported.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::access::{create, lacks, list, rule, user, world, world_with};
use crate::harness::{Answer, Client, OTHER_VM, PASSWORD, SNAPSHOTS, USER, VM, World, eventually, text};
use crate::needs_root;

/// A row of the table in docs/api.md.
struct Row {
    method: String,
    path: String,
    /// The roles with whether they may use the route.
    roles: Vec<(String, bool)>,
}

fn documented() -> Vec<Row> {
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md")).unwrap();
    let section = document.split("\n## Roles\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut lines = section.lines().filter(|line| line.starts_with("| "));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let roles = cells(lines.next().unwrap());
    assert_eq!(roles[1..], ["viewer", "reader", "operator", "admin", "metrics"]);
    let row = |line| {
        let row = cells(line);
        let (method, path) = row[0].trim_matches('`').split_once(' ').unwrap();
        let is_permitted = |cell: &String| match cell.as_str() {
            "yes" => true,
            "no" => false,
            other => panic!("{other} in {line}"),
        };
        let permitted = roles[1..].iter().cloned().zip(row[1..].iter().map(is_permitted)).collect();
        Row { method: method.to_owned(), path: path.to_owned(), roles: permitted }
    };
    lines.map(row).collect()
}

/// A request that needs a ticket, which the client makes first. `None` for other rows.
fn ask_with_ticket(world: &World, client: &Client, row: (&str, &str), of: (&str, &str)) -> Option<Answer> {
    let (method, path) = row;
    if !path.starts_with("/t/") && !path.ends_with("/{ticket}") {
        return None;
    }
    let tickets = format!("/api/v1/vms/{}/snapshots/{}/disks/a.img/tickets", of.0, of.1);
    let body = json!({"ops": ["read", "map"]}).to_string();
    let made = client.send(client.request(Method::POST, &tickets).body(body));
    if made.status != 200 {
        return Some(made);
    }
    let ticket = made.json();
    if method == "DELETE" {
        return Some(client.send(client.request(Method::DELETE, &format!("{tickets}/{}", text(&ticket["id"])))));
    }
    let anonymous = world.anonymous_client();
    let path = path.replace("/t/{secret}/{disk}", &text(&ticket["path"]));
    Some(anonymous.send(anonymous.request(Method::GET, &path)))
}

/// What the documents tell the user about a VM and its snapshots is what the API permits.
#[test]
fn documents_tell_what_the_user_may_do() {
    needs_root!();
    let rules = ["test-vm", "test-labels"].map(|name| rule(name, "viewer", "")).concat()
        + &rule("test-vm", "operator", "vms = [\"db-*\"]")
        + &rule("test-labels", "reader", "labels = { job = \"nightly\" }")
        + &rule("test-labels", "metrics", "");
    let world = world(&rules);
    let admin = world.client();
    let nightly = text(&create(&admin, VM, &json!({"labels": {"job": "nightly"}})).ok()["id"]);
    let plain = admin.take_snapshot_id();
    let other = text(&create(&admin, OTHER_VM, &json!({})).ok()["id"]);
    let (all, operator) = (
        json!(["view", "read", "create", "delete_own", "administer"]),
        json!(["view", "read", "create", "delete_own"]),
    );
    let (reader, viewer) = (json!(["view", "read"]), json!(["view"]));
    for (name, vms, snapshots) in [
        ("test-vm", [&viewer, &operator], [&viewer, &viewer, &operator]),
        ("test-labels", [&reader, &reader], [&reader, &viewer, &viewer]),
        ("test-admin", [&all, &all], [&all, &all, &all]),
    ] {
        let client = user(&world, name);
        let listed = client.get("/vms").ok();
        for (vm, expected) in [VM, OTHER_VM].into_iter().zip(vms) {
            let in_list = listed.as_array().unwrap().iter().find(|document| document["name"] == vm).unwrap();
            assert_eq!(&in_list["permissions"], expected, "{name} {vm}");
            assert_eq!(&client.get(&format!("/vms/{vm}")).ok()["permissions"], expected, "{name} {vm}");
        }
        for ((vm, id), expected) in [(VM, &nightly), (VM, &plain), (OTHER_VM, &other)].into_iter().zip(snapshots) {
            let path = format!("/vms/{vm}/snapshots");
            let listed = client.get(&format!("{path}?chunks=false")).ok();
            let in_list = listed.as_array().unwrap().iter().find(|document| document["id"] == **id).unwrap();
            assert_eq!(&in_list["permissions"], expected, "{name} {id}");
            let alone = client.get(&format!("{path}/{id}?chunks=false")).ok();
            assert_eq!(&alone["permissions"], expected, "{name} {id}");
            let may_read = expected.as_array().unwrap().contains(&json!("read"));
            assert_eq!(client.get(&format!("{path}/{id}")).status, if may_read { 200 } else { 403 }, "{name} {id}");
        }
    }
    let made = create(&user(&world, "test-vm"), OTHER_VM, &json!({})).ok();
    assert_eq!(made["permissions"], operator);
}

#[test]
fn each_route_answers_each_role_as_documented() {
    needs_root!();
    let roles = ["viewer", "reader", "operator", "admin", "metrics"];
    let rules: String = roles.iter().map(|role| rule(&format!("test-{role}"), role, "")).collect();
    let world =
        world_with(&format!("default_role = \"none\"\n{rules}"), "[metrics]\nenabled = true\nrequire_token = true\n");
    let clients: Vec<_> = roles.iter().map(|role| (*role, user(&world, &format!("test-{role}")))).collect();
    let by_role = |role: &str| &clients.iter().find(|(other, _)| *other == role).unwrap().1;
    let (admin, nobody, stranger) = (by_role("admin"), user(&world, "test-forgotten"), world.anonymous_client());
    let shared = admin.take_snapshot_id();
    let rows = documented();
    assert!(rows.len() > 20);
    for Row { method, path, roles } in rows {
        // They use up what they get. The module `sessions` tests them.
        if ["/auth/refresh", "/auth/logout"].contains(&path.as_str()) {
            continue;
        }
        let open = ["/auth/login", "/auth/certificate", "/healthz", "/readyz", "/openapi.json"]
            .contains(&path.as_str())
            || path.starts_with("/docs");
        let outside = ["/healthz", "/readyz", "/metrics"].contains(&path.as_str());
        let body = match (method.as_str(), path.rsplit('/').next().unwrap()) {
            ("POST", "login") => json!({"username": USER, "password": PASSWORD}),
            ("POST", "revoke") => json!({"user": "somebody"}),
            ("POST", "lease") => json!({"ttl": "1h"}),
            ("POST", "snapshots") if path == "/snapshots" => json!({"vms": [VM]}),
            _ => Value::Null,
        };
        let ask = |client: &Client, vm: &str, snapshot: &str| {
            if let Some(answer) = ask_with_ticket(&world, client, (&method, &path), (vm, snapshot)) {
                return answer;
            }
            let path = path.replace("{vm}", vm).replace("{snapshot}", snapshot).replace("{disk}", "a.img");
            let path = path.replace("{file}", "start.js");
            let path = if outside { path } else { format!("/api/v1{path}") };
            let request = client.request(method.parse().unwrap(), &path);
            client.send(if body.is_null() { request } else { request.body(body.to_string()) })
        };
        for (role, is_permitted) in roles {
            let client = by_role(&role);
            // Those that the user may delete are its own: an operator may not delete others.
            let (vm, snapshot) = if method == "DELETE" && !path.ends_with("lease") && !path.contains("/tickets") {
                let creator = if role == "operator" { client } else { admin };
                let created = create(creator, OTHER_VM, &json!({}));
                (OTHER_VM, text(&created.ok()["id"]))
            } else {
                (VM, shared.clone())
            };
            let answer = ask(client, vm, &snapshot);
            if is_permitted {
                // No webhook is configured.
                let has_no_target = path == "/notifications/test" && answer.status == 404;
                assert!(answer.status < 300 || has_no_target, "{role} {method} {path}: {answer:?}");
            } else {
                assert_eq!(answer.error(403), "forbidden", "{role} {method} {path}");
                assert!(text(&answer.json()["details"]).contains(" is needed "), "{answer:?}");
            }
            if vm == OTHER_VM {
                assert_eq!(list(admin, OTHER_VM).is_empty(), is_permitted, "{role} {method} {path}");
                assert_eq!(admin.delete(&format!("/vms/{OTHER_VM}/snapshots")).status, 200);
            }
        }
        let (without_role, without_token) = (ask(&nobody, VM, &shared), ask(&stranger, VM, &shared));
        if open {
            assert_eq!((without_role.status, without_token.status), (200, 200), "{method} {path}");
        } else {
            assert_eq!(without_role.error(403), "forbidden", "{method} {path}");
            assert_eq!(without_token.error(401), "unauthorized", "{method} {path}");
        }
    }
    // A comparison is more than a list, also without its chunks.
    lacks(&by_role("viewer").get(&format!("{SNAPSHOTS}/{shared}?chunks=false&compareTo={shared}")), "reader");
    // The local operators are admins, whatever the rules say.
    Client::local(&world.exporter).get("/status").ok();
    assert_eq!(Client::local(&world.exporter).take_snapshot()["created_by"], "unix:root");
}

#[test]
fn changed_rules_apply_to_the_next_request_of_a_token() {
    needs_root!();
    let mut world = world(&format!("default_role = \"none\"\n{}", rule("test-a*", "reader", "")));
    let client = user(&world, "test-ann");
    let id = Client::local(&world.exporter).take_snapshot_id();
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}/disks/a.img")).status, 200);
    lacks(&client.post(SNAPSHOTS), "operator");
    let reload = |world: &mut World, access: &str, line: &str| {
        world.exporter.settings().sections = format!("[access]\n{access}");
        world.exporter.write_config();
        let before = world.exporter.log().matches(line).count();
        world.exporter.signal(Signal::SIGHUP);
        eventually("the config is reloaded", || world.exporter.log().matches(line).count() > before);
    };
    let operator = rule("test-ann", "operator", "");
    reload(&mut world, &format!("default_role = \"none\"\n{operator}"), "config reloaded");
    client.post(SNAPSHOTS).ok();
    // A rule that cannot be read changes nothing: left out, it could permit more.
    let faulty = "cannot reload the config; keeping the current one";
    reload(&mut world, &format!("default_role = \"admin\"\n{}", rule("test-ann", "root", "")), faulty);
    lacks(&client.post("/adopt?dryRun=true"), "admin");
    client.post(SNAPSHOTS).ok();
    let named = world.exporter.log();
    assert!(named.contains("access.rules.1.role: invalid role"), "{named}");
    reload(&mut world, "default_role = \"none\"", "config reloaded");
    lacks(&client.get("/vms"), "viewer");
    // The token is still valid.
    reload(&mut world, "default_role = \"admin\"", "config reloaded");
    client.post("/adopt?dryRun=true").ok();
}

#[test]
fn another_spelling_of_a_user_has_the_same_rule() {
    needs_root!();
    let world = world(&rule("test-viewer", "viewer", ""));
    for name in ["test-viewer", "Test-Viewer", "test-viewer ", "TEST-VIEWER  "] {
        let client = user(&world, name);
        client.get("/vms").ok();
        lacks(&client.post(SNAPSHOTS), "operator");
    }
    // A user whom the rule forgets has the default role, and the service says so.
    user(&world, "test-other").post(SNAPSHOTS).ok();
    let warning = "is admin, so each user to whom no rule applies may do everything";
    assert!(world.exporter.log().contains(warning));
    let (status, table) = world.exporter.command(&["check-config"]);
    assert!(status == Some(0) && table.contains("access.default_role") && table.contains(warning), "{table}");
}

#[test]
fn a_user_of_the_manager_is_not_the_local_user_of_that_name() {
    needs_root!();
    let world = world(&format!("default_role = \"none\"\n{}", rule("*", "operator", "")));
    let local = Client::local(&world.exporter);
    let of_root = local.take_snapshot();
    assert_eq!(of_root["created_by"], "unix:root");
    lacks(&user(&world, "root").delete(&format!("{SNAPSHOTS}/{}", text(&of_root["id"]))), "admin");
    let before = world.manager.request_count();
    assert_eq!(world.anonymous_client().try_log_in("unix:root", PASSWORD).error(401), "unauthorized");
    assert_eq!(world.manager.request_count(), before, "the manager was asked");
}

#[test]
fn the_commands_report_a_refusal_and_do_not_retry_it() {
    needs_root!();
    let world = world(&format!("default_role = \"none\"\n{}", rule("test-viewer", "viewer", "")));
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("backups");
    let url = format!("https://127.0.0.1:{}", world.exporter.port);
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_coriolis-ovm-exporter"))
            .args(arguments)
            .env_clear()
            .env("HOME", home.path())
            .env("EXPORTER_USERNAME", "test-viewer")
            .env("EXPORTER_PASSWORD", PASSWORD)
            .env("EXPORTER_CACERT", world.certificates.ca())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (status, printed) = run(&["vms", "--server", &url]);
    assert!(status == Some(0) && printed.contains("db-1"), "{printed}");
    let creations = || world.exporter.log().matches("method=POST path=\"/api/v1/vms/").count();
    for arguments in [
        vec!["snapshots", "create", "web-1", "--server", &url],
        vec!["backup", &url, "web-1", "--to", target.to_str().unwrap()],
    ] {
        let before = creations();
        let (status, printed) = run(&arguments);
        assert_eq!(status, Some(1), "{printed}");
        assert!(printed.contains("the role operator is needed") && printed.contains("(forbidden"), "{printed}");
        assert_eq!(creations(), before + 1, "the request was repeated");
    }
}

#[test]
fn metrics_need_a_token_only_if_configured() {
    needs_root!();
    let rules = rule("test-metrics", "metrics", "") + &rule("test-reader", "reader", "");
    let mut world = world_with(&format!("default_role = \"none\"\n{rules}"), "[metrics]\nenabled = true\n");
    let ask = |client: &Client| client.send(client.request(Method::GET, "/metrics"));
    assert_eq!(ask(&world.anonymous_client()).status, 200);
    let sections = world.exporter.settings().sections.replace("enabled = true", "enabled = true\nrequire_token = true");
    world.exporter.settings().sections = sections;
    world.exporter.restart();
    assert_eq!(ask(&world.anonymous_client()).error(401), "unauthorized");
    let metrics = user(&world, "test-metrics");
    assert!(ask(&metrics).body.starts_with(b"#"));
    lacks(&metrics.get("/vms"), "viewer");
    lacks(&ask(&user(&world, "test-reader")), "metrics");
    assert_eq!(ask(&Client::local(&world.exporter)).status, 200);
}
