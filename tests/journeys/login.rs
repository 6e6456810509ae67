//! Log-in: what the manager says, and what becomes of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Behaviour, Certificates, Client, Exporter, Manager, PASSWORD, USER, VM, World};
use crate::needs_root;

fn log_in(client: &Client, path: &str, content_type: Option<&str>, user: &str, password: &str) -> Answer {
    let mut request = client.request(Method::POST, path);
    if let Some(content_type) = content_type {
        request = request.header("Content-Type", content_type);
    }
    client.send(request.body(json!({"username": user, "password": password}).to_string()))
}

const LOGIN: &str = "/api/v1/auth/login";

#[test]
fn good_credentials_give_a_token_whatever_the_content_type() {
    needs_root!();
    let world = World::new(512);
    let client = Client::new(&world.exporter, &world.certificates);
    let types = [None, Some("application/x-www-form-urlencoded"), Some("application/json"), Some("text/plain")];
    for path in [LOGIN, "/api/v1/auth/login/"] {
        for content_type in types {
            let answer = log_in(&client, path, content_type, USER, PASSWORD);
            let token = answer.ok()["token"].as_str().unwrap().to_owned();
            assert_eq!(claims(&token)["user"], USER);
        }
    }
    let token = log_in(&client, LOGIN, None, USER, PASSWORD).ok()["token"].as_str().unwrap().to_owned();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let lifetime = claims(&token)["exp"].as_u64().unwrap() - now;
    assert!((604_790..=604_801).contains(&lifetime), "168 hours are not {lifetime} s");
    assert!(claims(&token)["iss"].is_string());
}

/// The middle part of a token, which is base64url of JSON.
fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    let digits = part.bytes().map(|byte| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'-' => 62,
        _ => 63,
    });
    let bits: Vec<u8> = digits.flat_map(|digit| (0..6).rev().map(move |bit| digit >> bit & 1)).collect();
    let bytes: Vec<u8> = bits.chunks_exact(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | bit)).collect();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn a_refusal_says_the_same_to_every_stranger() {
    needs_root!();
    let world = World::new(512);
    let client = Client::new(&world.exporter, &world.certificates);
    let mut texts = Vec::new();
    for (user, password) in
        [(USER, "wrong"), ("nobody", PASSWORD), ("", ""), ("admin:pa", "ss wörd-7f3a"), ("a\nb", "x")]
    {
        let answer = log_in(&client, LOGIN, None, user, password);
        assert_eq!(answer.error(401), "unauthorized");
        assert_eq!(answer.json()["error"], "Authentication failed");
        texts.push(answer.json()["details"].clone());
    }
    assert!(texts.windows(2).all(|pair| pair[0] == pair[1]), "{texts:?}");
    // Names that cannot be put into Basic credentials never reach the manager.
    assert_eq!(world.manager.asked(), 2);
}

#[test]
fn an_outage_is_never_a_wrong_password() {
    needs_root!();
    let world = World::with(512, |settings| settings.manager = settings.manager.replace("5s", "1s"));
    let client = Client::new(&world.exporter, &world.certificates);
    for behaviour in [Behaviour::ServerError, Behaviour::Redirects, Behaviour::WebPage, Behaviour::Slow] {
        world.manager.behave(behaviour);
        for password in [PASSWORD, "wrong"] {
            let answer = log_in(&client, LOGIN, None, USER, password);
            assert_eq!(answer.error(502), "manager_unavailable", "{behaviour:?}");
        }
    }
    world.manager.behave(Behaviour::Good);
    assert_eq!(log_in(&client, LOGIN, None, USER, PASSWORD).status, 200);
    drop(world.manager);
    assert_eq!(log_in(&client, LOGIN, None, USER, PASSWORD).error(502), "manager_unavailable");
}

#[test]
fn the_managers_certificate_is_verified() {
    needs_root!();
    let mut world = World::new(512);
    world.certificates.issue_self_signed_ca("manager");
    let manager = Manager::start_with(&world.certificates, "manager");
    let certificate = world.certificates.path("manager.pem");
    let fingerprint = fingerprint(&certificate);
    let cases = [
        (format!("ca_certificate = {:?}", world.certificates.ca()), 502),
        (format!("ca_certificate = {certificate:?}"), 200),
        (format!("fingerprint = \"{fingerprint}\""), 200),
        (format!("fingerprint = \"sha256:{}\"", "0".repeat(64)), 502),
        ("insecure_skip_verify = true".to_owned(), 200),
    ];
    for (trust, expected) in cases {
        world.exporter.settings().ovm_endpoint = format!("https://127.0.0.1:{}", manager.port);
        world.exporter.settings().manager = trust.clone();
        world.exporter.restart();
        let client = Client::new(&world.exporter, &world.certificates);
        assert_eq!(log_in(&client, LOGIN, None, USER, PASSWORD).status, expected, "{trust}");
    }
    assert!(world.exporter.log().contains("insecure_skip_verify"), "no warning in the log");
    assert!(world.exporter.log().contains("name its authority with manager.ca_certificate"), "no remedy in the log");
}

