//! A snapshot is not swept while an answer about it is being written, however slowly the client takes it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;

use reqwest::Method;
use rustls::{ClientConnection, StreamOwned};
use serde_json::json;

use crate::harness::{Client, Clock, Work, World, connect, text};
use crate::needs_root;

const SNAPSHOTS: &str = "/vms/0004fb00000600000000000000000001/snapshots";

/// Extents of a disk whose map is longer than all buffers between the service and a client that does not read.
const EXTENTS: u64 = 100_000;

type Connection = StreamOwned<ClientConnection, TcpStream>;

fn take(client: &Client, ttl: &str) -> String {
    let request = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"));
    text(&client.send(request.body(json!({"ttl": ttl}).to_string())).ok()["id"])
}

/// Asks for `path` and reads the first bytes of the answer.
fn begin(world: &World, client: &Client, path: &str, accept: &str) -> Connection {
    let mut stream = connect(&world.exporter, &world.certificates);
    let head = format!("GET /api/v1{path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n");
    stream.write_all(format!("{head}Authorization: Bearer {}\r\n\r\n", client.token).as_bytes()).unwrap();
    let mut first = [0; 4096];
    stream.read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&first));
    stream
}

/// Whether the rest of an answer is whole: its last chunk is there.
fn comes_to_an_end(mut answer: Connection) -> bool {
    let mut rest = Vec::new();
    answer.read_to_end(&mut rest).is_ok() && rest.ends_with(b"\r\n0\r\n\r\n")
}

#[test]
fn what_an_answer_reads_is_kept_to_its_end() {
    needs_root!();
    let clock = Clock::new();
    let world = World::with(8 << 10, |settings| clock.load_into(settings));
    let disk = &world.define_vm(&[("a.img", EXTENTS * 8192)])[0];
    let client = world.lasting_client();
    let bases: [String; 2] = std::array::from_fn(|_| take(&client, "1h"));
    let file = fs::File::options().write(true).open(disk).unwrap();
    (0..EXTENTS).for_each(|extent| file.write_all_at(&[1; 4096], extent * 8192).unwrap());
    let [target, summed] = std::array::from_fn(|_| take(&client, "1h"));
    take(&client, "1h");
    clock.rounds(&world, 1);

    let document = format!("{SNAPSHOTS}/{target}?compareTo={}&refine=0", bases[0]);
    let lines = format!("{SNAPSHOTS}/{target}/disks/a.img/chunks?compareTo={}", bases[1]);
    let blocks = format!("{SNAPSHOTS}/{summed}/disks/a.img/checksum?blockSize=4096&blocks=true");
    let answers = [(document.as_str(), "*/*"), (&lines, "application/x-ndjson"), (&blocks, "*/*")]
        .map(|(path, accept)| (path, begin(&world, &client, path, accept)));
    // The clients take their time, and so does the service.
    Work::of(&world.exporter).wait_for_rest();
    clock.pass(24);
    clock.rounds(&world, 3);
    for (path, answer) in answers {
        assert!(comes_to_an_end(answer), "{path}: the answer was cut; {}", world.exporter.log());
    }
    // A client works on what it has for a while after that.
    clock.rounds(&world, 1);
    world.lasting_client().get(&format!("{SNAPSHOTS}/{target}?compareTo={}&summary=true", bases[0])).ok();
    clock.pass(1);
    clock.rounds(&world, 1);
    for id in bases.iter().chain([&target, &summed]) {
        assert_eq!(world.lasting_client().get(&format!("{SNAPSHOTS}/{id}?chunks=false")).error(404), "not_found");
    }
}

#[test]
fn a_client_that_lists_again_and_again_keeps_nothing() {
    needs_root!();
    let clock = Clock::new();
    let world = World::with(512, |settings| clock.load_into(settings));
    world.define_vm(&[("a.img", 1 << 20)]);
    let client = world.lasting_client();
    take(&client, "1h");
    let newest = take(&client, "1h");
    clock.rounds(&world, 1);
    clock.pass(3);
    world.lasting_client().get(SNAPSHOTS).ok();
    clock.rounds(&world, 1);
    let left = world.lasting_client().get(SNAPSHOTS).ok();
    assert_eq!(left.as_array().unwrap().iter().map(|one| text(&one["id"])).collect::<Vec<_>>(), [newest]);
}
