//! Access rules: which VMs and snapshots a user reaches.

use std::fs;
use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::access::{create, lacks, list, rename, rule, user, world, world_with};
use crate::harness::{
    Answer, Client, MB, OTHER_VM, SNAPSHOTS, USER, VM, define_vm, eventually, ids, make_disk, text, write_at,
};
use crate::needs_root;

/// The error without the id of its request.
fn error(answer: &Answer, status: u16) -> (String, Value) {
    let code = answer.error(status);
    (code, answer.json()["details"].clone())
}

fn names(client: &Client) -> Vec<String> {
    client.get("/vms").ok().as_array().unwrap().iter().map(|vm| text(&vm["friendly_name"])).collect()
}

#[test]
fn a_user_reaches_only_the_vms_of_its_rules() {
    needs_root!();
    let rules = rule("test-web", "operator", "vms = [\"web-*\"]")
        + &rule("test-both", "operator", "vms = [\"web-1\"]")
        + &rule("test-both", "viewer", &format!("vms = [{OTHER_VM:?}]"))
        + &rule("test-limited", "admin", "vms = [\"*\"]");
    let world = world(&format!("default_role = \"admin\"\n{rules}"));
    let (admin, web, both) = (world.client(), user(&world, "test-web"), user(&world, "test-both"));
    let other = text(&create(&admin, OTHER_VM, &json!({})).ok()["id"]);
    let own = web.take_snapshot_id();
    assert_eq!(
        (names(&admin), names(&web), names(&both)),
        (
            vec!["web-1".to_owned(), "db-1".to_owned()],
            vec!["web-1".to_owned()],
            vec!["web-1".to_owned(), "db-1".to_owned()],
        )
    );

    // An invisible VM is answered like one that does not exist, on each route.
    let unknown = "0004fb0000060000000000000000ffff";
    let missing = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d";
    for (method, rest) in [
        ("GET", ""),
        ("GET", "/snapshots"),
        ("GET", "/snapshots?chunks=false"),
        ("POST", "/snapshots"),
        ("DELETE", "/snapshots"),
        ("GET", "/snapshots/{id}"),
        ("GET", "/snapshots/{id}?chunks=false"),
        ("DELETE", "/snapshots/{id}"),
        ("POST", "/snapshots/{id}/lease"),
        ("DELETE", "/snapshots/{id}/lease"),
        ("GET", "/snapshots/{id}/disks/b.img"),
        ("GET", "/snapshots/{id}/disks/b.img/chunks"),
        ("GET", "/snapshots/{id}/disks/b.img/checksum"),
    ] {
        let ask = |vm: &str, id: &str| {
            let path = format!("/api/v1/vms/{vm}{}", rest.replace("{id}", id));
            let request = web.request(method.parse().unwrap(), &path);
            web.send(if rest.ends_with("lease") { request.body("{\"ttl\": \"1h\"}") } else { request })
        };
        let expected = error(&ask(unknown, missing), 404);
        assert_eq!(error(&ask(OTHER_VM, &other), 404), expected, "{method} {rest}");
        assert_eq!(error(&ask(OTHER_VM, missing), 404), expected, "{method} {rest}");
        // Nor does a snapshot of it exist under a VM that the user may use.
        if rest.contains("{id}") {
            assert_eq!(error(&ask(VM, &other), 404), error(&ask(VM, missing), 404), "{method} {rest}");
        }
    }
    assert_eq!(web.get(&format!("{SNAPSHOTS}/{own}?compareTo={other}")).error(404), "not_found");
    let group = |client: &Client| {
        let body = json!({"vms": [VM, OTHER_VM]}).to_string();
        client.send(client.request(Method::POST, "/api/v1/snapshots").body(body))
    };
    assert_eq!(group(&web).error(404), "not_found");
    lacks_for_vm(&group(&both), "operator");
    assert_eq!((list(&admin, VM), list(&admin, OTHER_VM)), (vec![own.clone()], vec![other.clone()]));

    // Rules add up for each VM.
    lacks(&create(&both, OTHER_VM, &json!({})), "operator");
    lacks(&both.get(&format!("/vms/{OTHER_VM}/snapshots/{other}/disks/b.img")), "reader");
    assert_eq!(list(&both, OTHER_VM), [&*other]);
    assert_eq!(both.get(&format!("{SNAPSHOTS}/{own}/disks/a.img")).status, 200);
    // An admin of some VMs is none of the host.
    let limited = user(&world, "test-limited");
    lacks(&limited.post("/adopt?dryRun=true"), "admin");
    limited.get("/status").ok();
    // Costs are a part of the status that is read from the disks.
    let costs = web.get("/status?cost=true").ok();
    assert_eq!(ids(&costs["snapshots"]), [&*own]);
    assert_eq!(error(&web.get(&format!("/status?cost=true&vm={OTHER_VM}")), 404).0, "not_found");

    // A new name takes effect, in both directions.
    rename(&world, OTHER_VM, "db-1", "web-2");
    assert_eq!(list(&web, OTHER_VM), [&*other]);
    rename(&world, OTHER_VM, "web-2", "db-2");
    eventually("the renamed VM is invisible again", || {
        web.get(&format!("/vms/{OTHER_VM}/snapshots?chunks=false")).status == 404
    });
}

