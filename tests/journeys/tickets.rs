//! Tickets: what a URL with a secret permits, how it ends, and that no secret is written down.

use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::access::{lacks, rule, user, world_with};
use crate::harness::{
    Answer, Client, Connection, MB, PASSWORD, ProcessStats, SNAPSHOTS, USER, VM, World, connect, eventually,
    eventually_within, text, write_at,
};
use crate::needs_root;

/// A service with these rules, and a snapshot of a disk of 64 MiB.
struct Tickets {
    world: World,
    admin: Client,
    /// The path of the disk below `/api/v1`.
    disk: String,
    /// With the audit.
    folder: TempDir,
}

impl Tickets {
    fn new(access: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let audit = format!("[audit]\nfile = {:?}\n", folder.path().join("audit.json"));
        let world = world_with(access, &audit);
        let disk = world.define_vm(&[("a.img", 64 * MB)]);
        write_at(&disk[0], 0, &vec![7; 32 << 20]);
        let admin = world.client();
        let id = admin.take_snapshot_id();
        Self { world, admin, disk: format!("{SNAPSHOTS}/{id}/disks/a.img"), folder }
    }

    fn request(&self, client: &Client, body: &Value) -> Answer {
        let path = format!("/api/v1{}/tickets", self.disk);
        client.send(client.request(Method::POST, &path).body(body.to_string()))
    }

    fn make(&self, client: &Client, body: Value) -> Value {
        self.request(client, &body).ok()
    }

    /// A request without a token.
    fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let client = self.world.anonymous_client();
        let request = client.request(method, path);
        client.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    }

    fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[])
    }

    fn audit(&self) -> String {
        fs::read_to_string(self.folder.path().join("audit.json")).unwrap()
    }
}

fn path(ticket: &Value) -> String {
    text(&ticket["path"])
}

#[test]
fn a_ticket_reads_one_disk_as_its_user() {
    needs_root!();
    let tickets = Tickets::new("default_role = \"admin\"");
    let ticket = tickets.make(&tickets.admin, json!({"ttl": "1h", "ops": ["read", "map"]}));
    let (url, path) = (text(&ticket["url"]), path(&ticket));
    assert_eq!(url, format!("https://127.0.0.1:{}{path}", tickets.world.exporter.port));
    assert!(path.starts_with("/t/") && path.ends_with("/a.img") && path.len() == 3 + 43 + 6, "{path}");
    let own = tickets.admin.get(&tickets.disk);
    let read = tickets.get(&path);
    assert!(read.status == 200 && read.body == own.body);
    assert_eq!((read.header("referrer-policy"), read.header("cache-control")), ("no-referrer", "no-store"));
    assert_eq!(read.header("etag"), own.header("etag"));
    let head = tickets.ask(Method::HEAD, &path, &[]);
    assert_eq!((head.status, head.header("content-length")), (200, "67108864"));
    let part = tickets.ask(Method::GET, &path, &[("Range", "bytes=33554430-33554433")]);
    assert_eq!((part.status, part.body), (206, vec![7, 7, 0, 0]));
    assert_eq!(tickets.ask(Method::GET, &path, &[("If-None-Match", own.header("etag"))]).status, 304);
    assert_eq!(tickets.ask(Method::GET, &path, &[("Range", "bytes=99999999-")]).status, 416);
    let map = tickets.get(&format!("{path}/chunks")).ok();
    assert_eq!(map, tickets.admin.get(&format!("{}/chunks", tickets.disk)).ok());
    // Nothing else: no comparison, no change, no other disk, no other route.
    let base = tickets.disk.split('/').nth(4).unwrap();
    assert_eq!(tickets.get(&format!("{path}/chunks?compareTo={base}")).error(400), "bad_request");
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        assert_eq!(tickets.ask(method, &path, &[]).error(405), "method_not_allowed");
    }
    for other in [path.replace("a.img", "b.img"), path.replace("/t/", "/t/x"), format!("{path}/checksum")] {
        assert_eq!(tickets.get(&other).error(404), "not_found", "{other}");
    }
    let secret = path.split('/').nth(2).unwrap();
    for scheme in ["Bearer", "Basic"] {
        let header = [("Authorization", &*format!("{scheme} {secret}"))];
        assert_eq!(tickets.ask(Method::GET, "/api/v1/vms", &header).error(401), "unauthorized");
    }
    // The audit has the user and the ticket.
    let id = text(&ticket["id"]);
    let has = |action: &str| {
        let line = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["action"] == action && line["ticket"] == *id && line["who"] == USER && line["outcome"] == "done"
        };
        eventually_within(Duration::from_secs(30), action, || tickets.audit().lines().any(line));
    };
    ["ticket", "export", "chunks"].into_iter().for_each(has);
}

