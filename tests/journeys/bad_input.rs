//! What clients get wrong, by mistake or on purpose: a status of the contract, a JSON body, no
//! panic, no descriptor lost, nothing written.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;

use crate::harness::{self, Client, VM, World, text, write_at};
use crate::needs_root;

const OTHER_VM: &str = "0004fb00000600000000000000000002";
const UNKNOWN: &str = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d";

/// Asks with curl, which takes a path as it is; returns status and body.
fn curl(world: &World, client: &Client, path: &str) -> (u16, Vec<u8>) {
    let output = Command::new("curl")
        .args(["-sS", "--path-as-is", "--max-time", "20", "-w", "\n%{http_code}", "--cacert"])
        .arg(world.certificates.ca())
        .args(["-H", &format!("Authorization: Bearer {}", client.token)])
        .arg(format!("https://127.0.0.1:{}{path}", world.exporter.port))
        .output()
        .unwrap();
    assert!(output.status.success(), "{path:.200}: {}", String::from_utf8_lossy(&output.stderr));
    let at = output.stdout.iter().rposition(|byte| *byte == b'\n').unwrap();
    (String::from_utf8_lossy(&output.stdout[at + 1..]).parse().unwrap(), output.stdout[..at].to_vec())
}

fn code_of(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(body)));
    text(&body["code"])
}

fn descriptors(world: &World) -> usize {
    fs::read_dir(format!("/proc/{}/fd", world.exporter.pid())).unwrap().count()
}