/// As [`lacks`], for one VM of several.
fn lacks_for_vm(answer: &Answer, role: &str) {
    assert_eq!(answer.error(403), "forbidden");
    let details = text(&answer.json()["details"]);
    assert!(
        details.starts_with("VM ") && details.contains(&format!("the role {role} is needed for this VM")),
        "{details}"
    );
}

#[test]
fn labels_limit_a_user_to_snapshots() {
    needs_root!();
    let rules = rule("test-label", "operator", "labels = { env = \"test\" }") + &rule("test-mixed", "viewer", "");
    let rules = rules + &rule("test-mixed", "reader", "labels = { env = \"test\" }");
    let world = world(&format!("default_role = \"admin\"\n{rules}"));
    let (admin, limited, mixed) = (world.client(), user(&world, "test-label"), user(&world, "test-mixed"));
    let hidden = admin.take_snapshot_id();
    for labels in [json!({}), json!({"env": "prod"}), json!({"job": "test"})] {
        lacks(&create(&limited, VM, &json!({ "labels": labels })), "operator");
    }
    let labels = json!({"labels": {"env": "test", "job": "x"}});
    let own = text(&create(&limited, VM, &labels).ok()["id"]);
    assert_eq!(list(&admin, VM), [hidden.clone(), own.clone()]);
    assert_eq!(list(&limited, VM), [&*own]);
    let vm = limited.get(&format!("/vms/{VM}")).ok();
    assert_eq!(vm["snapshots"], json!([own]));
    let all = limited.get("/vms").ok();
    assert_eq!(all[0]["snapshots"], json!([own]));

    let missing = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d";
    let ask = |rest: &str, id: &str| error(&limited.get(&format!("{SNAPSHOTS}/{id}{rest}")), 404);
    for rest in ["", "?chunks=false", "/disks/a.img", "/disks/a.img/chunks", "/disks/a.img/checksum"] {
        assert_eq!(ask(rest, &hidden), ask(rest, missing), "{rest}");
    }
    assert_eq!(limited.get(&format!("{SNAPSHOTS}/{own}?compareTo={hidden}")).error(404), "not_found");
    assert_eq!(limited.delete(&format!("{SNAPSHOTS}/{hidden}")).error(404), "not_found");
    // All or nothing: one of the snapshots is not the user's.
    lacks(&limited.delete(SNAPSHOTS), "admin");
    assert_eq!(list(&admin, VM), [hidden.clone(), own.clone()]);

    // A list with chunks is not shortened to the snapshots that may be read.
    assert_eq!(list(&mixed, VM), [hidden.clone(), own.clone()]);
    lacks(&mixed.get(SNAPSHOTS), "reader");
    lacks(&mixed.get(&format!("{SNAPSHOTS}/{hidden}")), "reader");
    assert_eq!(ids(&mixed.get(&format!("{SNAPSHOTS}?label=env=test")).ok()), [&*own]);
    assert_eq!(mixed.get(&format!("{SNAPSHOTS}/{own}/disks/a.img")).status, 200);
    lacks(&mixed.get(&format!("{SNAPSHOTS}/{own}?compareTo={hidden}")), "reader");

    assert_eq!(limited.delete(&format!("{SNAPSHOTS}/{own}")).status, 200);
    assert_eq!(limited.delete(&format!("{SNAPSHOTS}/{own}")).status, 200, "a repeated deletion");
    assert_eq!(list(&admin, VM), [hidden]);
}

