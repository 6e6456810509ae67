//! Log-out, revocation, refresh tokens, a replaced signing key, and asking the manager again.

use std::fs;
use std::io::Read;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Backup, Client, MB, ManagerBehavior, PASSWORD, SECRET, SNAPSHOTS, USER, World, eventually, for_a_while,
    text, write_at,
};
use crate::needs_root;

fn post(client: &Client, path: &str, body: &Value) -> Answer {
    client.send(client.request(Method::POST, &format!("/api/v1{path}")).body(body.to_string()))
}

/// Logs in with a refresh token.
fn log_in_renewably(client: &Client) -> Value {
    post(client, "/auth/login", &json!({"username": USER, "password": PASSWORD, "refresh": true})).ok()
}

fn renew(client: &Client, refresh_token: &Value) -> Answer {
    post(client, "/auth/refresh", &json!({ "refresh_token": refresh_token }))
}

fn with_token(world: &World, token: &Value) -> Client {
    let mut client = world.anonymous_client();
    client.token = text(token);
    client
}

/// Whether the token is good; checked on a new connection.
fn is_good(world: &World, token: &str) -> bool {
    let answer = with_token(world, &token.into()).get("/vms");
    if answer.status == 200 {
        return true;
    }
    assert_eq!(answer.error(401), "unauthorized");
    false
}

fn claims(token: &str) -> Value {
    let middle = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(middle).unwrap()).unwrap()
}

/// A token as the original exporter makes it.
fn token_of_the_original(good: &str) -> String {
    let claims = json!({"user": USER, "exp": claims(good)["exp"], "iss": claims(good)["iss"]});
    let [header, claims] = [r#"{"alg":"HS256","typ":"JWT"}"#.to_owned(), claims.to_string()]
        .map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
    let text = format!("{header}.{claims}");
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), text.as_bytes());
    format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn log_out_ends_a_token_and_lasts_over_a_restart() {
    needs_root!();
    let mut world = World::new(512);
    let (client, other) = (world.client(), world.client());
    let original = token_of_the_original(&client.token);
    assert!(is_good(&world, &original));
    client.get("/vms").ok();
    assert_eq!(client.post("/auth/logout").status, 200);
    // On the connection that has used the token, and on another.
    assert_eq!(client.get("/vms").error(401), "unauthorized");
    assert_eq!(client.post("/auth/logout").error(401), "unauthorized");
    assert!(!is_good(&world, &client.token) && is_good(&world, &other.token));
    assert_eq!(with_token(&world, &original.as_str().into()).post("/auth/logout").status, 200);
    assert!(!is_good(&world, &original), "a token of the original exporter");
    let log = world.exporter.log();
    let lines = log.lines().filter(|line| line.contains("action=\"log-out\"") && line.contains("outcome=\"done\""));
    assert_eq!(lines.filter(|line| line.contains("user=\"admin\"")).count(), 2, "{log}");
    world.exporter.restart();
    assert!(!is_good(&world, &client.token) && !is_good(&world, &original) && is_good(&world, &other.token));
    // On the socket there is no token.
    let local = Client::local(&world.exporter);
    assert_eq!(local.post("/auth/logout").error(400), "bad_request");
}

