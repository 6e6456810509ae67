//! A disk's bytes: whole, in ranges, under conditions, and when something goes wrong.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::harness::{Answer, Client, VM, World, text, write_at};
use crate::needs_root;

const MB: u64 = 1 << 20;

/// Bytes without a pattern that an offset could be mistaken in.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

fn path(id: &str, disk: &str) -> String {
    format!("/api/v1/vms/{VM}/snapshots/{id}/disks/{disk}")
}

fn ask(client: &Client, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request =
        headers.iter().fold(client.request(method, path), |request, (name, value)| request.header(*name, *value));
    client.send(request)
}

#[test]
fn whole_disks_and_all_kinds_of_ranges() {
    needs_root!();
    let world = World::new(1024);
    let size = 24 * MB + 777;
    let disks = world.define_vm(&[("a.img", size), ("empty.img", 0)]);
    write_at(&disks[0], 0, &noise(1, 3 * MB as usize));
    write_at(&disks[0], 9 * MB + 100, &noise(2, 5 * MB as usize + 33));
    write_at(&disks[0], size - 5, b"tail!");
    let expected = fs::read(&disks[0]).unwrap();
    let client = world.client();
    let id = text(&client.take_snapshot()["id"]);
    let disk = path(&id, "a.img");
    write_at(&disks[0], 0, b"the guest goes on");

    let whole = ask(&client, Method::GET, &disk, &[("Accept-Encoding", "gzip, zstd")]);
    assert_eq!(whole.status, 200);
    assert_eq!(whole.header("content-type"), "application/octet-stream");
    assert_eq!(whole.header("content-encoding"), "");
    assert_eq!(whole.header("accept-ranges"), "bytes");
    assert_eq!(whole.header("content-length"), size.to_string());
    assert!(whole.body == expected, "the whole disk differs");
    let (etag, modified) = (whole.header("etag").to_owned(), whole.header("last-modified").to_owned());
    assert!(etag.starts_with('"') && etag.ends_with('"') && modified.ends_with("GMT"), "{etag} {modified}");

    let head = ask(&client, Method::HEAD, &disk, &[("Range", "bytes=0-9")]);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, &*size.to_string(), 0));
    assert_eq!(head.header("etag"), etag);

    let last = size - 1;
    for (range, start, end) in [
        ("bytes=0-0".to_owned(), 0, 1),
        ("bytes=100-65635".to_owned(), 100, 65636),
        (format!("bytes={}-{}", 8 * MB, 15 * MB), 8 * MB, 15 * MB + 1),
        (format!("bytes={}-", size - 3), size - 3, size),
        ("bytes=-5".to_owned(), size - 5, size),
        (format!("bytes=-{}", size + 9), 0, size),
        (format!("bytes={last}-99999999999999999999999"), last, size),
        ("BYTES=007-010".to_owned(), 7, 11),
        ("bytes=, 3-4 ,".to_owned(), 3, 5),
        (format!("bytes=5-6,{size}-"), 5, 7),
    ] {
        let answer = ask(&client, Method::GET, &disk, &[("Range", &range)]);
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {start}-{}/{size}", end - 1), "{range}");
        assert!(answer.body == expected[start as usize..end as usize], "{range} differs");
    }
    let too_many = format!("bytes={}", vec!["0-0"; 65].join(","));
    let whole_twice = format!("bytes=0-{last},0-{last}");
    for range in [
        "bytes=5-1",
        "bytes=-0",
        "bytes=",
        "bytes=x",
        "lines=0-1",
        "0-1",
        "bytes=0-1,x",
        "bytes = 0-1",
        &format!("bytes={size}-"),
        &too_many,
        &whole_twice,
    ] {
        let answer = ask(&client, Method::GET, &disk, &[("Range", range)]);
        assert_eq!(answer.error(416), "range_not_satisfiable", "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes */{size}"), "{range}");
    }

    let multi = ask(&client, Method::GET, &disk, &[("Range", "bytes=10-19,9437280-9437300,-4")]);
    assert_eq!(multi.status, 206);
    assert_eq!(multi.header("content-length"), multi.body.len().to_string());
    let boundary = multi.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap();
    let mut body = Vec::new();
    for (start, end) in [(10, 19), (9_437_280, 9_437_300), (size - 4, last)] {
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {start}-{end}/{size}\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(&expected[start as usize..=end as usize]);
    }
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert!(multi.body == body, "the multipart body differs");

    let empty = path(&id, "empty.img");
    let answer = ask(&client, Method::GET, &empty, &[]);
    assert_eq!((answer.status, answer.body.len(), answer.header("content-length")), (200, 0, "0"));
    assert_eq!(ask(&client, Method::GET, &empty, &[("Range", "bytes=0-")]).error(416), "range_not_satisfiable");

    for (name, value, range, expected) in [
        ("If-None-Match", etag.as_str(), None, 304),
        ("If-None-Match", "\"other\"", None, 200),
        ("If-Match", &etag, None, 200),
        ("If-Match", "\"other\"", None, 412),
        ("If-Modified-Since", &modified, None, 304),
        ("If-Unmodified-Since", "Sat, 01 Jan 2000 00:00:00 GMT", None, 412),
        ("If-Range", &etag, Some("bytes=0-9"), 206),
        ("If-Range", "\"other\"", Some("bytes=0-9"), 200),
        ("If-Range", &modified, Some("bytes=0-9"), 206),
    ] {
        let range = range.map(|range| ("Range", range));
        let headers: Vec<_> = [(name, value)].into_iter().chain(range).collect();
        let answer = ask(&client, Method::GET, &disk, &headers);
        assert_eq!(answer.status, expected, "{name}: {value}");
        if expected == 304 {
            assert_eq!((answer.header("etag"), answer.body.len()), (etag.as_str(), 0));
        }
    }
}