#[test]
fn nothing_that_is_asked_wrongly_does_harm() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 1 << 20)])[0];
    write_at(disk, 0, &[1; 8192]);
    let other = harness::make_disk(&world.repository, "b.img", 1 << 20);
    harness::define_vm(&world.repository, OTHER_VM, &[other]);
    fs::write(world.repository.join("CoriolisSnapshots.txt"), "secret").unwrap();
    let client = world.client();
    let first = text(&client.take_snapshot()["id"]);
    let second = text(&client.take_snapshot()["id"]);
    let of_other = text(&client.post(&format!("/vms/{OTHER_VM}/snapshots")).ok()["id"]);
    let before = (world.snapshot_files(), client.get(&format!("/vms/{VM}/snapshots")).ok());
    let open_before = descriptors(&world);
    let vm = format!("/api/v1/vms/{VM}");
    let snapshot = format!("{vm}/snapshots/{first}");

    // Paths as they are.
    let long = |length: usize| "a".repeat(length);
    for (path, status, code) in [
        ("/".to_owned(), 404, "not_found"),
        ("/api/v1".to_owned(), 404, "not_found"),
        ("/api/v2/vms".to_owned(), 404, "not_found"),
        ("/api/v1//vms".to_owned(), 404, "not_found"),
        ("//api/v1/vms".to_owned(), 404, "not_found"),
        ("/api/v1/vms//".to_owned(), 404, "not_found"),
        ("/api/v1/./vms".to_owned(), 404, "not_found"),
        ("/api/v1/x/../vms".to_owned(), 404, "not_found"),
        ("/api/v1/vms/..".to_owned(), 404, "not_found"),
        ("/api/v1/vms/%2e%2e".to_owned(), 404, "not_found"),
        (format!("/api/v1/vms%2f{VM}"), 404, "not_found"),
        (format!("/api/v1/vms/{VM}%00"), 404, "not_found"),
        (format!("/api/v1/vms/{OTHER_VM}%2f..%2f{VM}"), 404, "not_found"),
        ("/api/v1/vms/0004fb".to_owned(), 404, "not_found"),
        ("/api/v1/vms/0004fb0000060000000000000000ffff".to_owned(), 404, "not_found"),
        ("/api/v1/vms/%ff%fe".to_owned(), 404, "not_found"),
        (format!("{vm}/snapshots/nonsense"), 404, "not_found"),
        (format!("{vm}/snapshots/{UNKNOWN}"), 404, "not_found"),
        (format!("{vm}/snapshots/..%2f{first}"), 404, "not_found"),
        (format!("/api/v1/vms/0004fb0000060000000000000000ffff/snapshots/{first}"), 404, "not_found"),
        (format!("{vm}/snapshots/{of_other}"), 409, "other_vm"),
        (format!("{snapshot}/disks"), 404, "not_found"),
        (format!("{snapshot}/disks/b.img"), 404, "not_found"),
        (format!("{snapshot}/disks/.manifest.json"), 404, "not_found"),
        (format!("{snapshot}/disks/..%2f..%2f..%2fCoriolisSnapshots.txt"), 404, "not_found"),
        (format!("{snapshot}/disks/../../../CoriolisSnapshots.txt"), 404, "not_found"),
        (format!("{snapshot}/disks/%2fetc%2fpasswd"), 404, "not_found"),
        (format!("{snapshot}/disks/a.img%00"), 404, "not_found"),
        (format!("{snapshot}/disks/{}", long(300)), 404, "not_found"),
        (format!("{snapshot}?squashChunks=maybe"), 400, "bad_request"),
        (format!("{snapshot}?squashChunks="), 400, "bad_request"),
        (format!("{snapshot}?chunks=2"), 400, "bad_request"),
        (format!("{snapshot}?zero=some"), 400, "bad_request"),
        (format!("{snapshot}?compareTo=nonsense"), 404, "not_found"),
        (format!("{snapshot}?compareTo={UNKNOWN}"), 404, "not_found"),
        (format!("{snapshot}?compareTo={first}"), 400, "base_not_older"),
        (format!("{snapshot}?compareTo={second}"), 400, "base_not_older"),
        (format!("{vm}/snapshots/{second}?compareTo={of_other}"), 409, "other_vm"),
        (format!("/api/v1/vms/{}", long(50_000)), 404, "not_found"),
        (format!("/api/v1/vms/{}", long(64 << 10)), 414, "uri_too_long"),
        (format!("/api/v1/vms/{}", long(100_000)), 414, "uri_too_long"),
    ] {
        let (answered, body) = curl(&world, &client, &path);
        assert_eq!((answered, code_of(&body).as_str()), (status, code), "{path:.200}");
    }

    // What is odd, and right.
    let plain = client.get(&format!("/vms/{VM}/snapshots/{first}")).ok();
    for query in ["?compareTo=", "?colour=red", "?squashChunks=True", "?zero=&colour", "/?squashChunks=T"] {
        assert_eq!(client.get(&format!("/vms/{VM}/snapshots/{first}{query}")).ok(), plain, "{query}");
    }
    for route in ["/vms/", &format!("/vms/{VM}/"), &format!("/vms/{VM}/snapshots/"), "/capabilities/"] {
        assert_eq!(client.get(route).ok(), client.get(route.trim_end_matches('/')).ok(), "{route}");
    }

    // Bodies and methods.
    let login = |body: String| client.send(client.request(Method::POST, "/api/v1/auth/login").body(body));
    for body in [
        "",
        "{",
        "[]",
        "{}",
        "null",
        r#"{"username":"admin"}"#,
        r#"{"username":1,"password":2}"#,
        r#"{"username":"admin","password":"x""#,
        "username=admin&password=x",
        "\u{0}",
    ] {
        assert_eq!(login(body.to_owned()).error(400), "bad_request", "{body:?}");
    }
    assert_eq!(login(" ".repeat(65 << 10)).error(413), "body_too_large");
    let big = client.request(Method::POST, &format!("{vm}/snapshots")).body("x".repeat(100_000));
    assert_eq!(client.send(big).error(413), "body_too_large");
    for (method, path, allowed) in [
        (Method::PUT, vm.clone(), "GET"),
        (Method::DELETE, "/api/v1/vms".to_owned(), "GET"),
        (Method::GET, "/api/v1/auth/login".to_owned(), "POST"),
        (Method::POST, format!("{snapshot}/disks/a.img"), "GET"),
        (Method::PATCH, format!("{vm}/snapshots"), "DELETE"),
    ] {
        let answer = client.send(client.request(method, &path));
        assert_eq!(answer.error(405), "method_not_allowed", "{path}");
        assert!(answer.header("allow").contains(allowed), "{path}: {}", answer.header("allow"));
    }

    assert_eq!((world.snapshot_files(), client.get(&format!("/vms/{VM}/snapshots")).ok()), before);
    let end = Instant::now() + Duration::from_secs(20);
    while descriptors(&world) > open_before + 1 {
        assert!(Instant::now() < end, "{} descriptors, {open_before} before", descriptors(&world));
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = world.exporter.log();
    assert!(!log.contains("panic") && !log.contains(" ERROR "), "{log}");
}
