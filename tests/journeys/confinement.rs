//! What the running service can no longer do, whoever controls it, and that it still does its work.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{
    Client, Exporter, HookDir, MB, Settings, VM, World, eventually, eventually_some, hook_runs, write_at,
};
use crate::{needs, needs_root};

/// CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER.
const FILE_CAPABILITIES: &str = "000000000000000e";

/// The fields of `/proc/<pid>/status` for each thread.
fn thread_fields(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path().join("status"));
    // A thread may have ended.
    let texts: Vec<String> = tasks.filter_map(|path| fs::read_to_string(path).ok()).collect();
    texts.iter().map(|text| value_of(text, field)).collect()
}

fn value_of(status: &str, field: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {status}")).trim().to_owned()
}

/// The launcher, which is a child of the service.
pub fn launcher(service: u32) -> Option<Pid> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let is_launcher = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains("Name:\thook-launcher\n") && value_of(&status, "PPid") == service.to_string()
    };
    processes.filter_map(|name| name.parse().ok()).find(is_launcher).map(Pid::from_raw)
}

#[test]
fn all_threads_are_confined() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[1; 4096]);
    let client = world.client();
    // With threads of connections, repositories and downloads.
    let id = client.take_snapshot_id();
    client.disk(&id, "a.img");
    let pid = world.exporter.pid();
    for (field, expected) in [
        ("CapEff", FILE_CAPABILITIES),
        ("CapPrm", FILE_CAPABILITIES),
        ("CapBnd", FILE_CAPABILITIES),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        let found = thread_fields(pid, field);
        assert!(found.len() > 3 && found.iter().all(|value| value == expected), "{field}: {found:?}");
    }
    let all = json!({"capabilities": true, "files": true, "system_calls": true, "problems": []});
    assert_eq!(client.get("/status").ok()["confinement"], all);
    assert!(world.exporter.log().contains("confinement capabilities=true files=true"), "{}", world.exporter.log());
}

