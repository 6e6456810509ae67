//! Clients that are known by their certificates: modes, names and roles, revocation lists, reload.

use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use rustls::{ClientConfig, HandshakeKind};
use serde_json::{Value, json};

use crate::harness::access::{certificate_rule, lacks, rule};
use crate::harness::{
    Certificates, Client, Connection, Exporter, MB, PASSWORD, SNAPSHOTS, Settings, USER, VM, World, connect_with,
    eventually, eventually_within, text, tls_config, tls_config_of, write_at,
};
use crate::needs_root;

fn set_tls(settings: &mut Settings, mode: &str, lists: &str) {
    let ca = settings.certificate.with_file_name("ca.pem");
    settings.tls = format!("client_auth = {mode}\nca_certificate = {ca:?}\n{lists}");
}

/// A service with a VM, this mode and these rules. With `lists`, it reads `clients.crl`, which revokes nothing at first.
fn world(mode: &str, lists: bool, access: &str) -> World {
    let world = World::with(512, |settings| {
        settings.sections = format!("[access]\n{access}");
    });
    let mut world = world;
    world.certificates.revoke("clients.crl", &[]);
    let list = format!("client_crl = {:?}", world.certificates.path("clients.crl"));
    set_tls(world.exporter.settings(), mode, if lists { &list } else { "" });
    world.exporter.restart();
    write_at(&world.define_vm(&[("a.img", 64 * MB)])[0], 0, &vec![7; 64 << 20]);
    world
}

