//! The example hooks, installed with only their paths changed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Certificates, Client, HookDir, MB, VM, World, eventually, output, run, text};
use crate::needs_root;

/// Installs an example with one path replaced.
fn install(hooks: &HookDir, name: &str, from: &str, to: &Path) {
    let text = fs::read_to_string(example(name)).unwrap();
    assert!(text.contains(from), "{name} does not contain {from:?} any more");
    hooks.put_program(name, &text.replace(from, &to.display().to_string()));
}

/// Installs 10-fsfreeze with this list of mounts, and its state in the hook directory.
fn install_fsfreeze(hooks: &HookDir, mounts: &Path) {
    let mut text = fs::read_to_string(example("10-fsfreeze")).unwrap();
    for (from, to) in
        [("=/etc/coriolis-ovm-exporter/fsfreeze.conf", mounts), ("=/run/coriolis-ovm-exporter", &hooks.at("frozen"))]
    {
        assert!(text.contains(from), "10-fsfreeze does not contain {from:?} any more");
        text = text.replace(from, &format!("={}", to.display()));
    }
    hooks.put_program("10-fsfreeze", &text);
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/hooks").join(name)
}

/// The guest's file system on a disk, mounted as the guest does it.
struct Mounted {
    dir: TempDir,
}

impl Mounted {
    fn new(disk: &Path) -> Self {
        run(Command::new("mkfs.ext4").arg("-q").arg("-F").arg(disk));
        Self::mount(disk, "loop")
    }

