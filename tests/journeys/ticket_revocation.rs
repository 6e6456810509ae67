//! Tickets of tokens that are revoked while, or after, the ticket is made.

use std::io::{Read, Write};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Client, MB, PASSWORD, SNAPSHOTS, USER, World, connect, eventually, text};
use crate::needs_root;

/// The path for new tickets of the only disk of a new snapshot.
fn tickets_path(world: &World, client: &Client) -> String {
    world.define_vm(&[("a.img", MB)]);
    format!("{SNAPSHOTS}/{}/disks/a.img/tickets", client.take_snapshot_id())
}

fn revoke(world: &World, arguments: &[&str]) {
    let (status, output) = world.exporter.command(&[&["sessions", "revoke"], arguments].concat());
    assert_eq!(status, Some(0), "{output}");
}

#[test]
fn a_token_that_is_revoked_during_the_request_gets_no_ticket() {
    needs_root!();
    let world = World::new(512);
    let client = world.client();
    let (path, token) = (tickets_path(&world, &client), &client.token);
    let mut stream = connect(&world.exporter, &world.certificates);
    let head = format!(
        "POST /api/v1{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nExpect: 100-continue\r\n\
         Content-Length: 2\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The service asks for the body after it has checked the token.
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    revoke(&world, &["--of", USER]);
    stream.write_all(b"{}").unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(String::from_utf8_lossy(&status), "HTTP/1.1 401");
    eventually("the refusal is in the audit", || {
        world.exporter.log().lines().any(|line| line.contains("action=\"ticket\"") && line.contains("\"refused\""))
    });
    assert_eq!(Client::local(&world.exporter).get(&path).ok(), json!([]));
}

#[test]
fn a_ticket_ends_with_the_token_that_it_was_made_with() {
    needs_root!();
    let mut world = World::new(512);
    let older = world.client();
    let path = tickets_path(&world, &older);
    let make = |client: &Client| -> Value { client.post(&path).ok() };
    let read = |world: &World, ticket: &Value| {
        let client = world.anonymous_client();
        client.send(client.request(Method::HEAD, &text(&ticket["path"]))).status
    };
    let of_older = make(&older);
    let of_newer = make(&world.client());
    assert_eq!([read(&world, &of_older), read(&world, &of_newer)], [200; 2]);
    // The token is older than that time, the ticket is not.
    revoke(&world, &["--all", "--issued-before", &text(&of_older["created_at"])]);
    assert_eq!([read(&world, &of_older), read(&world, &of_newer)], [404, 200]);
    world.exporter.restart();
    assert_eq!([read(&world, &of_older), read(&world, &of_newer)], [404, 200]);
}

#[test]
fn a_ticket_of_a_renewed_token_ends_with_its_log_in() {
    needs_root!();
    let world = World::new(512);
    let with = |tokens: &Value| {
        let mut client = world.anonymous_client();
        client.token = text(&tokens["token"]);
        client
    };
    let send = |path: &str, body: &Value| {
        let client = world.anonymous_client();
        client.send(client.request(Method::POST, &format!("/api/v1{path}")).body(body.to_string()))
    };
    let log_in = || send("/auth/login", &json!({"username": USER, "password": PASSWORD, "refresh": true})).ok();
    let renew = |tokens: &Value| send("/auth/refresh", &json!({"refresh_token": tokens["refresh_token"]}));
    let first = log_in();
    let path = tickets_path(&world, &with(&first));
    let make = |tokens: &Value| -> Value { with(tokens).post(&path).ok() };
    let read = |ticket: &Value| {
        let client = world.anonymous_client();
        client.send(client.request(Method::HEAD, &text(&ticket["path"]))).status
    };
    let of_first = make(&first);
    let of_renewed = make(&renew(&first).ok());
    let second = log_in();
    let of_second = make(&renew(&second).ok());
    assert_eq!([read(&of_first), read(&of_renewed), read(&of_second)], [200; 3]);
    // The log-in is older than that time, its renewed token is not.
    revoke(&world, &["--all", "--issued-before", &text(&of_first["created_at"])]);
    assert_eq!([read(&of_first), read(&of_renewed), read(&of_second)], [404, 404, 200]);
    assert_eq!(renew(&second).error(401), "unauthorized", "a used token is good");
    assert_eq!(read(&of_second), 404);
}
