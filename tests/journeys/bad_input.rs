//! Invalid requests: they get a documented status and a JSON body, cause no panic, leak no descriptor, and write
//! nothing.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::process::Command;

use reqwest::Method;
use serde_json::json;

use crate::harness::{
    self, Answer, Client, OTHER_VM, PASSWORD, ProcessStats, USER, VM, World, eventually_ok, text, write_at,
};
use crate::needs_root;

const UNKNOWN: &str = "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d";

/// Sends a request with curl, which does not normalize the path.
fn curl(world: &World, client: &Client, path: &str) -> Answer {
    curl_with(world, client, path, &[])
}

fn curl_with(world: &World, client: &Client, path: &str, arguments: &[&str]) -> Answer {
    let output = Command::new("curl")
        .args(["-sSi", "--path-as-is", "--max-time", "20", "--cacert"])
        .arg(world.certificates.ca())
        .args(["-H", &format!("Authorization: Bearer {}", client.token)])
        .args(arguments)
        .arg(format!("https://127.0.0.1:{}{path}", world.exporter.port))
        .output()
        .unwrap();
    assert!(output.status.success(), "{path:.200}: {}", String::from_utf8_lossy(&output.stderr));
    parse(&output.stdout)
}

/// Parses a response; the body is everything after the head.
fn parse(bytes: &[u8]) -> Answer {
    let (answer, body) = Answer::parse_head(bytes);
    Answer { body: body.to_vec(), ..answer }
}