#[test]
fn a_ticket_permits_only_its_operations_and_requests_are_checked() {
    needs_root!();
    let tickets = Tickets::new("default_role = \"admin\"");
    let read = path(&tickets.make(&tickets.admin, Value::Null));
    assert_eq!(tickets.get(&read).status, 200);
    let refused = tickets.get(&format!("{read}/chunks"));
    assert_eq!(refused.error(403), "forbidden");
    assert!(text(&refused.json()["details"]).contains("\"map\" in ops"));
    let map = path(&tickets.make(&tickets.admin, json!({"ops": ["map"]})));
    assert_eq!(tickets.get(&map).error(403), "forbidden");
    tickets.get(&format!("{map}/chunks")).ok();
    for (body, expected) in [
        (json!({"ttl": "25h"}), "ttl: invalid duration"),
        (json!({"ttl": "0s"}), "ttl: invalid duration"),
        (json!({"ops": []}), "ops: is empty"),
        (json!({"ops": ["write"]}), "unknown variant"),
        (json!({"op": "read"}), "unknown field"),
        (json!([1]), "it is an array"),
    ] {
        let answer = tickets.request(&tickets.admin, &body);
        assert_eq!(answer.error(400), "bad_request", "{body}");
        assert!(text(&answer.json()["details"]).contains(expected), "{body}: {answer:?}");
    }
    let nowhere = tickets.disk.replace("a.img", "x.img");
    assert_eq!(tickets.admin.post(&format!("{nowhere}/tickets")).error(404), "not_found");
    // 100 of one user.
    for _ in 2..100 {
        tickets.make(&tickets.admin, json!({"ttl": "1h"}));
    }
    assert_eq!(tickets.request(&tickets.admin, &Value::Null).error(409), "too_many_tickets");
    tickets.make(&Client::local(&tickets.world.exporter), Value::Null);
}

