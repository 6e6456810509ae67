//! Liveness, readiness and capabilities.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::World;
use crate::needs_root;

/// The limits of the default config, from the example in docs/api.md.
fn documented_limits() -> Value {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md")).unwrap();
    let section = text.split("\n## Limits of the service\n").nth(1).unwrap();
    let example = section.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    serde_json::from_str(example).unwrap()
}

#[test]
fn limits_are_those_of_the_config() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.policy = "export_concurrency = 5\nexport_wait = \"1500ms\"\nsnapshot_concurrency = 3\n\
            max_snapshots_per_vm = 7\nmax_extents = 9000\ndefault_ttl = \"2h\"\n"
            .to_owned();
        settings.sections = "[export]\nmin_rate = 0\n".to_owned();
    });
    let mut expected = documented_limits();
    for (name, value) in [
        ("export_concurrency", json!(5)),
        ("export_spare", json!(2)),
        ("export_wait_seconds", json!(2)),
        ("export_min_rate", json!(null)),
        ("snapshot_concurrency", json!(3)),
        ("max_snapshots_per_vm", json!(7)),
        ("max_extents", json!(9000)),
        ("default_ttl_seconds", json!(7200)),
    ] {
        assert!(expected.get(name).is_some(), "{name} is not documented");
        expected[name] = value;
    }
    assert_eq!(world.client().get("/capabilities").ok()["limits"], expected);
}

#[test]
fn health_endpoints_are_public_and_reveal_no_paths() {
    needs_root!();
    let world = World::new(512);
    let stranger = world.anonymous_client();
    let ask = |path: &str| stranger.send(stranger.request(Method::GET, path));
    for path in ["/healthz", "/healthz/", "/readyz", "/readyz/"] {
        assert_eq!(ask(path).ok(), json!({"status": "ok", "problems": []}), "{path}");
        let with_a_bad_token = stranger.request(Method::GET, path).bearer_auth("x");
        assert_eq!(stranger.send(with_a_bad_token).status, 200, "{path}");
        assert_eq!(ask(&format!("/api/v1{path}")).error(404), "not_found", "{path}");
    }
    for route in ["/capabilities", "/capabilities/"] {
        assert_eq!(stranger.get(route).error(401), "unauthorized");
    }
    let capabilities = world.client().get("/capabilities").ok();
    assert_eq!(capabilities["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(capabilities["limits"], documented_limits());
    assert!(capabilities["features"].as_array().unwrap().contains(&json!("compare")), "{capabilities}");

    // Unmounted, then with a file in its place: the problem names the repository's id and no path.
    let in_its_place = world.repository.clone();
    world.volume.unmount();
    for is_a_file in [false, true] {
        if is_a_file {
            fs::write(&in_its_place, "no folder").unwrap();
        }
        assert_eq!(ask("/healthz").status, 200);
        for path in ["/readyz", "/readyz/"] {
            let answer = ask(path);
            assert_eq!((answer.status, answer.header("content-type")), (503, "application/json"));
            let problem = "the repository 0004fb0000030000a1b2c3d4e5f60718 is unavailable";
            assert_eq!(answer.json(), json!({"status": "error", "problems": [problem]}));
        }
    }
    // Log-ins work. The VM list fails: an empty list would mean that there are no VMs.
    assert_eq!(world.client().get("/vms").error(503), "repository_unavailable");
    fs::remove_file(&in_its_place).unwrap();
    world.volume.mount();
    assert_eq!(ask("/readyz").ok(), json!({"status": "ok", "problems": []}));
}

#[test]
fn the_command_health_asks_over_the_socket() {
    needs_root!();
    let mut world = World::new(512);
    let socket = world.exporter.socket();
    let health = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coriolis-ovm-exporter"));
        let output = command.args(["health", "--socket"]).arg(&socket).output().unwrap();
        let printed = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(printed).unwrap())
    };
    assert_eq!(health(), (Some(0), String::new()));
    world.exporter.signal(Signal::SIGTERM);
    world.exporter.wait(Duration::from_secs(60));
    let (status, said) = health();
    assert!(status == Some(75) && said.contains(&socket.display().to_string()), "{status:?} {said}");
}
