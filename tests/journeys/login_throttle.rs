//! Limits of failed log-ins, per address and per account, and log-ins while others guess passwords.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Client, ManagerBehavior, PASSWORD, USER, World, connect_from, eventually, memory_kib, text};
use crate::needs_root;

/// Log-ins at a time, each on a connection of its own. More would be closed: see the limits of connections.
const PARALLEL: u8 = 250;

/// Sends a log-in on a new connection from this address; returns the status and `Retry-After`. `None`: the connection
/// was closed.
fn try_log_in_from(world: &World, from: [u8; 4], headers: &str, user: &str, password: &str) -> Option<(u16, String)> {
    let body = json!({"username": user, "password": password}).to_string();
    let mut stream = connect_from(&world.exporter, &world.certificates, from);
    let head = format!(
        "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).ok()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    let status = answer.strip_prefix("http/1.1 ")?.get(..3)?.parse().ok()?;
    let retry_after = answer.split("\r\nretry-after: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    Some((status, retry_after.unwrap_or_default().to_owned()))
}

fn log_in_from(world: &World, from: [u8; 4], user: &str, password: &str) -> (u16, String) {
    try_log_in_from(world, from, "", user, password).unwrap()
}

fn limited(login: &str, api: &str) -> World {
    World::with(512, |settings| {
        settings.api = api.to_owned();
        settings.sections = format!("[login]\n{login}\n[metrics]\nenabled = true\n");
    })
}

#[test]
fn an_address_has_a_limit_of_failed_log_ins() {
    needs_root!();
    let world = limited("failures_per_address = 10\nfailures_per_account = 0", "");
    let (attacker, user) = ([127, 0, 5, 1], [127, 0, 5, 2]);
    let client = world.client();
    for n in 0..10 {
        // Good log-ins in between count for nothing.
        assert_eq!(log_in_from(&world, attacker, USER, PASSWORD).0, 200);
        assert_eq!(log_in_from(&world, attacker, &format!("user{n}"), "wrong").0, 401);
    }
    let asked = world.manager.request_count();
    let (status, retry_after) = log_in_from(&world, attacker, "another", "wrong");
    // 10 an hour: one is forgotten after six minutes.
    assert!(status == 429 && (60..=360).contains(&retry_after.parse().unwrap()), "{status} {retry_after}");
    assert_eq!(log_in_from(&world, attacker, "test-ann", PASSWORD).0, 429);
    assert_eq!(world.manager.request_count(), asked, "the manager was asked");
    // An account that has logged in from there is not locked out by guesses at others.
    assert_eq!(log_in_from(&world, attacker, USER, PASSWORD).0, 200);
    let answers: Vec<u16> = (0..4).map(|_| log_in_from(&world, attacker, USER, "wrong").0).collect();
    assert_eq!(answers, [401, 401, 401, 429]);
    for _ in 0..30 {
        assert_eq!(log_in_from(&world, user, USER, PASSWORD).0, 200);
    }
    assert_eq!(client.get("/vms").status, 200);
    let status = client.get("/status").ok();
    assert_eq!(status["sessions"]["throttled_log_ins"], 3, "{status}");
    let metrics = client.send(client.request(reqwest::Method::GET, "/metrics")).body;
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("ovm_exporter_log_ins_throttled_total{reason=\"address\"} 3\n"), "{metrics}");
    let log = world.exporter.log();
    let lines = log.lines().filter(|line| line.contains("too many failed log-ins from this address"));
    assert!(lines.into_iter().any(|line| line.contains("action=\"log-in\"")), "{log}");
}

#[test]
fn guesses_at_an_account_do_not_lock_out_its_user() {
    needs_root!();
    let world = limited("failures_per_address = 0\nfailures_per_account = 10", "");
    let known = [127, 0, 6, 99];
    assert_eq!(log_in_from(&world, known, USER, PASSWORD).0, 200);
    for n in 0..10 {
        assert_eq!(log_in_from(&world, [127, 0, 6, 1 + n % 2], USER, "wrong").0, 401);
    }
    for attacker in [1, 2] {
        let (status, retry_after) = log_in_from(&world, [127, 0, 6, attacker], USER, PASSWORD);
        assert!(status == 429 && (60..=1200).contains(&retry_after.parse().unwrap()), "{status} {retry_after}");
    }
    // From an address that has logged in before, and from new ones, each of which has a few guesses of its own.
    assert_eq!(log_in_from(&world, known, USER, "mistyped").0, 401);
    assert_eq!(log_in_from(&world, known, USER, PASSWORD).0, 200);
    assert_eq!(log_in_from(&world, [127, 0, 6, 50], USER, PASSWORD).0, 200);
    let answers: Vec<u16> = (0..5).map(|_| log_in_from(&world, [127, 0, 6, 3], USER, "wrong").0).collect();
    assert_eq!(answers, [401, 401, 401, 429, 429]);
    // Other accounts are not affected.
    assert_eq!(log_in_from(&world, [127, 0, 6, 1], "test-ann", PASSWORD).0, 200);
}

#[test]
fn clients_of_a_trusted_proxy_are_limited_by_the_address_that_it_names() {
    needs_root!();
    // One that only names clients, and one that only has many connections.
    let api = "forwarded_for_from = [\"127.0.7.7\"]\ntrusted_proxies = [\"127.0.7.9\"]";
    let world = limited("failures_per_address = 3\nfailures_per_account = 100", api);
    let (proxy, stranger) = ([127, 0, 7, 7], [127, 0, 7, 8]);
    let try_as = |from, client: &str, password: &str| {
        let header = if client.is_empty() { String::new() } else { format!("X-Forwarded-For: {client}\r\n") };
        try_log_in_from(&world, from, &header, USER, password).unwrap().0
    };
    let answers = |from, client: &dyn Fn(usize) -> String| -> Vec<u16> {
        (0..4).map(|n| try_as(from, &client(n), "wrong")).collect()
    };
    assert_eq!(answers(proxy, &|_| "192.0.2.1".to_owned()), [401, 401, 401, 429]);
    assert_eq!(try_as(proxy, "192.0.2.2", PASSWORD), 200);
    // The networks of IPv6 clients count.
    assert_eq!(answers(proxy, &|n| format!("2001:db8::{n}")), [401, 401, 401, 429]);
    // Others cannot choose an address.
    assert_eq!(answers(stranger, &|n| format!("198.51.100.{n}")), [401, 401, 401, 429]);
    // A proxy that names no client: those behind it do not lock each other out.
    assert_eq!(answers(proxy, &|_| String::new()), [401; 4]);
    assert_eq!(try_as(proxy, "", PASSWORD), 200);
    assert_eq!(answers([127, 0, 7, 9], &|n| format!("198.51.100.{n}")), [401; 4]);
}

#[test]
fn a_thousand_parallel_guesses_do_not_starve_a_good_log_in() {
    needs_root!();
    let world = limited("failures_per_address = 0\nfailures_per_account = 0", "");
    let known = [127, 0, 8, 99];
    assert_eq!(log_in_from(&world, known, USER, PASSWORD).0, 200);
    let client: Client = world.client();
    let idle = memory_kib(world.exporter.pid(), "VmRSS");
    world.manager.set_behavior(ManagerBehavior::Late(Duration::from_millis(500)));
    let (started, answered, refused) = (Instant::now(), AtomicUsize::new(0), AtomicUsize::new(0));
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..PARALLEL {
            let (world, answered, refused, is_done) = (&world, &answered, &refused, &is_done);
            scope.spawn(move || {
                // A bound, if the test fails.
                for n in 0..200 {
                    if is_done.load(Ordering::SeqCst) && answered.load(Ordering::SeqCst) >= 1000 {
                        return;
                    }
                    // From 1,000 addresses.
                    let from = [127, 0, 9 + n % 4, 1 + thread];
                    match try_log_in_from(world, from, "", USER, "wrong").unwrap() {
                        (401, _) => {}
                        (429, retry_after) => {
                            assert_eq!(retry_after, "1");
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                        other => panic!("{other:?}"),
                    }
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        eventually("guesses are refused because too many wait", || refused.load(Ordering::SeqCst) > 0);
        // Each of them, at the first attempt: from the known address, with its own slots.
        let answers: Vec<_> = (0..3).map(|_| log_in_from(&world, known, USER, PASSWORD).0).collect();
        is_done.store(true, Ordering::SeqCst);
        assert_eq!(answers, [200; 3]);
    });
    // Those that wait take part of a minute; the others are refused at once.
    assert!(started.elapsed() < Duration::from_secs(240), "{:?}", started.elapsed());
    assert!(answered.load(Ordering::SeqCst) >= 1000);
    let grown = memory_kib(world.exporter.pid(), "VmHWM").saturating_sub(idle);
    assert!(grown < 96 << 10, "{grown} KiB");
    eventually("no log-in is left", || {
        let log_ins = &client.get("/status").ok()["log_ins"];
        ["running", "waiting"].iter().all(|state| log_ins[state].as_array().unwrap().is_empty())
    });
    assert_eq!(text(&client.get("/status").ok()["version"]), env!("CARGO_PKG_VERSION"));
}
