//! The service on a host: notifications to the service manager, the units, the log file, command-line arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::harness::{Certificates, Exporter, Manager, Settings, World, eventually, free_port, output, write_at};
use crate::needs_root;

/// The next notification, within 30 seconds.
fn next_message(socket: &UnixDatagram) -> String {
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// As [`next_message`], without messages of a status line only.
fn next_but_status(socket: &UnixDatagram) -> String {
    loop {
        let message = next_message(socket);
        if !message.starts_with("STATUS=") {
            return message;
        }
    }
}

#[test]
fn service_manager_is_notified() {
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let port = free_port();
    let path = certificates.path("notify");
    let name = format!("exporter-tests-{port}");
    for (socket, address) in [
        (path.display().to_string(), SocketAddr::from_pathname(&path).unwrap()),
        (format!("@{name}"), SocketAddr::from_abstract_name(&name).unwrap()),
    ] {
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        let mut settings = Settings::new(&certificates, &manager, &[&certificates.path("repo")]);
        settings.environment.push(("NOTIFY_SOCKET".to_owned(), socket));
        settings.port = Some(port);
        // Connects right after READY=1 is received.
        let ready = std::thread::spawn(move || {
            let first = next_message(&listener);
            (first, TcpStream::connect(("127.0.0.1", port)).is_ok(), listener)
        });
        let mut exporter = Exporter::start(settings);
        let (first, connected, listener) = ready.join().unwrap();
        assert_eq!(first, "READY=1\nSTATUS=serving 0 snapshots of 0 VMs; 1 repository unavailable");
        assert!(connected, "the service does not listen yet");
        exporter.signal(Signal::SIGHUP);
        let reloading = next_but_status(&listener);
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{reloading}"));
        assert!(time.parse::<u64>().unwrap() > 0);
        assert!(next_but_status(&listener).starts_with("READY=1\nSTATUS="));
        exporter.signal(Signal::SIGTERM);
        assert!(next_but_status(&listener).starts_with("STOPPING=1\nSTATUS=stopping"));
        assert_eq!(exporter.wait(Duration::from_secs(20)).code(), Some(0));
    }
    // A missing notification socket, or one that is not read, does not stop the service.
    let unread = UnixDatagram::bind(certificates.path("unread")).unwrap();
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"x", certificates.path("unread")).is_ok() {}
    for socket in ["/nonexistent/notify", certificates.path("unread").to_str().unwrap()] {
        let mut settings = Settings::new(&certificates, &manager, &[&certificates.path("repo")]);
        settings.environment.push(("NOTIFY_SOCKET".to_owned(), socket.to_owned()));
        let mut exporter = Exporter::start(settings);
        exporter.signal(Signal::SIGTERM);
        assert_eq!(exporter.wait(Duration::from_secs(20)).code(), Some(0));
        assert!(exporter.log().contains("cannot notify the service manager of"), "{}", exporter.log());
    }
    drop(unread);
}

fn example(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)).unwrap()
}

/// The system call sets of systemd.
fn call_sets() -> BTreeMap<String, Vec<String>> {
    let mut sets = BTreeMap::<String, Vec<String>>::new();
    let mut current = String::new();
    for line in output(Command::new("systemd-analyze").args(["syscall-filter", "--no-pager"])).lines() {
        match line.trim() {
            "" => {}
            name if !line.starts_with(' ') => current = name.to_owned(),
            comment if comment.starts_with('#') => {}
            call => sets.entry(current.clone()).or_default().push(call.to_owned()),
        }
    }
    sets
}

/// Builds the launcher that restricts a program to the system calls allowed by the unit.
fn unit_filter(unit: &str) -> (TempDir, String) {
    let sets = call_sets();
    let calls_of = |words: &str| {
        let (mut calls, mut words) = (BTreeSet::new(), words.split(' ').map(str::to_owned).collect::<Vec<_>>());
        while let Some(word) = words.pop() {
            match sets.get(&word) {
                Some(set) => words.extend(set.iter().cloned()),
                None => drop(calls.insert(word)),
            }
        }
        calls
    };
    let mut allowed = BTreeSet::new();
    for words in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        match words.strip_prefix('~') {
            Some(words) => allowed = &allowed - &calls_of(words),
            None => allowed.extend(calls_of(words)),
        }
    }
    assert!(allowed.contains("pread64") && !allowed.contains("reboot") && !allowed.contains("mlock"), "{allowed:?}");
    let dir = tempfile::tempdir().unwrap();
    let numbers: String = allowed.iter().map(|call| format!("#ifdef __NR_{call}\n__NR_{call},\n#endif\n")).collect();
    fs::write(dir.path().join("allowed.h"), numbers).unwrap();
    let launcher = dir.path().join("syscall_filter");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journeys/syscall_filter.c");
    let flags = ["-std=gnu11", "-Wall", "-Werror", "-O1", "-I"];
    output(Command::new("cc").args(flags).arg(dir.path()).arg("-o").arg(&launcher).arg(source));
    (dir, launcher.display().to_string())
}

