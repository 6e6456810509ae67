//! What the log has to contain, and what it must not contain.

use reqwest::Method;
use serde_json::json;

use crate::harness::{ManagerBehavior, PASSWORD, SECRET, VM, World, text, write_at};
use crate::needs_root;

#[test]
fn log_contains_every_error_and_no_secret() {
    needs_root!();
    // Everything, and the levels that an operator would choose.
    for level in ["trace", "debug", "info,coriolis_ovm_exporter=trace"] {
        look_for_secrets(level);
    }
}

fn look_for_secrets(level: &str) {
    let world = World::with(512, |settings| {
        settings.environment.push(("RUST_LOG".to_owned(), level.to_owned()));
    });
    let disk = &world.define_vm(&[("a.img", 1 << 20)])[0];
    write_at(disk, 0, &[1; 8192]);
    let client = world.client();
    let id = client.take_snapshot_id();
    client.disk(&id, "a.img");
    let login = |body: String| client.send(client.request(Method::POST, "/api/v1/auth/login").body(body));
    let wrong_password = "wrong-password-5c1b";
    let credentials = json!({"username": "admin", "password": wrong_password}).to_string();
    let mut ids = vec![text(&login(credentials.clone()).json()["request_id"])];
    // A password in the name field, a body truncated inside the password, a token in a URL.
    ids.push(text(&login(json!({"username": wrong_password, "password": "x"}).to_string()).json()["request_id"]));
    ids.push(text(&login(credentials[..credentials.len() - 2].to_owned()).json()["request_id"]));
    let in_query = client.get(&format!("/vms/{VM}/snapshots/{id}?squashChunks=x&token={}", client.token));
    ids.push(text(&in_query.json()["request_id"]));
    world.manager.set_behavior(ManagerBehavior::ServerError);
    ids.push(text(&login(credentials).json()["request_id"]));
    ids.push(text(&client.get("/nowhere").json()["request_id"]));
    // Invalid credentials: a truncated token, and Basic instead of Bearer.
    let forged = client.token[..client.token.len() - 5].to_owned();
    let basic = "Basic YWRtaW46cGE6c3Mgd8O2cmQtN2YzYQ==";
    for header in [format!("Bearer {forged}"), basic.to_owned()] {
        let mut stranger = world.anonymous_client();
        stranger.token.clear();
        let request = stranger.request(Method::GET, "/api/v1/vms").header("Authorization", header);
        ids.push(text(&stranger.send(request).json()["request_id"]));
    }
    let disk = format!("/api/v1/vms/{VM}/snapshots/{id}/disks/a.img");
    for (name, value, status) in [("Range", "bytes=x", 416), ("If-Match", "\"other\"", 412)] {
        let answer = client.send(client.request(Method::GET, &disk).header(name, value));
        answer.error(status);
        ids.push(text(&answer.json()["request_id"]));
    }
    for (answer, status) in [
        (client.post("/vms"), 405),
        (client.get(&format!("/vms/{VM}/snapshots/{id}?compareTo={id}")), 400),
        // On a new connection: there the length of the request line is checked.
        (world.anonymous_client().get(&format!("/{}", "a".repeat(62_000))), 414),
    ] {
        answer.error(status);
        ids.push(text(&answer.json()["request_id"]));
    }

    let log = world.exporter.log();
    let signature = forged.rsplit('.').next().unwrap();
    for secret in [PASSWORD, wrong_password, &client.token, &forged, signature, SECRET, "YWRtaW46", "Basic "] {
        if let Some(line) = log.lines().find(|line| line.contains(secret)) {
            panic!("{secret:?} is in the log at {level}: {line}");
        }
    }
    for id in ids {
        assert!(log.contains(&id), "{id} is not in the log at {level}");
    }
    for message in ["snapshot created", "logged in", "log-in refused", "status=200", "500 Internal Server Error"] {
        assert!(log.contains(message), "the log at {level} does not contain {message:?}");
    }
}