#[test]
fn operators_delete_only_their_own_snapshots() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("audit.json");
    let rules = rule("test-one", "operator", "") + &rule("test-two", "operator", "") + &rule("test-view", "viewer", "");
    let world = world_with(
        &format!("default_role = \"none\"\n{rules}{}", rule(USER, "admin", "")),
        &format!("[audit]\nfile = {file:?}\n"),
    );
    let (admin, one, two) = (world.client(), user(&world, "test-one"), user(&world, "test-two"));
    let (of_one, of_two) = (one.take_snapshot_id(), two.take_snapshot_id());
    lacks(&two.delete(&format!("{SNAPSHOTS}/{of_one}")), "admin");
    lacks(&two.delete(SNAPSHOTS), "admin");
    assert_eq!(list(&admin, VM), [of_one.clone(), of_two.clone()]);
    // A lease belongs to its user.
    let lease = |client: &Client, id: &str| {
        client.send(client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}/{id}/lease")).body("{\"ttl\": \"1h\"}"))
    };
    lease(&two, &of_one).ok();
    assert_eq!(two.delete(&format!("{SNAPSHOTS}/{of_two}")).status, 200);
    assert_eq!(admin.delete(&format!("{SNAPSHOTS}/{of_one}")).status, 200);
    one.take_snapshot_id();
    assert_eq!(one.delete(SNAPSHOTS).status, 200);
    one.take_snapshot_id();
    assert_eq!(admin.delete(SNAPSHOTS).status, 200);
    assert!(list(&admin, VM).is_empty());
    let view = user(&world, "test-view");
    lacks(&view.get("/vms/x/snapshots/y/disks/z"), "reader");
    lacks(&view.post(SNAPSHOTS), "operator");

    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let has = |who: &str, action: &str, what: &str, outcome: &str, role: &str| {
        let fits = |line: &Value| {
            line["who"] == who
                && line["action"] == action
                && text(&line["what"]).contains(what)
                && line["outcome"] == outcome
                && line["role"] == role
        };
        eventually(&format!("{who} {action} {what} {outcome} {role} is in the audit"), || lines().iter().any(fits));
    };
    has("test-two", "delete", &of_one, "refused", "admin");
    has("test-two", "delete-all", VM, "refused", "admin");
    has("test-two", "delete", &of_two, "done", "operator");
    has("test-two", "lease", &of_one, "done", "reader");
    has(USER, "delete", &of_one, "done", "admin");
    has("test-one", "create", VM, "done", "operator");
    has("test-one", "delete-all", VM, "done", "operator");
    has(USER, "delete-all", VM, "done", "admin");
    // Refused by the route: the path says what was asked for.
    has("test-view", "request", "/disks/z", "refused", "reader");
    has("test-view", "request", "", "refused", "operator");
    assert!(lines().iter().any(|line| line["action"] == "log-in" && line.get("role").is_none()));
}

#[test]
fn the_status_shows_only_work_on_visible_vms() {
    needs_root!();
    let rules = rule("test-web", "viewer", "vms = [\"web-1\"]") + &rule("test-all", "viewer", "");
    let rules = rules + &rule("test-label", "viewer", "labels = { env = \"test\" }");
    let world = world(&format!("default_role = \"admin\"\n{rules}"));
    let big = make_disk(&world.repository, "big.img", 32 * MB);
    write_at(&big, 0, &vec![9; 32 << 20]);
    define_vm(&world.repository, OTHER_VM, &[big]);
    rename(&world, OTHER_VM, "web-1", "db-1");
    let admin = world.client();
    let id = text(&create(&admin, OTHER_VM, &json!({})).ok()["id"]);
    // The client reads nothing, so the download stays.
    let download = world.send_get(&admin, &format!("/vms/{OTHER_VM}/snapshots/{id}/disks/big.img"));
    let running = |client: &Client| client.get("/status").ok()["exports"]["running"].as_array().unwrap().len();
    eventually("the download runs", || running(&admin) == 1);
    assert_eq!(running(&user(&world, "test-all")), 1);
    assert_eq!(running(&user(&world, "test-web")), 0);
    // A download of a snapshot with other labels.
    assert_eq!(running(&user(&world, "test-label")), 0);
    let labelled = text(&create(&admin, OTHER_VM, &json!({"labels": {"env": "test"}})).ok()["id"]);
    let second = world.send_get(&admin, &format!("/vms/{OTHER_VM}/snapshots/{labelled}/disks/big.img"));
    eventually("both downloads run", || running(&admin) == 2);
    assert_eq!(running(&user(&world, "test-label")), 1);
    drop(second);
    drop(download);
}
