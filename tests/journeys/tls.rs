//! TLS, connections that dawdle, and the end of the service's life.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;

use crate::harness::{Client, VM, World, text, write_at};
use crate::needs_root;

/// Runs curl against `/healthz`; whether it was answered.
fn curl(world: &World, arguments: &[&str]) -> bool {
    let output = Command::new("curl")
        .args(["-sS", "--fail", "--max-time", "20", "--cacert"])
        .arg(world.certificates.ca())
        .args(arguments)
        .arg(format!("https://127.0.0.1:{}/healthz", world.exporter.port))
        .output()
        .unwrap();
    output.status.success()
}

/// The certificate that is served, in PEM.
fn served_certificate(world: &World) -> String {
    let command =
        format!("openssl s_client -connect 127.0.0.1:{} </dev/null 2>/dev/null | openssl x509", world.exporter.port);
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn wait_for_log(world: &World, what: &str) {
    for _ in 0..200 {
        if world.exporter.log().contains(what) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the log does not say {what:?}");
}

#[test]
fn versions_and_certificates() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.certificate = settings.certificate.with_file_name("service.pem");
        settings.key = settings.key.with_file_name("service.key");
        std::fs::copy(settings.certificate.with_file_name("server.pem"), &settings.certificate).unwrap();
        std::fs::copy(settings.key.with_file_name("server.key"), &settings.key).unwrap();
    });
    assert!(curl(&world, &["--tlsv1.3"]));
    assert!(curl(&world, &["--tls-max", "1.2"]));
    assert!(!curl(&world, &["--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"]));

    // A renewed certificate is taken on SIGHUP, a broken one is not.
    let first = served_certificate(&world);
    assert!(first.starts_with("-----BEGIN CERTIFICATE"), "{first}");
    world.certificates.issue("service");
    world.exporter.signal(Signal::SIGHUP);
    wait_for_log(&world, "certificate read anew");
    let second = served_certificate(&world);
    assert_ne!(first, second);
    std::fs::write(world.certificates.path("service.pem"), "no certificate").unwrap();
    world.exporter.signal(Signal::SIGHUP);
    wait_for_log(&world, "the old one stays");
    assert_eq!(served_certificate(&world), second);
    assert!(curl(&world, &[]));
}

#[test]
fn clients_may_be_asked_for_a_certificate() {
    needs_root!();
    let world = World::with(512, |settings| {
        let ca = settings.certificate.with_file_name("ca.pem");
        settings.tls = format!("client_auth = true\nca_certificate = {ca:?}");
    });
    assert!(!curl(&world, &[]));
    let (certificate, key) = (world.certificates.path("server.pem"), world.certificates.path("server.key"));
    assert!(curl(&world, &["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()]));
}

#[test]
fn who_dawdles_is_cut_off() {
    needs_root!();
    let world = World::new(512);
    let address = ("127.0.0.1", world.exporter.port);
    let is_cut = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(Duration::from_secs(50))).unwrap();
        let mut rest = Vec::new();
        // An error other than our own time-out is a cut as well.
        match stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        }
    };
    let silent = TcpStream::connect(address).unwrap();
    let mut plain = TcpStream::connect(address).unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    // Half a head over TLS, and then nothing.
    let script = format!(
        "import socket, ssl\n\
         context = ssl._create_unverified_context()\n\
         stream = context.wrap_socket(socket.create_connection(('127.0.0.1', {}), 50))\n\
         stream.sendall(b'GET /healthz HTTP/1.1\\r\\nHost: x\\r\\n')\n\
         while stream.recv(4096): pass\n",
        world.exporter.port
    );
    let half = std::thread::spawn(move || Command::new("python3").args(["-c", &script]).output().unwrap());
    assert!(is_cut(plain), "plain HTTP is not cut off");
    assert!(is_cut(silent), "a client that does not shake hands is not cut off");
    assert!(curl(&world, &[]), "others are not answered meanwhile");
    let half = half.join().unwrap();
    let told = String::from_utf8_lossy(&half.stderr);
    assert!(half.status.success(), "half a head is not cut off: {told}");
}

#[test]
fn a_signal_lets_running_answers_finish() {
    needs_root!();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut world = World::new(512);
        let disk = &world.define_vm(&[("a.img", 32 << 20)])[0];
        write_at(disk, 0, &vec![7; 32 << 20]);
        let client = world.client();
        let id = text(&client.take_snapshot()["id"]);
        let path = format!("/api/v1/vms/{VM}/snapshots/{id}/disks/a.img");
        let mut response = client.request(Method::GET, &path).send().unwrap();
        let mut body = vec![0; 4096];
        response.read_exact(&mut body).unwrap();
        world.exporter.signal(signal);
        wait_for_log(&world, "stopping");
        let newcomer = Client::new(&world.exporter, &world.certificates);
        assert!(newcomer.try_send(newcomer.request(Method::GET, "/healthz")).is_err(), "still taking connections");
        response.read_to_end(&mut body).unwrap();
        assert!(body == vec![7; 32 << 20], "{signal}: the download was cut");
        drop(client);
        let status = world.exporter.wait(Duration::from_secs(20));
        assert!(status.success(), "{signal}: {status}");
    }
}