#[test]
fn unit_permissions_suffice() {
    needs_root!();
    let unit = example("systemd/coriolis-ovm-exporter.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let set = line.split(' ').map(|name| format!(",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()));
    let set = format!("--bounding-set=-all{}", set.collect::<String>());
    let (_dir, filter) = unit_filter(&unit);
    let mut world = World::with(512, |settings| {
        settings.launcher = ["setpriv", &set, "--inh-caps=-all", "--no-new-privs", &filter].map(str::to_owned).to_vec();
    });
    let status = fs::read_to_string(format!("/proc/{}/status", world.exporter.pid())).unwrap();
    assert!(status.contains("CapEff:\t000000000000000e") && status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "{status}");
    // A disk of another user, with mode 0600.
    let disk = &world.define_vm(&[("a.img", 4 << 20)])[0];
    write_at(disk, 0, &vec![1; 3 << 20]);
    std::os::unix::fs::chown(disk, Some(1234), Some(1234)).unwrap();
    fs::set_permissions(disk, PermissionsExt::from_mode(0o600)).unwrap();
    let client = world.client();
    let first = client.take_snapshot_id();
    let second = client.take_snapshot_id();
    client.compare(&second, &first);
    let path = format!("/vms/{}/snapshots/{second}", crate::harness::VM);
    for route in [&format!("?compareTo={first}&refine=4096"), "/disks/a.img/checksum", "/disks/a.img/chunks"] {
        assert_eq!(client.get(&format!("{path}{route}")).status, 200, "{route}");
    }
    // Long and short reads, from the device and from the page cache.
    for _ in 0..2 {
        world.volume.unmount();
        world.volume.mount();
        assert_eq!(client.disk_range(&second, "a.img", 4096, 4096), [1; 4096]);
        assert!(client.disk(&second, "a.img")[..3 << 20].iter().all(|byte| *byte == 1));
        assert_eq!(client.get("/status?cost=true").status, 200);
    }
    assert_eq!(client.delete(&format!("/vms/{}/snapshots", crate::harness::VM)).status, 200);
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
    world.exporter.signal(Signal::SIGHUP);
    client.get("/vms").ok();
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(20)).code(), Some(0));
}

#[test]
fn upstart_job_uses_only_old_stanzas() {
    // init(5) of 0.6.5; `setuid`, `console log` and `reload signal` came later.
    let known = [
        "description",
        "author",
        "version",
        "start",
        "stop",
        "respawn",
        "kill",
        "limit",
        "umask",
        "exec",
        "expect",
        "env",
        "export",
        "nice",
        "oom",
        "chdir",
        "chroot",
        "console",
        "pre-start",
        "emits",
        "instance",
        "normal",
        "task",
    ];
    let job = example("upstart/coriolis-ovm-exporter.conf");
    let stanzas: Vec<&str> = job.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    for stanza in &stanzas {
        assert!(known.contains(&stanza.split(' ').next().unwrap()), "{stanza}");
    }
    // The service stays in the foreground, so upstart must not expect a fork.
    assert!(!stanzas.iter().any(|stanza| stanza.starts_with("expect")));
    assert!(stanzas.contains(&"respawn") && stanzas.iter().any(|stanza| stanza.starts_with("respawn limit ")));
    // Both units start what the README installs, and allow more time to stop than the service needs.
    let unit = example("systemd/coriolis-ovm-exporter.service");
    let command = "/usr/local/bin/coriolis-ovm-exporter --config /etc/coriolis-ovm-exporter/config.toml";
    assert!(job.contains(&format!("\nexec {command} ")) && unit.contains(&format!("\nExecStart={command}\n")));
    assert!(job.contains("\nkill timeout 300\n") && unit.contains("\nTimeoutStopSec=5min\n"));
}

fn wait_for_line(path: &Path, what: &str) {
    eventually(&format!("{} contains {what:?}", path.display()), || {
        fs::read_to_string(path).unwrap_or_default().lines().any(|line| line.contains(what))
    });
}