#[test]
fn operators_revoke_the_tokens_of_a_user_or_of_all() {
    needs_root!();
    let mut world = World::new(512);
    write_at(&world.define_vm(&[("a.img", 64 * MB)])[0], 0, &vec![7; 64 << 20]);
    let user = |world: &World, name: &str| Client::logged_in_as(&world.exporter, &world.certificates, name);
    let (admin, ann, bob) = (world.client(), user(&world, "test-ann"), user(&world, "test-bob"));
    let original = token_of_the_original(&admin.token);
    let id = admin.take_snapshot_id();
    let mut download = world.send_get(&ann, &format!("{SNAPSHOTS}/{id}/disks/a.img"));
    eventually("the download runs", || {
        admin.get("/status").ok()["exports"]["running"].as_array().is_some_and(|running| !running.is_empty())
    });
    let revoke = |world: &World, arguments: &[&str]| {
        let (status, output) = world.exporter.command(&[&["sessions", "revoke"], arguments].concat());
        assert_eq!(status, Some(0), "{output}");
        output
    };
    let output = revoke(&world, &["--of", " Test-ANN"]);
    assert!(output.contains("revoked the tokens of the user \" Test-ANN\""), "{output}");
    assert!(output.contains("0 log-ins with a refresh token and 1 downloads have ended"), "{output}");
    let mut received = Vec::new();
    let _ = download.read_to_end(&mut received);
    assert!(received.len() < 64 << 20, "the download of a revoked token continued");
    assert_eq!(ann.get("/vms").error(401), "unauthorized");
    assert!(is_good(&world, &bob.token));
    // The user can log in again, at once.
    let again = user(&world, "test-ann");
    assert!(is_good(&world, &again.token));
    world.exporter.restart();
    assert!(!is_good(&world, &ann.token) && is_good(&world, &again.token) && is_good(&world, &bob.token));
    assert!(is_good(&world, &original));

    // Those that were issued before a moment.
    let issued = claims(&again.token)["iat"].as_f64().unwrap();
    let at = jiff::Timestamp::from_millisecond((issued * 1000.0).round() as i64).unwrap().to_string();
    let revoked: Value = serde_json::from_str(&revoke(&world, &["--all", "--issued-before", &at, "--json"])).unwrap();
    assert_eq!(revoked["user"], Value::Null);
    assert!(is_good(&world, &again.token) && !is_good(&world, &bob.token) && !is_good(&world, &original));
    // Over the port, as an administrator.
    let admin = world.client();
    for (body, expected) in [
        (json!({}), "names no user"),
        (json!({"user": ""}), "user is empty"),
        (json!({"user": "x", "all": true}), "keep one"),
        (json!({"all": true, "issued_before": "9999-01-01T00:00:00Z"}), "in the past"),
        (json!({"all": true, "issued_before": "yesterday"}), "in the past"),
        (json!({"users": ["x"]}), "lacks a field"),
    ] {
        let answer = post(&admin, "/auth/revoke", &body);
        assert_eq!(answer.error(400), "bad_request");
        assert!(text(&answer.json()["details"]).contains(expected), "{body}: {answer:?}");
    }
    post(&admin, "/auth/revoke", &json!({"all": true})).ok();
    assert!(!is_good(&world, &again.token) && !is_good(&world, &admin.token));
    assert!(is_good(&world, &world.client().token));
    let log = world.exporter.log();
    assert!(log.contains("action=\"revoke\" user=\"unix:root\"") && log.contains("what=\" Test-ANN\""), "{log}");
    assert!(log.contains("the tokens of the user were revoked"), "the audit does not say why the download was cut");
}

#[test]
fn a_refresh_token_renews_a_short_token_once() {
    needs_root!();
    let mut world = World::with(512, |settings| settings.jwt = "access_time_to_live = \"10s\"".to_owned());
    let client = world.anonymous_client();
    let first = log_in_renewably(&client);
    assert_eq!(first.as_object().unwrap().keys().collect::<Vec<_>>(), ["expires_in", "refresh_token", "token"]);
    assert!((1..=10).contains(&first["expires_in"].as_u64().unwrap()), "{first}");
    let token = text(&first["token"]);
    eventually("the token has expired", || !is_good(&world, &token));
    world.exporter.restart();
    let client = world.anonymous_client();
    let second = renew(&client, &first["refresh_token"]).ok();
    assert!(is_good(&world, &text(&second["token"])));
    assert_eq!(claims(&text(&second["token"]))["sid"], claims(&token)["sid"]);
    let admin = world.client();
    assert_eq!(
        admin.get("/status").ok()["sessions"],
        json!({"renewable": 1, "revocations": 0, "throttled_log_ins": 0})
    );
    // A used token: everything of its log-in is revoked.
    let third = renew(&client, &second["refresh_token"]).ok();
    let refused = renew(&client, &first["refresh_token"]);
    assert_eq!(refused.error(401), "unauthorized");
    assert!(text(&refused.json()["details"]).contains("log in with the password"));
    assert_eq!(renew(&client, &third["refresh_token"]).error(401), "unauthorized");
    assert!(!is_good(&world, &text(&third["token"])) && is_good(&world, &admin.token));
    assert_eq!(admin.get("/status").ok()["sessions"]["renewable"], 0);
    // Renewals share lines of the audit. Those after the first line are written when there are no more.
    let combined = "action=\"refresh\" user=\"admin\" address=127.0.0.1 what=\"\" outcome=\"done\" requests=1";
    eventually("both renewals are in the audit", || world.exporter.log().matches(combined).count() == 2);
    // The same after a restart.
    world.exporter.restart();
    assert_eq!(renew(&world.anonymous_client(), &third["refresh_token"]).error(401), "unauthorized");
    assert!(!is_good(&world, &text(&third["token"])));
    let log = world.exporter.log();
    assert!(log.contains("a used token; its log-in is revoked"), "{log}");
    let database = fs::read(world.exporter.db_file()).unwrap();
    for answer in [first, second, third] {
        for secret in [text(&answer["token"]), text(&answer["refresh_token"])] {
            assert!(!log.contains(&secret), "a token is in the log");
            assert!(!database.windows(secret.len()).any(|part| part == secret.as_bytes()), "it is in the database");
        }
    }
}

