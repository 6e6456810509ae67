//! The log in a real journal of systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{MB, VM, World, eventually, eventually_ok, text};
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
#[ignore = "not run again after its last change"]
fn journal_has_priorities_and_fields() {
    needs_root!();
    needs!(Path::new(JOURNALD).exists(), "systemd-journald");
    let dir = tempfile::tempdir().unwrap();
    let journald = Journald(dir.path().join("pid"));
    let pid_file = journald.0.display().to_string();
    let world = World::with(512, |settings| {
        let words = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", SCRIPT, JOURNALD, &pid_file];
        settings.launcher = words.map(str::to_owned).to_vec();
    });
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let id = client.take_snapshot_id();
    let missing = client.get("/nowhere");
    missing.error(404);
    let request = text(&missing.json()["request_id"]);
    // By the request that the client was told.
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
    // Also what was logged before and after the service confined itself, and by its priority.
    assert!(!entries(&world, &["PRIORITY=7", "_TRANSPORT=journal"]).is_empty());
    let messages = |field: &str| -> Vec<String> {
        entries(&world, &[field]).iter().map(|entry| text(&entry["MESSAGE"])).collect()
    };
    let all = messages("SYSLOG_IDENTIFIER=coriolis-ovm-exporter");
    for line in ["confinement ", "serving "] {
        assert!(all.iter().any(|message| message.starts_with(line)), "{line}: {all:?}");
    }
    // Nothing comes twice.
    assert_eq!(messages("SYSLOG_IDENTIFIER=stream"), Vec::<String>::new());
    assert_eq!(all.iter().filter(|message| message.starts_with("serving ")).count(), 1);
}

/// Without a journal at the socket, the lines go to standard error with their priority, as sd-daemon(3) defines.
#[test]
#[ignore = "not run again after its last change"]
fn lines_that_the_journal_does_not_take_go_to_standard_error() {
    needs_root!();
    let script = "mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/journal || exit 1\n\
                  python3 -c 'import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); \
                  s.bind(\"/run/systemd/journal/socket\"); s.close()' || exit 1\n\
                  export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); exec \"$@\"";
    // No process listens at the socket any more when the service opens it: it has no journal, and logs lines.
    let world = World::with(512, |settings| {
        let words = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh"];
        settings.launcher = words.map(str::to_owned).to_vec();
    });
    world.client().get("/vms").ok();
    assert!(world.exporter.log().contains(" INFO serving "), "{}", world.exporter.log());
    // One that ends while the service runs.
    let script = "mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/journal || exit 1\n\
                  exec python3 -c '\nimport os, socket, sys\n\
                  s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                  s.bind(\"/run/systemd/journal/socket\")\n\
                  if os.fork() == 0:\n\
                  \x20   while b\"MESSAGE=serving\" not in s.recv(1 << 16): pass\n\
                  \x20   os._exit(0)\n\
                  s.close()\n\
                  found = os.fstat(2)\n\
                  os.environ[\"JOURNAL_STREAM\"] = f\"{found.st_dev}:{found.st_ino}\"\n\
                  os.execv(sys.argv[1], sys.argv[1:])\n' \"$@\"";
    let world = World::with(512, |settings| {
        let words = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh"];
        settings.launcher = words.map(str::to_owned).to_vec();
    });
    let client = world.client();
    eventually("lines on standard error", || {
        client.get("/vms").ok();
        world.exporter.log().contains("<6>request{id=")
    });
}
