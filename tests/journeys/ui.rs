//! The page at `/ui`: its files over HTTP, and the page in a headless Chromium, which `ui/page.py` drives.

use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::access::{create, rename, rule, user};
use crate::harness::{
    Answer, MB, OTHER_VM, PASSWORD, SNAPSHOTS, VM, WEBHOOK_SECRET, World, define_vm, define_vm_with, free_port,
    make_disk, text, write_at,
};
use crate::{needs, needs_root};

/// A VM with a disk outside the repositories, and one inside.
const UNFIT_VM: &str = "0004fb00000600000000000000000003";

/// Names that a page must show as they are.
const HOSTILE: &str = "<img src=x onerror=\"window.hit=1\"><script>window.hit=1</script>&amp;";
const LONG: &str =
    "a-database-server-with-a-name-that-goes-on-and-on-and-has-no-place-where-it-could-be-broken-into-lines";

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn python() -> PathBuf {
    root().join("target/browser/bin/python")
}

pub fn has_browser() -> bool {
    python().is_file() && Path::new("/usr/bin/chromium").is_file()
}

/// Runs a script of the folder `ui`, which does its steps in a browser, with the interpreter that has Playwright.
pub fn run_steps(world: &World, command: &mut Command, script: &str, input: &Value) {
    let output = command
        .arg(python())
        .arg(root().join("tests/journeys/ui").join(script))
        .arg(input.to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{errors}\n---- service ----\n{}", world.exporter.log());
    assert!(printed.ends_with("all done\n"), "{printed}");
}

fn ask(world: &World, path: &str) -> Answer {
    let client = world.anonymous_client();
    client.send(client.request(Method::GET, path))
}

#[test]
fn files_need_no_token_and_permit_nothing_foreign() {
    needs_root!();
    let world = World::new(512);
    for (path, media_type) in [
        ("/ui", "text/html; charset=utf-8"),
        ("/ui/", "text/html; charset=utf-8"),
        ("/ui/main.js", "text/javascript; charset=utf-8"),
        ("/ui/base.css", "text/css; charset=utf-8"),
        ("/ui/icon.svg", "image/svg+xml"),
    ] {
        let answer = ask(&world, path);
        assert_eq!(answer.status, 200, "{path}");
        let header = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), media_type);
        let policy = header("content-security-policy");
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("cache-control"), "no-cache");
        // A browser that has the file gets it once.
        let client = world.anonymous_client();
        for (tag, status) in [(header("etag"), 304), ("\"another\"".to_owned(), 200)] {
            let again = client.send(client.request(Method::GET, path).header("if-none-match", &tag));
            assert_eq!((again.status, again.body.is_empty()), (status, status == 304), "{path} {tag}");
            assert_eq!(again.headers["etag"].to_str().unwrap(), header("etag"));
        }
        assert_eq!(client.send(client.request(Method::POST, path)).error(405), "method_not_allowed");
    }
    for path in ["/ui/other.js", "/ui/..%2fui.rs", "/ui/main.js/x"] {
        assert_eq!(ask(&world, path).error(404), "not_found", "{path}");
    }
    // Everything else is still not to be stored.
    assert_eq!(ask(&world, "/api/v1/vms").headers["cache-control"], "no-store");
}

#[test]
fn config_switches_the_page_off() {
    needs_root!();
    let world = World::with(512, |settings| settings.api = "ui = false".to_owned());
    for path in ["/ui", "/ui/", "/ui/main.js"] {
        assert_eq!(ask(&world, path).error(404), "not_found", "{path}");
    }
}

/// What the user may do, as the page asks for it.
#[test]
fn capabilities_have_the_permissions_of_the_user() {
    needs_root!();
    let world = World::with(512, |settings| {
        let roles = ["viewer", "reader", "operator"];
        let rules: String = roles.iter().map(|role| rule(&format!("test-{role}"), role, "")).collect();
        settings.sections = format!("[access]\n{rules}");
    });
    for (name, permissions) in [
        ("test-viewer", json!(["view"])),
        ("test-reader", json!(["view", "read"])),
        ("test-operator", json!(["view", "read", "create", "delete_own"])),
        ("test-other", json!(["metrics", "view", "read", "create", "delete_own", "administer"])),
    ] {
        let capabilities = user(&world, name).get("/capabilities").ok();
        assert_eq!((&capabilities["user"], &capabilities["permissions"]), (&json!(name), &permissions));
    }
}

/// A service with VMs of all kinds: a hostile name, a long name, one that cannot be snapshotted.
fn world() -> World {
    let world = World::with(512, |settings| {
        // The page renews its token before each request.
        settings.jwt = "access_time_to_live = \"60s\"".to_owned();
        let rules = rule("test-viewer", "viewer", "")
            + &rule("test-reader", "reader", "")
            + &rule("test-nobody", "metrics", "")
            + &["test-one-vm", "test-nightly"].map(|user| rule(user, "viewer", "")).concat()
            + &rule("test-one-vm", "operator", &format!("vms = [{OTHER_VM:?}]"))
            + &rule("test-nightly", "operator", "labels = { job = \"nightly\" }");
        // Nobody listens there.
        let webhook = format!(
            "[[notifications.webhooks]]\nname = \"alerts\"\nurl = \"https://127.0.0.1:{}/x\"\n\
             secret = {WEBHOOK_SECRET:?}\nevents = [\"snapshot.created\"]\n",
            free_port()
        );
        settings.sections = format!("[access]\n{rules}{webhook}");
    });
    let disks = world.define_vm(&[("system.img", 256 * MB), ("data.img", 64 * MB)]);
    (0..24).for_each(|number| write_at(&disks[0], number * number * 300_000, &[7; 700_000]));
    write_at(&disks[1], 5 * MB, &vec![8; 24 * MB as usize]);
    rename(&world, VM, "web-1", HOSTILE);
    let disk = make_disk(&world.repository, "b.img", 8 * MB);
    write_at(&disk, 0, &[9; 300_000]);
    define_vm(&world.repository, OTHER_VM, &[disk]);
    rename(&world, OTHER_VM, "web-1", LONG);
    let disk = make_disk(&world.repository, "c.img", 4 * MB);
    let lines = ["'phy:/dev/mapper/lun-7,xvda,w'".to_owned(), format!("'file:{},xvdb,w'", disk.display())];
    define_vm_with(&world.repository, UNFIT_VM, &lines);
    world
}

#[test]
fn page_works_in_a_browser() {
    needs_root!();
    needs!(has_browser(), "chromium and playwright: make deps-test");
    let world = world();
    let client = world.client();
    let data = world.repository.join("VirtualDisks/system.img");
    let take = |body: Value| text(&create(&client, VM, &body).ok()["id"]);
    let first = take(json!({"description": "before the upgrade", "labels": {"job": "nightly"}}));
    (0..6).for_each(|number| write_at(&data, number * 31 * MB + 70_000, &[1; 120_000]));
    let second = take(json!({"ttl": "72h"}));
    write_at(&data, 200 * MB, &vec![2; 3 * MB as usize]);
    let third = take(json!({}));
    let lease = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}/{second}/lease"));
    client.send(lease.body(r#"{"ttl": "2h"}"#)).ok();

    let input = json!({
        "url": format!("https://localhost:{}", world.exporter.port),
        "password": PASSWORD,
        "vm": VM,
        "other_vm": OTHER_VM,
        "unfit_vm": UNFIT_VM,
        "hostile": HOSTILE,
        "long": LONG,
        "snapshots": [first, second, third],
        "repository": world.repository,
        "pictures": root().join("target/ui"),
    });
    run_steps(&world, &mut Command::new("env"), "page.py", &input);
}
