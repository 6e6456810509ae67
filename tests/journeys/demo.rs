//! `make demo`: its checks, and the service that it leaves running with KEEP=1.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::eventually;
use crate::{needs, needs_root};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `make demo` with fake build tools; returns the output, and whether a build tool ran.
fn make_demo(launcher: &[&str]) -> (Output, bool) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // A PATH with only the programs that the checks need; in particular without sudo.
    for name in ["bash", "id", "unshare", "env", "modprobe", "dirname", "realpath"] {
        let found = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(name));
        if let Some(program) = found.iter().find(|path| path.exists()) {
            std::os::unix::fs::symlink(program, dir.path().join(name)).unwrap();
        }
    }
    for name in ["cargo", "rustc", "apt-get", "cc"] {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n: >{}/built\n", dir.path().display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut words = launcher.iter().copied().chain(["/usr/bin/make", "-C", root().to_str().unwrap(), "demo"]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).env("PATH", dir.path()).env("HOME", dir.path());
    for inherited in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS"] {
        command.env_remove(inherited);
    }
    (command.output().unwrap(), dir.path().join("built").exists())
}

#[test]
fn demo_checks_requirements_before_it_builds() {
    needs_root!();
    needs!(Path::new("/usr/bin/make").exists(), "make");
    let unprivileged = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let without_sys_admin = ["/usr/bin/setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
    for (launcher, expected) in [
        (&unprivileged[..], "run it as root, or install sudo"),
        (&without_sys_admin, "no mount namespace can be made here"),
    ] {
        let (output, is_built) = make_demo(launcher);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(expected), "{errors}");
        assert!(!is_built, "something was installed or built: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn kept_demo_leaves_a_working_service() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(root().join("examples/demo/demo.sh"))
        .arg(env!("CARGO_BIN_EXE_coriolis-ovm-exporter"))
        .env("KEEP", "1")
        .env("TMPDIR", dir.path())
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    let keeper = printed.trim_end().rsplit_once("kill ").unwrap().1.parse().map(Pid::from_raw).unwrap();
    let commands: String = printed
        .split_once("Try:\n")
        .unwrap()
        .1
        .lines()
        .skip_while(|line| line.is_empty())
        .take_while(|line| line.starts_with("    "))
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    // Runs the printed commands unchanged.
    let tried = Command::new("bash").args(["-euo", "pipefail", "-c", &commands]).output().unwrap();
    let (seen, errors) = (String::from_utf8_lossy(&tried.stdout), String::from_utf8_lossy(&tried.stderr));
    let work: PathBuf = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let log = fs::read_to_string(work.join("service.log")).unwrap();
    kill(keeper, Signal::SIGTERM).unwrap();
    eventually("the demo has removed its files", || fs::read_dir(dir.path()).unwrap().next().is_none());
    assert!(tried.status.success(), "{commands}\n{seen}\n{errors}\n{log}");
    assert!(seen.contains("\"friendly_name\": \"web-1\"") && seen.contains("data_bytes"), "{seen}");
    assert!(seen.contains("web-1: full point"), "the backup client did not run: {seen}");
}
