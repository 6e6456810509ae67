//! TLS versions and certificates, slow connections, and shutdown.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;

use crate::harness::{Certificates, VM, World, connect, write_at};
use crate::needs_root;

/// Requests `/healthz` with curl; returns whether it succeeded.
fn curl(world: &World, arguments: &[&str]) -> bool {
    curl_output(world, arguments).status.success()
}

fn curl_output(world: &World, arguments: &[&str]) -> Output {
    Command::new("curl")
        .args(["-sSv", "--fail", "--max-time", "20", "--cacert"])
        .arg(world.certificates.ca())
        .args(arguments)
        .arg(format!("https://127.0.0.1:{}/healthz", world.exporter.port))
        .output()
        .unwrap()
}

/// The served certificate in PEM.
fn served_certificate(world: &World) -> String {
    let command =
        format!("openssl s_client -connect 127.0.0.1:{} </dev/null 2>/dev/null | openssl x509", world.exporter.port);
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tls_versions_and_certificate_reload() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.certificate = settings.certificate.with_file_name("service.pem");
        settings.key = settings.key.with_file_name("service.key");
        std::fs::copy(settings.certificate.with_file_name("server.pem"), &settings.certificate).unwrap();
        std::fs::copy(settings.key.with_file_name("server.key"), &settings.key).unwrap();
    });
    for (arguments, succeeds, expected) in [
        (&["--tlsv1.3"][..], true, "TLSv1.3 / "),
        (&["--tls-max", "1.2"], true, "TLSv1.2 / "),
        (&["--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"], false, "TLSv1.1 (IN), TLS alert"),
    ] {
        let output = curl_output(&world, arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() == succeeds && text.contains(expected), "{arguments:?}: {text}");
    }

    // SIGHUP loads a renewed certificate, and keeps the old one if the new one is invalid.
    let first = served_certificate(&world);
    assert!(first.starts_with("-----BEGIN CERTIFICATE"), "{first}");
    world.certificates.issue("service");
    world.exporter.signal(Signal::SIGHUP);
    world.exporter.wait_for_log("certificate reloaded");
    let second = served_certificate(&world);
    assert_ne!(first, second);
    std::fs::write(world.certificates.path("service.pem"), "no certificate").unwrap();
    world.exporter.signal(Signal::SIGHUP);
    world.exporter.wait_for_log("keeping the current one");
    assert_eq!(served_certificate(&world), second);
    assert!(curl(&world, &[]));
}

#[test]
fn client_certificates_are_required_if_configured() {
    needs_root!();
    let world = World::with(512, |settings| {
        let ca = settings.certificate.with_file_name("ca.pem");
        settings.tls = format!("client_auth = true\nca_certificate = {ca:?}");
    });
    assert!(!curl(&world, &[]));
    let strangers = Certificates::new();
    for (certificates, welcome) in [(&world.certificates, true), (&strangers, false)] {
        certificates.issue("client");
        let (certificate, key) = (certificates.path("client.pem"), certificates.path("client.key"));
        let arguments = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
        assert_eq!(curl(&world, &arguments), welcome);
    }
}

/// Reads until the connection is closed; `None` if it stays open.
fn read_until_closed(mut stream: impl Read) -> Option<Vec<u8>> {
    let (mut rest, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Some(rest),
            Ok(length) => rest.extend_from_slice(&buffer[..length]),
            // The read timeout of this test.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
            Err(_) => return Some(rest),
        }
    }
}

#[test]
fn slow_handshakes_and_requests_are_disconnected() {
    needs_root!();
    let world = World::new(512);
    let open = || {
        let stream = TcpStream::connect(("127.0.0.1", world.exporter.port)).unwrap();
        // Longer than the timeout of a handshake, and shorter than that of a request.
        stream.set_read_timeout(Some(Duration::from_secs(25))).unwrap();
        stream
    };
    let silent = open();
    let mut plain = open();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut half_a_hello = open();
    half_a_hello.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).unwrap();
    let mut half_a_head = connect(&world.exporter, &world.certificates);
    half_a_head.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").unwrap();
    let mut half_a_body = connect(&world.exporter, &world.certificates);
    half_a_body.write_all(b"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").unwrap();
    let unused = connect(&world.exporter, &world.certificates);
    assert!(curl(&world, &[]), "other clients are not served meanwhile");

    let response = read_until_closed(plain).expect("the plain HTTP connection stays open");
    assert!(response.starts_with(b"HTTP/1.1 400 "), "plain HTTP: {response:?}");
    for (what, stream) in [("a client that says nothing", silent), ("half a hello", half_a_hello)] {
        let response = read_until_closed(stream).unwrap_or_else(|| panic!("{what}: the connection stays open"));
        assert!(response.len() < 100, "{what}: {} bytes received", response.len());
    }
    let response = read_until_closed(half_a_body).expect("half a body: the connection stays open");
    assert!(String::from_utf8_lossy(&response).starts_with("HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&response));
    for (what, stream) in [("half a head", half_a_head), ("an unused connection", unused)] {
        let response = read_until_closed(stream).unwrap_or_else(|| panic!("{what}: the connection stays open"));
        assert!(
            !String::from_utf8_lossy(&response).contains(" 200 "),
            "{what}: {}",
            String::from_utf8_lossy(&response)
        );
    }
    assert!(curl(&world, &[]));
    assert!(!world.exporter.log().contains("panic"));
}

#[test]
fn signal_lets_running_responses_finish() {
    needs_root!();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut world = World::new(512);
        let disk = &world.define_vm(&[("a.img", 64 << 20)])[0];
        write_at(disk, 0, &vec![7; 64 << 20]);
        let client = world.client();
        let id = client.take_snapshot_id();
        let path = format!("/api/v1/vms/{VM}/snapshots/{id}/disks/a.img");
        let mut response = client.request(Method::GET, &path).send().unwrap();
        let mut body = vec![0; 4096];
        response.read_exact(&mut body).unwrap();
        let idle = world.client(); // its connection stays open after the log-in
        let unused = connect(&world.exporter, &world.certificates);
        let silent = TcpStream::connect(("127.0.0.1", world.exporter.port)).unwrap();
        world.exporter.signal(signal);
        world.exporter.wait_for_log("stopping");
        let newcomer = world.anonymous_client();
        let refused = newcomer.try_send(newcomer.request(Method::GET, "/healthz")).unwrap_err();
        assert!(refused.is_connect(), "{signal}: new connections are accepted: {refused:?}");
        response.read_to_end(&mut body).unwrap();
        assert!(body == vec![7; 64 << 20], "{signal}: the download is incomplete");
        // Less than the 30 s for running requests: idle connections do not delay the shutdown.
        let status = world.exporter.wait(Duration::from_secs(20));
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
        assert!(!world.exporter.log().contains("still running at the deadline"), "{signal}");
        drop((client, idle, unused, silent));
    }
}
