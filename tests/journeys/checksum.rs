//! Checksums, compared to those of `b3sum`, `sha256sum` and Python's hashlib.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Client, MB, ProcessStats, Random, SNAPSHOTS, VM, World, connect, output, text, write_at, xfs_io,
};
use crate::needs_root;

/// The size of a disk of zeros whose checksum takes days.
const ENDLESS: u64 = 1 << 50;

fn request_checksum(client: &Client, id: &str, query: &str) -> Answer {
    client.get(&format!("{SNAPSHOTS}/{id}/disks/a.img/checksum?{query}"))
}

/// The digest of a file that a command line tool prints.
fn tool_digest(tool: &str, path: &Path) -> String {
    output(Command::new(tool).arg(path)).split_whitespace().next().unwrap().to_owned()
}

/// Digests of a part of a file by Python's hashlib: of the bytes, of each block, and of the block digests.
fn python_digests(path: &Path, start: u64, length: u64, block: u64) -> Value {
    const PROGRAM: &str = "
import hashlib, json, sys
path, start, length, block = sys.argv[1], *map(int, sys.argv[2:])
with open(path, 'rb') as file:
    file.seek(start)
    data = file.read(length)
assert len(data) == length
found = {}
for name, make in (('sha256', hashlib.sha256), ('blake2b-256', lambda data=b'': hashlib.blake2b(data, digest_size=32))):
    whole, blocks = make(), []
    for at in range(0, length, block):
        digest = make(data[at:at + block])
        whole.update(digest.digest())
        blocks.append(digest.hexdigest())
    found[name] = {'plain': make(data).hexdigest(), 'blocks': blocks, 'of_blocks': whole.hexdigest()}
print(json.dumps(found))
";
    let numbers = [start, length, block].map(|number| number.to_string());
    serde_json::from_str(&output(Command::new("python3").args(["-c", PROGRAM]).arg(path).args(numbers))).unwrap()
}

/// A VM whose disk has data, holes and preallocated space, and ends inside a block.
fn with_a_disk() -> (World, std::path::PathBuf, Client, u64) {
    let size = 21 * MB + 777;
    let world = World::new(1024);
    let path = world.define_vm(&[("a.img", size)]).remove(0);
    write_at(&path, 100, &Random(1).bytes(3 * MB));
    write_at(&path, 9 * MB - 5, &Random(2).bytes(MB / 2));
    xfs_io(&path, &["falloc 12m 1m"]);
    write_at(&path, size - 10, b"the end...");
    let client = world.client();
    (world, path, client, size)
}

#[test]
fn checksums_match_other_tools() {
    needs_root!();
    let (_world, path, client, size) = with_a_disk();
    let id = client.take_snapshot_id();
    let expected = |algorithm: &str, start: u64, length: u64, checksum: &str| json!({"algorithm": algorithm, "start": start, "length": length, "checksum": checksum});
    assert_eq!(request_checksum(&client, &id, "").ok(), expected("blake3", 0, size, &tool_digest("b3sum", &path)));
    // The second answer comes from the cache.
    for _ in 0..2 {
        let sha256 = tool_digest("sha256sum", &path);
        assert_eq!(request_checksum(&client, &id, "algorithm=sha256").ok(), expected("sha256", 0, size, &sha256));
    }
    let part = path.with_extension("part");
    for (start, length) in [(0, 1), (99, 2), (MB, 9 * MB), (4 * MB, 2 * MB), (size - 1, 1), (size, 0), (5, size - 5)] {
        let (from, to) = (usize::try_from(start).unwrap(), usize::try_from(start + length).unwrap());
        fs::write(&part, &fs::read(&path).unwrap()[from..to]).unwrap();
        let query = format!("start={start}&length={length}");
        assert_eq!(
            request_checksum(&client, &id, &query).ok(),
            expected("blake3", start, length, &tool_digest("b3sum", &part))
        );
        for block in [4096, MB, 4 * MB, 16 * MB] {
            let python = python_digests(&path, start, length, block);
            for algorithm in ["sha256", "blake2b-256"] {
                let python = &python[algorithm];
                let query = format!("algorithm={algorithm}&{query}");
                assert_eq!(request_checksum(&client, &id, &query).ok()["checksum"], python["plain"], "{query}");
                let query = format!("{query}&blockSize={block}");
                let answer = request_checksum(&client, &id, &query).ok();
                assert_eq!(
                    (&answer["checksum"], &answer["block_size"]),
                    (&python["of_blocks"], &json!(block)),
                    "{query}"
                );
                assert_eq!(answer["blocks"], Value::Null, "{query}");
                let answer = request_checksum(&client, &id, &format!("{query}&blocks=true")).ok();
                assert_eq!(
                    (&answer["checksum"], &answer["blocks"]),
                    (&python["of_blocks"], &python["blocks"]),
                    "{query}"
                );
            }
        }
    }
    // `block_size` is imageio's name of the parameter.
    let python = python_digests(&path, 0, size, 4 * MB);
    let answer = request_checksum(&client, &id, "algorithm=blake2b-256&block_size=4194304").ok();
    assert_eq!(answer["checksum"], python["blake2b-256"]["of_blocks"]);
    // Later writes to the live disk do not matter.
    let before = tool_digest("b3sum", &path);
    write_at(&path, 0, b"the guest goes on");
    assert_eq!(request_checksum(&client, &id, "").ok()["checksum"], json!(before));
    assert_ne!(request_checksum(&client, &client.take_snapshot_id(), "").ok()["checksum"], json!(before));
    assert_eq!(client.get("/capabilities").ok()["checksum_algorithms"], json!(["blake3", "sha256", "blake2b-256"]));
}

