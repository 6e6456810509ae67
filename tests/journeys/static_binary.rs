//! The binary that is shipped: it needs no library of the host, and no kernel newer than the oldest
//! host's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::Method;
use tempfile::TempDir;

use crate::harness::{Client, Exporter, HookDir, Manager, Settings, VM, World, chunks, data, text, write_at};
use crate::needs_root;

/// What `make build` made (`EXPORTER_RELEASE` names another). Without one the test is skipped,
/// loudly; under `CI=true` that is a failure.
fn release() -> Option<PathBuf> {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release/coriolis-ovm-exporter");
    let path = std::env::var_os("EXPORTER_RELEASE").map_or(usual, PathBuf::from);
    if path.is_file() {
        return Some(path);
    }
    let told = format!("SKIPPED: {} is not there: make build\n", path.display());
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{told}");
    // Past the test runner, which keeps what `eprintln!` says of a test that passes.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes());
    None
}

/// What a program prints, whatever its exit status.
fn output(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).env("LC_ALL", "C").args(arguments).arg(file).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn release_is_static_and_stripped() {
    let Some(release) = release() else { return };
    let headers = output("readelf", &["--wide", "--program-headers", "--section-headers", "--dynamic"], &release);
    assert!(headers.contains("LOAD"), "{headers}");
    // The dynamic loader, the libraries that it would load, symbols, and what debuggers want.
    for absent in ["INTERP", "NEEDED", ".symtab", ".debug_"] {
        assert!(!headers.contains(absent), "{absent} is in the release: make build\n{headers}");
    }
    let ldd = output("ldd", &[], &release);
    assert!(ldd.contains("statically linked") || ldd.contains("not a dynamic executable"), "{ldd}");
    let version = output(release.to_str().unwrap(), &["--version"], Path::new("--help"));
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

/// The launcher that makes system calls newer than Linux 4.1 missing.
fn old_kernel() -> (TempDir, PathBuf) {
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
    let Some(release) = release() else { return };
    let (_dir, launcher) = old_kernel();
    let hooks = HookDir::new();
    hooks.put("10-hook", "[ $2 = post ] || echo quiesced");
    let mut world = World::with(512, |settings| {
        settings.binary = release;
        settings.sections = hooks.section("timeout = \"5s\"");
        settings.launcher = vec![launcher.display().to_string()];
    });
    let status = fs::read_to_string(format!("/proc/{}/status", world.exporter.pid())).unwrap();
    assert!(status.contains("Name:\tcoriolis-ovm-ex") && status.contains("Seccomp:\t2"), "no filter: {status}");

    let disk = &world.define_vm(&[("a.img", 64 << 20)])[0];
    write_at(disk, 1 << 20, &[1; 1 << 20]);
    let client = world.client();
    let listed = client.get("/vms").ok();
    assert_eq!(listed[0]["snapshot_compatible"], true, "{listed}");
    let made = client.take_snapshot();
    assert_eq!(made["consistency"], "quiesced", "{made}");
    // A hook that hangs, and all that it has started, can be ended there as well.
    hooks.put("20-hangs", "trap '' TERM; sleep 600 & wait; wait");
    assert_eq!(client.post(&format!("/vms/{VM}/snapshots")).error(502), "hook_failed");
    hooks.remove("20-hangs");
    let first = text(&made["id"]);
    let full = client.disk(&first, "a.img");
    write_at(disk, 8 << 20, &[2; 65536]);
    let second = client.take_snapshot_id();
    let document = client.compare(&second, &first);
    assert_eq!(chunks(&document["disks"][0]), [data(8 << 20, 65536)]);
    assert!(client.patched(&document["disks"][0], &full) == fs::read(disk).unwrap(), "the law does not hold");
    assert_eq!(client.disk_range(&second, "a.img", (8 << 20) + 1, 3), [2; 3]);
    let path = format!("/api/v1/vms/{VM}/snapshots/{second}/disks/a.img");
    let parts = client.send(client.request(Method::GET, &path).header("Range", "bytes=0-1,8388608-8388609"));
    assert_eq!(parts.status, 206);
    assert!(parts.header("content-type").starts_with("multipart/byteranges"));
    for id in [&first, &second] {
        assert_eq!(client.delete(&format!("/vms/{VM}/snapshots/{id}")).status, 200);
    }
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
    // Its database is opened again, and checked.
    world.exporter.restart();
    assert_eq!(world.client().get(&format!("/vms/{VM}/snapshots")).ok(), serde_json::json!([]));
    assert!(!world.exporter.log().contains("panic"), "{}", world.exporter.log());
}

/// A static libc that looks up names or users opens the host's modules for it, made for another libc.
#[test]
fn release_opens_no_host_library() {
    needs_root!();
    let Some(release) = release() else { return };
    let world = World::new(512);
    world.certificates.issue_for("named", &["manager.example"]);
    let manager = Manager::start_with(&world.certificates, "named");
    let dir = tempfile::tempdir().unwrap();
    let (trace, hosts) = (dir.path().join("trace"), dir.path().join("hosts"));
    fs::write(&hosts, "127.0.0.1 localhost manager.example\n").unwrap();
    let mut settings = Settings::new(&world.certificates, &manager, &[&world.repository]);
    settings.ovm_endpoint = format!("https://manager.example:{}", manager.port);
    settings.binary = release;
    // -D: the service is our child, and not strace.
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
    assert_eq!(manager.request_count(), 2, "at the start and at the log-in");
    client.get("/vms").ok();
    drop(exporter);

    let trace = fs::read_to_string(trace).unwrap();
    for opened in ["exporter.db", "/etc/hosts", "/etc/resolv.conf"] {
        assert!(trace.contains(opened), "{opened} is not seen: does strace see what is opened?\n{trace}");
    }
    for library in ["libnss", "nsswitch.conf", "ld-linux", "ld.so", ".so\"", ".so.", "gconv", "/etc/passwd"] {
        let line = trace.lines().find(|line| line.contains(library));
        assert_eq!(line, None, "{library}");
    }
}
