//! Clients that disconnect before the answer: what their request changes is completed, and is in the audit.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Client, Connection, MB, ManagerBehavior, PASSWORD, SNAPSHOTS, USER, World, connect, connect_from, eventually,
    for_a_while, perhaps_within, text, write_at,
};
use crate::needs_root;

/// How often a request is repeated that the service may not have read when its client disconnects.
const ATTEMPTS: usize = 50;

/// Sends a request with this body, and with this token if there is one.
fn send(stream: &mut Connection, method: &str, path: &str, token: &str, body: &str) {
    let authorization = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let length = body.len();
    let head = format!("{method} /api/v1{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{authorization}\r\n");
    stream.write_all((head + body).as_bytes()).unwrap();
    stream.flush().unwrap();
}

/// Disconnects, and waits until the service has closed the connection too. Returns what it has sent.
fn leave(mut stream: Connection) -> String {
    stream.sock.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends a request on a new connection, and disconnects at once. Returns whether there was no answer.
fn send_and_leave(world: &World, method: &str, path: &str, token: &str, body: &Value) -> bool {
    let mut stream = connect(&world.exporter, &world.certificates);
    send(&mut stream, method, path, token, &body.to_string());
    leave(stream).is_empty()
}

/// Sends a request, and disconnects when it has made the service ask the manager, which then answers in this way.
fn leave_while_asking(
    world: &World,
    (mut stream, answer): (Connection, ManagerBehavior),
    request: &dyn Fn(&mut Connection),
) {
    world.manager.set_behavior(ManagerBehavior::Holds);
    let asked = world.manager.request_count();
    request(&mut stream);
    eventually("the manager is asked", || world.manager.request_count() > asked);
    assert_eq!(leave(stream), "");
    world.manager.set_behavior(answer);
}

fn log_in(user: &str, password: &str) -> String {
    json!({"username": user, "password": password}).to_string()
}

/// The lines of the log about an action, with this text.
fn lines(world: &World, action: &str, containing: &str) -> usize {
    let action = format!("action=\"{action}\"");
    world.exporter.log().lines().filter(|line| line.contains(&action) && line.contains(containing)).count()
}

/// Whether the token of a client is revoked. If the service has read the request to revoke it, it is so in a moment.
fn is_revoked(client: &Client) -> bool {
    let is_refused = || client.get("/vms").status == 401;
    perhaps_within(Duration::from_secs(2), is_refused);
    is_refused()
}

#[test]
fn guesses_count_and_are_recorded_although_their_clients_leave() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.sections = "[login]\nfailures_per_address = 2\nfailures_per_account = 0\n".to_owned();
    });
    let address = [127, 0, 11, 1];
    let connected = || connect_from(&world.exporter, &world.certificates, address);
    for guess in ["one", "two"] {
        let request = |stream: &mut Connection| send(stream, "POST", "/auth/login", "", &log_in(guess, "wrong"));
        leave_while_asking(&world, (connected(), ManagerBehavior::Good), &request);
    }
    let refused = |world: &World| lines(world, "log-in", "outcome=\"refused\"");
    eventually("both guesses are in the audit", || refused(&world) == 2);
    let asked = world.manager.request_count();
    let mut third = connected();
    send(&mut third, "POST", "/auth/login", "", &log_in(USER, PASSWORD));
    let mut status = [0; 12];
    third.read_exact(&mut status).unwrap();
    assert_eq!(String::from_utf8_lossy(&status), "HTTP/1.1 429");
    assert_eq!(world.manager.request_count(), asked, "the manager was asked");
    // A good log-in of a client that leaves is in the audit too.
    let request = |stream: &mut Connection| send(stream, "POST", "/auth/login", "", &log_in(USER, PASSWORD));
    let stream = connect(&world.exporter, &world.certificates);
    leave_while_asking(&world, (stream, ManagerBehavior::Good), &request);
    eventually("it is in the audit", || lines(&world, "log-in", "user=\"admin\"") == 1);
}

#[test]
fn a_log_in_does_not_fail_because_another_client_leaves() {
    needs_root!();
    let world = World::new(512);
    // After an answer without a body, the connection to the manager is used for the next log-in.
    let mut first = connect(&world.exporter, &world.certificates);
    send(&mut first, "POST", "/auth/login", "", &log_in(USER, "wrong"));
    let mut status = [0; 12];
    first.read_exact(&mut status).unwrap();
    assert_eq!(String::from_utf8_lossy(&status), "HTTP/1.1 401");
    world.manager.set_behavior(ManagerBehavior::Holds);
    let asked = world.manager.request_count();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| world.anonymous_client().try_log_in(USER, PASSWORD));
        eventually("the manager is asked", || world.manager.request_count() > asked);
        leave(first);
        world.manager.set_behavior(ManagerBehavior::Good);
        let answer = second.join().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    });
}