/// The service's count of something in `/proc/<pid>`.
fn count(world: &World, what: &str) -> usize {
    fs::read_dir(format!("/proc/{}/{what}", world.exporter.pid())).unwrap().count()
}

fn resident_kib(world: &World) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", world.exporter.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not after 20 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn memory_does_not_grow_and_nothing_stays_behind() {
    needs_root!();
    let world = World::new(2048);
    let size = 256 * MB;
    let disk = &world.define_vm(&[("a.img", size)])[0];
    let expected = noise(3, size as usize);
    write_at(disk, 0, &expected);
    let client = world.client();
    let id = text(&client.take_snapshot()["id"]);
    let url = path(&id, "a.img");
    drop(client.get("/vms"));
    let (descriptors, threads, idle) = (count(&world, "fd"), count(&world, "task"), resident_kib(&world));

    // Eight that take nothing after their first bytes, and one that takes all.
    let stalled: Vec<_> = (0..8)
        .map(|_| {
            let mut response = client.request(Method::GET, &url).send().unwrap();
            let mut first = [0; 4096];
            response.read_exact(&mut first).unwrap();
            assert!(first == expected[..4096]);
            response
        })
        .collect();
    assert!(client.disk(&id, "a.img") == expected, "the disk differs");
    let grown = resident_kib(&world).saturating_sub(idle);
    assert!(grown < 64 << 10, "nine downloads of 256 MiB need {grown} KiB");
    drop(stalled);
    drop(client);
    eventually("descriptors and threads of clients that went away are given back", || {
        count(&world, "fd") <= descriptors && count(&world, "task") <= threads + 1
    });
}

#[test]
fn parallel_ranges_are_the_disk() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    let expected = noise(4, 64 * MB as usize);
    write_at(disk, 0, &expected);
    let client = world.client();
    let id = text(&client.take_snapshot()["id"]);
    std::thread::scope(|scope| {
        for part in 0..8_u64 {
            let (client, id, expected) = (&client, &id, &expected);
            scope.spawn(move || {
                for step in 0..8_u64 {
                    let start = part * 8 * MB + step * MB + part;
                    let length = (MB - part).min(64 * MB - start);
                    let got = client.disk_range(id, "a.img", start, length);
                    assert!(got == expected[start as usize..(start + length) as usize], "{start}+{length}");
                }
            });
        }
    });
}

fn snapshot_file(world: &World, id: &str) -> PathBuf {
    world.repository.join("CoriolisSnapshots").join(id).join("a.img")
}

#[test]
fn a_file_that_is_not_the_snapshots_is_never_served() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    write_at(disk, 0, &noise(5, 64 * MB as usize));
    let client = world.client();

    // Changed before it is asked for.
    let id = text(&client.take_snapshot()["id"]);
    write_at(&snapshot_file(&world, &id), MB, b"x");
    assert_eq!(ask(&client, Method::GET, &path(&id, "a.img"), &[]).error(409), "snapshot_lost");
    assert_eq!(client.get(&format!("/vms/{VM}/snapshots/{id}")).error(409), "snapshot_lost");
    fs::remove_file(snapshot_file(&world, &id)).unwrap();
    assert_eq!(ask(&client, Method::GET, &path(&id, "a.img"), &[]).error(409), "snapshot_lost");

    // Cut, or written to, while it is being sent: the body ends early, and nothing is padded.
    for change in ["cut", "write"] {
        let id = text(&client.take_snapshot()["id"]);
        let mut response = client.request(Method::GET, &path(&id, "a.img")).send().unwrap();
        let mut first = [0; 4096];
        response.read_exact(&mut first).unwrap();
        let file = snapshot_file(&world, &id);
        match change {
            "cut" => fs::File::options().write(true).open(file).unwrap().set_len(MB).unwrap(),
            _ => write_at(&file, 60 * MB, b"x"),
        }
        let mut rest = Vec::new();
        let ended = response.read_to_end(&mut rest);
        assert!(ended.is_err() && rest.len() < 64 * MB as usize - 4096, "{change}: {} bytes came", rest.len());
    }
    assert!(world.exporter.log().contains("the disk cannot be read: the connection is cut"));
}

#[test]
fn a_download_outlives_the_deletion_of_its_snapshot() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    let expected = noise(6, 64 * MB as usize);
    write_at(disk, 0, &expected);
    let client = world.client();
    let id = text(&client.take_snapshot()["id"]);
    let mut response = client.request(Method::GET, &path(&id, "a.img")).send().unwrap();
    let mut body = vec![0; 4096];
    response.read_exact(&mut body).unwrap();
    assert_eq!(client.delete(&format!("/vms/{VM}/snapshots/{id}")).status, 200);
    assert_eq!(client.get(&format!("/vms/{VM}/snapshots")).ok(), json!([]));
    response.read_to_end(&mut body).unwrap();
    assert!(body == expected, "the disk differs");
}
