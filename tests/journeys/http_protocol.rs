//! HTTP on the wire: rejected heads, headers of all responses, other protocols, misspelled query parameters.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::harness::{Answer, PASSWORD, SNAPSHOTS, USER, VM, World, connect, eventually_some, text, write_at};
use crate::needs_root;

/// Parses the responses of a connection.
fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (mut answer, body) = Answer::parse_head(bytes);
        let length = answer.header("content-length").parse().unwrap_or(0).min(body.len());
        answer.body = body[..length].to_vec();
        bytes = &body[length..];
        all.push(answer);
    }
    all
}

/// Sends raw bytes; returns the responses received until the connection ends.
fn raw_responses(world: &World, request: &[u8]) -> Vec<Answer> {
    let mut stream = connect(&world.exporter, &world.certificates);
    let _ = stream.write_all(request); // the service may close the connection before it has read everything
    let _ = stream.flush();
    let mut received = Vec::new();
    let ended = stream.read_to_end(&mut received);
    assert!(ended.is_ok(), "{ended:?} after {:?}", String::from_utf8_lossy(&received));
    answers(&received)
}

#[test]
fn every_rejected_request_gets_json_and_is_logged() {
    needs_root!();
    let world = World::new(512);
    let get = "GET /healthz HTTP/1.1\r\n";
    let good = format!("{get}Host: x\r\n\r\n");
    let login = "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\n";
    let long = "a".repeat(62_000);
    let many: String = (0..150).map(|number| format!("X-{number}: y\r\n")).collect();
    for (what, request, status, code) in [
        ("not HTTP", "nonsense\r\n\r\n".to_owned(), 400, "bad_request"),
        ("another version", "GET / HTTP/3.0\r\nHost: x\r\n\r\n".to_owned(), 400, "bad_request"),
        ("a malformed header", format!("{get}Host: x\r\nBad Header: y\r\n\r\n"), 400, "bad_request"),
        ("a folded header", format!("{get}Host: x\r\nA: b\r\n c\r\n\r\n"), 400, "bad_request"),
        ("a malformed target", "GET /%\u{7f} HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400, "bad_request"),
        ("no Host", format!("{get}\r\n"), 400, "bad_request"),
        ("a space in Host", format!("{get}Host: x y\r\n\r\n"), 400, "bad_request"),
        ("two hosts in Host", format!("{get}Host: x,y\r\n\r\n"), 400, "bad_request"),
        ("a path in Host", format!("{get}Host: x/y\r\n\r\n"), 400, "bad_request"),
        ("two Hosts", format!("{get}Host: x\r\nHost: x\r\n\r\n"), 400, "bad_request"),
        ("bare LF everywhere", "GET /healthz HTTP/1.1\nHost: x\n\n".to_owned(), 400, "bad_request"),
        ("bare LF behind a header", format!("{get}Host: x\nA: b\r\n\r\n"), 400, "bad_request"),
        ("bare LF at the end", format!("{get}Host: x\r\n\n"), 400, "bad_request"),
        ("bare LF in HTTP/1.0", "GET /healthz HTTP/1.0\n\n".to_owned(), 400, "bad_request"),
        (
            "a length and an encoding",
            format!("{login}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"),
            400,
            "bad_request",
        ),
        (
            "an encoding and a length",
            format!("{login}Transfer-Encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"),
            400,
            "bad_request",
        ),
        ("two lengths", format!("{login}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"), 400, "bad_request"),
        ("an unknown encoding", format!("{login}Transfer-Encoding: gzip\r\n\r\n{{}}"), 400, "bad_request"),
        ("a bad chunk", format!("{login}Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n"), 400, "bad_request"),
        ("a long line", format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), 414, "uri_too_long"),
        ("a line without end", format!("GET /{}", "a".repeat(1 << 20)), 414, "uri_too_long"),
        ("many headers", format!("{get}Host: x\r\n{many}\r\n"), 431, "headers_too_large"),
        ("a long header", format!("{get}Host: x\r\nA: {}\r\n\r\n", "b".repeat(1 << 20)), 431, "headers_too_large"),
    ] {
        // As the first request of a connection, after another one, and after one with a body.
        let with_body = format!("{login}Content-Length: 2\r\n\r\n{{}}");
        for (before, statuses) in [(String::new(), vec![]), (good.clone(), vec![200]), (with_body, vec![400])] {
            let responses = raw_responses(&world, format!("{before}{request}").as_bytes());
            let found: Vec<u16> = responses.iter().map(|answer| answer.status).collect();
            assert_eq!(found, [statuses, vec![status]].concat(), "{what}");
            let last = responses.last().unwrap();
            assert_eq!(last.error(status), code, "{what}");
            assert!(last.body.ends_with(b"}\n"), "{what}");
            let id = text(&last.json()["request_id"]);
            let line = eventually_some(&format!("{what}: {id} is logged"), || {
                let log = world.exporter.log();
                log.lines().find(|line| line.contains(&id) && line.contains("status=")).map(str::to_owned)
            });
            assert!(line.contains("127.0.0.1:") && line.contains(&format!("status={status}")), "{line}");
        }
    }
    // The response to a HEAD has no body.
    let responses = raw_responses(&world, b"HEAD /healthz HTTP/1.1\r\n\r\n");
    assert_eq!((responses.len(), responses[0].status, responses[0].body.len()), (1, 400, 0));
    assert!(responses[0].header("content-length").parse::<u32>().unwrap() > 0);

    // Allowed: empty lines before a request, HTTP/1.0 without Host, a request after a body.
    let host = "GET /healthz HTTP/1.0\r\nHost: x\r\n\r\n";
    for (request, count) in [
        (format!("\r\n\r\n{host}"), 1),
        ("GET /healthz HTTP/1.0\r\n\r\n".to_owned(), 1),
        (format!("{good}{good}{host}"), 3),
    ] {
        let responses = raw_responses(&world, request.as_bytes());
        assert!(responses.iter().all(|answer| answer.status == 200), "{request:?}");
        assert_eq!(responses.len(), count, "{request:?}");
    }
    let body = json!({"username": USER, "password": PASSWORD}).to_string();
    let sized = format!("{login}Content-Length: {}\r\n\r\n{body}", body.len());
    let responses = raw_responses(&world, format!("{sized}{sized}{host}").as_bytes());
    assert_eq!(responses.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 200]);
    // Nothing is read after a chunked body.
    let chunked = format!("{login}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let responses = raw_responses(&world, format!("{chunked}GET /healthz HTTP/1.1\n\n").as_bytes());
    assert_eq!((responses.len(), responses[0].status, responses[0].header("connection")), (1, 200, "close"));
    let log = world.exporter.log();
    assert!(!log.contains("panic") && !log.contains(" ERROR "), "{log}");
}

