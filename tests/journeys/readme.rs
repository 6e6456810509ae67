//! Runs all commands of the README in order in one shell, and checks that the guide to the API has every error code.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use coriolis_ovm_exporter::testing::Tokens;
use coriolis_ovm_exporter::testing::api::ErrorCode;

use crate::harness::{
    Certificates, Manager, PASSWORD, VM, Volume, define_vm, eventually, free_port, make_disk, make_repository,
    output as run_for_output, write_at,
};
use crate::needs_root;

/// Commands that are not run here: CI runs `make test` itself, another test covers the demo, and the tested binary
/// replaces the build.
const RUN_ELSEWHERE: [&str; 3] = ["make demo", "make test", "make build"];

/// The `sh` blocks of the README as one script.
fn commands() -> String {
    let readme = text_of("README.md");
    let blocks: Vec<&str> = readme.split("```sh\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    let lines = blocks.iter().flat_map(|block| block.lines()).filter(|line| !RUN_ELSEWHERE.contains(line));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn every_command_of_the_readme_runs() {
    needs_root!();
    let volume = Volume::xfs(512);
    let repository = make_repository(&volume.mount_point, "0004fb0000030000a1b2c3d4e5f60718");
    let disk = make_disk(&repository, "system.img", 64 << 20);
    write_at(&disk, 1 << 20, &[7; 1 << 20]);
    define_vm(&repository, VM, &[disk]);
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let port = free_port();

    // Only paths, hosts and ports are replaced; the test fails if the README no longer contains one of them.
    let mut script = commands();
    let etc = root.join("etc").display().to_string();
    let mut replace = |from: &str, to: &str| {
        assert!(script.contains(from), "the README does not contain {from:?} any more");
        script = script.replace(from, to);
    };
    replace("target/release/coriolis-ovm-exporter", env!("CARGO_BIN_EXE_coriolis-ovm-exporter"));
    replace("/usr/local/bin", &root.join("bin").display().to_string());
    replace("/OVS/Repositories/0004fb0000030000a1b2c3d4e5f60718", &repository.display().to_string());
    replace("https://manager.example:7002", &format!("https://127.0.0.1:{}", manager.port));
    replace("manager.example:7002", &format!("127.0.0.1:{}", manager.port));
    replace("DNS:exporter.example", "IP:127.0.0.1");
    replace("https://exporter.example:5544", &format!("https://127.0.0.1:{port}"));
    replace("/etc/coriolis-ovm-exporter", &etc);
    let config = format!("--config {etc}/config.toml");
    for command in ["adopt", "status", "snapshots list"] {
        replace(&format!("coriolis-ovm-exporter {command}"), &format!("coriolis-ovm-exporter {command} {config}"));
    }
    // With the paths of this test, and on a free port.
    replace(
        "\ncoriolis-ovm-exporter check-config\n",
        &format!(
            "\nsed -i 's|^port = .*|port = {port}|; s|^bind = .*|bind = \"127.0.0.1\"|; \
             s|\"/etc/coriolis-ovm-exporter/|\"{etc}/|' config.toml\n\
             coriolis-ovm-exporter check-config {config}\n"
        ),
    );
    replace(r#""password": "secret""#, &format!(r#""password": "{PASSWORD}""#));
    replace("EXPORTER_PASSWORD=secret", &format!("EXPORTER_PASSWORD='{PASSWORD}'"));
    // The service runs in the background.
    replace(
        &format!("\ncoriolis-ovm-exporter {config}\n"),
        &format!(
            "\ncoriolis-ovm-exporter {config} 2> {etc}/log & service=$!\n\
             for i in $(seq 200); do (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && break; sleep 0.05; done\n\
             cd {work}\n",
            work = root.display()
        ),
    );
    fs::create_dir(root.join("bin")).unwrap();
    for path in ["config.example.toml", "examples"] {
        std::os::unix::fs::symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join(path), root.join(path)).unwrap();
    }
    let script = format!(
        "set -euo pipefail\ntrap 'kill $service; wait $service' EXIT\nservice=\nset -x\n{script}\n\
         cmp disk.img copy/system.img\ncmp disk.img restored/system.img\n\
         for copy in wget aria2 rclone nbdcopy; do cmp disk.img $copy.img; done\nqemu-img compare disk.img qemu.qcow2\n"
    );
    let path = format!("{}:{}", root.join("bin").display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(root)
        .env("PATH", path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let log = fs::read_to_string(format!("{etc}/log")).unwrap_or_default();
    assert!(
        output.status.success(),
        "{}\n---- service ----\n{log}\n---- output ----\n{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    try_published_secrets(Path::new(&etc), port);
}

/// Restarts the service with the config that the README makes, and tries all published strings as the token key.
fn try_published_secrets(etc: &Path, port: u16) {
    let mode = |name: &str| fs::metadata(etc.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(""), 0o700);
    for name in ["config.toml", "srv-key.pem", "exporter.db.jwt-secret"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    let text = fs::read_to_string(etc.join("config.toml")).unwrap();
    let config: toml::Table = text.parse().unwrap();
    assert_eq!(config["jwt"]["secret"].as_str(), Some(""), "a step of the README has set a secret");
    assert_eq!(config["hooks"]["sync"]["secret"].as_str(), Some(""), "a step of the README has set a secret");

    let binary = env!("CARGO_BIN_EXE_coriolis-ovm-exporter");
    let mut service = Command::new(binary).arg("--config").arg(etc.join("config.toml")).spawn().unwrap();
    eventually("the service listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let ask = |key: &str| {
        let token = Tokens::new(&key.into(), Duration::from_secs(60)).issue("admin", SystemTime::now()).unwrap();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-w", "%{http_code}", "-H", &format!("Authorization: Bearer {token}"), "--cacert"]);
        curl.arg(etc.join("srv-pub.pem"));
        run_for_output(curl.arg(format!("https://127.0.0.1:{port}/api/v1/vms/{VM}/snapshots?chunks=false")))
    };
    let key = fs::read_to_string(etc.join("exporter.db.jwt-secret")).unwrap();
    let answer = ask(key.trim());
    assert!(answer.ends_with("200"), "this test cannot make a good token: {answer}");
    assert!(answer.contains("\"id\""), "the README deletes the newest snapshot: {answer}");
    let certificate = fs::read_to_string(etc.join("srv-pub.pem")).unwrap();
    let public = [text_of("README.md"), text_of("docs/hooks.md"), text_of("config.example.toml"), text, certificate];
    let mut guesses: BTreeSet<&str> = public.iter().flat_map(|text| text.split(['"', '\'', '`', '\n'])).collect();
    guesses.extend(public.iter().flat_map(|text| text.split_whitespace()).filter(|word| word.len() >= 16));
    guesses.retain(|guess| guess.len() >= 8 || guess.is_empty());
    assert!(guesses.len() > 100, "{guesses:?}");
    // One connection for all requests.
    let config: String = guesses
        .iter()
        .map(|guess| {
            let token =
                Tokens::new(&(*guess).into(), Duration::from_secs(60)).issue("admin", SystemTime::now()).unwrap();
            format!(
                "next\nurl = https://127.0.0.1:{port}/api/v1/vms\nheader = \"Authorization: Bearer {token}\"\n\
                 output = /dev/null\nwrite-out = \"%{{http_code}}\\n\"\ncacert = {:?}\nsilent\n",
                etc.join("srv-pub.pem")
            )
        })
        .collect();
    let requests = etc.join("requests");
    fs::write(&requests, config.strip_prefix("next\n").unwrap()).unwrap();
    let statuses = run_for_output(Command::new("curl").arg("--config").arg(requests));
    let _ = service.kill();
    let _ = service.wait();
    assert_eq!(statuses.lines().count(), guesses.len());
    let good: Vec<_> = guesses.iter().zip(statuses.lines()).filter(|(_, status)| *status != "401").collect();
    assert!(good.is_empty(), "a published string is the token key: {good:?}");
}

fn text_of(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_guide_has_each_error_code_with_its_status() {
    let document = text_of("docs/api.md");
    let (_, errors) = document.split_once("\n## Errors\n").unwrap();
    let errors = errors.split("\n## ").next().unwrap();
    let rows = errors.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| status"));
    let mut documented = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        documented.extend(cells[2].split('`').skip(1).step_by(2).map(|code| (cells[1].to_owned(), code.to_owned())));
    }
    let codes = ErrorCode::ALL.iter().map(|code| (code.status().to_string(), code.as_str().to_owned()));
    assert_eq!(documented, codes.collect::<BTreeSet<_>>());
}