#[test]
fn invalid_checksum_requests_get_a_reason() {
    needs_root!();
    let (_world, path, client, size) = with_a_disk();
    let id = client.take_snapshot_id();
    for (query, why) in [
        ("algorithm=md5".to_owned(), "blake3, sha256, blake2b-256"),
        ("algorithm=SHA256".to_owned(), "blake3, sha256, blake2b-256"),
        ("start=x".to_owned(), "expected a number"),
        ("length=-1".to_owned(), "expected a number"),
        (format!("start={}", size + 1), "past the end"),
        (format!("start=1&length={size}"), "past the end"),
        (format!("start=1&length={}", u64::MAX), "past the end"),
        ("blockSize=3000".to_owned(), "a power of two from 4096 to 16777216"),
        ("blockSize=2048".to_owned(), "a power of two from 4096 to 16777216"),
        ("blockSize=4MiB".to_owned(), "a power of two from 4096 to 16777216"),
        ("blocks=true".to_owned(), "blockSize"),
        ("blocks=yes&blockSize=4096".to_owned(), "expected true or false"),
    ] {
        let answer = request_checksum(&client, &id, &query);
        assert_eq!(answer.error(400), "bad_request", "{query}");
        assert!(text(&answer.json()["details"]).contains(why), "{query}: {}", answer.json());
    }
    let elsewhere = |path: &str| client.get(&format!("{SNAPSHOTS}/{path}/checksum")).error(404);
    assert_eq!(elsewhere(&format!("{id}/disks/b.img")), "not_found");
    assert_eq!(elsewhere(&format!("{}/disks/a.img", uuid::Uuid::nil())), "not_found");
    assert_eq!(client.post(&format!("{SNAPSHOTS}/{id}/disks/a.img/checksum")).error(405), "method_not_allowed");

    let file = snapshot_file(&client, &id);
    write_at(&file, 0, &fs::read(&path).unwrap()[..1]);
    assert_eq!(request_checksum(&client, &id, "").error(409), "snapshot_lost");
    fs::remove_file(&file).unwrap();
    assert_eq!(request_checksum(&client, &id, "blockSize=4096&blocks=1").error(409), "snapshot_lost");
}

fn snapshot_file(client: &Client, id: &str) -> std::path::PathBuf {
    let document = client.get(&format!("{SNAPSHOTS}/{id}?chunks=false")).ok();
    text(&document["disks"][0]["path"]).into()
}

