//! The release binary needs no library of the host, and runs on the kernel of the oldest supported host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::Method;
use tempfile::TempDir;

use crate::harness::{
    Client, Exporter, HookDir, Manager, Settings, VM, World, chunks, data, release_binary, text, write_at,
};
use crate::needs_root;

/// The output of a program, regardless of its exit status.
fn output(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).env("LC_ALL", "C").args(arguments).arg(file).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn release_is_static_and_stripped() {
    let Some(release) = release_binary() else { return };
    let headers = output("readelf", &["--wide", "--program-headers", "--section-headers", "--dynamic"], &release);
    assert!(headers.contains("LOAD"), "{headers}");
    // The dynamic loader, dynamic libraries, symbols, and debug information.
    for absent in ["INTERP", "NEEDED", ".symtab", ".debug_"] {
        assert!(!headers.contains(absent), "{absent} is in the release: make build\n{headers}");
    }
    // The list of dependencies for scanners of vulnerabilities.
    assert!(headers.contains(".dep-v0"), "the release has no list of its dependencies: make build\n{headers}");
    let ldd = output("ldd", &[], &release);
    assert!(ldd.contains("statically linked") || ldd.contains("not a dynamic executable"), "{ldd}");
    let version = output(release.to_str().unwrap(), &["--version"], Path::new("--help"));
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

/// Builds the launcher that disables system calls newer than Linux 4.1.
pub fn old_kernel() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journeys/old_kernel.c");
    let launcher = dir.path().join("old_kernel");
    let flags = ["-std=gnu11", "-Wall", "-Werror", "-O1", "-o"];
    let status = Command::new("cc").args(flags).arg(&launcher).arg(source).status().unwrap();
    assert!(status.success());
    (dir, launcher)
}

#[test]
fn release_works_on_the_oldest_kernel() {
    needs_root!();
    let Some(release) = release_binary() else { return };
    let (_dir, launcher) = old_kernel();
    let hooks = HookDir::new();
    hooks.put("10-hook", "[ $2 = post ] || echo quiesced");
    let mut world = World::with(512, |settings| {
        settings.binary = release;
        settings.sections = hooks.section("timeout = \"5s\"");
        settings.launcher = vec![launcher.display().to_string()];
    });
    let status = fs::read_to_string(format!("/proc/{}/status", world.exporter.pid())).unwrap();
    assert!(
        status.contains("Name:\tcoriolis-ovm-ex") && status.contains("Seccomp:\t2"),
        "the filter is not active: {status}"
    );

    let disk = &world.define_vm(&[("a.img", 64 << 20)])[0];
    write_at(disk, 1 << 20, &[1; 1 << 20]);
    let client = world.client();
    let listed = client.get("/vms").ok();
    assert_eq!(listed[0]["snapshot_compatible"], true, "{listed}");
    let made = client.take_snapshot();
    assert_eq!(made["consistency"], "quiesced", "{made}");
    // A hung hook and its child processes can be killed there, too.
    hooks.put("20-hangs", "trap '' TERM; sleep 600 & wait; wait");
    assert_eq!(client.post(&format!("/vms/{VM}/snapshots")).error(502), "hook_failed");
    hooks.remove("20-hangs");
    let first = text(&made["id"]);
    let full = client.disk(&first, "a.img");
    write_at(disk, 8 << 20, &[2; 65536]);
    let second = client.take_snapshot_id();
    let document = client.compare(&second, &first);
    assert_eq!(chunks(&document["disks"][0]), [data(8 << 20, 65536)]);
    assert!(client.patched(&document["disks"][0], &full) == fs::read(disk).unwrap(), "the restored disk differs");
    assert_eq!(client.disk_range(&second, "a.img", (8 << 20) + 1, 3), [2; 3]);
    let path = format!("/api/v1/vms/{VM}/snapshots/{second}/disks/a.img");
    let parts = client.send(client.request(Method::GET, &path).header("Range", "bytes=0-1,8388608-8388609"));
    assert_eq!(parts.status, 206);
    assert!(parts.header("content-type").starts_with("multipart/byteranges"));
    for id in [&first, &second] {
        assert_eq!(client.delete(&format!("/vms/{VM}/snapshots/{id}")).status, 200);
    }
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
    // The database is opened and checked again.
    world.exporter.restart();
    assert_eq!(world.client().get(&format!("/vms/{VM}/snapshots")).ok(), serde_json::json!([]));
    assert!(!world.exporter.log().contains("panic"), "{}", world.exporter.log());
}

/// A static libc would load NSS modules of the host's libc to look up names or users.
#[test]
fn release_opens_no_host_library() {
    needs_root!();
    let Some(release) = release_binary() else { return };
    let world = World::new(512);
    world.certificates.issue_for("named", &["manager.example"]);
    let manager = Manager::start_with(&world.certificates, "named");
    let dir = tempfile::tempdir().unwrap();
    let (trace, hosts) = (dir.path().join("trace"), dir.path().join("hosts"));
    fs::write(&hosts, "127.0.0.1 localhost manager.example\n").unwrap();
    let mut settings = Settings::new(&world.certificates, &manager, &[&world.repository]);
    settings.ovm_endpoint = format!("https://manager.example:{}", manager.port);
    settings.binary = release;
    // -D: the child process is the service, not strace.
    let script = "mount --bind \"$0\" /etc/hosts && exec strace -D -f -qq -y -e trace=open,openat,openat2 -o \"$@\"";
    let launcher = [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        script,
        hosts.to_str().unwrap(),
        trace.to_str().unwrap(),
    ];
    settings.launcher = launcher.map(str::to_owned).to_vec();
    let exporter = Exporter::start(settings);
    let client = Client::logged_in(&exporter, &world.certificates);
    assert_eq!(manager.request_count(), 2, "one request at the start and one at the log-in");
    client.get("/vms").ok();
    drop(exporter);

    let trace = fs::read_to_string(trace).unwrap();
    for opened in ["exporter.db", "/etc/hosts", "/etc/resolv.conf"] {
        assert!(trace.contains(opened), "{opened} is not in the trace: does strace work?\n{trace}");
    }
    for library in ["libnss", "nsswitch.conf", "ld-linux", "ld.so", ".so\"", ".so.", "gconv", "/etc/passwd"] {
        // The confinement opens the files that it permits with O_PATH, and reads nothing.
        let line = trace.lines().find(|line| line.contains(library) && !line.contains("O_PATH"));
        assert_eq!(line, None, "{library}");
    }
}
