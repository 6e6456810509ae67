//! The Unix socket for operators: no password and no token, but only for root, the service's user and a group.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Client, Exporter, MB, SNAPSHOTS, Settings, VM, World, eventually, text, write_at};
use crate::needs_root;

const DEFAULT: &str = "/run/coriolis-ovm-exporter/api.sock";

/// A user and a group that the host does not know.
const STRANGER: u32 = 61_234;

/// Requests `path` with curl as `setpriv` with these arguments; returns status and body.
fn curl_as(socket: &Path, privileges: &[&str], path: &str) -> (u16, String) {
    let output = Command::new("setpriv")
        .args(privileges)
        .args(["curl", "-sS", "--max-time", "20", "-w", "\n%{http_code}", "--unix-socket"])
        .arg(socket)
        .arg(format!("http://localhost{path}"))
        .output()
        .unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let (body, status) =
        text.split_once("\n000").map_or_else(|| text.rsplit_once('\n').unwrap(), |(_, rest)| (rest, "0"));
    (status.parse().unwrap(), body.to_owned())
}

/// A folder for the socket that every user can reach.
fn reachable_folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let path = dir.path().join("api.sock");
    (dir, path)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn operators_need_no_password_and_no_certificate() {
    needs_root!();
    let audit = tempfile::tempdir().unwrap();
    let file = audit.path().join("audit.json");
    let mut world = World::with(512, |settings| {
        let ca = settings.certificate.with_file_name("ca.pem");
        settings.tls = format!("client_auth = true\nca_certificate = {ca:?}\n");
        settings.sections = format!("[audit]\nfile = {file:?}\n");
    });
    let disk = &world.define_vm(&[("a.img", 2 * MB)])[0];
    write_at(disk, MB, &[7; 4096]);
    assert_eq!(mode(&world.exporter.socket()), 0o600);
    let mut client = Client::local(&world.exporter);
    let snapshot = client.take_snapshot();
    assert_eq!(snapshot["created_by"], "unix:root");
    let id = text(&snapshot["id"]);
    assert_eq!(client.disk(&id, "a.img"), fs::read(disk).unwrap());
    assert_eq!(client.disk_range(&id, "a.img", MB, 4096), [7; 4096]);
    // A token has no effect, right or wrong.
    client.token = "forged".to_owned();
    client.get("/vms").ok();
    assert_eq!(client.get("/nowhere").error(404), "not_found");
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(60)).code(), Some(0));
    assert!(!world.exporter.socket().exists(), "the socket is left");

    let address = format!("unix:uid=0,pid={}", std::process::id());
    let lines: Vec<Value> =
        fs::read_to_string(&file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for action in ["create", "export", "delete"] {
        let line = lines.iter().find(|line| line["action"] == action).unwrap_or_else(|| panic!("{action}: {lines:?}"));
        assert_eq!((&line["who"], &line["address"]), (&"unix:root".into(), &address.as_str().into()), "{line}");
    }
    let log = world.exporter.log();
    assert!(log.lines().any(|line| line.contains("answered") && line.contains(&format!("peer={address}"))), "{log}");
}

#[test]
fn a_running_download_shows_its_process_in_the_status() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", 32 * MB)])[0];
    write_at(disk, 0, &vec![3; 32 << 20]);
    let client = Client::local(&world.exporter);
    let id = client.take_snapshot_id();
    let mut stream = UnixStream::connect(world.exporter.socket()).unwrap();
    let path = format!("/api/v1/vms/{VM}/snapshots/{id}/disks/a.img");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut body = vec![0; 1 << 20];
    stream.read_exact(&mut body).unwrap();
    let status = client.get("/status").ok();
    let export = &status["exports"]["running"][0];
    let address = format!("unix:uid=0,pid={}", std::process::id());
    assert_eq!((&export["user"], &export["address"]), (&"unix:root".into(), &address.into()), "{status}");
    // A stop lets it finish.
    world.exporter.signal(Signal::SIGTERM);
    world.exporter.wait_for_log("waiting for running requests");
    eventually("new connections are refused", || UnixStream::connect(world.exporter.socket()).is_err());
    stream.read_to_end(&mut body).unwrap();
    let head = body.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert!(body[head..] == *fs::read(disk).unwrap());
}