#[test]
fn invalid_requests_are_rejected_and_change_nothing() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 1 << 20)])[0];
    write_at(disk, 0, &[1; 8192]);
    let other = harness::make_disk(&world.repository, "b.img", 1 << 20);
    harness::define_vm(&world.repository, OTHER_VM, &[other]);
    fs::write(world.repository.join("CoriolisSnapshots.txt"), "secret").unwrap();
    let client = world.client();
    let first = client.take_snapshot_id();
    let second = client.take_snapshot_id();
    let of_other = text(&client.post(&format!("/vms/{OTHER_VM}/snapshots")).ok()["id"]);
    let before = (world.snapshot_files(), client.get(&format!("/vms/{VM}/snapshots")).ok());
    let descriptors = || ProcessStats::of(&world.exporter).descriptors();
    let open_before = descriptors();
    let vm = format!("/api/v1/vms/{VM}");
    let snapshot = format!("{vm}/snapshots/{first}");

    // Paths.
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
        ("/api/v1/vms/%zz".to_owned(), 404, "not_found"),
        ("/api/v1/auth".to_owned(), 404, "not_found"),
        ("/api/v1/VMS".to_owned(), 404, "not_found"),
        (format!("{vm}/snapshots//{first}"), 404, "not_found"),
        (format!("{vm}/snapshots/{first}//disks/a.img"), 404, "not_found"),
        (format!("{vm}/snapshots/{first}/disks//a.img"), 404, "not_found"),
        (format!("{vm}/snapshots/{first}/disks/./a.img"), 404, "not_found"),
        (format!("{vm}/snapshots/{second}/../{first}"), 404, "not_found"),
        (format!("{vm}/snapshots/{}", first.replace('-', "")), 404, "not_found"),
        (format!("{vm}/snapshots/%7b{first}%7d"), 404, "not_found"),
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
        (format!("{snapshot}?compareTo=%ff%00"), 404, "not_found"),
        (format!("{snapshot}?compareTo=..%2f{second}"), 404, "not_found"),
        (format!("{snapshot}?compareTo={UNKNOWN}"), 404, "not_found"),
        (format!("{snapshot}?compareTo={first}"), 400, "base_not_older"),
        (format!("{snapshot}?compareTo={second}"), 400, "base_not_older"),
        (format!("{vm}/snapshots/{second}?compareTo={of_other}"), 409, "other_vm"),
        (format!("/api/v1/vms/{}", long(50_000)), 404, "not_found"),
        (format!("/api/v1/vms/{}", long(64 << 10)), 414, "uri_too_long"),
        (format!("/api/v1/vms/{}", long(100_000)), 414, "uri_too_long"),
    ] {
        let answer = curl(&world, &client, &path);
        assert_eq!((answer.status, answer.error(answer.status).as_str()), (status, code), "{path:.200}");
    }

    // Unusual but valid requests.
    let plain = client.get(&format!("/vms/{VM}/snapshots/{first}")).ok();
    for query in [
        "?compareTo=",
        "?colour=red",
        "?squashChunks=True",
        "?zero=&colour",
        "/?squashChunks=T",
        "?",
        "?&&=&",
        "?%ff=%ff",
    ] {
        assert_eq!(curl(&world, &client, &format!("{snapshot}{query}")).ok(), plain, "{query}");
    }
    for route in ["/vms/", &format!("/vms/{VM}/"), &format!("/vms/{VM}/snapshots/"), "/capabilities/"] {
        assert_eq!(client.get(route).ok(), client.get(route.trim_end_matches('/')).ok(), "{route}");
    }

    // Bodies.
    let login = |body: String| client.send(client.request(Method::POST, "/api/v1/auth/login").body(body));
    for body in [
        "",
        "{",
        "[]",
        "{}",
        "null",
        r#"{"username":"admin"}"#,
        r#"{"username":1,"password":2}"#,
        r#"{"username":"admin","password":null}"#,
        r#"{"username":"admin","password":"x""#,
        r#"{"username":"admin","password":"x"}}"#,
        "username=admin&password=x",
        "\u{0}",
        &"[".repeat(60_000),
    ] {
        assert_eq!(login(body.to_owned()).error(400), "bad_request", "{body:.100?}");
    }
    let limit = client.get("/capabilities").ok()["limits"]["request_body_bytes"].as_u64().unwrap() as usize;
    let good = json!({"username": USER, "password": PASSWORD}).to_string();
    let full = format!("{good}{}", " ".repeat(limit - good.len()));
    assert_eq!(login(full.clone()).status, 200, "{limit} bytes");
    for body in [" ".repeat(limit + 1), full + " "] {
        for path in ["/api/v1/auth/login", &format!("{vm}/snapshots")] {
            let request = client.request(Method::POST, path).body(body.clone());
            assert_eq!(client.send(request).error(413), "body_too_large", "{path}");
        }
    }

    // Methods, and unknown ids in changing requests.
    let (get, brew) = ("GET,HEAD", Method::from_bytes(b"BREW").unwrap());
    for (method, path, allowed) in [
        (Method::PUT, vm.clone(), get),
        (Method::POST, vm.clone(), get),
        (Method::DELETE, "/api/v1/vms".to_owned(), get),
        (Method::OPTIONS, "/api/v1/vms/".to_owned(), get),
        (Method::TRACE, "/api/v1/capabilities".to_owned(), get),
        (brew, snapshot.clone(), "DELETE,GET,HEAD"),
        (Method::GET, "/api/v1/auth/login".to_owned(), "POST"),
        (Method::HEAD, "/api/v1/auth/login/".to_owned(), "POST"),
        (Method::POST, format!("{snapshot}/disks/a.img"), get),
        (Method::DELETE, format!("{snapshot}/disks/a.img"), get),
        (Method::PATCH, format!("{vm}/snapshots"), "DELETE,GET,HEAD,POST"),
        (Method::POST, "/healthz".to_owned(), get),
    ] {
        let answer = client.send(client.request(method.clone(), &path));
        let mut allow: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
        allow.sort_unstable();
        assert_eq!((answer.status, allow.join(",").as_str()), (405, allowed), "{method} {path}");
        if method != Method::HEAD {
            assert_eq!(answer.error(405), "method_not_allowed", "{method} {path}");
        }
    }
    let unknown_vm = "/vms/0004fb0000060000000000000000ffff";
    for (method, path, status, code) in [
        (Method::POST, format!("{unknown_vm}/snapshots"), 404, "not_found"),
        (Method::POST, "/vms/nonsense/snapshots".to_owned(), 404, "not_found"),
        (Method::DELETE, format!("{unknown_vm}/snapshots"), 404, "not_found"),
        (Method::DELETE, format!("{unknown_vm}/snapshots/{UNKNOWN}"), 404, "not_found"),
        (Method::DELETE, format!("{unknown_vm}/snapshots/{first}"), 404, "not_found"),
        (Method::DELETE, format!("/vms/{VM}/snapshots/nonsense"), 404, "not_found"),
        (Method::DELETE, format!("/vms/{VM}/snapshots/..%2f{first}"), 404, "not_found"),
        (Method::DELETE, format!("/vms/{VM}/snapshots/{of_other}"), 409, "other_vm"),
        (Method::DELETE, format!("/vms/{VM}/snapshots//"), 404, "not_found"),
    ] {
        let answer = client.send(client.request(method.clone(), &format!("/api/v1{path}")));
        assert_eq!((answer.status, answer.error(answer.status).as_str()), (status, code), "{method} {path}");
    }
    // Deleting an unknown snapshot succeeds.
    assert_eq!(client.delete(&format!("/vms/{VM}/snapshots/{UNKNOWN}")).status, 200);

    assert_eq!((world.snapshot_files(), client.get(&format!("/vms/{VM}/snapshots")).ok()), before);
    eventually_ok(&format!("{open_before} descriptors are open, as before"), || {
        let now = descriptors();
        if now > open_before + 1 { Err(now) } else { Ok(()) }
    });

    // Invalid bodies of a creation; changing routes with a trailing slash.
    let post =
        |body: &str| client.send(client.request(Method::POST, &format!("{vm}/snapshots/")).body(body.to_owned()));
    for wrong in ["not JSON", "[]", "1", "{\"disks\": \"xvda\"}", "{\"ttl\": 5}", "{} {}", "{"] {
        assert_eq!(post(wrong).error(400), "bad_request", "{wrong}");
    }
    let third = text(&post(" ").ok()["id"]);
    for gone in [format!("/{third}/"), "/".to_owned()] {
        let answer = client.delete(&format!("/vms/{VM}/snapshots{gone}"));
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{gone}");
    }
    assert_eq!(client.get(&format!("/vms/{VM}/snapshots")).ok(), json!([]));
    assert_eq!(client.get(&format!("/vms/{OTHER_VM}")).ok()["snapshots"], json!([of_other]));
    let log = world.exporter.log();
    assert!(!log.contains("panic") && !log.contains(" ERROR "), "{log}");
}

