//! Log-ins, the answers of the manager, and tokens.

use std::net::TcpListener;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Certificates, Client, Exporter, Manager, ManagerBehavior, PASSWORD, SECRET, Settings, USER, VM, World,
    eventually, text,
};
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
fn good_credentials_give_a_token_with_any_content_type() {
    needs_root!();
    let world = World::new(512);
    let client = world.anonymous_client();
    let types = [None, Some("application/x-www-form-urlencoded"), Some("application/json"), Some("text/plain")];
    for path in [LOGIN, "/api/v1/auth/login/"] {
        for content_type in types {
            let answer = log_in(&client, path, content_type, USER, PASSWORD);
            let token = answer.ok()["token"].as_str().unwrap().to_owned();
            assert_eq!(claims(&token)["user"], USER);
        }
    }
    let by_curl = Command::new("curl")
        .args(["-sS", "--fail", "-d", &json!({"username": USER, "password": PASSWORD}).to_string(), "--cacert"])
        .arg(world.certificates.ca())
        .arg(format!("https://127.0.0.1:{}{LOGIN}", world.exporter.port))
        .output()
        .unwrap();
    let by_curl: Value = serde_json::from_slice(&by_curl.stdout).unwrap();
    assert_eq!(by_curl.as_object().unwrap().keys().collect::<Vec<_>>(), ["token"]);
    assert_eq!(claims(&text(&by_curl["token"]))["user"], USER);

    let token = log_in(&client, LOGIN, None, USER, PASSWORD).ok()["token"].as_str().unwrap().to_owned();
    let lifetime = claims(&token)["exp"].as_u64().unwrap() - now();
    assert!((604_700..=604_800).contains(&lifetime), "168 hours are not {lifetime} s");
    assert!(claims(&token)["iss"].is_string());
}

/// The Unix time.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
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
fn failed_login_reveals_no_reason() {
    needs_root!();
    let world = World::new(512);
    let client = world.anonymous_client();
    let mut texts = Vec::new();
    for (user, password) in
        [(USER, "wrong"), ("nobody", PASSWORD), ("", ""), ("", PASSWORD), ("admin:pa", "ss wörd-7f3a"), ("a\nb", "x")]
    {
        let answer = log_in(&client, LOGIN, None, user, password);
        assert_eq!(answer.error(401), "unauthorized");
        assert_eq!(answer.json()["error"], "Authentication failed");
        texts.push(answer.json()["details"].clone());
    }
    assert!(texts.windows(2).all(|pair| pair[0] == pair[1]), "{texts:?}");
    // One request at the start. Names that Basic credentials cannot contain never reach the manager.
    assert_eq!(world.manager.request_count(), 1 + 2);
}

#[test]
fn manager_outage_is_not_a_wrong_password() {
    needs_root!();
    let world = World::with(512, |settings| settings.manager = settings.manager.replace("5s", "1s"));
    let client = world.anonymous_client();
    for behavior in
        [ManagerBehavior::ServerError, ManagerBehavior::Redirects, ManagerBehavior::WebPage, ManagerBehavior::Slow]
    {
        world.manager.set_behavior(behavior);
        for password in [PASSWORD, "wrong"] {
            let answer = log_in(&client, LOGIN, None, USER, password);
            assert_eq!(answer.error(502), "manager_unavailable", "{behavior:?}");
        }
    }
    for (status, expected) in
        [(200, 200), (204, 200), (401, 401), (403, 401), (301, 502), (400, 502), (404, 502), (429, 502), (503, 502)]
    {
        world.manager.set_behavior(ManagerBehavior::Status(status));
        assert_eq!(log_in(&client, LOGIN, None, USER, PASSWORD).status, expected, "the manager says {status}");
    }
    world.manager.set_behavior(ManagerBehavior::Good);
    assert_eq!(log_in(&client, LOGIN, None, USER, PASSWORD).status, 200);
    assert_eq!(log_in(&client, LOGIN, None, USER, "wrong").error(401), "unauthorized");
    drop(world.manager);
    assert_eq!(log_in(&client, LOGIN, None, USER, PASSWORD).error(502), "manager_unavailable");
}