#[test]
fn other_users_are_refused() {
    needs_root!();
    let (_dir, path) = reachable_folder();
    let world = World::with(512, |settings| settings.socket = Some(path.display().to_string()));
    let (uid, gid) = (format!("--reuid={STRANGER}"), format!("--regid={STRANGER}"));
    let stranger = [&*uid, &*gid, "--clear-groups"];
    let (status, error) = curl_as(&path, &stranger, "/api/v1/vms");
    assert!(status == 0 && error.contains("curl: "), "the kernel lets a stranger connect: {error}");
    // The service does not rely on the mode.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    for route in ["/api/v1/vms", "/api/v1/status", "/api/v1/capabilities"] {
        let (status, body) = curl_as(&path, &stranger, route);
        assert!(status == 403 && body.contains("\"code\":\"forbidden\""), "{status} {body}");
    }
    assert_eq!(curl_as(&path, &stranger, "/healthz").0, 200);
    assert_eq!(curl_as(&path, &[], "/api/v1/vms").0, 200);
    let log = world.exporter.log();
    let line = log.lines().find(|line| line.contains("audit") && line.contains("action=\"request\"")).unwrap();
    assert!(line.contains(&format!("address=unix:uid={STRANGER},pid=")) && line.contains("refused"), "{line}");
}

#[test]
fn members_of_the_group_are_operators() {
    needs_root!();
    let (_dir, path) = reachable_folder();
    // A group that each host has, with an id that is not root's.
    let groups = fs::read_to_string("/etc/group").unwrap();
    let fields = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let (name, gid) = fields.map(|fields| (fields[0], fields[2])).find(|(_, gid)| *gid != "0").unwrap();
    let world = World::with(512, |settings| {
        settings.socket = Some(path.display().to_string());
        settings.api = format!("socket_group = {name:?}\n");
    });
    assert_eq!((mode(&path), fs::metadata(&path).unwrap().gid().to_string().as_str()), (0o660, gid));
    let uid = format!("--reuid={STRANGER}");
    let own = format!("--regid={STRANGER}");
    let supplementary = [&*uid, &*own, &format!("--groups={gid}")];
    let primary = [&*uid, &format!("--regid={gid}"), "--clear-groups"];
    assert_eq!(curl_as(&path, &supplementary, "/api/v1/vms").0, 200);
    assert_eq!(curl_as(&path, &primary, "/api/v1/vms").0, 200);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let other = format!("--groups={}", STRANGER + 1);
    assert_eq!(curl_as(&path, &[&*uid, &*own, &*other], "/api/v1/vms").0, 403);
    drop(world);
}

#[test]
fn requests_have_the_limits_of_the_port() {
    needs_root!();
    let world = World::new(512);
    let ask = |text: &str| {
        let mut stream = UnixStream::connect(world.exporter.socket()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    for (request, expected) in [
        ("GET /api/v1/vms HTTP/1.1\r\n\r\n".to_owned(), "no Host header"),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(61 << 10)), "uri_too_long"),
        (format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "x: y\r\n".repeat(101)), "headers_too_large"),
        ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), "bad_request"),
    ] {
        let answer = ask(&request);
        assert!(answer.contains(expected) && answer.contains("request_id"), "{answer}");
    }
    // Without a first byte the connection is closed early.
    let (mut silent, started) = (UnixStream::connect(world.exporter.socket()).unwrap(), Instant::now());
    assert_eq!(silent.read(&mut [0; 10]).unwrap(), 0);
    assert!((3..25).contains(&started.elapsed().as_secs()), "closed after {:?}", started.elapsed());
    // Many connections do not keep the operator out.
    let many: Vec<_> = (0..600).filter_map(|_| UnixStream::connect(world.exporter.socket()).ok()).collect();
    Client::local(&world.exporter).get("/vms").ok();
    drop(many);
}