fn fingerprint(certificate: &std::path::Path) -> String {
    let output = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(certificate)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    format!("sha256:{}", text.trim().split_once('=').unwrap().1)
}

#[test]
fn tokens_are_asked_for_everywhere_and_expire() {
    needs_root!();
    let world = World::with(512, |settings| settings.jwt = "time_to_live = \"2s\"".to_owned());
    let mut client = world.client();
    let good = client.token.clone();
    let lower = client
        .request(Method::GET, "/api/v1/vms")
        .headers([(reqwest::header::AUTHORIZATION, format!("bEaReR {good}").parse().unwrap())].into_iter().collect());
    assert_eq!(client.send(lower).status, 200, "the scheme is case-insensitive");

    let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!() };
    // {"alg":"none"}, {"alg":"RS256","typ":"JWT"}
    let (none, rs256) = ("eyJhbGciOiJub25lIn0", "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9");
    let forged = [
        String::new(),
        "x".to_owned(),
        format!("{none}.{claims}."),
        format!("{rs256}.{claims}.{signature}"),
        format!("{header}.{claims}.{}", signature.chars().rev().collect::<String>()),
    ];
    let snapshot = format!("/vms/{VM}/snapshots/6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d");
    let routes = [
        (Method::GET, "/vms".to_owned()),
        (Method::GET, "/capabilities".to_owned()),
        (Method::GET, format!("/vms/{VM}")),
        (Method::GET, format!("/vms/{VM}/snapshots")),
        (Method::POST, format!("/vms/{VM}/snapshots")),
        (Method::DELETE, format!("/vms/{VM}/snapshots")),
        (Method::GET, snapshot.clone()),
        (Method::DELETE, snapshot.clone()),
        (Method::GET, format!("{snapshot}/disks/a.img")),
        (Method::HEAD, format!("{snapshot}/disks/a.img")),
    ];
    for token in &forged {
        client.token.clone_from(token);
        for (method, route) in &routes {
            let answer = client.send(client.request(method.clone(), &format!("/api/v1{route}")));
            if *method == Method::HEAD {
                assert_eq!(answer.status, 401, "{token} {route}");
            } else {
                assert_eq!(answer.error(401), "unauthorized", "{token} {method} {route}");
                assert_eq!(answer.json()["error"], "Authentication failed");
            }
        }
    }
    client.token = good;
    let end = SystemTime::now() + Duration::from_secs(10);
    while client.get("/vms").status == 200 {
        assert!(SystemTime::now() < end, "a token of 2 s is good for ever");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(client.get("/vms").error(401), "unauthorized");
}

#[test]
fn a_start_that_cannot_go_well_says_what_to_do() {
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let repository = certificates.path("repo");
    certificates.issue("other");
    let settings = || crate::harness::Settings::new(&certificates, &manager, &[&repository]);
    let mut cases: Vec<(&str, crate::harness::Settings)> = Vec::new();
    let mut add = |expected, change: &dyn Fn(&mut crate::harness::Settings)| {
        let mut settings = settings();
        change(&mut settings);
        cases.push((expected, settings));
    };
    add("api.tls.key", &|settings| settings.key = certificates.path("other.key"));
    add("api.tls.certificate", &|settings| settings.certificate = certificates.path("missing.pem"));
    add("unknown field `colour`", &|settings| settings.tls = "colour = 1".to_owned());
    add("jwt.time_to_live", &|settings| settings.jwt = "time_to_live = \"soon\"".to_owned());
    add("repositories.paths: is empty", &|settings| settings.paths.clear());
    add("missing.pem", &|settings| {
        settings.manager = format!("ca_certificate = {:?}", certificates.path("missing.pem"))
    });
    add("db_file", &|settings| settings.db_file = Some("/nonexistent/folder/db".into()));
    for (expected, settings) in cases {
        let refusal = Exporter::refusal(&settings);
        assert!(refusal.contains(expected), "{refusal:?} does not say {expected:?}");
        assert!(!refusal.contains("panic"), "{refusal}");
    }
}