#[test]
fn refresh_tokens_end_with_log_out_and_revocation() {
    needs_root!();
    let world = World::new(512);
    let client = world.anonymous_client();
    let [left, revoked] = [(); 2].map(|()| log_in_renewably(&client));
    assert_eq!(with_token(&world, &left["token"]).post("/auth/logout").status, 200);
    assert_eq!(renew(&client, &left["refresh_token"]).error(401), "unauthorized");
    let newest = renew(&client, &revoked["refresh_token"]).ok();
    let (status, output) = world.exporter.command(&["sessions", "revoke", "--of", USER]);
    assert!(status == Some(0) && output.contains("1 log-ins with a refresh token"), "{output}");
    assert_eq!(renew(&client, &newest["refresh_token"]).error(401), "unauthorized");
    assert!(!is_good(&world, &text(&newest["token"])));
    for malformed in [json!(""), json!("x"), json!("A".repeat(64)), json!("é".repeat(64)), json!("A".repeat(10_000))] {
        assert_eq!(renew(&client, &malformed).error(401), "unauthorized", "{malformed}");
    }
    for body in [json!({}), json!({"refresh_token": 7}), json!({"refresh_token": null})] {
        assert_eq!(post(&client, "/auth/refresh", &body).error(400), "bad_request", "{body}");
    }
}

#[test]
fn long_tokens_can_be_switched_off() {
    needs_root!();
    let world = World::with(512, |settings| settings.jwt = "long_tokens = false".to_owned());
    let client = world.client();
    let lifetime = claims(&client.token)["exp"].as_f64().unwrap() - claims(&client.token)["iat"].as_f64().unwrap();
    assert!((3598.0..=3601.0).contains(&lifetime), "{lifetime}");
    assert_eq!(client.get("/capabilities").ok()["limits"]["token_seconds"], 3600);
}

#[test]
fn a_replaced_signing_key_is_read_on_sighup_with_an_overlap() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.json");
    let mut world = World::with(512, |settings| settings.sections = format!("[audit]\nfile = {file:?}\n"));
    let old = world.client();
    let reload = |world: &mut World, secret: &str, overlap: &str| {
        world.exporter.settings().secret = secret.to_owned();
        world.exporter.settings().jwt = format!("secret_overlap = {overlap:?}");
        world.exporter.write_config();
        let before = world.exporter.log().matches("config reloaded").count();
        world.exporter.signal(Signal::SIGHUP);
        eventually("the config is reloaded", || world.exporter.log().matches("config reloaded").count() > before);
    };
    let second = "a second secret of tests, never to be seen";
    old.get("/vms").ok();
    reload(&mut world, second, "1h");
    let new = world.client();
    assert_eq!((old.get("/vms").status, new.get("/vms").status), (200, 200));
    let renewable = log_in_renewably(&new);
    // The overlap ends early with a reload.
    reload(&mut world, second, "0");
    assert_eq!((old.get("/vms").status, new.get("/vms").status), (401, 200));
    // Without an overlap. Refresh tokens are not signed.
    reload(&mut world, "a third secret of tests, never to be seen!", "0");
    assert_eq!(new.get("/vms").status, 401);
    assert!(!is_good(&world, &text(&renewable["token"])));
    assert!(is_good(&world, &text(&renew(&new, &renewable["refresh_token"]).ok()["token"])));
    // A short overlap ends by itself.
    let last = world.client();
    last.get("/vms").ok();
    reload(&mut world, "a fourth secret of tests, never to be seen", "2s");
    eventually("the overlap ends", || last.get("/vms").status == 401);
    // The audit's chain is proven with the new keys.
    let (status, report) = world.exporter.command(&["audit", "verify"]);
    assert_eq!(status, Some(0), "{report}");
    let audit = fs::read_to_string(&file).unwrap();
    assert_eq!(audit.matches("\"replace-key\"").count(), 3, "{audit}");
    assert!(!world.exporter.log().contains("secret of tests"));
}