#[test]
fn a_ticket_ends_with_its_time_its_users_rights_and_its_snapshot() {
    needs_root!();
    let access = rule("test-*", "operator", "") + &rule(USER, "admin", "");
    let mut tickets = Tickets::new(&format!("default_role = \"none\"\n{access}"));
    let ann = user(&tickets.world, "test-ann");
    let ben = user(&tickets.world, "test-ben");
    let short = path(&tickets.make(&ann, json!({"ttl": "20s"})));
    assert_eq!(tickets.ask(Method::HEAD, &short, &[]).status, 200);
    eventually_within(Duration::from_secs(60), "the ticket expires", || {
        tickets.ask(Method::HEAD, &short, &[]).status == 404
    });

    // Lists have no secrets. Other users see and end nothing, administrators all.
    let made = tickets.make(&ann, json!({"ttl": "1h"}));
    let (id, own) = (text(&made["id"]), path(&made));
    let list = format!("{}/tickets", tickets.disk);
    for client in [&ann, &tickets.admin] {
        let listed = client.get(&list);
        assert!(!String::from_utf8_lossy(&listed.body).contains(own.split('/').nth(2).unwrap()));
        let listed = listed.ok();
        assert_eq!((listed.as_array().unwrap().len(), &listed[0]["id"]), (1, &json!(id)));
        assert_eq!((&listed[0]["user"], &listed[0]["ops"]), (&json!("test-ann"), &json!(["read"])));
    }
    assert_eq!(ben.get(&list).ok(), json!([]));
    assert_eq!(ben.delete(&format!("{list}/{id}")).error(404), "not_found");
    assert_eq!(ann.delete(&format!("{list}/{}", "0".repeat(16))).error(404), "not_found");

    // It survives a restart, and ends a running download when it is ended.
    tickets.world.exporter.restart();
    assert_eq!(tickets.ask(Method::HEAD, &own, &[]).status, 200);
    let mut download = begin(&tickets, &own, "");
    download.read_exact(&mut [0; 4096]).unwrap();
    assert_eq!(tickets.admin.delete(&format!("{list}/{id}")).status, 200);
    assert!(is_cut(download), "the download goes on");
    assert_eq!(tickets.get(&own).error(404), "not_found");

    // The rights are those of the user now.
    let own = path(&tickets.make(&ann, json!({"ttl": "1h"})));
    let reload = |tickets: &mut Tickets, from: &str, to: &str| {
        let sections = tickets.world.exporter.settings().sections.replace(from, to);
        tickets.world.exporter.settings().sections = sections;
        tickets.world.exporter.write_config();
        let count = |tickets: &Tickets| tickets.world.exporter.log().matches("config reloaded").count();
        let before = count(tickets);
        tickets.world.exporter.signal(Signal::SIGHUP);
        eventually("the rules are reloaded", || count(tickets) > before);
    };
    reload(&mut tickets, "operator", "viewer");
    lacks(&tickets.get(&own), "reader");
    reload(&mut tickets, "viewer", "operator");
    assert_eq!(tickets.ask(Method::HEAD, &own, &[]).status, 200);
    let snapshot = tickets.disk.split("/disks/").next().unwrap().to_owned();
    assert_eq!(tickets.admin.delete(&snapshot).status, 200);
    assert_eq!(tickets.get(&own).error(404), "not_found");
}

/// Sends a request for the disk without a token, and reads nothing.
fn begin(tickets: &Tickets, path: &str, headers: &str) -> Connection {
    let mut download = connect(&tickets.world.exporter, &tickets.world.certificates);
    download.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes()).unwrap();
    download
}

/// Whether a download was cut off.
fn is_cut(mut download: Connection) -> bool {
    let mut rest = Vec::new();
    download.read_to_end(&mut rest).is_err() || rest.len() < 60 << 20
}

#[test]
fn a_ticket_that_ends_before_its_download_begins_permits_none() {
    needs_root!();
    let tickets = Tickets::new("default_role = \"admin\"");
    // The digest of this disk takes seconds, and is made before the download.
    tickets.world.define_vm(&[("large.img", 4 << 30)]);
    let disk = format!("{SNAPSHOTS}/{}/disks/large.img", tickets.admin.take_snapshot_id());
    let made = tickets.admin.post(&format!("{disk}/tickets")).ok();
    let mut download = begin(&tickets, &path(&made), "Connection: close\r\nWant-Repr-Digest: sha-256=1\r\n");
    ProcessStats::of(&tickets.world.exporter).wait_until_busy();
    assert_eq!(tickets.admin.delete(&format!("{disk}/tickets/{}", text(&made["id"]))).status, 200);
    let mut head = [0; 13];
    download.read_exact(&mut head).unwrap();
    assert_eq!(String::from_utf8_lossy(&head), "HTTP/1.1 404 ");
}

/// Characters of a secret in a URL that was cut off.
const CUT: usize = 40;

