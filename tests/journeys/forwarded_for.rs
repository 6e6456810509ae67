//! The client behind a proxy, in the audit and in the log.

use std::fs;
use std::io::{Read, Write};

use serde_json::Value;

use crate::harness::{World, connect_from, eventually};
use crate::needs_root;

#[test]
fn proxies_name_their_clients() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.json");
    let world = World::with(512, |settings| {
        settings.api =
            "trusted_proxies = [\"127.0.0.9\"]\nforwarded_for_from = [\"127.0.0.7\", \"127.0.3.0/24\"]".to_owned();
        settings.sections = format!("[audit]\nfile = {file:?}\n");
    });
    let client = world.client();
    // A refused creation of a VM that the number names, so that each request has a line of its own.
    let ask = |number: usize, from: [u8; 4], headers: &str| {
        let mut stream = connect_from(&world.exporter, &world.certificates, from);
        let (token, vm) = (&client.token, format!("{number:032x}"));
        let head = format!(
            "POST /api/v1/vms/{vm}/snapshots HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
             Content-Length: 0\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 404 "), "{}", String::from_utf8_lossy(&answer));
        vm
    };
    let (proxy, stranger) = ([127, 0, 0, 7], [127, 0, 0, 9]);
    let long = format!("X-Forwarded-For: 192.0.2.1{}\r\n", ", 127.0.3.1".repeat(100));
    let cases = [
        (proxy, "X-Forwarded-For: 192.0.2.1\r\n", Some("192.0.2.1")),
        (proxy, "X-Forwarded-For: 6.6.6.6, 192.0.2.1, 127.0.3.4\r\n", Some("192.0.2.1")),
        (proxy, "X-Forwarded-For: 6.6.6.6\r\nx-forwarded-for: [2001:db8::7]:4711\r\n", Some("2001:db8::7")),
        (proxy, "", None),
        (proxy, "X-Forwarded-For: 192.0.2.1, unknown\r\n", None),
        (proxy, "X-Forwarded-For: \"who\":\"admin\"\r\n", None),
        (proxy, &long, None),
        // Of `trusted_proxies`, which is about limits only.
        (stranger, "X-Forwarded-For: 192.0.2.1\r\n", None),
    ];
    for (number, (from, headers, expected)) in cases.into_iter().enumerate() {
        let vm = ask(number + 1, from, headers);
        let line = || -> Option<Value> {
            let text = fs::read_to_string(&file).unwrap();
            let found = text.lines().find(|line| line.contains(&vm)).map(str::to_owned);
            found.map(|line| serde_json::from_str(&line).unwrap())
        };
        eventually("the audit has the line", || line().is_some());
        let line = line().unwrap();
        assert_eq!(line["forwarded_for"].as_str(), expected, "{headers}: {line}");
        // The connection's own address is always there.
        let address = from.map(|byte| byte.to_string()).join(".");
        assert_eq!(line["address"], address.as_str(), "{line}");
        let log = world.exporter.log();
        let answered = log.lines().find(|line| line.contains("answered") && line.contains(&vm)).unwrap();
        let shown = expected.map(|client| format!(" forwarded_for={client} "));
        assert!(answered.contains(&format!("peer={address}:")), "{answered}");
        assert_eq!(answered.contains("forwarded_for"), shown.is_some(), "{answered}");
        assert!(shown.is_none_or(|shown| answered.contains(&shown)), "{answered}");
    }
    // Requests without a token name it too.
    let mut stream = connect_from(&world.exporter, &world.certificates, proxy);
    let head = "GET /api/v1/vms HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.9\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let has_line = || {
        let text = fs::read_to_string(&file).unwrap();
        text.lines().any(|line| line.contains("\"forwarded_for\":\"198.51.100.9\",\"action\":\"request\""))
    };
    eventually("the refused request is in the audit", has_line);
}