#[test]
fn log_file_is_rotated_and_reopened() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("exporter.log");
    let world = World::with(512, |settings| {
        settings.top = format!("log_file = {log:?}\nlog.max_size = \"8KiB\"\nlog.max_files = 3\n");
    });
    let client = world.client();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..100).for_each(|_| drop(client.get("/vms").ok())));
        }
    });
    // Lines are written in order, so all are written with the last one.
    let last = client.get("/vms");
    wait_for_line(&log, &format!("request{{id={}}}: answered", last.header("x-request-id")));
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["exporter.log", "exporter.log.1", "exporter.log.2", "exporter.log.3"]);
    for name in names {
        let path = dir.path().join(name);
        let (size, mode) = (path.metadata().unwrap().len(), path.metadata().unwrap().permissions().mode());
        assert!((1..=8192).contains(&size) && mode & 0o7777 == 0o640, "{}: {size}, {mode:o}", path.display());
        let text = fs::read_to_string(&path).unwrap();
        let whole = |line: &str| line.starts_with("20") && line.contains("Z ");
        assert!(text.ends_with('\n') && text.lines().all(whole), "{}:\n{text}", path.display());
    }
    // As logrotate does.
    let moved = dir.path().join("moved");
    fs::rename(&log, &moved).unwrap();
    world.exporter.signal(Signal::SIGHUP);
    wait_for_line(&log, "log file reopened");
    let size = moved.metadata().unwrap().len();
    client.get("/vms").ok();
    assert_eq!(moved.metadata().unwrap().len(), size);
    // Standard error has the lines from before there was a thread to write them.
    let early = world.exporter.log();
    assert!(early.lines().last().is_some_and(|line| line.contains(" confinement ")), "{early}");
    // If the log cannot be reopened, the service continues with the old file.
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    world.exporter.signal(Signal::SIGHUP);
    client.get("/vms").ok();
}

#[test]
fn unwritable_log_does_not_stop_the_service() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("exporter.log");
    // A small file system, which soon is full.
    let script = "mount -t tmpfs -o size=64k tmpfs \"$0\" && exec \"$@\"";
    let small = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, dir.path().to_str().unwrap()]
        .map(str::to_owned);
    let mut world = World::with(512, |settings| {
        settings.top = format!("log_file = {log:?}\nlog.max_size = \"20KiB\"\nlog.max_files = 10\n");
        settings.launcher = small.to_vec();
    });
    let client = world.client();
    eventually("lines go to standard error", || {
        client.get("/vms").ok();
        world.exporter.log().contains("/api/v1/vms")
    });
    let seen = PathBuf::from(format!("/proc/{}/root{}", world.exporter.pid(), dir.path().display()));
    // With space again, the log continues on a new line and reports the gap.
    fs::remove_file(seen.join("exporter.log.1")).unwrap();
    client.get("/vms").ok();
    wait_for_line(&seen.join("exporter.log"), "lines could not be written here; they went to standard error");
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(20)).code(), Some(0));

    // Standard error cannot be written either.
    world.exporter.settings().top.clear();
    world.exporter.settings().launcher = ["sh", "-c", "exec \"$0\" \"$@\" 2>/dev/full"].map(str::to_owned).to_vec();
    world.exporter.restart();
    world.client().get("/vms").ok();
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(20)).code(), Some(0));
}

#[test]
fn invalid_log_file_is_rejected_at_the_start() {
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let at = |name: &str| certificates.path(name);
    std::os::unix::fs::symlink(at("server.pem"), at("link")).unwrap();
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, expected) in [
        (at("link"), "is a symbolic link"),
        (at("pipe"), "is a pipe"),
        (at(""), "is a folder"),
        (at("missing/log"), "No such file"),
    ] {
        let mut settings = Settings::new(&certificates, &manager, &[&at("repo")]);
        settings.top = format!("log_file = {path:?}\n");
        let (_, refusal) = Exporter::refusal(&settings);
        assert!(refusal.contains(&format!("log_file: {}: {expected}", path.display())), "{refusal}");
    }
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_coriolis-ovm-exporter")).args(arguments).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn command_line_arguments_are_parsed() {
    let version = format!("coriolis-ovm-exporter {}\n", env!("CARGO_PKG_VERSION"));
    for spelling in ["--version", "-V", "-version"] {
        assert_eq!(run(&[spelling]), (0, version.clone(), String::new()), "{spelling}");
    }
    for spelling in ["--help", "-h", "-help"] {
        let (status, help, _) = run(&[spelling]);
        assert_eq!(status, 0, "{spelling}");
        for expected in
            ["--config <FILE>", "-config", "/etc/coriolis-ovm-exporter/config.toml", "SIGHUP", "SIGTERM", "RUST_LOG"]
        {
            assert!(help.contains(expected), "{spelling} does not mention {expected}:\n{help}");
        }
    }
    for (wrong, expected) in [
        (&["--config"][..], "a value is required for '--config <FILE>'"),
        (&["-config"], "a value is required for '--config <FILE>'"),
        (&["--port", "1"], "unexpected argument '--port'"),
        (&["config.toml"], "unrecognized subcommand 'config.toml'"),
        (&["--config", "a", "--config", "b"], "cannot be used multiple times"),
    ] {
        let (status, output, errors) = run(wrong);
        assert_eq!((status, output.as_str()), (2, ""), "{wrong:?}");
        assert!(errors.contains(expected) && errors.contains("--help"), "{wrong:?}: {errors}");
    }
    let (status, _, errors) = run(&["-config", "/nonexistent"]);
    assert_eq!(status, 78, "EX_CONFIG");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}