#[test]
fn checksum_does_not_read_holes() {
    needs_root!();
    let world = World::new(512);
    let path = &world.define_vm(&[("a.img", 256 * MB)])[0];
    write_at(path, 128 * MB, &[7; 4096]);
    let client = world.client();
    let id = client.take_snapshot_id();
    let expected = tool_digest("sha256sum", path);
    let before = ProcessStats::of(&world.exporter).bytes_read();
    assert_eq!(request_checksum(&client, &id, "algorithm=sha256").ok()["checksum"], json!(expected));
    let answer = request_checksum(&client, &id, "algorithm=sha256&blockSize=4194304&blocks=true").ok();
    let blocks = answer["blocks"].as_array().unwrap();
    let data_blocks: Vec<usize> = (0..64).filter(|i| blocks[*i] != blocks[0]).collect();
    assert_eq!((blocks.len(), data_blocks), (64, vec![32]));
    let read = ProcessStats::of(&world.exporter).bytes_read() - before;
    assert!(read < MB, "{read} bytes were read");
}

#[test]
fn checksum_stops_when_the_client_disconnects() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", ENDLESS), ("b.img", MB)]);
    let client = world.client();
    let id = client.take_snapshot_id();
    for query in ["algorithm=sha256", "algorithm=blake2b-256&blockSize=16777216", "blockSize=4096&blocks=true", "b"] {
        let mut head = format!("GET /api/v1{SNAPSHOTS}/{id}/disks/a.img/checksum?{query} HTTP/1.1\r\n");
        if query == "b" {
            head = format!("HEAD /api/v1{SNAPSHOTS}/{id}/disks/a.img HTTP/1.1\r\nWant-Repr-Digest: sha-256=1\r\n");
        }
        let request = format!("{head}Host: x\r\nAuthorization: Bearer {}\r\n\r\n", client.token);
        // More requests than the service computes at a time.
        let waiting: Vec<_> = (0..6)
            .map(|_| {
                let mut stream = connect(&world.exporter, &world.certificates);
                stream.write_all(request.as_bytes()).unwrap();
                stream
            })
            .collect();
        ProcessStats::of(&world.exporter).wait_until_busy();
        drop(waiting);
        ProcessStats::of(&world.exporter).wait_until_idle();
        // Other checksums are computed again.
        let small = client.get(&format!("{SNAPSHOTS}/{id}/disks/b.img/checksum")).ok();
        assert_eq!(small["length"], MB, "{query}");
    }
}

#[test]
fn checksum_fails_if_the_file_changes_meanwhile() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", ENDLESS)]);
    let client = world.client();
    for query in ["algorithm=sha256", "algorithm=sha256&blockSize=16777216"] {
        let id = client.take_snapshot_id();
        let file = snapshot_file(&client, &id);
        let answer = std::thread::scope(|scope| {
            let request = scope.spawn(|| request_checksum(&client, &id, query));
            ProcessStats::of(&world.exporter).wait_until_busy();
            write_at(&file, 0, &[1]);
            request.join().unwrap()
        });
        assert_eq!(answer.error(409), "snapshot_lost", "{query}");
    }

    // An answer that has begun is aborted.
    let id = client.take_snapshot_id();
    let file = snapshot_file(&client, &id);
    let path = format!("/api/v1{SNAPSHOTS}/{id}/disks/a.img/checksum?blockSize=4096&blocks=true");
    let mut answer = client.request(Method::GET, &path).send().unwrap();
    assert_eq!(answer.status(), 200);
    let mut first = [0; 1000];
    answer.read_exact(&mut first).unwrap();
    write_at(&file, 0, &[1]);
    let rest = answer.read_to_end(&mut Vec::new());
    assert!(rest.is_err(), "the answer was completed: {rest:?}");
    world.exporter.wait_for_log("cutting the connection");
    assert!(world.exporter.log().contains("or was changed since"));
}