#[test]
fn no_secret_is_written_down() {
    needs_root!();
    let mut tickets = Tickets::new("default_role = \"admin\"");
    let ticket = tickets.make(&tickets.admin, json!({"ttl": "1h", "ops": ["read", "map"]}));
    let (id, path) = (text(&ticket["id"]), path(&ticket));
    let secret = path.split('/').nth(2).unwrap().to_owned();
    let mut bodies = Vec::new();
    for path in [
        path.clone(),
        format!("{path}/chunks"),
        format!("{path}/chunks?startingOffset=x"),
        format!("{path}/nothing"),
        format!("/{path}"),
        format!("/t/{secret}"),
        format!("/t/{secret}/other.img"),
        format!("/t/{}", &secret[..CUT]),
        format!("/t/{}/a.img/chunks", &secret[..CUT]),
        format!("/api/v1/t/{secret}/a.img"),
        format!("/api/v1/vms/{secret}"),
        format!("/api/v1{}/tickets/{secret}", tickets.disk),
        format!("/t/x{secret}/a.img"),
        format!("/T/{secret}/a.img?secret={secret}"),
        format!("/%74/{secret}/a%2Eimg"),
    ] {
        for method in [Method::GET, Method::HEAD, Method::DELETE, Method::POST] {
            let headers = [("Referer", &*format!("https://x{path}")), ("Range", "bytes=0-9")];
            let answer = tickets.ask(method, &path, &headers);
            bodies.extend(answer.body);
            bodies.extend(format!("{:?}", answer.headers).bytes());
        }
        bodies.extend(tickets.admin.send(tickets.admin.request(Method::GET, &path)).body);
    }
    bodies.extend(tickets.admin.get("/status").body);
    let log = tickets.world.exporter.log();
    assert!(log.contains(&format!("/t/~{id}/a.img")), "the log does not show the ticket");
    eventually_within(Duration::from_secs(30), "the audit has the ticket", || tickets.audit().contains(&id));
    // After the stop, all summaries are written.
    tickets.world.exporter.signal(Signal::SIGTERM);
    tickets.world.exporter.wait(Duration::from_secs(40));
    let database = fs::read(tickets.world.exporter.db_file()).unwrap();
    let places = [
        ("the log", tickets.world.exporter.log().into_bytes()),
        ("the audit", tickets.audit().into_bytes()),
        ("the database", database),
        ("an answer", bodies),
    ];
    for (place, bytes) in places {
        let found = bytes.windows(CUT).any(|window| window == &secret.as_bytes()[..CUT]);
        assert!(!found, "{place} has the secret");
    }
}

#[test]
fn a_token_is_accepted_as_the_password_of_basic() {
    needs_root!();
    let tickets = Tickets::new("default_role = \"admin\"");
    let anonymous = tickets.world.anonymous_client();
    let ask = |user: &str, password: &str| {
        let request = anonymous.request(Method::GET, "/api/v1/vms").basic_auth(user, Some(password));
        anonymous.send(request)
    };
    for name in [USER, "", "anyone"] {
        ask(name, &tickets.admin.token).ok();
    }
    for password in ["", PASSWORD, "x.y.z"] {
        let refused = ask(USER, password);
        assert_eq!(refused.error(401), "unauthorized");
        // A browser that is asked for Basic would send the token with the requests of other sites.
        assert_eq!(refused.header("www-authenticate"), "Bearer");
    }
    assert!(!tickets.world.exporter.log().contains(&tickets.admin.token));
}