/// The status of a request of curl with the certificate of this name; 0 if the handshake fails.
fn curl(world: &World, name: Option<&str>, path: &str) -> u16 {
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20", "--cacert"]);
    curl.arg(world.certificates.ca());
    if let Some(name) = name {
        curl.arg("--cert").arg(world.certificates.path(format!("{name}.pem")));
        curl.arg("--key").arg(world.certificates.path(format!("{name}.key")));
    }
    let output = curl.arg(format!("https://127.0.0.1:{}{path}", world.exporter.port)).output().unwrap();
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

fn reload(world: &World, line: &str) {
    let count = || world.exporter.log().matches(line).count();
    let before = count();
    world.exporter.signal(Signal::SIGHUP);
    eventually("the service has reloaded", || count() > before);
}

const RELOADED: &str = "certificate reloaded";

#[test]
fn each_mode_admits_the_clients_that_it_should() {
    needs_root!();
    let access = certificate_rule("known", "viewer");
    for (mode, without, with_stranger) in
        [("false", 200, 200), ("\"off\"", 200, 200), ("\"optional\"", 200, 0), ("true", 0, 0), ("\"required\"", 0, 0)]
    {
        let world = world(mode, false, &access);
        world.certificates.issue("known");
        world.certificates.issue("other");
        let strangers = Certificates::new();
        strangers.issue("stranger");
        for kind in ["pem", "key"] {
            let name = format!("stranger.{kind}");
            fs::copy(strangers.path(&name), world.certificates.path(&name)).unwrap();
        }
        let is_off = mode.contains('f') && !mode.contains("req");
        assert_eq!(curl(&world, None, "/healthz"), without, "{mode}");
        assert_eq!(curl(&world, Some("stranger"), "/healthz"), with_stranger, "{mode}");
        assert_eq!(curl(&world, Some("other"), "/healthz"), 200, "{mode}");
        // A certificate that no rule names does not have the default role, which is admin.
        assert_eq!(curl(&world, Some("other"), "/api/v1/vms"), 401, "{mode}");
        assert_eq!(curl(&world, Some("known"), "/api/v1/vms"), if is_off { 401 } else { 200 }, "{mode}");
    }
}

#[test]
fn the_names_of_a_certificate_give_roles() {
    needs_root!();
    let access = ["cn-*", "dns.example"].map(|name| certificate_rule(name, "operator")).concat()
        + &certificate_rule("shared", "viewer")
        + &rule("*", "admin", "");
    let world = world("\"optional\"", false, &format!("default_role = \"none\"\n{access}"));
    let client = |name: &str, hosts: &[&str]| {
        world.certificates.issue_for(name, hosts);
        Client::with_certificate(&world.exporter, &world.certificates, name)
    };
    let by_cn = client("cn-backup", &["127.0.0.1"]);
    let snapshot = by_cn.take_snapshot();
    assert_eq!(snapshot["created_by"], "cert:cn-backup");
    assert_eq!(client("host", &["dns.example"]).take_snapshot()["created_by"], "cert:host");
    // Not a part of a name, and not an address.
    for hosts in [&["sub.dns.example"][..], &["127.0.0.1"]] {
        let answer = client("other", hosts).get("/vms");
        assert_eq!(answer.error(401), "unauthorized");
        assert!(
            text(&answer.json()["details"]).contains("no rule names the client's certificate (other"),
            "{answer:?}"
        );
    }
    let mut viewer = client("shared", &[]);
    viewer.get("/vms").ok();
    lacks(&viewer.post(SNAPSHOTS), "operator");
    // A user has no rights from a certificate of the same name, and a token decides alone.
    let path = format!("{SNAPSHOTS}/{}", text(&snapshot["id"]));
    lacks(&viewer.delete(&path), "operator");
    viewer.token = text(&viewer.try_log_in(USER, PASSWORD).ok()["token"]);
    assert_eq!(viewer.take_snapshot()["created_by"], USER);
    viewer.token = "no token".to_owned();
    assert_eq!(viewer.get("/vms").error(401), "unauthorized");
    world.exporter.wait_for_log("user=\"cert:cn-backup\"");
}

/// A connection with a certificate, which has already been used.
fn known_connection(world: &World, config: &Arc<ClientConfig>) -> Connection {
    let mut connection = connect_with(&world.exporter, Arc::clone(config), [127, 0, 0, 1]).unwrap();
    assert!(request(&mut connection, "/api/v1/vms").is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")));
    connection
}

/// Sends a request; returns the start of the answer, `None` if the connection is closed.
fn request(connection: &mut Connection, path: &str) -> Option<String> {
    connection.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).ok()?;
    let mut answer = vec![0; 64 << 10];
    let length = connection.read(&mut answer).ok()?;
    (length > 0).then(|| String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[test]
fn a_revoked_certificate_ends_at_once_and_others_stay() {
    needs_root!();
    let world = world("\"required\"", true, &certificate_rule("backup-*", "operator"));
    for name in ["backup-1", "backup-2"] {
        world.certificates.issue(name);
    }
    let one = Arc::new(tls_config(&world.certificates, Some("backup-1")));
    let two = Arc::new(tls_config(&world.certificates, Some("backup-2")));
    let client = Client::with_certificate(&world.exporter, &world.certificates, "backup-2");
    let id = client.take_snapshot_id();
    let (mut idle, mut stays) = (known_connection(&world, &one), known_connection(&world, &two));
    let mut download = known_connection(&world, &one);
    assert!(request(&mut download, &format!("/api/v1{SNAPSHOTS}/{id}/disks/a.img")).is_some());

    world.certificates.revoke("clients.crl", &["backup-1"]);
    reload(&world, RELOADED);
    assert_eq!(request(&mut idle, "/api/v1/vms"), None, "a request on an open connection");
    let mut rest = Vec::new();
    let ended = download.read_to_end(&mut rest);
    assert!(ended.is_err() || rest.len() < 64 << 20, "the download was not cut off");
    // No new handshake, and no resumption of a session.
    let again = connect_with(&world.exporter, Arc::clone(&one), [127, 0, 0, 1]);
    assert!(again.is_err() || request(&mut again.unwrap(), "/healthz").is_none());
    assert!(request(&mut stays, "/api/v1/vms").is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")));
    client.get("/vms").ok();
    world.exporter.wait_for_log("the certificate is not accepted any more");

    world.certificates.revoke("clients.crl", &[]);
    reload(&world, RELOADED);
    drop(known_connection(&world, &one));
}

#[test]
fn the_certificate_of_a_proxy_is_not_that_of_its_users() {
    needs_root!();
    let mut world = world("\"required\"", false, &certificate_rule("robot", "viewer"));
    world.exporter.settings().api =
        "trusted_proxies = [\"127.0.0.7\"]\nforwarded_for_from = [\"127.0.0.9\"]".to_owned();
    world.exporter.restart();
    world.certificates.issue("robot");
    let config = Arc::new(tls_config(&world.certificates, Some("robot")));
    for (last, expected) in [(1, "HTTP/1.1 200 "), (7, "HTTP/1.1 401 "), (9, "HTTP/1.1 401 ")] {
        let mut connection = connect_with(&world.exporter, Arc::clone(&config), [127, 0, 0, last]).unwrap();
        let answer = request(&mut connection, "/api/v1/vms").unwrap();
        assert!(answer.starts_with(expected), "127.0.0.{last}: {answer}");
        // What needs no right is served.
        let mut connection = connect_with(&world.exporter, Arc::clone(&config), [127, 0, 0, last]).unwrap();
        assert!(request(&mut connection, "/healthz").unwrap().starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn pages_of_other_sites_cannot_use_the_certificate_of_a_browser() {
    needs_root!();
    let world = world("\"optional\"", false, &certificate_rule("robot", "operator"));
    world.certificates.issue("robot");
    let client = Client::with_certificate(&world.exporter, &world.certificates, "robot");
    let ask = |client: &Client, headers: &[(&str, &str)]| {
        let path = format!("/api/v1{SNAPSHOTS}");
        let request = client.request(Method::POST, &path);
        client.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    };
    let own = format!("https://127.0.0.1:{}", world.exporter.port);
    for headers in [
        &[("Origin", "https://evil.example")][..],
        &[("Origin", "null")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-site")],
        &[("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-origin"), ("Origin", "https://evil.example")],
        &[("Sec-Fetch-Site", "same-origin"), ("Origin", "null")],
        // An old browser, a form that is sent again, and another port of the host.
        &[("Origin", &own)],
        &[("Sec-Fetch-Site", "none"), ("Origin", &own)],
        &[("Sec-Fetch-Site", "same-site"), ("Origin", &own)],
        &[("Sec-Fetch-Site", "same-origin"), ("Origin", "https://127.0.0.1")],
    ] {
        let answer = ask(&client, headers);
        assert_eq!(answer.error(403), "forbidden", "{headers:?}");
        assert!(text(&answer.json()["details"]).contains("another site"), "{answer:?}");
    }
    assert!(client.snapshot_ids().is_empty());
    for headers in [
        &[][..],
        &[("Sec-Fetch-Site", "none")],
        &[("Sec-Fetch-Site", "same-origin")],
        &[("Sec-Fetch-Site", "same-origin"), ("Origin", &own)],
    ] {
        ask(&client, headers).ok();
    }
    // Only a page that knows the token can send it.
    ask(&world.client(), &[("Origin", "https://console.example")]).ok();
}

#[test]
fn a_client_can_ask_whom_its_certificate_names() {
    needs_root!();
    let world = world("\"optional\"", false, &certificate_rule("known", "viewer"));
    let path = "/auth/certificate";
    for (name, user) in [("known", json!("cert:known")), ("other", Value::Null)] {
        world.certificates.issue(name);
        let mut client = Client::with_certificate(&world.exporter, &world.certificates, name);
        assert_eq!(client.get(path).ok(), json!({"user": user}));
        // Also if a token decides.
        client.token = "no token".to_owned();
        assert_eq!(client.get(path).ok(), json!({"user": user}));
        let request = client.request(Method::GET, &format!("/api/v1{path}")).header("Sec-Fetch-Site", "cross-site");
        assert_eq!(client.send(request).error(403), "forbidden");
    }
    assert_eq!(world.anonymous_client().get(path).ok(), json!({"user": null}));
    assert_eq!(Client::local(&world.exporter).get(path).ok(), json!({"user": null}));
}

#[test]
fn sessions_with_certificates_are_not_resumed() {
    needs_root!();
    for (mode, expected) in [("\"optional\"", HandshakeKind::Full), ("\"off\"", HandshakeKind::Resumed)] {
        let world = world(mode, false, "");
        world.certificates.issue("client");
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let config = tls_config_of(&world.certificates, Some("client"), &[version]);
            let config = Arc::new(config);
            let kind = || {
                let mut connection = connect_with(&world.exporter, Arc::clone(&config), [127, 0, 0, 1]).unwrap();
                assert!(request(&mut connection, "/healthz").is_some());
                connection.conn.handshake_kind()
            };
            kind();
            assert_eq!(kind(), Some(expected), "{mode} {version:?}");
        }
    }
}

#[test]
fn a_bad_list_keeps_the_old_one_and_is_reported() {
    needs_root!();
    let world = world("\"optional\"", true, &certificate_rule("backup-*", "viewer"));
    world.certificates.issue("backup-1");
    world.certificates.issue("backup-2");
    world.certificates.revoke("clients.crl", &["backup-1"]);
    reload(&world, RELOADED);
    let local = Client::local(&world.exporter);
    let tls = || local.get("/status").ok()["tls"].clone();
    assert_eq!(tls()["status"], "ok");
    let until = text(&tls()["revocations_end"]);
    // Another authority with the same name has signed it.
    let others = Certificates::new();
    others.issue("backup-2");
    others.revoke("clients.crl", &[]);
    let forged = fs::read(others.path("clients.crl")).unwrap();
    for bad in [b"no list".as_slice(), b"\x30\x03\x02\x01\x01", &forged, b""] {
        fs::write(world.certificates.path("clients.crl"), bad).unwrap();
        reload(&world, "cannot reload the certificate; keeping the current one");
        let status = tls();
        assert_eq!((&status["status"], text(&status["revocations_end"])), (&"error".into(), until.clone()));
        assert!(text(&status["problem"]).starts_with("api.tls.client_crl: "), "{status}");
        assert_eq!(curl(&world, Some("backup-1"), "/api/v1/vms"), 0, "{bad:?}");
        assert_eq!(curl(&world, Some("backup-2"), "/api/v1/vms"), 200, "{bad:?}");
    }
    // Users without the rights of an administrator do not see it.
    let viewer = Client::with_certificate(&world.exporter, &world.certificates, "backup-2");
    assert!(viewer.get("/status").ok().get("tls").is_none());
}

#[test]
fn an_expired_list_refuses_certificates_until_it_is_renewed() {
    needs_root!();
    let world = world("\"optional\"", true, &certificate_rule("backup", "viewer"));
    world.certificates.issue("backup");
    world.certificates.revoke_for("clients.crl", &[], Duration::from_secs(30));
    reload(&world, RELOADED);
    let config = Arc::new(tls_config(&world.certificates, Some("backup")));
    let mut open = known_connection(&world, &config);
    let is_locked = || curl(&world, Some("backup"), "/healthz") == 0;
    eventually_within(Duration::from_secs(60), "the list expires", is_locked);
    // An open connection is checked at intervals.
    eventually_within(Duration::from_secs(30), "the open connection is closed", || {
        request(&mut open, "/api/v1/vms").is_none()
    });
    // Others are not concerned, and can read why.
    let local = Client::local(&world.exporter);
    assert!(text(&local.get("/status").ok()["tls"]["problem"]).contains("has expired"));
    assert_eq!(curl(&world, None, "/readyz"), 503);
    world.client().get("/vms").ok();
    world.certificates.revoke("clients.crl", &[]);
    reload(&world, RELOADED);
    assert_eq!(curl(&world, Some("backup"), "/api/v1/vms"), 200);
    assert_eq!(curl(&world, None, "/readyz"), 200);
}

#[test]
fn the_service_does_not_start_with_unusable_lists() {
    needs_root!();
    let mut world = World::new(512);
    let others = Certificates::new();
    others.revoke("clients.crl", &[]);
    fs::copy(others.path("clients.crl"), world.certificates.path("forged.crl")).unwrap();
    for (file, expected) in [("missing.crl", "No such file"), ("forged.crl", "is not signed by the authority")] {
        let list = format!("client_crl = [{:?}]", world.certificates.path(file));
        let mut settings = Settings::new(&world.certificates, &world.manager, &[&world.repository]);
        set_tls(&mut settings, "\"required\"", &list);
        let (status, printed) = Exporter::refusal(&settings);
        assert!(
            status == Some(78) && printed.contains("api.tls.client_crl: ") && printed.contains(expected),
            "{printed}"
        );
    }
    // The check of the config says when the list expires.
    world.certificates.revoke("clients.crl", &[]);
    let list = format!("client_crl = {:?}", world.certificates.path("clients.crl"));
    set_tls(world.exporter.settings(), "\"required\"", &list);
    world.exporter.restart();
    let (status, table) = world.exporter.command(&["check-config"]);
    assert!(status == Some(0) && table.contains("api.tls.client_crl"), "{table}");
    assert!(!table.contains(VM));
}
