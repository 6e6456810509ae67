//! The log in a real journal of systemd.

use std::fs;
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{MB, VM, World, eventually, eventually_ok, eventually_some, text};
use crate::{needs, needs_root};

const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// Starts a journal in a mount namespace of its own, and then the service, whose standard error it reads.
const SCRIPT: &str = r#"
mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/journal || exit 1
mkdir -p /run/log && mount -t tmpfs tmpfs /run/log && mkdir /run/log/journal || exit 1
"$0" >/dev/null 2>&1 &
echo $! >"$1"
until [ -S /run/systemd/journal/stdout ] && [ -S /run/systemd/journal/socket ]; do sleep 0.05; done
shift
exec systemd-cat --identifier=stream sh -c '
    export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)
    exec "$@"' sh "$@"
"#;

/// The process of the journal.
struct Journald(PathBuf);

impl Drop for Journald {
    fn drop(&mut self) {
        let pid = fs::read_to_string(&self.0).ok().and_then(|pid| pid.trim().parse().ok());
        pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
    }
}

/// The entries of the journal with these fields, and how they came.
fn entries(world: &World, fields: &[&str]) -> Vec<Value> {
    let pid = world.exporter.pid().to_string();
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid, "-m", "journalctl", "--no-pager", "-o", "json"]).args(fields);
    let output = command.output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn journal_has_priorities_and_fields() {
    needs_root!();
    needs!(Path::new(JOURNALD).exists(), "systemd-journald");
    let dir = tempfile::tempdir().unwrap();
    let journald = Journald(dir.path().join("pid"));
    let pid_file = journald.0.display().to_string();
    let mut world = World::with(512, |settings| {
        let words = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", SCRIPT, JOURNALD, &pid_file];
        settings.launcher = words.map(str::to_owned).to_vec();
    });
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let id = client.take_snapshot_id();
    let missing = client.get("/nowhere");
    missing.error(404);
    let request = text(&missing.json()["request_id"]);
    // The client knows the id of its request, and finds its entries by it.
    let found = eventually_ok("the request is in the journal", || {
        let found = entries(&world, &[&format!("REQUEST_ID={request}")]);
        if found.is_empty() { Err(entries(&world, &[])) } else { Ok(found) }
    });
    for entry in &found {
        assert_eq!(
            (&entry["_TRANSPORT"], &entry["SYSLOG_IDENTIFIER"]),
            (&"journal".into(), &"coriolis-ovm-exporter".into())
        );
        assert!(text(&entry["MESSAGE"]).starts_with(&format!("request{{id={request}}}: ")), "{entry}");
    }
    // By the snapshot and its VM.
    eventually("the snapshot is in the journal", || {
        !entries(&world, &[&format!("SNAPSHOT={id}"), &format!("VM={VM}"), "PRIORITY=6"]).is_empty()
    });
    world.exporter.settings().sections = "[metrics]\nenabled = true\n".to_owned();
    world.exporter.write_config();
    world.exporter.signal(Signal::SIGHUP);
    // Warnings of the kernel are in the journal too.
    let warnings = ["PRIORITY=4", "SYSLOG_IDENTIFIER=coriolis-ovm-exporter"];
    let warning = eventually_some("the warning is in the journal", || entries(&world, &warnings).pop());
    assert!(text(&warning["MESSAGE"]).starts_with("the config was changed"), "{warning}");
    // Also what was logged before and after the service confined itself, and by its priority.
    assert!(!entries(&world, &["PRIORITY=7", "_TRANSPORT=journal"]).is_empty());
    let messages = |field: &str| -> Vec<String> {
        entries(&world, &[field]).iter().map(|entry| text(&entry["MESSAGE"])).collect()
    };
    let all = messages("SYSLOG_IDENTIFIER=coriolis-ovm-exporter");
    for line in ["confinement capabilities=", "serving address="] {
        assert!(all.iter().any(|message| message.starts_with(line)), "{line}: {all:?}");
    }
    // Nothing comes twice.
    assert_eq!(messages("SYSLOG_IDENTIFIER=stream"), Vec::<String>::new());
    assert_eq!(all.iter().filter(|message| message.starts_with("serving address=")).count(), 1);
}

/// Starts the service with the folder `$0` as that of the journal's socket.
const WITH_SOCKET: &str = "mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/journal && \
                           mount --bind \"$0\" /run/systemd/journal && \
                           export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) && exec \"$@\"";

/// What the journal does not take goes to standard error, with its priority as sd-daemon(3) defines. Nothing is lost.
#[test]
fn lines_that_the_journal_does_not_take_go_to_standard_error() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let (folder, socket) = (dir.path().display().to_string(), dir.path().join("socket"));
    let start = || {
        World::with(512, |settings| {
            let words = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", WITH_SOCKET, &folder];
            settings.launcher = words.map(str::to_owned).to_vec();
        })
    };
    // No process listens at the socket when the service opens it: it has no journal, and logs lines.
    drop(UnixDatagram::bind(&socket).unwrap());
    let world = start();
    world.exporter.wait_for_log(" INFO serving address=");
    drop(world);

    // A journal that ends while the service runs.
    fs::remove_file(&socket).unwrap();
    let journal = UnixDatagram::bind(&socket).unwrap();
    let (reader, (sender, entries)) = (journal.try_clone().unwrap(), mpsc::channel());
    let reading = thread::spawn(move || {
        let mut entry = vec![0; 1 << 20];
        // An empty one: it was shut down, and everything before was read.
        while let Some(length) = reader.recv(&mut entry).ok().filter(|length| *length > 0) {
            let _ = sender.send(String::from_utf8(entry[..length].to_vec()).unwrap());
        }
    });
    let world = start();
    let client = world.client();
    let request = || {
        let answer = client.get("/nowhere");
        answer.error(404);
        text(&answer.json()["request_id"])
    };
    let before = request();
    let mut taken = Vec::new();
    eventually("the journal has the request", || {
        taken.extend(entries.try_iter());
        taken.iter().any(|entry: &String| entry.contains(&format!("REQUEST_ID={before}\n")))
    });
    journal.shutdown(Shutdown::Read).unwrap();
    let after = request();
    world.exporter.wait_for_log(&format!("\n<6>request{{id={after}}}: answered "));
    reading.join().unwrap();
    taken.extend(entries);
    // Each line is in one of the two.
    let log = world.exporter.log();
    for line in [
        "confinement capabilities=".to_owned(),
        "serving address=".to_owned(),
        format!("request{{id={before}}}: answered "),
        format!("request{{id={after}}}: answered "),
    ] {
        let entries = taken.iter().filter(|entry| entry.contains(&format!("\nMESSAGE={line}"))).count();
        let lines = log.lines().filter(|it| it.starts_with("<6>") && it[3..].starts_with(&line)).count();
        assert_eq!(entries + lines, 1, "{line}: {taken:#?} {log}");
    }
    assert!(!taken.concat().contains(&after), "{taken:#?}");
}