#[test]
fn without_tickets_there_are_none_and_a_revoked_certificate_has_none() {
    needs_root!();
    let mut tickets =
        Tickets::new("default_role = \"admin\"\n[[access.rules]]\ncertificates = [\"robot\"]\nrole = \"reader\"");
    let certificates = &tickets.world.certificates;
    certificates.issue("robot");
    certificates.revoke("clients.crl", &[]);
    let (ca, list) = (certificates.ca(), certificates.path("clients.crl"));
    let tls = format!("client_auth = \"optional\"\nca_certificate = {ca:?}\nclient_crl = {list:?}");
    tickets.world.exporter.settings().tls = tls;
    tickets.world.exporter.restart();
    let robot = Client::with_certificate(&tickets.world.exporter, &tickets.world.certificates, "robot");
    let made = tickets.make(&robot, json!({"ttl": "1h"}));
    assert_eq!(made["user"], "cert:robot");
    let of_robot = path(&made);
    let of_user = path(&tickets.make(&tickets.admin, Value::Null));
    assert_eq!(tickets.ask(Method::HEAD, &of_robot, &[]).status, 200);
    let (mut download, mut stays) = (begin(&tickets, &of_robot, ""), begin(&tickets, &of_user, ""));
    for download in [&mut download, &mut stays] {
        download.read_exact(&mut [0; 4096]).unwrap();
    }
    tickets.world.certificates.revoke("clients.crl", &["robot"]);
    let count = |tickets: &Tickets| tickets.world.exporter.log().matches("certificate reloaded").count();
    let before = count(&tickets);
    tickets.world.exporter.signal(Signal::SIGHUP);
    eventually("the list is loaded", || count(&tickets) > before);
    assert!(is_cut(download), "the download of a revoked certificate's ticket goes on");
    stays.read_exact(&mut vec![0; 60 << 20]).unwrap();
    drop(stays);
    assert_eq!(tickets.ask(Method::HEAD, &of_robot, &[]).status, 404);
    assert_eq!(tickets.ask(Method::HEAD, &of_user, &[]).status, 200);

    tickets.world.exporter.settings().policy = "max_ticket_ttl = \"0\"\n".to_owned();
    tickets.world.exporter.restart();
    assert_eq!(tickets.get(&of_user).error(404), "not_found");
    let refused = tickets.request(&tickets.admin, &Value::Null);
    assert_eq!(refused.error(400), "bad_request");
    assert!(text(&refused.json()["details"]).contains("policy.max_ticket_ttl"));
    assert_eq!(tickets.admin.get("/capabilities").ok()["limits"]["ticket_seconds"], Value::Null);
}

#[test]
fn the_command_prints_a_url() {
    needs_root!();
    let tickets = Tickets::new("default_role = \"admin\"");
    let id = tickets.disk.split('/').nth(4).unwrap();
    let (status, printed) = tickets.world.exporter.command(&["snapshots", "ticket", VM, id, "a.img", "--ttl", "5m"]);
    assert_eq!(status, Some(0), "{printed}");
    let port = tickets.world.exporter.port;
    let url = printed.lines().find(|line| line.starts_with("https://")).unwrap();
    // The name is that of the certificate.
    let path = url.strip_prefix(&format!("https://localhost:{port}")).unwrap_or_else(|| panic!("{printed}"));
    assert_eq!(tickets.ask(Method::HEAD, path, &[]).status, 200);
    let address = ["--address", "https://exporter.example:5544/", "--map", "--json"];
    let arguments = [&["snapshots", "ticket", VM, id, "a.img"][..], &address].concat();
    let (_, printed) = tickets.world.exporter.command(&arguments);
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert!(text(&printed["url"]).starts_with("https://exporter.example:5544/t/"), "{printed}");
    assert_eq!(printed["ops"], json!(["read", "map"]));
    // From another host, the address of the server is the default.
    let server = format!("https://127.0.0.1:{port}");
    for (address, expected) in [(&[][..], &*server), (&["--address", "https://other.example"], "https://other.example")]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_coriolis-ovm-exporter"))
            .args(["snapshots", "ticket", VM, id, "a.img", "--server", &server])
            .args(address)
            .env_clear()
            .env("HOME", tickets.folder.path())
            .env("EXPORTER_USERNAME", USER)
            .env("EXPORTER_PASSWORD", PASSWORD)
            .env("EXPORTER_CACERT", tickets.world.certificates.ca())
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(printed.starts_with(&format!("{expected}/t/")), "{printed} {:?}", output.stderr);
    }
}
