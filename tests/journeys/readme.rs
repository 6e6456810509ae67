//! The README, word for word: its commands are run in their order, by one shell. And the API document, which has
//! every route and every code.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::harness::{Certificates, Manager, PASSWORD, VM, Volume, define_vm, make_disk, make_repository, write_at};
use crate::needs_root;

/// The two commands that everybody starts with: CI runs the one that this test is part of, and the
/// demo is a test of its own. The build is the binary that is being tested.
const RUN_ELSEWHERE: [&str; 3] = ["make demo", "make test", "make build"];

/// The `sh` blocks of the README, as one script.
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
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();

    // Only names of places change; a name that the README lost is a failure here.
    let mut script = commands();
    let etc = root.join("etc").display().to_string();
    let mut put = |from: &str, to: &str| {
        assert!(script.contains(from), "the README does not say {from:?} any more");
        script = script.replace(from, to);
    };
    put("target/release/coriolis-ovm-exporter", env!("CARGO_BIN_EXE_coriolis-ovm-exporter"));
    put("/usr/local/bin", &root.join("bin").display().to_string());
    put("/OVS/Repositories/0004fb0000030000a1b2c3d4e5f60718", &repository.display().to_string());
    put("https://manager.example:7002", &format!("https://127.0.0.1:{}", manager.port));
    put("manager.example:7002", &format!("127.0.0.1:{}", manager.port));
    put("DNS:exporter.example", "IP:127.0.0.1");
    put("https://exporter.example:5544", &format!("https://127.0.0.1:{port}"));
    put("/etc/coriolis-ovm-exporter", &etc);
    let config = format!("--config {etc}/config.toml");
    put("coriolis-ovm-exporter adopt", &format!("coriolis-ovm-exporter adopt {config}"));
    // In this test's places, and on a port that is free.
    put(
        "\ncoriolis-ovm-exporter check-config\n",
        &format!(
            "\nsed -i 's|^port = .*|port = {port}|; s|^bind = .*|bind = \"127.0.0.1\"|; \
             s|\"/etc/coriolis-ovm-exporter/|\"{etc}/|' config.toml\n\
             coriolis-ovm-exporter check-config {config}\n"
        ),
    );
    put(r#""password": "secret""#, &format!(r#""password": "{PASSWORD}""#));
    put("EXPORTER_PASSWORD=secret", &format!("EXPORTER_PASSWORD='{PASSWORD}'"));
    // The service runs beside the rest.
    put(
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
         cmp disk.img copy/system.img\n"
    );
    let path = format!("{}:{}", root.join("bin").display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash").args(["-c", &script]).current_dir(root).env("PATH", path).output().unwrap();
    let log = fs::read_to_string(format!("{etc}/log")).unwrap_or_default();
    assert!(
        output.status.success(),
        "{}\n---- service ----\n{log}\n---- output ----\n{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
}

fn text_of(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn every_route_and_every_code_is_in_the_api_document() {
    let document = text_of("docs/api.md");
    let source = text_of("src/http/routes.rs");
    let routes: Vec<&str> = source.split("(\"/").skip(1).map(|rest| rest.split_once('"').unwrap().0).collect();
    assert!(routes.len() > 10, "{routes:?}");
    for route in routes {
        let told = format!("/{}", route.strip_prefix("api/v1/").unwrap_or(route));
        let ends = [format!("{told}`"), format!("{told} "), format!("{told}?")];
        assert!(ends.iter().any(|end| document.contains(end)), "{told} is not in docs/api.md");
    }

    let errors = document.split_once("## Errors").unwrap().1;
    let rows = errors.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| status"));
    let told: BTreeSet<&str> =
        rows.flat_map(|row| row.split('|').nth(2).unwrap().split('`').skip(1).step_by(2)).collect();
    let source = ["failure", "refusal"].map(|room| text_of(&format!("src/http/{room}.rs"))).concat();
    for code in &told {
        assert!(source.contains(&format!("\"{code}\"")), "{code} of docs/api.md is no code of the service");
    }
    let mut chosen = 0;
    for rest in source.split("(StatusCode::").skip(1) {
        let Some((_, code)) = rest.split_once(')').and_then(|(pair, _)| pair.split_once(", \"")) else { continue };
        let code = code.trim_end_matches('"');
        assert!(told.contains(code), "{code} is not in docs/api.md");
        chosen += 1;
    }
    assert!(chosen > 15, "only {chosen} codes were found: does this test still read the code?");
}