#[test]
fn responses_end_with_a_newline_and_forbid_caching_and_sniffing() {
    needs_root!();
    let world = World::with(512, |settings| settings.sections = "[metrics]\nenabled = true\n".to_owned());
    let disk = &world.define_vm(&[("a.img", 1 << 20)])[0];
    write_at(disk, 0, &[1; 8192]);
    let client = world.client();
    let stranger = world.anonymous_client();
    let created = client.post(SNAPSHOTS);
    let id = text(&created.json()["id"]);
    let snapshot = format!("{SNAPSHOTS}/{id}");
    let disk = format!("{snapshot}/disks/a.img");
    let login = json!({"username": USER, "password": PASSWORD}).to_string();
    let get = |path: &str, headers: &[(&str, &str)]| {
        let request = client.request(Method::GET, path);
        client.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    };
    let api = |path: &str| get(&format!("/api/v1{path}"), &[]);
    let etag = api(&disk).header("etag").to_owned();
    let bytes = |headers: &[(&str, &str)]| get(&format!("/api/v1{disk}"), headers);
    let log_in = client.send(client.request(Method::POST, "/api/v1/auth/login").body(login));
    let not_logged_in = client.send(client.request(Method::POST, "/api/v1/auth/login").body("{}"));
    let json = [
        created,
        log_in,
        not_logged_in,
        get("/healthz", &[]),
        get("/readyz", &[]),
        api("/capabilities"),
        api("/repositories"),
        api("/status"),
        api("/vms"),
        api(&format!("/vms/{VM}")),
        api(SNAPSHOTS),
        api(&snapshot),
        api(&format!("{disk}/chunks")),
        get(&format!("/api/v1{disk}/chunks"), &[("Accept", "application/x-ndjson")]),
        api(&format!("{disk}/checksum")),
        api(&format!("{disk}/checksum?blockSize=4096&blocks=true")),
        client.post("/adopt"),
        client.send(client.request(Method::POST, &format!("/api/v1{snapshot}/lease")).body(r#"{"ttl": "1h"}"#)),
        api("/nowhere"),
        get("/", &[]),
        client.post("/vms"),
        stranger.get("/vms"),
        bytes(&[("Range", "bytes=x")]),
        bytes(&[("If-Match", "\"other\"")]),
    ];
    for answer in &json {
        assert!(answer.body.ends_with(b"\n"), "{answer:?}");
        assert!(!answer.body.ends_with(b"\n\n"), "{answer:?}");
        if !answer.header("content-length").is_empty() {
            assert_eq!(answer.header("content-length"), answer.body.len().to_string(), "{answer:?}");
        }
        assert!(answer.header("content-type").starts_with("application/"), "{answer:?}");
    }
    let others = [
        bytes(&[]),
        bytes(&[("Range", "bytes=0-9")]),
        bytes(&[("Range", "bytes=0-9,20-29")]),
        bytes(&[("If-None-Match", &etag)]),
        client.send(client.request(Method::HEAD, &format!("/api/v1{disk}"))),
        client.delete(&format!("{snapshot}/lease")),
        get("/metrics", &[]),
        get("/", &[("Accept", "text/html,*/*")]),
        get("/api/v1/status", &[("Accept", "text/plain")]),
    ];
    for answer in json.iter().chain(&others) {
        assert_eq!(answer.header("cache-control"), "no-store", "{answer:?}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{answer:?}");
        assert_eq!(answer.header("x-request-id").len(), 36, "{answer:?}");
    }
}

/// Runs curl; returns its exit status and its output.
fn curl(world: &World, arguments: &[&str], url: &str) -> (Option<i32>, String) {
    let mut command = Command::new("curl");
    command.args(["-sSv", "--max-time", "20", "--cacert"]).arg(world.certificates.ca()).args(arguments).arg(url);
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn browsers_and_other_protocols_get_a_helpful_message() {
    needs_root!();
    let world = World::new(512);
    let https = format!("https://127.0.0.1:{}", world.exporter.port);
    let http = format!("http://127.0.0.1:{}", world.exporter.port);
    // A browser at the root gets a page, a program gets an error.
    let browser = ["-H", "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"];
    let (_, output) = curl(&world, &browser, &format!("{https}/"));
    assert!(output.contains("HTTP/1.1 200 OK") && output.contains("content-type: text/plain"), "{output}");
    assert!(output.contains("/api/v1") && output.contains("docs/api.md"), "{output}");
    let (_, output) = curl(&world, &[], &format!("{https}/"));
    assert!(
        output.contains("HTTP/1.1 404 Not Found") && output.contains("those of the API start with /api/v1"),
        "{output}"
    );

    // Plain HTTP: complete requests, then an incomplete one whose client waits.
    for arguments in [&[][..], &["-d", "{}"], &["--http1.0"]] {
        let (status, output) = curl(&world, arguments, &format!("{http}/api/v1/vms"));
        assert_eq!(status, Some(0), "{output}");
        assert!(output.contains("HTTP/1.1 400 Bad Request") && output.contains("this port speaks HTTPS"), "{output}");
        assert!(output.contains("https_required") && output.to_lowercase().contains("x-request-id"), "{output}");
    }
    world.exporter.wait_for_log("https_required");
    let mut half = TcpStream::connect(("127.0.0.1", world.exporter.port)).unwrap();
    half.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    half.write_all(b"GET / HT").unwrap();
    let mut received = String::new();
    half.read_to_string(&mut received).unwrap();
    assert!(received.starts_with("HTTP/1.1 400 "), "{received}");

    // A client that speaks only HTTP/2 gets a TLS alert.
    let alpn = |protocols: &str| {
        let port = world.exporter.port;
        let command = format!("openssl s_client -connect 127.0.0.1:{port} -alpn {protocols} </dev/null 2>&1");
        String::from_utf8_lossy(&Command::new("sh").args(["-c", &command]).output().unwrap().stdout).into_owned()
    };
    let output = alpn("h2");
    assert!(output.contains("alert no application protocol"), "{output}");
    for (protocols, chosen) in
        [("http/1.0", "http/1.0"), ("h2,http/1.1", "http/1.1"), ("http/1.0,http/1.1", "http/1.1")]
    {
        let output = alpn(protocols);
        assert!(output.contains(&format!("ALPN protocol: {chosen}")), "{protocols}: {output}");
    }
    for arguments in [&["--http1.0"][..], &["--http1.1"], &["--http2"], &["--no-alpn"]] {
        let (status, output) = curl(&world, arguments, &format!("{https}/healthz"));
        assert!(status == Some(0) && output.contains("200 OK"), "{arguments:?}: {output}");
    }
}

#[test]
fn misspelled_query_parameters_are_rejected() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", 1 << 20)])[0];
    write_at(disk, 0, &[1; 8192]);
    let client = world.client();
    let first = client.take_snapshot_id();
    write_at(disk, 65_536, &[2; 4096]);
    let second = client.take_snapshot_id();
    let snapshot = format!("{SNAPSHOTS}/{second}");
    let disk = format!("{snapshot}/disks/a.img");
    let files = world.snapshot_files();
    for (method, path, expected) in [
        (Method::GET, format!("{snapshot}?compareto={first}"), "compareTo"),
        (Method::GET, format!("{snapshot}?compare_to={first}"), "compareTo"),
        (Method::GET, format!("{snapshot}?compareTo={first}&compareTo={first}"), "compareTo is given twice"),
        (Method::GET, format!("{snapshot}?Chunks=false"), "chunks"),
        (Method::GET, format!("{SNAPSHOTS}?squash_chunks=false"), "squashChunks"),
        (Method::POST, format!("{SNAPSHOTS}?chunk=false"), "chunks"),
        (Method::POST, format!("{SNAPSHOTS}?chunks=false&chunks=true"), "chunks is given twice"),
        (Method::POST, format!("{SNAPSHOTS}?squashChunks=perhaps"), "squashChunks"),
        (Method::POST, format!("{SNAPSHOTS}?compareTo={first}"), "GET it with compareTo"),
        (Method::GET, format!("{SNAPSHOTS}?compareTo={first}"), "GET one of them with compareTo"),
        (Method::GET, format!("{SNAPSHOTS}?compareTo=nonsense&chunks=false"), "GET one of them with compareTo"),
        (Method::GET, format!("{SNAPSHOTS}?refine=4096"), "GET one of them with refine"),
        (Method::GET, format!("{disk}/chunks?startingoffset=5"), "startingOffset"),
        (Method::GET, format!("{disk}/chunks?maxResult=5"), "maxResults"),
        (Method::GET, format!("{disk}/checksum?algoritm=sha256"), "algorithm"),
        (Method::GET, format!("{disk}/checksum?blocksize=4096"), "blockSize"),
        (
            Method::GET,
            format!("{disk}/checksum?blockSize=4096&block_size=8192"),
            "blockSize and block_size are both given",
        ),
        (Method::GET, "/status?costs=true".to_owned(), "cost"),
        (Method::POST, "/adopt?dryRun=true&dryRun=false".to_owned(), "dryRun is given twice"),
        (Method::POST, "/adopt?dry_run=true".to_owned(), "dryRun"),
    ] {
        let answer = client.send(client.request(method.clone(), &format!("/api/v1{path}")));
        assert_eq!(answer.error(400), "bad_request", "{method} {path}");
        assert!(text(&answer.json()["details"]).contains(expected), "{method} {path}: {}", answer.json());
    }
    assert_eq!(world.snapshot_files(), files, "a snapshot was made");

    // Unknown parameters are ignored, as by the original exporter.
    let plain = client.get(&snapshot).ok();
    for query in ["colour=red&colour=blue", "_=1690000000", "compareTo=&since=yesterday", "format=json"] {
        assert_eq!(client.get(&format!("{snapshot}?{query}")).ok(), plain, "{query}");
    }
    let list = client.get(SNAPSHOTS).ok();
    assert_eq!(client.get(&format!("{SNAPSHOTS}?compareTo=&refine=")).ok(), list);
    // The documented parameters also work when a snapshot is made.
    let made = |query: &str| client.post(&format!("{SNAPSHOTS}?{query}")).ok()["disks"][0].clone();
    assert!(made("chunks=false").get("chunks").is_none());
    let summary = made("summary=true");
    assert!(summary.get("chunks").is_none() && summary["data_bytes"] == 12_288, "{summary}");
    assert_eq!(made("zero=include")["zero_bytes"], json!((1 << 20) - 12_288));
    let squashed = made("squashChunks=True");
    assert_eq!(squashed["chunks"], plain["disks"][0]["chunks"]);
    assert_eq!(made("compareTo=&refine=")["data_bytes"], 12_288);
}
