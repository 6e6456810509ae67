//! The log: what it has to say, and what it must not.

use reqwest::Method;
use serde_json::json;

use crate::harness::{Behaviour, PASSWORD, SECRET, VM, World, text, write_at};
use crate::needs_root;

#[test]
fn no_secret_is_in_any_line_and_every_error_is_found() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.environment.push(("RUST_LOG".to_owned(), "trace".to_owned()));
    });
    let disk = &world.define_vm(&[("a.img", 1 << 20)])[0];
    write_at(disk, 0, &[1; 8192]);
    let client = world.client();
    let id = text(&client.take_snapshot()["id"]);
    client.disk(&id, "a.img");
    let login = |body: String| client.send(client.request(Method::POST, "/api/v1/auth/login").body(body));
    let wrong_password = "wrong-password-5c1b";
    let credentials = json!({"username": "admin", "password": wrong_password}).to_string();
    let mut ids = vec![text(&login(credentials.clone()).json()["request_id"])];
    // A password typed where the name belongs, a body cut in the middle of one, a token in a URL.
    ids.push(text(&login(json!({"username": wrong_password, "password": "x"}).to_string()).json()["request_id"]));
    ids.push(text(&login(credentials[..credentials.len() - 2].to_owned()).json()["request_id"]));
    let in_query = client.get(&format!("/vms/{VM}/snapshots/{id}?squashChunks=x&token={}", client.token));
    ids.push(text(&in_query.json()["request_id"]));
    world.manager.behave(Behaviour::ServerError);
    ids.push(text(&login(credentials).json()["request_id"]));
    ids.push(text(&client.get("/nowhere").json()["request_id"]));

    let log = world.exporter.log();
    let basic = "YWRtaW46";
    for secret in [PASSWORD, wrong_password, &client.token, SECRET, basic] {
        if let Some(line) = log.lines().find(|line| line.contains(secret)) {
            panic!("{secret:?} is in the log: {line}");
        }
    }
    for id in ids {
        assert!(log.contains(&id), "{id} is not in the log");
    }
    for told in ["snapshot made", "logged in", "log-in refused", "status=200", "500 Internal Server Error"] {
        assert!(log.contains(told), "the log does not say {told:?}");
    }
}