/// Calls libc functions inside the process, as an attacker would. Returns the result and the error of each.
fn call_inside(pid: u32, calls: &[String]) -> Vec<(i64, Errno)> {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-iex", "set debuginfod enabled off", "-p", &pid.to_string()]);
    for call in calls {
        gdb.args(["-ex", &format!("set $result = (long)({call})")]);
        gdb.args(["-ex", "printf \"CALL %ld %d\\n\", $result, *((int *(*)(void))__errno_location)()"]);
    }
    let output = gdb.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let results = text.lines().filter_map(|line| line.strip_prefix("CALL ")?.split_once(' '));
    let results: Vec<_> =
        results.map(|(result, error)| (result.parse().unwrap(), Errno::from_raw(error.parse().unwrap()))).collect();
    assert_eq!(results.len(), calls.len(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    results
}

fn system_call(number: libc::c_long, arguments: &str) -> String {
    format!("((long (*)(long, ...))syscall)({number}L, {arguments})")
}

fn open(path: &Path, flags: i32) -> String {
    system_call(libc::SYS_openat, &format!("-100L, {:?}, {flags}L, 384L", path.display().to_string()))
}

/// Calls that the service does not need.
fn forbidden_calls() -> Vec<(&'static str, String)> {
    let call = |number, arguments: &str| system_call(number, arguments);
    vec![
        ("execve", call(libc::SYS_execve, "\"/bin/true\", 0L, 0L")),
        ("execveat", call(libc::SYS_execveat, "-100L, \"/bin/true\", 0L, 0L, 0L")),
        ("a new process", call(libc::SYS_clone, "17L, 0L, 0L, 0L, 0L")),
        ("ptrace", call(libc::SYS_ptrace, "16L, 1L, 0L, 0L")),
        ("reading another process", call(libc::SYS_process_vm_readv, "1L, 0L, 0L, 0L, 0L, 0L")),
        ("a signal to another process", call(libc::SYS_kill, "1L, 0L")),
        ("pidfd_open", call(libc::SYS_pidfd_open, "1L, 0L")),
        ("the process that a descriptor signals", call(libc::SYS_fcntl, "0L, 8L, 1L")),
        ("the signal of a descriptor", call(libc::SYS_fcntl, "0L, 10L, 9L")),
        ("signals of a descriptor", call(libc::SYS_fcntl, "0L, 4L, 8192L")),
        ("a lease of a file", call(libc::SYS_fcntl, "0L, 1024L, 2L")),
        ("the I/O priority of another process", call(libc::SYS_ioprio_set, "1L, 1L, 0L")),
        ("mount", call(libc::SYS_mount, "0L, 0L, 0L, 0L, 0L")),
        ("setns", call(libc::SYS_setns, "-1L, 0L")),
        ("unshare", call(libc::SYS_unshare, "0L")),
        ("bpf", call(libc::SYS_bpf, "0L, 0L, 0L")),
        ("perf_event_open", call(libc::SYS_perf_event_open, "0L, 0L, -1L, -1L, 0L")),
        ("io_uring_setup", call(libc::SYS_io_uring_setup, "1L, 0L")),
        ("userfaultfd", call(libc::SYS_userfaultfd, "0L")),
        ("keyctl", call(libc::SYS_keyctl, "0L, 0L, 0L, 0L, 0L")),
        ("init_module", call(libc::SYS_init_module, "0L, 0L, \"\"")),
        ("a packet socket", call(libc::SYS_socket, "17L, 3L, 0L")),
        ("a netlink socket", call(libc::SYS_socket, "16L, 3L, 0L")),
        ("executable memory", call(libc::SYS_mmap, "0L, 4096L, 7L, 34L, -1L, 0L")),
        ("the mode of a file by its path", call(libc::SYS_fchmodat, "-100L, \"/nonexistent\", 511L")),
        ("the owner of a file", call(libc::SYS_fchownat, "-100L, \"/nonexistent\", 0L, 0L, 0L")),
        ("a link", call(libc::SYS_linkat, "-100L, \"/nonexistent\", -100L, \"/nonexistent2\", 0L")),
        ("setuid", call(libc::SYS_setuid, "0L")),
        ("stealing input of a terminal", call(libc::SYS_ioctl, "0L, 21522L, 0L")),
    ]
}

#[test]
fn a_service_that_is_taken_over_reaches_nothing_else() {
    needs_root!();
    needs!(Command::new("gdb").arg("--version").output().is_ok(), "gdb");
    let hooks = HookDir::new();
    hooks.put("10-hook", "true");
    let mut world = World::with(512, |settings| settings.sections = hooks.section(""));
    world.define_vm(&[("a.img", MB)]);
    let dir = world.exporter.db_file().parent().unwrap().to_owned();
    let elsewhere = tempfile::tempdir().unwrap();
    let secret = elsewhere.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let write = libc::O_WRONLY | libc::O_CREAT;
    let refused = [
        ("a secret of the host", open(Path::new("/etc/shadow"), libc::O_RDONLY)),
        ("another file", open(&secret, libc::O_RDONLY)),
        ("another folder", open(elsewhere.path(), libc::O_RDONLY | libc::O_DIRECTORY)),
        ("a changed config", open(&dir.join("config.toml"), libc::O_WRONLY)),
        ("a new file beside the database", open(&dir.join("new"), write)),
        ("a new hook", open(&hooks.directory().join("20-new"), write)),
        ("a changed hook", open(&hooks.directory().join("10-hook"), libc::O_WRONLY)),
        ("a changed key", open(&world.certificates.path("server.key"), libc::O_WRONLY)),
        ("a new file elsewhere", open(&elsewhere.path().join("new"), write)),
        ("the memory of another process", open(Path::new("/proc/1/mem"), libc::O_RDONLY)),
        ("the environment of another process", open(Path::new("/proc/1/environ"), libc::O_RDONLY)),
        ("the command line of another process", open(Path::new("/proc/1/cmdline"), libc::O_RDONLY)),
        ("a kernel setting", open(Path::new("/proc/sys/kernel/hostname"), libc::O_WRONLY)),
        ("a device", open(Path::new("/dev/loop-control"), libc::O_RDWR)),
    ];
    let allowed = [
        ("the database", open(&world.exporter.db_file(), libc::O_RDWR)),
        ("the config", open(&dir.join("config.toml"), libc::O_RDONLY)),
        ("a file in the folder for copies", open(&dir.join("exporter.db.copies/new"), write)),
        ("the key", open(&world.certificates.path("server.key"), libc::O_RDONLY)),
        ("the hooks", open(&hooks.directory(), libc::O_RDONLY | libc::O_DIRECTORY)),
        ("a file in the repository", open(&world.repository.join("VirtualDisks/new"), write)),
        ("the flags of a descriptor", system_call(libc::SYS_fcntl, "0L, 3L, 0L")),
        ("its own I/O priority", system_call(libc::SYS_ioprio_set, "1L, 0L, 0L")),
    ];
    let forbidden = forbidden_calls();
    let calls = || {
        let files = refused.iter().chain(&allowed).map(|(_, call)| call.clone());
        files.chain(forbidden.iter().map(|(_, call)| call.clone())).collect::<Vec<_>>()
    };
    let results = call_inside(world.exporter.pid(), &calls());
    let mut results = results.into_iter();
    for (what, _) in &refused {
        let (result, error) = results.next().unwrap();
        assert_eq!((result, error), (-1, Errno::EACCES), "{what}");
    }
    for (what, _) in &allowed {
        let (result, error) = results.next().unwrap();
        assert!(result >= 0, "{what}: {error}");
    }
    for ((what, _), (result, error)) in forbidden.iter().zip(results) {
        assert_eq!((result, error), (-1, Errno::ENOSYS), "{what}");
    }
    // Programs of the host that listen at Unix sockets, such as a container engine, cannot be asked for anything.
    let unix = [
        ("a Unix socket", system_call(libc::SYS_socket, "1L, 1L, 0L"), Errno::EAFNOSUPPORT),
        ("a Unix datagram socket", system_call(libc::SYS_socket, "1L, 524290L, 0L"), Errno::EAFNOSUPPORT),
        ("a pair of datagram sockets", system_call(libc::SYS_socketpair, "1L, 2L, 0L, 0L"), Errno::ENOSYS),
    ];
    let calls: Vec<String> = unix.iter().map(|(_, call, _)| call.clone()).collect();
    for ((what, _, expected), found) in unix.iter().zip(call_inside(world.exporter.pid(), &calls)) {
        assert_eq!(found, (-1, *expected), "{what}");
    }
    // It still works.
    world.client().take_snapshot_id();

    // Without the confinement, all that is possible: the calls above are the right ones.
    world.exporter.settings().confined = false;
    world.exporter.restart();
    let files: Vec<String> = refused[..9].iter().map(|(_, call)| call.clone()).collect();
    let harmless = [
        "unshare",
        "a packet socket",
        "a netlink socket",
        "executable memory",
        "a signal to another process",
        "the process that a descriptor signals",
        "the signal of a descriptor",
        "the I/O priority of another process",
    ];
    let harmless = forbidden.iter().filter(|(what, _)| harmless.contains(what)).map(|(_, call)| call.clone());
    let calls: Vec<String> = files.into_iter().chain(harmless).collect();
    for (call, (result, error)) in calls.iter().zip(call_inside(world.exporter.pid(), &calls)) {
        assert!(result >= 0, "{call}: {error}");
    }
}

#[test]
fn hooks_are_not_confined() {
    needs_root!();
    let (hooks, world) = World::with_hooks("", &["a.img"]);
    hooks.put(
        "10-look",
        "cat /proc/self/status >$OUT/status.$2; head -c 1 /etc/shadow >$OUT/secret; \
         ls /proc/self/fd >$OUT/descriptors.$2; echo quiesced",
    );
    let document = world.client().take_snapshot();
    assert_eq!(hook_runs(&document, "name"), ["10-look pre ok", "10-look post ok"], "{document}");
    assert_eq!(document["consistency"], "quiesced");
    let own = fs::read_to_string("/proc/self/status").unwrap();
    for stage in ["pre", "post"] {
        let status = hooks.read(&format!("status.{stage}"));
        for field in ["CapEff", "CapBnd", "NoNewPrivs", "Seccomp"] {
            assert_eq!(value_of(&status, field), value_of(&own, field), "{field}");
        }
    }
    assert!(!hooks.read("secret").is_empty());
    // It inherits no descriptors either, except those that the test itself inherits.
    let direct = Command::new(hooks.directory().join("10-look")).args(["call", "direct"]).output().unwrap();
    assert!(direct.status.success(), "{direct:?}");
    for stage in ["pre", "post"] {
        assert_eq!(hooks.read(&format!("descriptors.{stage}")), hooks.read("descriptors.direct"));
    }
    // The launcher belongs to the service, and is in no group that gets its signals.
    let launcher = launcher(world.exporter.pid()).unwrap();
    assert_eq!(nix::unistd::getpgid(Some(launcher)).unwrap(), launcher);
}

#[test]
fn without_its_launcher_the_service_stops_for_a_new_start() {
    needs_root!();
    let (hooks, mut world) = World::with_hooks("", &["a.img"]);
    hooks.put("10-freeze", "echo \"$2\" >>$OUT/calls; [ $2 = post ] || { echo quiesced; sleep 600; }");
    let requested = world.request_snapshot();
    hooks.wait_for("calls");
    kill(launcher(world.exporter.pid()).unwrap(), Signal::SIGKILL).unwrap();
    let status = world.exporter.wait(Duration::from_secs(120));
    assert_eq!(status.code(), Some(1));
    assert!(world.exporter.log().contains("the hook launcher has ended"));
    requested.join().unwrap();
    // The next start calls the pending post hook.
    world.exporter.restart();
    eventually("the post hook is called", || hooks.read("calls").contains("post"));
}

#[test]
fn signals_for_the_service_leave_the_launcher_alone() {
    needs_root!();
    let (hooks, mut world) = World::with_hooks("", &["a.img"]);
    let pid = world.exporter.pid();
    let launcher = launcher(pid).unwrap();
    // `kill -HUP $(pidof coriolis-ovm-exporter)`, `systemctl kill -s HUP`.
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        kill(launcher, signal).unwrap();
    }
    hooks.put(
        "10-freeze",
        "echo $2 >>$OUT/calls; [ $2 = post ] || { echo quiesced; until [ -e $OUT/go ]; do sleep 0.02; done; }",
    );
    let requested = world.request_snapshot();
    hooks.wait_for("calls");
    // As systemd does with KillMode=control-group.
    for process in [launcher, Pid::from_raw(pid.cast_signed())] {
        kill(process, Signal::SIGTERM).unwrap();
    }
    world.exporter.wait_for_log("stopping: waiting for running requests");
    fs::write(hooks.at("go"), "").unwrap();
    assert_eq!(world.exporter.wait(Duration::from_secs(120)).code(), Some(0), "{}", world.exporter.log());
    requested.join().unwrap();
    assert_eq!(hooks.read("calls"), "pre\npost\n");
}

#[test]
fn the_launcher_ends_with_the_service() {
    needs_root!();
    let (_hooks, mut world) = World::with_hooks("", &["a.img"]);
    let launcher = launcher(world.exporter.pid()).unwrap();
    let ends = |launcher: Pid| {
        eventually("the launcher ends", || {
            let stat = fs::read_to_string(format!("/proc/{launcher}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        });
    };
    world.exporter.kill();
    ends(launcher);
    world.exporter.restart();
    let launcher = self::launcher(world.exporter.pid()).unwrap();
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(60)).code(), Some(0));
    ends(launcher);
}

#[test]
fn off_leaves_everything_as_it_was() {
    needs_root!();
    let (hooks, world) = World::with_hooks("", &["a.img"]);
    drop(world);
    hooks.put("10-hook", "true");
    let world = World::with(512, |settings| {
        settings.sections = hooks.section("");
        settings.confined = false;
    });
    let own = fs::read_to_string("/proc/self/status").unwrap();
    for field in ["CapEff", "CapBnd", "NoNewPrivs", "Seccomp"] {
        let expected = value_of(&own, field);
        assert!(thread_fields(world.exporter.pid(), field).iter().all(|value| *value == expected), "{field}");
    }
    assert_eq!(launcher(world.exporter.pid()), None);
    let confinement = &world.client().get("/status").ok()["confinement"];
    assert_eq!(confinement["files"], false);
    assert_eq!(confinement["problems"], json!(["confinement.mode is off"]));
    let (_, table) = world.exporter.command(&["check-config"]);
    assert!(table.contains("warn  confinement.mode"), "{table}");
}

#[test]
fn a_repository_directly_below_the_root_is_named_as_the_reason() {
    needs_root!();
    let world = World::with(512, |settings| settings.paths.push("/missing-repository".into()));
    let confinement = &world.client().get("/status").ok()["confinement"];
    assert_eq!((&confinement["files"], &confinement["system_calls"]), (&json!(false), &json!(true)));
    let problem = confinement["problems"][0].as_str().unwrap();
    assert!(problem.contains("/missing-repository") && problem.contains("one folder deeper"), "{problem}");
    assert!(world.exporter.log().contains("access to files is not restricted"));
    let (_, table) = world.exporter.command(&["check-config"]);
    assert!(table.contains("one folder deeper"), "{table}");
}

/// The launcher of [`crate::static_binary`], without Landlock.
#[test]
fn an_old_kernel_is_no_obstacle() {
    needs_root!();
    let (_dir, old_kernel) = crate::static_binary::old_kernel();
    let world = World::with(512, |settings| settings.launcher = vec![old_kernel.display().to_string()]);
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[1; 4096]);
    let client: Client = world.client();
    let id = client.take_snapshot_id();
    assert_eq!(client.disk_range(&id, "a.img", 0, 4096), [1; 4096]);
    let confinement = &client.get("/status").ok()["confinement"];
    assert_eq!(confinement["files"], false);
    assert_eq!((&confinement["capabilities"], &confinement["system_calls"]), (&json!(true), &json!(true)));
    assert!(confinement["problems"][0].as_str().unwrap().contains("no Landlock"), "{confinement}");
    assert_eq!(thread_fields(world.exporter.pid(), "Seccomp_filters").first().map(String::as_str), Some("4"));
}

#[test]
fn a_low_port_and_a_group_of_operators_still_work() {
    needs_root!();
    let world = World::new(512);
    let port = eventually_some("a low port is free", || {
        (600..1024).find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
    });
    let mut settings = Settings::new(&world.certificates, &world.manager, &[&world.repository]);
    settings.port = Some(port);
    settings.api = "socket_group = \"daemon\"\n".to_owned();
    let exporter = Exporter::start(settings);
    // CAP_CHOWN and CAP_NET_BIND_SERVICE too.
    assert!(thread_fields(exporter.pid(), "CapEff").iter().all(|value| value == "000000000000040f"));
    let socket = fs::metadata(exporter.socket()).unwrap();
    let group = nix::unistd::Group::from_name("daemon").unwrap().unwrap().gid.as_raw();
    assert_eq!((std::os::unix::fs::MetadataExt::gid(&socket), socket.permissions().mode() & 0o777), (group, 0o660));
    let client = Client::logged_in(&exporter, &world.certificates);
    assert_eq!(client.get(&format!("/vms/{VM}")).status, 404);
}