#[test]
fn digest_headers_are_sent_on_request() {
    needs_root!();
    let (world, path, client, size) = with_a_disk();
    let id = client.take_snapshot_id();
    let disk = format!("/api/v1/vms/{VM}/snapshots/{id}/disks/a.img");
    let ask = |method: Method, headers: &[(&str, &str)]| {
        let request =
            headers.iter().fold(client.request(method, &disk), |request, (name, value)| request.header(*name, *value));
        client.send(request)
    };
    let of = |start: u64, end: u64| {
        let program = "import base64, hashlib, sys\nwith open(sys.argv[1], 'rb') as file: data = file.read()\n\
                       digest = hashlib.sha256(data[int(sys.argv[2]):int(sys.argv[3])]).digest()\n\
                       print(f'sha-256=:{base64.b64encode(digest).decode()}:', end='')";
        output(Command::new("python3").args(["-c", program]).arg(&path).args([start, end].map(|at| at.to_string())))
    };
    let of_bytes = |bytes: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        let sum = Command::new("openssl").args(["dgst", "-sha256", "-binary"]).arg(file.path()).output().unwrap();
        format!("sha-256=:{}:", BASE64_STANDARD.encode(sum.stdout))
    };
    let whole = of(0, size);
    let wanted = ("Want-Repr-Digest", "sha-512=9, sha-256=3");
    let before = ProcessStats::of(&world.exporter).bytes_read();
    // Eight concurrent requests compute the digest once.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let head = ask(Method::HEAD, &[wanted, ("Want-Content-Digest", "sha-256=1")]);
                assert_eq!(
                    (head.status, head.header("repr-digest"), head.header("content-digest")),
                    (200, &*whole, "")
                );
            });
        }
    });
    let read = ProcessStats::of(&world.exporter).bytes_read() - before;
    assert!((3 * MB..8 * MB).contains(&read), "{read} bytes were read of the 3.5 MiB");
    let get = ask(Method::GET, &[wanted]);
    assert_eq!((get.status, get.header("repr-digest"), get.header("content-digest")), (200, &*whole, ""));
    let range = format!("bytes=50-{}", 4 * MB);
    let content = ("Want-Content-Digest", "sha-256=1");
    let part = ask(Method::GET, &[wanted, content, ("Range", &range)]);
    assert_eq!((part.status, part.header("repr-digest")), (206, &*whole));
    assert_eq!(part.header("content-digest"), of(50, 4 * MB + 1));
    // No content digest for long content.
    assert_eq!(ask(Method::GET, &[content]).header("content-digest"), "");
    let long = format!("bytes=0-{},{}-{}", 10 * MB, 10 * MB, 18 * MB);
    let long = ask(Method::GET, &[content, ("Range", &long)]);
    assert_eq!((long.status, long.header("content-digest")), (206, ""));
    let head = ask(Method::HEAD, &[content, ("Range", "bytes=0-1,5-6")]);
    assert_eq!((head.status, head.header("content-digest")), (200, ""));
    // With several ranges it is the digest of the multipart body, with everything between the ranges.
    let many: Vec<String> = (0..64).rev().map(|n| format!("{}-{}", n * 40_000, n * 40_000 + 9_999)).collect();
    for ranges in [
        "0-1,5-6".to_owned(),
        format!("{}-{},0-{}", 3 * MB - 100, 8 * MB, 3 * MB),
        format!("0-{},0-9,{}-{}", 4 * MB, 3 * MB, 3 * MB + 5),
        many.join(","),
    ] {
        let several = ask(Method::GET, &[wanted, content, ("Range", &format!("bytes={ranges}"))]);
        assert!(several.status == 206 && several.header("content-type").starts_with("multipart/byteranges"));
        assert_eq!(several.header("repr-digest"), whole);
        assert_eq!(several.header("content-digest"), of_bytes(&several.body), "{ranges}");
    }
    // Not requested, or not with this algorithm.
    for header in ["sha-256=0", "sha-512=10", "nonsense"] {
        assert_eq!(ask(Method::GET, &[("Want-Repr-Digest", header)]).header("repr-digest"), "", "{header}");
    }
    let plain = ask(Method::GET, &[("Range", "bytes=0-9")]);
    assert_eq!((plain.header("repr-digest"), plain.header("content-digest")), ("", ""));
    let refused = ask(Method::GET, &[wanted, content, ("Range", "bytes=x")]);
    assert_eq!((refused.error(416).as_str(), refused.header("repr-digest")), ("range_not_satisfiable", ""));
}
