//! Many silent connections do not prevent other clients from being served.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{
    PASSWORD, ProcessStats, USER, World, connect, connect_from, eventually, raise_descriptor_limit, silent_from,
};
use crate::{needs, needs_root};

/// Enough connections to take all slots.
const MANY: usize = 600;

/// The longest that a client may have to wait on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Logs in with curl from this address; returns the time that it took.
fn log_in_from(world: &World, address: &str) -> Duration {
    let started = Instant::now();
    let output = Command::new("curl")
        .args(["-sS", "--fail", "--max-time", "60", "--interface", address, "--cacert"])
        .arg(world.certificates.ca())
        .args(["-d", &json!({"username": USER, "password": PASSWORD}).to_string()])
        .arg(format!("https://127.0.0.1:{}/api/v1/auth/login", world.exporter.port))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.starts_with(b"{\"token\""), "from {address}: {errors}");
    started.elapsed()
}

fn connection_threads(world: &World) -> usize {
    ProcessStats::of(&world.exporter).threads_named("connection")
}

#[test]
fn silent_connections_do_not_lock_out_other_clients() {
    needs_root!();
    raise_descriptor_limit();
    let world = World::new(512);
    let client = world.client();
    let mut known = connect(&world.exporter, &world.certificates);
    let ask = |stream: &mut dyn ReadWrite| {
        let head = format!("GET /api/v1/vms HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", client.token);
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 4096];
        let length = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    };
    ask(&mut known);
    let check_service = |what: &str| {
        for address in ["127.0.0.1", "127.0.0.2", "127.0.0.99"] {
            let took = log_in_from(&world, address);
            assert!(took < SOON, "{what}: a log-in from {address} took {took:?}");
        }
        let started = Instant::now();
        assert_eq!(client.get("/vms").status, 200);
        assert_eq!(world.client().get("/vms").status, 200);
        assert!(started.elapsed() < SOON, "{what}: an authenticated client waited {:?}", started.elapsed());
    };

    // From one address: TCP only, TLS, half a request.
    let one: Vec<TcpStream> = (0..MANY).map(|_| silent_from(&world.exporter, [127, 0, 0, 1])).collect();
    check_service("silent connections of one address");
    assert!(connection_threads(&world) < 128, "{} threads for one address", connection_threads(&world));
    let tls: Vec<_> = (0..MANY)
        .map(|number| {
            let mut stream = connect(&world.exporter, &world.certificates);
            if number % 2 == 0 {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: ").unwrap();
            }
            stream
        })
        .collect();
    check_service("idle TLS connections of one address");

    // From many addresses.
    let many: Vec<TcpStream> =
        (0..MANY).map(|number| silent_from(&world.exporter, [127, 0, 0, (2 + number % 12) as u8])).collect();
    check_service("silent connections of many addresses");
    let tls_of_many: Vec<_> = (0..MANY)
        .map(|number| connect_from(&world.exporter, &world.certificates, [127, 0, 1, (1 + number % 200) as u8]))
        .collect();
    check_service("idle TLS connections of many addresses");
    assert!(connection_threads(&world) <= 512 + 64, "{} threads", connection_threads(&world));
    // The earlier connection with a good token is still open.
    ask(&mut known);
    let log = world.exporter.log();
    assert!(log.contains("too many connections") && !log.contains("panic"), "{log}");
    drop((one, tls, many, tls_of_many));
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

#[test]
fn connections_queue_in_the_kernel_while_the_service_is_stopped() {
    needs_root!();
    let most = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    needs!(most.trim().parse::<usize>().unwrap() >= 1024, "net.core.somaxconn of 1024 or more");
    raise_descriptor_limit();
    let world = World::new(512);
    world.exporter.signal(Signal::SIGSTOP);
    let waiting: Vec<TcpStream> = (0..MANY).map(|_| silent_from(&world.exporter, [127, 0, 0, 1])).collect();
    world.exporter.signal(Signal::SIGCONT);
    assert!(log_in_from(&world, "127.0.0.1") < SOON);
    drop(waiting);
}

#[test]
fn address_limit_does_not_apply_to_trusted_proxies() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.api =
            "max_connections_per_address = 5\ntrusted_proxies = [\"127.0.0.7\", \"127.0.3.0/24\"]".to_owned();
    });
    for (address, kept) in [([127, 0, 0, 1], 5), ([127, 0, 0, 7], 20), ([127, 0, 3, 9], 20), ([127, 0, 4, 9], 5)] {
        let mut all: Vec<_> = (0..20).map(|_| connect_from(&world.exporter, &world.certificates, address)).collect();
        // A connection that is being closed may get one more answer.
        eventually(&format!("{kept} of {address:?} are kept"), || {
            all.retain_mut(|stream| {
                let asked = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
                let mut answer = [0; 4096];
                asked.is_ok() && stream.read(&mut answer).is_ok_and(|length| length > 0)
            });
            assert!(all.len() >= kept, "{} of {address:?} are kept", all.len());
            all.len() == kept
        });
    }
}

/// The active kernel timer of the service's socket: 02 is the keepalive timer.
fn timer(stream: &TcpStream) -> String {
    let [local, peer] = [stream.peer_addr().unwrap().port(), stream.local_addr().unwrap().port()];
    let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
    let socket = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|fields| {
        fields.len() > 5
            && fields[1].ends_with(&format!(":{local:04X}"))
            && fields[2].ends_with(&format!(":{peer:04X}"))
    });
    socket.expect("the connection is not in the kernel's table")[5].split(':').next().unwrap().to_owned()
}

#[test]
fn authenticated_idle_connections_are_kept_longer() {
    needs_root!();
    let mut world = World::new(512);
    let client = world.client();
    let get = |stream: &mut dyn ReadWrite, path: &str, token: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 8192];
        let length = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    let mut known = connect(&world.exporter, &world.certificates);
    let mut stranger = connect(&world.exporter, &world.certificates);
    let mut forger = connect(&world.exporter, &world.certificates);
    assert!(get(&mut known, "/api/v1/vms", &client.token).contains(" 200 "));
    assert!(get(&mut stranger, "/healthz", "").contains(" 200 "));
    assert!(get(&mut forger, "/api/v1/vms", "forged").contains(" 401 "));
    // The kernel shows this timer only after all data is acknowledged.
    eventually("TCP keepalive is on", || timer(&known.sock) == "02");
    // Both are closed with a TLS close_notify.
    for stream in [&mut stranger, &mut forger] {
        assert_eq!(stream.read(&mut [0; 100]).unwrap(), 0);
    }
    assert!(
        get(&mut known, "/api/v1/vms", &client.token).contains(" 200 "),
        "closed as early as an anonymous connection"
    );

    world.exporter.settings().api = "keepalive_timeout = \"2s\"".to_owned();
    world.exporter.restart();
    let client = world.client();
    let mut known = connect(&world.exporter, &world.certificates);
    assert!(get(&mut known, "/api/v1/vms", &client.token).contains(" 200 "));
    let started = Instant::now();
    assert_eq!(known.read(&mut [0; 100]).unwrap(), 0);
    assert!((1..20).contains(&started.elapsed().as_secs()), "closed after {:?}", started.elapsed());
}