#[test]
fn a_revocation_is_completed_and_recorded_although_its_client_leaves() {
    needs_root!();
    let world = World::new(512);
    write_at(&world.define_vm(&[("a.img", 64 * MB)])[0], 0, &vec![7; 64 << 20]);
    let admin = world.client();
    let path = format!("{SNAPSHOTS}/{}/disks/a.img", admin.take_snapshot_id());
    let ann = Client::logged_in_as(&world.exporter, &world.certificates, "test-ann");
    let mut download = world.send_get(&ann, &path);
    eventually("the download runs", || {
        admin.get("/status").ok()["exports"]["running"].as_array().is_some_and(|running| !running.is_empty())
    });
    let mut unanswered = 0;
    for _ in 0..ATTEMPTS {
        let body = json!({"user": "test-ann"});
        unanswered += usize::from(send_and_leave(&world, "POST", "/auth/revoke", &admin.token, &body));
        if is_revoked(&ann) && unanswered > 0 {
            break;
        }
    }
    assert!(is_revoked(&ann), "no request was read before its client left");
    eventually("it is in the audit", || lines(&world, "revoke", "what=\"test-ann\"") > 0);
    let mut received = Vec::new();
    let _ = download.read_to_end(&mut received);
    assert!(received.len() < 64 << 20, "the download of a revoked token continued");

    // The end of the log-in that the request belongs to.
    let mut ended = 0;
    for _ in 0..ATTEMPTS {
        let client = Client::logged_in_as(&world.exporter, &world.certificates, "test-ben");
        let is_unanswered = send_and_leave(&world, "POST", "/auth/logout", &client.token, &json!({}));
        if is_revoked(&client) {
            ended += 1;
            eventually("it is in the audit", || lines(&world, "log-out", "user=\"test-ben\"") >= ended);
            if is_unanswered {
                return;
            }
        }
    }
    panic!("no request was read before its client left");
}

#[test]
fn a_refresh_token_that_was_stolen_is_recorded_although_its_client_leaves() {
    needs_root!();
    let world = World::new(512);
    let anonymous = world.anonymous_client();
    let post = |path: &str, body: &Value| {
        let request = anonymous.request(reqwest::Method::POST, &format!("/api/v1{path}"));
        anonymous.send(request.body(body.to_string())).ok()
    };
    let mut revoked = 0;
    for _ in 0..ATTEMPTS {
        let used = post("/auth/login", &json!({"username": USER, "password": PASSWORD, "refresh": true}));
        let used = json!({"refresh_token": used["refresh_token"]});
        let mut owner = world.anonymous_client();
        owner.token = text(&post("/auth/refresh", &used)["token"]);
        let is_unanswered = send_and_leave(&world, "POST", "/auth/refresh", "", &used);
        if is_revoked(&owner) {
            revoked += 1;
            eventually("it is in the audit", || {
                lines(&world, "refresh", "a used token; its log-in is revoked") >= revoked
            });
            if is_unanswered {
                return;
            }
        }
    }
    panic!("no request was read before its client left");
}

#[test]
fn a_password_that_the_manager_refuses_is_asked_once_although_its_client_leaves() {
    needs_root!();
    let world = World::with(512, |settings| settings.jwt = "recheck_after = \"1s\"".to_owned());
    write_at(&world.define_vm(&[("a.img", 64 * MB)])[0], 0, &vec![7; 64 << 20]);
    let client = world.client();
    let path = format!("{SNAPSHOTS}/{}/disks/a.img", client.take_snapshot_id());
    let mut download = world.send_get(&client, &path);
    let local = Client::local(&world.exporter);
    eventually("the download runs", || {
        local.get("/status").ok()["exports"]["running"].as_array().is_some_and(|running| !running.is_empty())
    });
    for_a_while(Duration::from_secs(1));
    let request = |stream: &mut Connection| send(stream, "GET", "/vms", &client.token, "");
    let stream = connect(&world.exporter, &world.certificates);
    leave_while_asking(&world, (stream, ManagerBehavior::Status(401)), &request);
    let mut received = Vec::new();
    let _ = download.read_to_end(&mut received);
    assert!(received.len() < 64 << 20, "the download continued");
    let line = "action=\"revoke\" user=\"recheck\"";
    eventually("the revocation is in the audit", || world.exporter.log().contains(line));
    world.manager.set_behavior(ManagerBehavior::Good);
    let asked = world.manager.request_count();
    assert_eq!(client.get("/vms").error(401), "unauthorized");
    assert_eq!(world.manager.request_count(), asked, "an old password went to the manager again");
}

#[test]
fn an_adoption_is_recorded_although_its_client_leaves() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let id = world.client().take_snapshot_id();
    let other = world.second_service(|_| {});
    let client = Client::logged_in(&other, &world.certificates);
    let is_adopted = || client.get(&format!("{SNAPSHOTS}/{id}?chunks=false")).status == 200;
    for _ in 0..ATTEMPTS {
        let mut stream = connect(&other, &world.certificates);
        send(&mut stream, "POST", "/adopt?manifests=true", &client.token, "");
        leave(stream);
        perhaps_within(Duration::from_secs(2), is_adopted);
        if is_adopted() {
            break;
        }
    }
    assert!(is_adopted(), "no request was read before its client left");
    eventually("it is in the audit", || other.log().contains("action=\"adopt\""));
}

#[test]
fn a_copy_of_the_database_is_recorded_although_its_client_leaves() {
    needs_root!();
    let world = World::new(512);
    let client = world.client();
    for _ in 0..ATTEMPTS {
        let before = lines(&world, "backup-db", "outcome=\"done\"");
        let is_unanswered = send_and_leave(&world, "GET", "/database", &client.token, &json!({}));
        let is_recorded = || lines(&world, "backup-db", "outcome=\"done\"") > before;
        perhaps_within(Duration::from_secs(2), is_recorded);
        if is_unanswered && is_recorded() {
            return;
        }
    }
    panic!("no request was read before its client left");
}