#[test]
fn manager_certificate_is_verified() {
    needs_root!();
    let mut world = World::new(512);
    world.certificates.issue_self_signed_ca("manager");
    world.certificates.issue_for("elsewhere", &["elsewhere.example"]);
    let manager = Manager::start_with(&world.certificates, "manager");
    let elsewhere = Manager::start_with(&world.certificates, "elsewhere");
    let chained = world.manager.port;
    let ca = format!("ca_certificate = {:?}", world.certificates.ca());
    // The host's CA list, for a config without trust settings.
    let host = world.certificates.ca().display().to_string();
    world.exporter.settings().environment.push(("SSL_CERT_FILE".to_owned(), host));
    let certificate = world.certificates.path("manager.pem");
    let fingerprint = fingerprint(&certificate);
    let cases = [
        (chained, String::new(), 200),
        (chained, ca.clone(), 200),
        (chained, format!("ca_certificate = {certificate:?}"), 502),
        (elsewhere.port, ca.clone(), 502),
        (elsewhere.port, String::new(), 502),
        (manager.port, String::new(), 502),
        (manager.port, ca, 502),
        (manager.port, format!("ca_certificate = {certificate:?}"), 200),
        (manager.port, format!("fingerprint = \"{fingerprint}\""), 200),
        (manager.port, format!("fingerprint = \"sha256:{}\"", "0".repeat(64)), 502),
        (chained, format!("fingerprint = \"{fingerprint}\""), 502),
    ];
    for (port, trust, expected) in cases {
        world.exporter.settings().ovm_endpoint = format!("https://127.0.0.1:{port}");
        world.exporter.settings().manager = trust.clone();
        world.exporter.restart();
        let client = world.anonymous_client();
        let answer = log_in(&client, LOGIN, None, USER, PASSWORD);
        assert_eq!(answer.status, expected, "{port} with {trust:?}");
        if expected == 502 {
            assert_eq!(answer.error(502), "manager_unavailable");
        }
    }
    // Managers that failed verification got no request.
    // Each start sends an anonymous request; the first start of the service did so, too.
    assert_eq!(
        (world.manager.request_count(), elsewhere.request_count(), manager.request_count()),
        (1 + 2 * 2, 0, 2 * 2)
    );
    assert!(!world.exporter.log().contains("insecure_skip_verify"), "a warning about a setting that is not used");
    world.exporter.settings().manager = "insecure_skip_verify = true".to_owned();
    world.exporter.restart();
    let client = world.anonymous_client();
    assert_eq!(log_in(&client, LOGIN, None, USER, PASSWORD).status, 200);
    assert!(world.exporter.log().contains("WARN manager.insecure_skip_verify"), "no warning in the log");
    assert!(world.exporter.log().contains("name its authority with manager.ca_certificate"), "no remedy in the log");
}

fn fingerprint(certificate: &std::path::Path) -> String {
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(certificate)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    format!("sha256:{}", text.trim().split_once('=').unwrap().1)
}

/// Makes a token without the service's code.
fn sign(algorithm: hmac::Algorithm, secret: &str, header: &str, claims: &Value) -> String {
    let text = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.to_string().as_bytes()));
    let signature = hmac::sign(&hmac::Key::new(algorithm, secret.as_bytes()), text.as_bytes());
    format!("{text}.{}", base64url(signature.as_ref()))
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let digit = |bits: &[u8]| (0..6).fold(0, |digit, bit| digit << 1 | bits.get(bit).copied().unwrap_or(0));
    bits.chunks(6).map(|bits| char::from(DIGITS[usize::from(digit(bits))])).collect()
}