#[test]
fn the_manager_is_asked_again_about_a_user() {
    needs_root!();
    let mut world = World::with(512, |settings| settings.jwt = "recheck_after = \"1s\"".to_owned());
    let client = world.client();
    let asked = world.manager.request_count();
    eventually("the manager is asked again", || {
        client.get("/vms").ok();
        world.manager.request_count() > asked + 1
    });
    // An outage is not a removed user.
    world.manager.set_behavior(ManagerBehavior::ServerError);
    eventually("the check is due", || client.get("/vms").status != 200);
    // Not each request waits for a manager that cannot answer.
    let asked = world.manager.request_count();
    (0..3).for_each(|_| assert_eq!(client.get("/vms").error(502), "manager_unavailable"));
    assert_eq!(world.manager.request_count(), asked);
    world.manager.set_behavior(ManagerBehavior::Good);
    eventually("the manager is asked again", || client.get("/vms").status == 200);
    let (with_same, renewable) = (world.client(), log_in_renewably(&client));
    // The manager removes the user. One refusal is enough for all log-ins with this password.
    world.manager.set_behavior(ManagerBehavior::Status(401));
    eventually("the user is out", || client.get("/vms").status == 401);
    let asked = world.manager.request_count();
    world.manager.set_behavior(ManagerBehavior::Good);
    assert_eq!(client.get("/vms").error(401), "unauthorized");
    assert_eq!(with_same.get("/vms").error(401), "unauthorized");
    assert_eq!(renew(&client, &renewable["refresh_token"]).error(401), "unauthorized");
    assert_eq!(world.manager.request_count(), asked, "an old password went to the manager again");
    // A refresh asks as well.
    let renewable = log_in_renewably(&client);
    for_a_while(Duration::from_secs(1));
    world.manager.set_behavior(ManagerBehavior::Status(401));
    assert_eq!(renew(&client, &renewable["refresh_token"]).error(401), "unauthorized");
    world.manager.set_behavior(ManagerBehavior::Good);
    // What the manager refused once stays revoked, also without this option.
    let out = client.token.clone();
    // The passwords are in memory only.
    let client = world.client();
    client.get("/vms").ok();
    world.exporter.restart();
    assert!(!is_good(&world, &client.token) && is_good(&world, &world.client().token));
    world.exporter.settings().jwt.clear();
    world.exporter.restart();
    assert!(is_good(&world, &client.token) && !is_good(&world, &out));
}

#[test]
fn the_client_renews_its_token_without_the_password() {
    needs_root!();
    let world = World::with(512, |settings| settings.jwt = "access_time_to_live = \"2s\"".to_owned());
    world.define_vm(&[("a.img", MB)]);
    let folder = tempfile::tempdir().unwrap();
    let backup = Backup::new(&world, folder.path());
    backup.run(&["login", backup.url(), "--user", USER]);
    let cache = backup.home().join(".cache/coriolis-ovm-exporter");
    let cached = || {
        let files = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
        let file = files.into_iter().find(|path| path.extension().is_some_and(|it| it == "token")).unwrap();
        fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let first = cached();
    eventually("the token has expired", || !is_good(&world, &first[0]));
    let without_password = |arguments: &[&str]| {
        let mut command = backup.command(arguments);
        let output = command.env_remove("EXPORTER_PASSWORD").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    // Two processes at a time use the refresh token once.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| without_password(&["vms", "--server", backup.url()]));
        }
    });
    let second = cached();
    assert!(first.len() == 2 && second.len() == 2 && first[0] != second[0] && first[1] != second[1]);
    assert_eq!(world.exporter.log().matches("logged in user=").count(), 1);
    without_password(&["logout", backup.url()]);
    let client = world.anonymous_client();
    assert_eq!(renew(&client, &second[1].as_str().into()).error(401), "unauthorized", "the log-in did not end");
}

#[test]
fn a_download_that_waits_when_its_token_is_revoked_is_refused() {
    needs_root!();
    let world = World::with(512, |settings| settings.policy = "export_concurrency = 1".to_owned());
    write_at(&world.define_vm(&[("a.img", 64 * MB)])[0], 0, &vec![7; 64 << 20]);
    let (client, other) = (world.client(), world.client());
    let path = format!("{SNAPSHOTS}/{}/disks/a.img", client.take_snapshot_id());
    let exports = |state: &str| client.get("/status").ok()["exports"][state].as_array().unwrap().len();
    let holds_the_slot = world.send_get(&client, &path);
    eventually("the slot is taken", || exports("running") == 1);
    let mut waits = world.send_get(&other, &path);
    eventually("the other one waits", || exports("waiting") == 1);
    assert_eq!(other.post("/auth/logout").status, 200);
    drop(holds_the_slot);
    let mut status = [0; 12];
    waits.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 401");
}