/// The client is still sending the body when the service answers.
#[test]
fn too_large_body_gets_the_error_while_it_is_sent() {
    needs_root!();
    let world = World::new(512);
    let client = world.client();
    for size in [131_000, 300_000] {
        let file = world.certificates.path("body");
        fs::write(&file, " ".repeat(size)).unwrap();
        let body = format!("@{}", file.display());
        for way in ["Content-Type: application/json", "Transfer-Encoding: chunked"] {
            for _ in 0..20 {
                let arguments = ["-H", way, "-H", "Expect:", "--data-binary", &body];
                let answer = curl_with(&world, &client, "/api/v1/auth/login", &arguments);
                assert_eq!(answer.error(413), "body_too_large", "{size} bytes, {way}");
            }
        }
    }
}

/// Sends raw bytes; returns everything received until the connection ends.
fn raw_response(world: &World, request: &str) -> Vec<u8> {
    let mut stream = harness::connect(&world.exporter, &world.certificates);
    let mut received = Vec::new();
    let _ = stream.write_all(request.as_bytes()); // the service may close the connection before it has read everything
    let ended = stream.read_to_end(&mut received);
    let kept = ended.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    assert!(!kept, "the connection is kept: {request:.100?}");
    received
}

#[test]
fn malformed_http_is_rejected() {
    needs_root!();
    let world = World::new(512);
    let login = "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let health = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let headers: String = (0..150).map(|number| format!("X-{number}: y\r\n")).collect();
    for (request, status) in [
        (format!("{health}\r\n"), 200),
        ("GET /healthz HTTP/1.0\r\n\r\n".to_owned(), 200),
        (format!("{login}Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"), 400),
        (format!("{login}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"), 400),
        ("GET healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), 404),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), 404),
        ("CONNECT localhost:22 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), 404),
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("GET /healthz HTTP/9.9\r\n\r\n".to_owned(), 400),
        ("GET /heal\u{0}thz HTTP/1.1\r\n\r\n".to_owned(), 400),
        (format!("{health}Bad Header: x\r\n\r\n"), 400),
        (format!("{login}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{{}}    "), 400),
        (format!("{login}Content-Length: -2\r\n\r\n{{}}"), 400),
        (format!("{login}Content-Length: 99999999999999999999\r\n\r\n{{}}"), 400),
        (format!("{login}Transfer-Encoding: gzip\r\n\r\n{{}}"), 400),
        (format!("{health}{headers}\r\n"), 431),
    ] {
        let response = raw_response(&world, &request);
        assert!(!response.is_empty(), "no response to {request:.100?}");
        let answer = parse(&response);
        assert_eq!(answer.status, status, "{request:.100?}");
        if status >= 400 {
            answer.error(status);
        }
    }
    // Another protocol, and a head that is too large.
    for (request, status) in
        [("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400), (&format!("{health}X: {}\r\n\r\n", "a".repeat(2 << 20)), 431)]
    {
        parse(&raw_response(&world, request)).error(status);
    }

    let client = world.client();
    assert_eq!(client.get("/vms").ok(), json!([]));
    let log = world.exporter.log();
    assert!(!log.contains("panic") && !log.contains(" ERROR "), "{log}");
}
