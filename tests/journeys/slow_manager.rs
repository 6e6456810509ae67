//! A manager that does not answer affects only log-ins.

use std::io::{Read, Write};
use std::process::Command;

use serde_json::json;

use crate::harness::{ManagerBehavior, PASSWORD, USER, World, connect_from, text};
use crate::needs_root;

/// The number of slots for unauthenticated connections.
const LOG_INS: usize = 384;

/// Sends a request with a token on a new connection from this address; returns the status.
fn status_from(world: &World, token: &str, address: &str) -> String {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "60", "-o", "/dev/null", "-w", "%{http_code}", "--interface", address, "--cacert"])
        .arg(world.certificates.ca())
        .args(["-H", &format!("Authorization: Bearer {token}")])
        .arg(format!("https://127.0.0.1:{}/api/v1/vms", world.exporter.port))
        .output()
        .unwrap();
    assert!(output.status.success(), "from {address}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn hung_logins_do_not_lock_out_other_clients() {
    needs_root!();
    let world = World::with(512, |settings| settings.manager = settings.manager.replace("5s", "300s"));
    let client = world.client();
    let token = client.token.clone();
    world.manager.set_behavior(ManagerBehavior::Hangs);
    let body = json!({"username": USER, "password": PASSWORD}).to_string();
    let length = body.len();
    let request = format!("POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    let mut log_ins: Vec<_> = (0..LOG_INS)
        .map(|n| {
            let mut stream = connect_from(&world.exporter, &world.certificates, [127, 0, 1, (1 + n % 6) as u8]);
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    // Log-ins above the limit are refused at once.
    let mut answer = [0; 4096];
    let read = log_ins.last_mut().unwrap().read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 429 ") && answer.contains("\r\nretry-after: "), "{answer}");
    let status = &client.get("/status").ok()["log_ins"];
    let count = |state: &str| status[state].as_array().unwrap().len();
    assert_eq!((count("running"), count("waiting")), (16, 32));
    assert!(text(&status["waiting"][0]["address"]).starts_with("127.0.1."), "{status}");
    // Clients with a token are served, from the addresses of the log-ins and from others.
    for address in ["127.0.1.1", "127.0.1.6", "127.0.0.1", "127.0.2.1"] {
        assert_eq!(status_from(&world, &token, address), "200", "{address}");
    }
}

#[test]
fn login_requires_a_manager_that_rejects_anonymous_requests() {
    needs_root!();
    let mut world = World::with(512, |settings| settings.manager = settings.manager.replace("5s", "2s"));
    // The manager accepts credentials, but does not answer anonymous requests.
    world.manager.set_behavior(ManagerBehavior::IgnoresAnonymous);
    world.exporter.restart();
    let client = world.anonymous_client();
    assert_eq!(client.try_log_in(USER, PASSWORD).error(502), "manager_unavailable");
    world.manager.set_behavior(ManagerBehavior::Good);
    assert_eq!(client.try_log_in(USER, PASSWORD).status, 200);
    // One successful check is enough.
    world.manager.set_behavior(ManagerBehavior::IgnoresAnonymous);
    assert_eq!(client.try_log_in(USER, PASSWORD).status, 200);
}
