//! The units for systemd and upstart: writable paths, and exit statuses without a restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Certificates, Manager, eventually, free_port};
use crate::needs_root;

fn example(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)).unwrap()
}

#[test]
fn units_prevent_restarts_after_a_config_error_and_core_files() {
    let output = Command::new(env!("CARGO_BIN_EXE_coriolis-ovm-exporter")).args(["--config", "/nonexistent"]).output();
    let status = output.unwrap().status.code().unwrap();
    let unit = example("systemd/coriolis-ovm-exporter.service");
    let lines: Vec<&str> = unit.lines().collect();
    let prevents = format!("RestartPreventExitStatus={status}");
    assert!(lines.contains(&prevents.as_str()) && lines.contains(&"LimitCORE=0"), "{unit}");
    let reload = lines.iter().find_map(|line| line.strip_prefix("ExecReload=")).unwrap();
    assert!(!reload.contains("/bin/kill") && reload.contains("kill -HUP"), "{reload}");
    let job = example("upstart/coriolis-ovm-exporter.conf");
    let normal = format!("normal exit 0 {status}");
    assert!(job.lines().any(|line| line == normal) && job.contains("\nlimit core 0 0\n"), "{job}");
}

/// The paths of `key` in the unit, with `folder` instead of the one in /etc.
fn unit_paths(key: &str, folder: &Path) -> Vec<PathBuf> {
    let unit =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/systemd/coriolis-ovm-exporter.service"));
    let unit = unit.unwrap();
    let words =
        unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).flat_map(|line| line.split(' '));
    let paths = words.filter_map(|word| word.trim_start_matches('-').strip_prefix("/etc/coriolis-ovm-exporter"));
    paths.map(|rest| folder.join(rest.trim_start_matches('/'))).collect()
}

#[test]
fn unit_allows_writing_the_database_but_not_the_config() {
    needs_root!();
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for (from, to) in [
        ("server.pem", "srv-pub.pem"),
        ("server.key", "srv-key.pem"),
        ("ca.pem", "manager.pem"),
        ("ca.pem", "clients.pem"),
    ] {
        fs::copy(certificates.path(from), folder.join(to)).unwrap();
    }
    fs::create_dir(folder.join("hooks.d")).unwrap();
    fs::write(folder.join("hooks.d/10-good"), "#!/bin/sh\n").unwrap();
    let port = free_port();
    let text = format!(
        "db_file = {:?}\novm_endpoint = \"https://127.0.0.1:{}\"\n[api]\nbind = \"127.0.0.1\"\nport = {port}\n\
         socket = {:?}\n[api.tls]\ncertificate = {:?}\nkey = {:?}\n[manager]\nca_certificate = {:?}\n[repositories]\npaths = [\"/nonexistent/repo\"]\n",
        folder.join("exporter.db"),
        manager.port,
        folder.join("api.sock"),
        folder.join("srv-pub.pem"),
        folder.join("srv-key.pem"),
        folder.join("manager.pem"),
    );
    fs::write(folder.join("config.toml"), text).unwrap();
    // As systemd does it: first the writable paths, then the read-only ones.
    let (writable, read_only) = (unit_paths("ReadWritePaths", folder), unit_paths("ReadOnlyPaths", folder));
    assert_eq!(writable, [folder.join("")]);
    let bind = |path: &Path, options: &str| {
        let path = path.display();
        format!("[ ! -e {path} ] || {{ mount --bind {path} {path} && mount -o remount,bind,{options} {path}; }}\n")
    };
    let mut script: String = writable.iter().map(|path| bind(path, "rw")).collect();
    script.extend(read_only.iter().map(|path| bind(path, "ro")));
    script += "exec \"$@\"\n";
    let mut service = Command::new("unshare")
        .args(["--mount", "--propagation", "slave", "sh", "-ec", &script, "sh"])
        .arg(env!("CARGO_BIN_EXE_coriolis-ovm-exporter"))
        .arg("--config")
        .arg(folder.join("config.toml"))
        .spawn()
        .unwrap();
    eventually("the service listens", || {
        assert_eq!(service.try_wait().unwrap(), None, "the service has ended");
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let inside = |script: &str| {
        let pid = service.id().to_string();
        Command::new("nsenter")
            .args(["-t", &pid, "-m", "sh", "-c", script, "sh"])
            .arg(folder)
            .status()
            .unwrap()
            .success()
    };
    for file in ["config.toml", "srv-pub.pem", "srv-key.pem", "manager.pem", "clients.pem", "hooks.d/10-good"] {
        assert!(inside(&format!("test -r \"$1/{file}\"")), "{file} cannot be read");
        assert!(!inside(&format!("echo x 2>/dev/null >>\"$1/{file}\"")), "{file} can be written");
        assert!(!inside(&format!("rm -f \"$1/{file}\" 2>/dev/null")), "{file} can be removed");
        let replaced = format!("echo x >\"$1/new\" && mv -f \"$1/new\" \"$1/{file}\" 2>/dev/null");
        assert!(!inside(&replaced), "{file} can be replaced");
    }
    assert!(!inside("echo x 2>/dev/null >\"$1/hooks.d/20-new\""), "a hook can be added");
    for file in ["exporter.db", "exporter.db.jwt-secret"] {
        assert!(inside(&format!("test -w \"$1/{file}\"")), "{file} cannot be written");
    }
    service.kill().unwrap();
    service.wait().unwrap();
}