/// A forged token without a flaw, and those that have to be rejected; `good` is a token of the service.
fn forgeries(good: &str) -> (String, Vec<(&'static str, String)>) {
    const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
    let right = json!({"user": USER, "exp": now() + 600, "iss": claims(good)["iss"]});
    let with = |key: &str, value: Value| {
        let mut claims = right.clone();
        claims[key] = value;
        claims
    };
    let without = |key: &str| {
        let mut claims = right.clone();
        claims.as_object_mut().unwrap().remove(key);
        claims
    };
    let ours = |header: &str, claims: &Value| sign(hmac::HMAC_SHA256, SECRET, header, claims);
    let [header, middle, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    let none = base64url(br#"{"alg":"none"}"#);
    let root = base64url(with("user", "root".into()).to_string().as_bytes());
    let flawed = vec![
        ("empty", String::new()),
        ("no token", "x".to_owned()),
        ("two parts", format!("{header}.{middle}")),
        ("four parts", format!("{good}.{signature}")),
        ("no signature", format!("{header}.{middle}.")),
        ("another's signature", format!("{header}.{middle}.{}", signature.chars().rev().collect::<String>())),
        ("other claims", format!("{header}.{root}.{signature}")),
        ("another key", sign(hmac::HMAC_SHA256, &SECRET.to_uppercase(), HS256, &right)),
        ("no key", sign(hmac::HMAC_SHA256, "", HS256, &right)),
        ("expired", ours(HS256, &with("exp", (now() - 2).into()))),
        ("never expires", ours(HS256, &without("exp"))),
        ("expires in words", ours(HS256, &with("exp", "later".into()))),
        ("not valid yet", ours(HS256, &with("nbf", (now() + 60).into()))),
        ("valid from a time in words", ours(HS256, &with("nbf", "now".into()))),
        ("a critical extension", ours(r#"{"alg":"HS256","typ":"JWT","crit":["b64"],"b64":true}"#, &right)),
        ("an empty list of critical extensions", ours(r#"{"alg":"HS256","typ":"JWT","crit":null}"#, &right)),
        ("another issuer", ours(HS256, &with("iss", "somebody".into()))),
        ("no issuer", ours(HS256, &without("iss"))),
        ("no user", ours(HS256, &without("user"))),
        ("none", format!("{none}.{middle}.")),
        ("none, signed", ours(r#"{"alg":"none"}"#, &right)),
        ("RS256, signed as HS256", ours(r#"{"alg":"RS256","typ":"JWT"}"#, &right)),
        ("HS512", sign(hmac::HMAC_SHA512, SECRET, r#"{"alg":"HS512","typ":"JWT"}"#, &right)),
        ("HS512, signed as HS256", ours(r#"{"alg":"HS512","typ":"JWT"}"#, &right)),
        ("no algorithm", ours(r#"{"typ":"JWT"}"#, &right)),
    ];
    (ours(HS256, &right), flawed)
}

#[test]
fn routes_reject_forged_tokens() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", 1 << 20)]);
    let mut client = world.client();
    let good = std::mem::take(&mut client.token);
    let as_sent = |header: Option<&str>| {
        let request = client.request(Method::GET, "/api/v1/vms");
        client.send(header.into_iter().fold(request, |request, header| request.header("Authorization", header)))
    };
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
        assert_eq!(as_sent(Some(&format!("{scheme} {good}"))).status, 200, "{scheme}");
    }
    assert_eq!(as_sent(None).error(401), "unauthorized");
    let basic = format!("Basic {}", base64url(format!("{USER}:{PASSWORD}").as_bytes()));
    for header in ["", "Bearer", "Bearer ", &good, &basic, &format!("Token {good}"), &format!("Bearer{good}")] {
        assert_eq!(as_sent(Some(header)).error(401), "unauthorized", "{header}");
    }

    client.token.clone_from(&good);
    let id = client.take_snapshot_id();
    let files = world.snapshot_files();
    let snapshot = format!("/vms/{VM}/snapshots/{id}");
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
    let (flawless, flawed) = forgeries(&good);
    client.token = flawless;
    assert_eq!(client.get("/vms").status, 200, "the flawless forged token is rejected");
    for (what, token) in flawed {
        client.token = token;
        for (method, route) in &routes {
            let answer = client.send(client.request(method.clone(), &format!("/api/v1{route}")));
            if *method == Method::HEAD {
                assert_eq!(answer.status, 401, "{what}: {route}");
            } else {
                assert_eq!(answer.error(401), "unauthorized", "{what}: {method} {route}");
                assert_eq!(answer.json()["error"], "Authentication failed");
            }
        }
    }
    client.token = good;
    assert_eq!(world.snapshot_files(), files);
    assert_eq!(client.get(&format!("/vms/{VM}")).ok()["snapshots"], json!([id]));
}

#[test]
fn token_expires() {
    needs_root!();
    let world = World::with(512, |settings| settings.jwt = "time_to_live = \"4s\"".to_owned());
    let client = world.client();
    let lifetime = claims(&client.token)["exp"].as_u64().unwrap().saturating_sub(now());
    assert!(lifetime <= 4, "{lifetime} s");
    assert_eq!(client.get("/vms").status, 200);
    eventually("a token of 4 s is refused", || client.get("/vms").status != 200);
    assert!(now() >= claims(&client.token)["exp"].as_u64().unwrap(), "refused before its time");
    assert_eq!(client.get("/vms").error(401), "unauthorized");
    assert_eq!(world.client().get("/vms").status, 200, "a new token is rejected");
}

#[test]
fn failed_start_names_the_config_key() {
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let repository = certificates.path("repo");
    certificates.issue("other");
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let missing = certificates.path("missing.pem");
    let nowhere = [("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "/nonexistent")];
    type Change<'a> = &'a dyn Fn(&mut Settings);
    let cases: &[(&str, Change<'_>)] = &[
        ("api.tls.key", &|settings| settings.key = certificates.path("other.key")),
        ("api.tls.key", &|settings| settings.key = missing.clone()),
        ("api.tls.certificate", &|settings| settings.certificate = missing.clone()),
        ("api.tls.ca_certificate", &|settings| settings.tls = "client_auth = true".to_owned()),
        ("api.bind, api.port", &|settings| settings.port = Some(occupied.local_addr().unwrap().port())),
        ("unknown field `colour`", &|settings| settings.tls = "colour = 1".to_owned()),
        ("jwt.secret", &|settings| settings.secret = "too short for a key".to_owned()),
        ("jwt.time_to_live", &|settings| settings.jwt = "time_to_live = \"soon\"".to_owned()),
        ("line 5", &|settings| settings.jwt = format!("secret = '{SECRET}")),
        ("repositories.paths: is empty", &|settings| settings.paths.clear()),
        ("ovm_endpoint", &|settings| settings.ovm_endpoint = "http://127.0.0.1:1".to_owned()),
        ("missing.pem", &|settings| settings.manager = format!("ca_certificate = {missing:?}")),
        ("manager.fingerprint", &|settings| settings.manager = "fingerprint = \"sha256:00\"".to_owned()),
        (
            "manager: the host has no list of authorities; name the server's certificate with ca_certificate",
            &|settings| {
                settings.manager.clear();
                settings.environment = nowhere.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
            },
        ),
        ("db_file", &|settings| settings.db_file = Some("/nonexistent/folder/db".into())),
    ];
    for (expected, change) in cases {
        let mut settings = Settings::new(&certificates, &manager, &[&repository]);
        change(&mut settings);
        let (status, refusal) = Exporter::refusal(&settings);
        assert!(matches!(status, Some(1 | 78)), "{refusal}");
        assert!(refusal.contains(expected), "{refusal:?} does not contain {expected:?}");
        assert!(!refusal.contains("panic"), "{refusal}");
        assert!(!refusal.contains(&settings.secret), "the secret is shown: {refusal}");
    }

    let output = Command::new(env!("CARGO_BIN_EXE_coriolis-ovm-exporter"))
        .args(["-config", "/nonexistent/config.toml"])
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{errors}");
    assert!(errors.contains("/nonexistent/config.toml") && errors.contains("--config"), "{errors}");
}