    fn mount(disk: &Path, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-o", options]).arg(disk).arg(dir.path()));
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A failed test may leave the file system frozen.
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(self.path()).stderr(Stdio::null()).status();
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// Downloads the disk of a snapshot to a file.
fn restore(client: &Client, snapshot: &Value, dir: &TempDir) -> PathBuf {
    let (id, path) = (text(&snapshot["id"]), dir.path().join("restored.img"));
    fs::write(&path, client.disk(&id, "a.img")).unwrap();
    path
}

/// Whether an ext4 has a journal to replay.
fn needs_recovery(disk: &Path) -> bool {
    output(Command::new("dumpe2fs").arg("-h").arg(disk)).contains("needs_recovery")
}

#[test]
fn fsfreeze_hook_makes_a_clean_file_system() {
    needs_root!();
    let hooks = HookDir::new();
    let world = World::with(1024, |settings| settings.sections = hooks.section(""));
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    let guest = Mounted::new(disk);
    let restored = tempfile::tempdir().unwrap();
    let client = world.client();
    fs::write(guest.path().join("first"), vec![1; 5 << 20]).unwrap();
    let plain = client.take_snapshot();
    assert_eq!(plain["consistency"], "crash");
    assert!(needs_recovery(&restore(&client, &plain, &restored)), "the file system is clean without the hook");

    let mounts = hooks.at("fsfreeze.conf");
    fs::write(&mounts, format!("00000000000000000000000000000000 /nonexistent\n{VM} {}\n", guest.path().display()))
        .unwrap();
    install_fsfreeze(&hooks, &mounts);
    // Unwritten data, and a concurrent writer.
    fs::write(guest.path().join("second"), vec![2; 5 << 20]).unwrap();
    let busy = Busy::start(guest.path());
    let made = client.take_snapshot();
    assert_eq!(made["consistency"], "quiesced", "{made}");
    let before = busy.written();
    eventually("the guest is thawed and writes", || busy.written() != before);
    drop(busy);

    let disk = restore(&client, &made, &restored);
    assert!(!needs_recovery(&disk));
    run(Command::new("e2fsck").args(["-f", "-n"]).arg(&disk));
    // Mounted without journal replay.
    let copy = Mounted::mount(&disk, "loop,ro,noload");
    for (name, byte) in [("first", 1), ("second", 2)] {
        assert_eq!(fs::read(copy.path().join(name)).unwrap(), vec![byte; 5 << 20], "{name}");
    }
    drop(copy);

    // A file system that cannot be frozen cancels the snapshot, and the others are thawed.
    fs::write(&mounts, format!("{VM} {}\n{VM} /nonexistent\n", guest.path().display())).unwrap();
    assert_eq!(client.post(&format!("/vms/{VM}/snapshots")).error(502), "hook_failed");
    fs::write(guest.path().join("third"), "thawed").unwrap();
    assert_eq!(client.pending_hooks(), json!([]), "a post hook is pending although nothing is frozen");
    // Deletions work: they freeze nothing.
    assert_eq!(client.delete(&format!("/vms/{VM}/snapshots/{}", text(&made["id"]))).status, 200);
}

#[test]
fn fsfreeze_hook_reports_an_early_thaw_and_thaws_after_a_crash() {
    needs_root!();
    let hooks = HookDir::new();
    let mut world = World::with(1024, |settings| settings.sections = hooks.section(""));
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    let guest = Mounted::new(disk);
    let (mounts, folder) = (hooks.at("fsfreeze.conf"), guest.path().display());
    fs::write(&mounts, format!("{VM} {folder}\n")).unwrap();
    install_fsfreeze(&hooks, &mounts);
    hooks.put("20-thaws", &format!("[ $2 = post ] || fsfreeze --unfreeze {folder}"));
    let pending_hooks = |world: &World| world.client().pending_hooks();
    let made = world.client().take_snapshot();
    assert_eq!(made["consistency"], "crash", "{made}");
    assert!(text(&made["consistency_reason"]).contains("10-fsfreeze"), "{made}");
    assert!(world.exporter.log().contains("the freeze has ended before post"));
    // The next call finds nothing to thaw, so it succeeds.
    assert_eq!(pending_hooks(&world)[0]["hooks"], json!(["10-fsfreeze"]));
    world.exporter.restart();
    eventually("no post hook is pending", || pending_hooks(&world) == json!([]));

    // The service is killed while frozen: the next start thaws the file system and clears the state.
    hooks.put("20-thaws", "[ $2 = post ] || { touch $OUT/frozen-now; sleep 600; }");
    let asking = world.request_snapshot();
    hooks.wait_for("frozen-now");
    assert_eq!(fs::read_dir(hooks.at("frozen")).unwrap().count(), 1);
    world.exporter.kill();
    asking.join().unwrap();
    world.exporter.restart();
    fs::write(guest.path().join("file"), "thawed").unwrap();
    assert_eq!(pending_hooks(&world), json!([]));
    assert_eq!(fs::read_dir(hooks.at("frozen")).unwrap().count(), 0);
}

/// A process that writes small files continuously.
struct Busy {
    child: Child,
    folder: PathBuf,
}

impl Busy {
    fn start(folder: &Path) -> Self {
        let script =
            "cd \"$0\" && i=0; while :; do i=$((i+1)); echo $i > busy.$((i%100)); echo $i > count; sleep 0.01; done";
        let child = Command::new("sh").args(["-c", script]).arg(folder).spawn().unwrap();
        Self { child, folder: folder.to_owned() }
    }

    fn written(&self) -> String {
        fs::read_to_string(self.folder.join("count")).unwrap_or_default()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn journal_hook_writes_a_line_per_call() {
    needs_root!();
    let hooks = HookDir::new();
    let world = World::with(512, |settings| settings.sections = hooks.section(""));
    let disks = world.define_vm(&[("a.img", MB), ("b.img", 2 * MB)]);
    let journal = hooks.at("journal");
    install(&hooks, "20-journal", "/var/log/coriolis-ovm-exporter/hooks.jsonl", &journal);
    let client = world.client();
    let id = client.take_snapshot_id();
    assert_eq!(client.delete(&format!("/vms/{VM}/snapshots/{id}")).status, 200);
    let journal = fs::read_to_string(journal).unwrap();
    let mut lines: Vec<Value> = journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &mut lines {
        let time = line.as_object_mut().unwrap().remove("time").unwrap();
        text(&time).parse::<jiff::Timestamp>().unwrap();
    }
    let line = |action: &str, stage: &str| {
        let mut line = json!({
            "action": action, "stage": stage, "vm": VM, "friendly_name": "web-1", "snapshot": id,
            "disks": disks, "bytes": 3 * MB,
        });
        if stage == "post" {
            line["outcome"] = json!("ok");
        }
        line
    };
    let expected = [("create", "pre"), ("create", "post"), ("delete", "pre"), ("delete", "post")];
    assert_eq!(lines, expected.map(|(action, stage)| line(&format!("snapshot-{action}"), stage)));
}

#[test]
fn clock_hook_stops_snapshots_after_the_clock_went_back() {
    needs_root!();
    let hooks = HookDir::new();
    let world = World::with(512, |settings| settings.sections = hooks.section(""));
    world.define_vm(&[("a.img", MB)]);
    let state = hooks.at("state/clock");
    install(&hooks, "05-clock-check", "/var/lib/coriolis-ovm-exporter/clock", &state);
    let client = world.client();
    client.take_snapshot();
    let seen: i64 = fs::read_to_string(&state).unwrap().trim().parse().unwrap();
    let now = jiff::Timestamp::now().as_second();
    assert!((now - 600..=now).contains(&seen));

    fs::write(&state, format!("{}\n", now + 86_400)).unwrap();
    let answer = client.post(&format!("/vms/{VM}/snapshots"));
    assert_eq!(answer.error(502), "hook_failed");
    assert!(text(&answer.json()["details"]).contains("05-clock-check"), "{answer:?}");
    assert!(world.exporter.log().contains("seconds behind what it was"));
    let listed = client.get(&format!("/vms/{VM}/snapshots")).ok();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    // Deletions work at any time, and snapshots when the clock is right again.
    assert_eq!(client.delete(&format!("/vms/{VM}/snapshots")).status, 200);
    fs::write(&state, format!("{}\n", now - 10)).unwrap();
    client.take_snapshot();
}

/// The example sync server of a guest.
struct SyncServer {
    child: Child,
    url: String,
}

impl SyncServer {
    fn start(certificates: &Certificates, database: &Path) -> Self {
        fs::write(certificates.path("secret"), "the guests' secret\n").unwrap();
        let mut child = Command::new("python3")
            .arg(example("sync_server.py"))
            .args(["--bind", "127.0.0.1", "--port", "0", "--database"])
            .arg(database)
            .arg("--certificate")
            .arg(certificates.path("server.pem"))
            .arg("--key")
            .arg(certificates.path("server.key"))
            .arg("--secret-file")
            .arg(certificates.path("secret"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().strip_prefix("listening on port ").unwrap_or_else(|| panic!("{line:?}"));
        Self { child, url: format!("https://127.0.0.1:{port}") }
    }
}

impl Drop for SyncServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An application that writes continuously and never syncs by itself. It prints the number of rows that it has
/// committed.
const APPLICATION: &str = r#"
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
database.execute("PRAGMA journal_mode=WAL")
database.execute("PRAGMA synchronous=OFF")
database.execute("CREATE TABLE debit (id INTEGER PRIMARY KEY, what BLOB)")
database.execute("CREATE TABLE credit (id INTEGER PRIMARY KEY, what BLOB)")
for number in range(10**9):
    database.execute("BEGIN IMMEDIATE")
    for table in "debit", "credit":
        database.execute(f"INSERT INTO {table} VALUES (?, randomblob(2000))", (number,))
    database.execute("COMMIT")
    print(number + 1, flush=True)
"#;

/// Queries a database that is not in use.
fn query(path: &Path, sql: &str) -> String {
    output(Command::new("sqlite3").arg(path).arg(sql)).trim().to_owned()
}

#[test]
fn sync_server_makes_a_consistent_database() {
    needs_root!();
    let certificates = Certificates::new();
    let mut world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 128 * MB)])[0];
    let guest = Mounted::new(disk);
    let database = guest.path().join("app.db");
    let mut application =
        Command::new("python3").args(["-c", APPLICATION]).arg(&database).stdout(Stdio::piped()).spawn().unwrap();
    let mut committed = BufReader::new(application.stdout.take().unwrap()).lines();
    let mut wait_for_rows = |rows: u64| {
        let found = committed.find_map(|line| line.unwrap().parse::<u64>().ok().filter(|number| *number >= rows));
        found.unwrap()
    };
    wait_for_rows(1);
    let server = SyncServer::start(&certificates, &database);
    world.exporter.settings().sections = format!(
        "[hooks.sync]\nsecret = \"the guests' secret\"\nca_certificate = {:?}\n[hooks.sync.urls]\n{VM} = {:?}\n",
        certificates.ca(),
        server.url
    );
    world.exporter.restart();
    let client = world.client();
    let before = wait_for_rows(500);
    let made = client.take_snapshot();
    assert_eq!(made["consistency"], "quiesced", "{made}");
    // The application continues.
    wait_for_rows(before + 2000);
    application.kill().unwrap();
    application.wait().unwrap();

    let restored = tempfile::tempdir().unwrap();
    let disk = restore(&client, &made, &restored);
    let copy = Mounted::mount(&disk, "loop");
    let database = copy.path().join("app.db");
    assert_eq!(query(&database, "PRAGMA integrity_check"), "ok");
    let count = |table: &str| query(&database, &format!("SELECT count(*) FROM {table}")).parse::<u64>().unwrap();
    let (debit, credit) = (count("debit"), count("credit"));
    assert!(debit >= before, "{debit} of at least {before} rows");
    assert_eq!(debit, credit, "a transaction is incomplete");

    // With a wrong secret the guest does nothing, and the snapshot is crash-consistent.
    world.exporter.settings().sections = world.exporter.settings().sections.replace("guests' secret", "wrong secret");
    world.exporter.restart();
    let made = world.client().take_snapshot();
    assert_eq!(
        (&made["consistency"], &made["hooks"][0]["detail"]),
        (&json!("crash"), &json!("answers 401 Unauthorized"))
    );
}
