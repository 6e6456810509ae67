//! The cost of downloads relative to nginx and qemu-nbd serving the same files, from one run.
//!
//! `make bench` runs it as root. Each round uses all peers in turn, so that other activity on the machine affects all
//! of them. Lower values of `BENCH_GIB` (4) and `BENCH_ROUNDS` (5) make it shorter, as do parts of load names as
//! arguments. With `BENCH_WRITE` the table is written to docs/benchmarks.md. `EXPORTERS` lists builds of the exporter
//! to compare, separated by colons.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a bench that cannot run may panic

#[allow(dead_code, unused_imports)] // the tests use the rest
#[path = "../../tests/journeys/harness/mod.rs"]
mod harness;

mod client;
mod load;
mod peer;
mod table;

use std::process::Command;

use harness::{World, text, write_at};
use load::Input;
use peer::Peer;
use table::Table;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("this bench mounts XFS: run it as root");
        return;
    }
    let number = |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let (gib, rounds) = (number("BENCH_GIB", 4), number("BENCH_ROUNDS", 5));
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();

    // Several builds can be compared to show the effect of a change.
    let built = env!("CARGO_BIN_EXE_coriolis-ovm-exporter");
    let binaries = std::env::var("EXPORTERS").unwrap_or_else(|_| built.to_owned());
    let worlds: Vec<World> = binaries.split(':').map(world).collect();
    let mut peers: Vec<(Peer, Input)> = Vec::new();
    for (world, binary) in worlds.iter().zip(binaries.split(':')) {
        let input = input(world, gib << 30);
        let name = if worlds.len() > 1 { binary } else { "exporter" };
        peers.push((Peer::exporter(name.to_owned(), world, &input.snapshot), input));
    }
    let input = peers[0].1.clone();
    peers.push((Peer::nbd(&worlds[0], &input.folder), input.clone()));
    peers.push((Peer::nginx(&worlds[0], &input.folder), input));

    let mut table = Table::default();
    for round in 0..rounds {
        for (name, load) in load::LOADS {
            if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
                continue;
            }
            eprintln!("round {} of {rounds}: {name}", round + 1);
            // The order of the peers changes with each round.
            let turn = usize::try_from(round).unwrap() % peers.len();
            for (peer, input) in peers[turn..].iter().chain(&peers[..turn]).filter(|(peer, _)| load::fits(name, peer)) {
                for (measure, value) in load(peer, input) {
                    table.add(name, measure, &peer.name, value);
                }
            }
        }
    }
    let names: Vec<&str> = peers.iter().map(|(peer, _)| peer.name.as_str()).collect();
    let text = format!("{}\n\n{}", machine(gib, rounds), table.markdown(&names));
    println!("{text}");
    if std::env::var_os("BENCH_WRITE").is_some() {
        write_down(&text);
    }
}

/// The commit, date, machine and parameters of the run.
fn machine(gib: u64, rounds: u64) -> String {
    let output_of = |command: &str| {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let model = output_of("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n1");
    let seal = output_of(
        "openssl speed -seconds 1 -bytes 16384 -evp aes-128-gcm 2>/dev/null | awk '/^AES-128-GCM|^aes-128-gcm/ { print int($NF / 1048.576) }'",
    );
    format!(
        "Commit {}, {}; {} ×{}, Linux {}; disks of {gib} GiB, medians of {rounds} rounds; {}, {}; `openssl speed` of \
         AES-128-GCM: {seal} MiB/s.",
        output_of("git describe --always --dirty"),
        output_of("date -u +%F"),
        model,
        output_of("nproc"),
        output_of("uname -r"),
        output_of("nginx -v 2>&1 | sed 's/.*: //'"),
        output_of("openssl version | cut -d' ' -f1,2"),
    )
}

/// Replaces the text between the two marks of docs/benchmarks.md.
fn write_down(text: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/benchmarks.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (before, rest) = document.split_once("<!-- bytes out -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- /bytes out -->").unwrap();
    std::fs::write(path, format!("{before}<!-- bytes out -->\n{text}<!-- /bytes out -->{after}")).unwrap();
}

fn world(binary: &str) -> World {
    World::with(16 << 10, |settings| {
        settings.binary = binary.into();
        settings.environment.push(("RUST_LOG".to_owned(), "info".to_owned()));
    })
}

/// Snapshots a VM with a full disk, an empty disk, and a disk of 1 TiB with 1 GiB of data.
fn input(world: &World, size: u64) -> Input {
    const MIB: usize = 1 << 20;
    let disks = world.define_vm(&[("full.img", size), ("hole.img", size), ("sparse.img", 1 << 40)]);
    let mut random = harness::Random(1);
    let noise: Vec<u8> = (0..MIB / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    for start in (0..size).step_by(MIB) {
        write_at(&disks[0], start, &noise);
    }
    for gib in 0..1024 {
        write_at(&disks[2], gib << 30, &noise);
    }
    let client = world.client();
    let snapshot = text(&client.take_snapshot()["id"]);
    let folder = world.repository.join("CoriolisSnapshots").join(&snapshot);
    harness::run(Command::new("sync").arg("--file-system").arg(&folder));
    Input { size, snapshot, folder, image: world.volume.image() }
}