#[test]
fn sockets_of_killed_services_are_replaced() {
    needs_root!();
    let mut world = World::new(512);
    world.exporter.kill();
    assert!(world.exporter.socket().exists());
    let (_, table) = world.exporter.command(&["check-config"]);
    assert!(table.contains("is left from an earlier run"), "{table}");
    world.exporter.restart();
    Client::local(&world.exporter).get("/vms").ok();
    let (_, table) = world.exporter.command(&["check-config"]);
    assert!(table.contains("api.sock is in use: the service is running"), "{table}");

    // Another service does not take it, neither at its start nor at its end.
    let mut settings = Settings::new(&world.certificates, &world.manager, &[&world.repository]);
    settings.socket = Some(world.exporter.socket().display().to_string());
    let (status, refusal) = Exporter::refusal(&settings);
    assert!(status == Some(1) && refusal.contains("each service needs its own path"), "{refusal}");
    let (status, table) = Exporter::command_alone(&settings, &["check-config"]);
    assert!(status == Some(1) && table.contains("each service needs its own path"), "{table}");
    Client::local(&world.exporter).get("/vms").ok();
}

#[test]
fn unsafe_paths_and_unknown_groups_are_refused() {
    needs_root!();
    let world = World::new(512);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), "precious").unwrap();
    std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
    for (folder, mode) in [("writable", 0o777), ("sticky", 0o1777), ("group", 0o775), ("stranger", 0o755)] {
        fs::create_dir(at(folder)).unwrap();
        fs::set_permissions(at(folder), fs::Permissions::from_mode(mode)).unwrap();
    }
    chown(at("stranger"), Some(STRANGER), None).unwrap();
    fs::create_dir(at("stranger/below")).unwrap();
    let _listening = std::os::unix::net::UnixDatagram::bind(at("datagram")).unwrap();
    let occupied = "a file of another kind";
    let replaceable = "other users could replace the socket";
    for (path, group, status, expected) in [
        ("file", "", 78, occupied),
        ("link", "", 78, occupied),
        ("datagram", "", 78, occupied),
        ("writable", "", 78, occupied),
        ("writable/api.sock", "", 78, replaceable),
        ("writable/new/api.sock", "", 78, replaceable),
        ("sticky/api.sock", "", 78, replaceable),
        ("group/api.sock", "", 78, replaceable),
        ("stranger/api.sock", "", 78, replaceable),
        ("stranger/below/api.sock", "", 78, replaceable),
        ("missing/below/api.sock", "", 1, "the folder of the socket cannot be used"),
        ("api.sock", "no-such-group", 78, "there is no group \"no-such-group\""),
    ] {
        let mut settings = Settings::new(&world.certificates, &world.manager, &[&world.repository]);
        settings.socket = Some(at(path).display().to_string());
        settings.api = format!("socket_group = {group:?}\n");
        let (found, refusal) = Exporter::refusal(&settings);
        assert!(found == Some(status) && refusal.contains(expected), "{path}: {found:?} {refusal}");
        let (found, table) = Exporter::command_alone(&settings, &["check-config"]);
        assert!(found == Some(1) && table.contains(expected), "{path}: {table}");
    }
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "precious");
    assert!(!at("writable/new").exists());
}

/// Starts a service with the default path in a mount namespace with its own /run, which `options` are for.
fn with_own_run(options: &str) -> World {
    let script = format!("mount -t tmpfs -o {options} none /run && exec \"$@\"");
    World::with(512, |settings| {
        settings.socket = Some(DEFAULT.to_owned());
        let words = ["unshare", "--mount", "--propagation", "slave", "sh", "-ec", &script, "sh"];
        settings.launcher = words.map(str::to_owned).to_vec();
    })
}

#[test]
fn the_default_folder_is_created_if_possible() {
    needs_root!();
    let world = with_own_run("mode=755");
    let seen = PathBuf::from(format!("/proc/{}/root{DEFAULT}", world.exporter.pid()));
    assert!(fs::symlink_metadata(&seen).unwrap().file_type().is_socket());
    assert_eq!((mode(seen.parent().unwrap()), mode(&seen)), (0o711, 0o600));
    drop(world);

    // The service does without it if it cannot.
    let world = with_own_run("ro");
    assert!(world.exporter.log().contains("no Unix socket for operators"), "{}", world.exporter.log());
    let client = world.client();
    assert_eq!(client.send(client.request(Method::GET, "/healthz")).status, 200);
    let mut inside = Command::new("nsenter");
    let pid = world.exporter.pid().to_string();
    inside.args(["-t", &pid, "-m", env!("CARGO_BIN_EXE_coriolis-ovm-exporter"), "check-config", "--config"]);
    let table = inside.arg(world.exporter.log_path().with_file_name("config.toml")).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("warn  api.socket"), "{table}");
}
