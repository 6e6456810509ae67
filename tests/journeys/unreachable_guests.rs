//! Guests that accept no connection got no request, so no post hook is pending.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Certificates, Guest, MB, SNAPSHOTS, ServerBehavior, VM, World, eventually, text};
use crate::needs_root;

/// A port with a full accept queue: the kernel drops further SYNs, as if the host were off.
struct Silent {
    child: Child,
    port: u16,
}

impl Silent {
    fn start() -> Self {
        let script = "import socket, sys, time\n\
                      server = socket.socket()\n\
                      server.bind(('127.0.0.1', 0))\n\
                      server.listen(0)\n\
                      fillers = [socket.socket() for _ in range(8)]\n\
                      for filler in fillers:\n\
                      \x20   filler.setblocking(False)\n\
                      \x20   filler.connect_ex(server.getsockname())\n\
                      print(server.getsockname()[1], flush=True)\n\
                      time.sleep(3600)\n";
        let mut child = Command::new("python3").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { child, port: port.trim().parse().unwrap() }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn unreachable_guest_has_no_pending_post_hook() {
    needs_root!();
    let certificates = Certificates::new();
    let mut world = World::with(512, |settings| {
        settings.sections = format!(
            "[hooks.sync]\nsecret = \"hush\"\nca_certificate = {:?}\nhosts = [\"*\"]\ntimeout = \"2s\"\n",
            certificates.ca()
        );
    });
    world.define_vm(&[("a.img", MB)]);
    let definition = world.repository.join("VirtualMachines").join(VM).join("vm.cfg");
    let plain = std::fs::read_to_string(&definition).unwrap();
    let tag = |url: &str| {
        let tagged = format!("{plain}OVM_description = 'xo:notify-on-snapshot={url}'\n");
        std::fs::write(&definition, tagged).unwrap();
    };

    let silent = Silent::start();
    let address = SocketAddr::from(([127, 0, 0, 1], silent.port));
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).expect_err("the port accepts a connection");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Servers that accept and send nothing, or hang up: without TLS no request was sent.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let hangs_up = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mute_at, hangs_up_at) = (mute.local_addr().unwrap(), hangs_up.local_addr().unwrap());
    std::thread::spawn(move || hangs_up.incoming().for_each(drop));
    let stranger = Guest::start(&Certificates::new(), "server");
    let client = world.client();
    for (what, url) in [
        ("no answer to SYN", format!("https://127.0.0.1:{}", silent.port)),
        ("refused", format!("https://{closed}")),
        ("unreachable", "https://255.255.255.255:1727".to_owned()),
        ("no such name", "https://guest.invalid:1727".to_owned()),
        ("no TLS", format!("https://{mute_at}")),
        ("hangs up", format!("https://{hangs_up_at}")),
        ("another's certificate", stranger.url()),
    ] {
        tag(&url);
        let made = client.take_snapshot();
        let runs = made["hooks"].as_array().unwrap();
        assert_eq!((runs.len(), &runs[0]["outcome"]), (1, &json!("failed")), "{what}: {made}");
        assert_eq!(made["consistency"], "crash", "{what}");
        let detail = text(&runs[0]["detail"]);
        assert!(detail.contains("check that the VM") || detail.contains("ca_certificate"), "{what}: {detail}");
    }
    assert_eq!(stranger.take_requests(), Vec::<String>::new());
    assert_eq!(client.pending_hooks(), json!([]));

    // A guest that was reached may be frozen: its failed post call is pending.
    let guest = Guest::start(&certificates, "server");
    tag(&guest.url());
    guest.set_behavior(&[ServerBehavior::Slow]);
    guest.set_post_sync_behavior(ServerBehavior::ServerError);
    let made = client.take_snapshot();
    let runs: Vec<_> = made["hooks"].as_array().unwrap().iter().map(|run| text(&run["outcome"])).collect();
    assert_eq!(runs, ["timeout", "failed", "failed"], "{made}");
    let pending = &client.pending_hooks();
    assert_eq!(
        (&pending[0]["hooks"], &pending[0]["vm_id"], &pending[0]["attempts"]),
        (&json!([guest.url()]), &json!(VM), &json!(1))
    );
    let page = client.send(client.request(reqwest::Method::GET, "/api/v1/status").header("Accept", "text/plain"));
    assert!(String::from_utf8(page.body).unwrap().contains("guests may still be frozen"));
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(120)).code(), Some(1));
    // The call succeeds after the next start.
    guest.set_post_sync_behavior(ServerBehavior::Good);
    world.exporter.restart();
    let client = world.client();
    eventually("no post hook is pending", || client.pending_hooks() == json!([]));
    // A failed post call: the guest may have thawed before the clones, so the snapshot is only crash-consistent.
    guest.set_behavior(&[ServerBehavior::Good]);
    guest.set_post_sync_behavior(ServerBehavior::ServerError);
    let made = client.take_snapshot();
    assert_eq!(made["consistency"], "crash", "{made}");
    assert!(text(&made["consistency_reason"]).contains("answers 500"), "{made}");
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{}", text(&made["id"]))).ok()["consistency"], "crash");
}
