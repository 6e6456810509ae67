//! Downloads of disks: whole, in ranges, with conditional headers, and in the presence of faults.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::json;

use crate::harness::{Answer, Client, MB, ProcessStats, VM, World, eventually, memory_kib, write_at};
use crate::needs_root;

/// Pseudo-random bytes, so that a wrong offset is noticed.
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

fn send(client: &Client, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request =
        headers.iter().fold(client.request(method, path), |request, (name, value)| request.header(*name, *value));
    client.send(request)
}

#[test]
fn disks_and_ranges_are_served_with_conditions() {
    needs_root!();
    let world = World::new(1024);
    let size = 24 * MB + 777;
    let disks = world.define_vm(&[("a.img", size), ("empty.img", 0), ("sparse.img", 9 * MB + 1)]);
    write_at(&disks[0], 0, &noise(1, 3 * MB as usize));
    write_at(&disks[0], 9 * MB + 100, &noise(2, 5 * MB as usize + 33));
    write_at(&disks[0], size - 5, b"tail!");
    let expected = fs::read(&disks[0]).unwrap();
    let client = world.client();
    let id = client.take_snapshot_id();
    let disk = path(&id, "a.img");
    write_at(&disks[0], 0, b"the guest goes on");

    let whole = send(&client, Method::GET, &disk, &[("Accept-Encoding", "gzip, zstd")]);
    assert_eq!(whole.status, 200);
    assert_eq!(whole.header("content-type"), "application/octet-stream");
    assert_eq!(whole.header("content-encoding"), "");
    assert_eq!(whole.header("accept-ranges"), "bytes");
    assert_eq!(whole.header("content-length"), size.to_string());
    assert!(whole.body == expected, "the whole disk differs");
    let (etag, modified) = (whole.header("etag").to_owned(), whole.header("last-modified").to_owned());
    assert!(etag.starts_with('"') && etag.ends_with('"') && modified.ends_with("GMT"), "{etag} {modified}");

    let head = send(&client, Method::HEAD, &disk, &[("Range", "bytes=0-9")]);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, &*size.to_string(), 0));
    assert_eq!(head.header("etag"), etag);
    assert_eq!((head.header("accept-ranges"), head.header("content-type")), ("bytes", "application/octet-stream"));
    assert_eq!(send(&client, Method::HEAD, &disk, &[("If-None-Match", &etag)]).status, 304);
    let slashed = send(&client, Method::GET, &format!("{disk}/"), &[("Range", "bytes=100-199")]);
    assert_eq!((slashed.status, &*slashed.body), (206, &expected[100..200]));
    for missing in [path(&id, "b.img"), path("6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d", "a.img")] {
        let answer = send(&client, Method::HEAD, &missing, &[]);
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{missing}");
    }

    let last = size - 1;
    for (range, start, end) in [
        ("bytes=0-0".to_owned(), 0, 1),
        ("bytes=100-65635".to_owned(), 100, 65636),
        (format!("bytes={}-{}", 8 * MB, 15 * MB), 8 * MB, 15 * MB + 1),
        (format!("bytes={}-", size - 3), size - 3, size),
        ("bytes=-5".to_owned(), size - 5, size),
        (format!("bytes=-{}", size + 9), 0, size),
        (format!("bytes={last}-99999999999999999999999"), last, size),
        (format!("bytes=0-{last}"), 0, size),
        (format!("bytes={}-{}", size - 9, size + 9), size - 9, size),
        ("BYTES=007-010".to_owned(), 7, 11),
        ("bytes=, 3-4 ,".to_owned(), 3, 5),
        (format!("bytes=5-6,{size}-"), 5, 7),
    ] {
        let answer = send(&client, Method::GET, &disk, &[("Range", &range)]);
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
        let answer = send(&client, Method::GET, &disk, &[("Range", range)]);
        assert_eq!(answer.error(416), "range_not_satisfiable", "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes */{size}"), "{range}");
    }

    let most: Vec<(u64, u64)> = (0..64).map(|i| (i * MB / 3, i * MB / 3 + 1000 * i)).collect();
    for ranges in [vec![(10, 19), (9_437_280, 9_437_300), (size - 4, last)], vec![(5, 14), (0, 9)], most] {
        let asked: Vec<String> = ranges.iter().map(|(start, end)| format!("{start}-{end}")).collect();
        let multi = send(&client, Method::GET, &disk, &[("Range", &format!("bytes={}", asked.join(", ")))]);
        assert_eq!(multi.status, 206, "{ranges:?}");
        assert_eq!(multi.header("content-length"), multi.body.len().to_string());
        assert!(parts(&multi) == expected_parts(&ranges, &expected), "the parts of {ranges:?} differ");
    }

    let empty = path(&id, "empty.img");
    let answer = send(&client, Method::GET, &empty, &[]);
    assert_eq!((answer.status, answer.body.len(), answer.header("content-length")), (200, 0, "0"));
    for range in ["bytes=0-", "bytes=0-0", "bytes=-1"] {
        let answer = send(&client, Method::GET, &empty, &[("Range", range)]);
        assert_eq!(answer.error(416), "range_not_satisfiable", "{range}");
        assert_eq!(answer.header("content-range"), "bytes */0", "{range}");
    }
    assert!(client.disk(&id, "sparse.img") == vec![0; 9 * MB as usize + 1], "holes are zeros");
    assert!(client.disk_range(&id, "sparse.img", 9 * MB - 5, 6) == [0; 6]);

    for (name, value, range, expected) in [
        ("If-None-Match", etag.as_str(), None, 304),
        ("If-None-Match", "\"other\"", None, 200),
        ("If-Match", &etag, None, 200),
        ("If-Match", "\"other\"", None, 412),
        ("If-Match", "\"other\"", Some("bytes=0-9"), 412),
        ("If-Match", &etag, Some("bytes=0-9"), 206),
        ("If-None-Match", "*", None, 304),
        ("If-None-Match", &format!("\"other\", W/{etag}"), None, 304),
        ("If-Modified-Since", &modified, None, 304),
        ("If-Unmodified-Since", "Sat, 01 Jan 2000 00:00:00 GMT", None, 412),
        ("If-Range", &etag, Some("bytes=0-9"), 206),
        ("If-Range", "\"other\"", Some("bytes=0-9"), 200),
        ("If-Range", &modified, Some("bytes=0-9"), 206),
        ("If-Range", &format!("W/{etag}"), Some("bytes=0-9"), 200),
        ("If-Range", "\"other\"", Some("bytes=x"), 200),
        ("If-Range", &etag, Some("bytes=x"), 416),
    ] {
        let range = range.map(|range| ("Range", range));
        let headers: Vec<_> = [(name, value)].into_iter().chain(range).collect();
        let answer = send(&client, Method::GET, &disk, &headers);
        assert_eq!(answer.status, expected, "{name}: {value}");
        match expected {
            200 => assert_eq!(answer.body.len() as u64, size, "{name}: {value}"),
            206 => assert_eq!(answer.body.len(), 10, "{name}: {value}"),
            304 => assert_eq!((answer.header("etag"), answer.body.len()), (etag.as_str(), 0)),
            412 => assert_eq!(answer.error(412), "precondition_failed"),
            _ => assert_eq!(answer.error(416), "range_not_satisfiable"),
        }
    }
}

/// The parts of a multipart/byteranges response, delimited as in RFC 2046: Content-Range and bytes.
fn parts(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|window| window == what);
    let boundary = answer.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap();
    let delimiter = format!("\r\n--{boundary}");
    let mut found = Vec::new();
    let mut rest = &answer.body[find(&answer.body, delimiter.as_bytes()).unwrap() + delimiter.len()..];
    while rest != b"--\r\n" {
        let end = find(rest, delimiter.as_bytes()).unwrap();
        let (part, next) = (rest[..end].strip_prefix(b"\r\n").unwrap(), &rest[end + delimiter.len()..]);
        let head_end = find(part, b"\r\n\r\n").unwrap();
        let head = String::from_utf8(part[..head_end].to_vec()).unwrap();
        let lines: Vec<&str> = head.split("\r\n").collect();
        assert!(lines.contains(&"Content-Type: application/octet-stream"), "{head}");
        let range = lines.iter().find_map(|line| line.strip_prefix("Content-Range: ")).unwrap();
        found.push((range.to_owned(), part[head_end + 4..].to_vec()));
        rest = next;
    }
    found
}

/// The expected parts.
fn expected_parts(ranges: &[(u64, u64)], disk: &[u8]) -> Vec<(String, Vec<u8>)> {
    let part = |&(start, end): &(u64, u64)| {
        (format!("bytes {start}-{end}/{}", disk.len()), disk[start as usize..=end as usize].to_vec())
    };
    ranges.iter().map(part).collect()
}

#[test]
fn stalled_downloads_use_little_memory_and_leak_nothing() {
    needs_root!();
    let world = World::new(2048);
    let size = 256 * MB;
    let disk = &world.define_vm(&[("a.img", size)])[0];
    let expected = noise(3, size as usize);
    write_at(disk, 0, &expected);
    let client = world.client();
    let id = client.take_snapshot_id();
    let url = path(&id, "a.img");
    drop(client.get("/vms"));
    let stats = ProcessStats::of(&world.exporter);
    let (descriptors, threads, idle) =
        (stats.descriptors(), stats.threads(), memory_kib(world.exporter.pid(), "VmRSS"));

    // Eight downloads that stall after the first bytes, and one that completes.
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
    let grown = memory_kib(world.exporter.pid(), "VmHWM").saturating_sub(idle);
    assert!(grown < 64 << 10, "nine downloads of 256 MiB need {grown} KiB");
    drop(stalled);
    drop(client);
    eventually("descriptors and threads of disconnected clients are released", || {
        stats.descriptors() <= descriptors && stats.threads() <= threads + 1
    });
}

#[test]
fn parallel_ranges_match_the_disk() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    let expected = noise(4, 64 * MB as usize);
    write_at(disk, 0, &expected);
    let client = world.client();
    let id = client.take_snapshot_id();
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

fn open_for_writing(file: &Path) -> fs::File {
    fs::File::options().write(true).open(file).unwrap()
}

fn snapshot_file(world: &World, id: &str) -> PathBuf {
    world.snapshot_folder(id).join("a.img")
}

#[test]
fn changed_or_replaced_file_is_not_served() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    // Data and holes alternate: the range behind a truncation must not be mistaken for a hole.
    for start in (0..64 * MB).step_by(128 << 10) {
        write_at(disk, start, &noise(5 + start, 64 << 10));
    }
    let expected = fs::read(disk).unwrap();
    let client = world.client();

    // Changed before the download.
    let changes: &[(&str, &dyn Fn(&Path))] = &[
        ("written to", &|file| write_at(file, MB, b"x")),
        ("truncated", &|file| open_for_writing(file).set_len(MB).unwrap()),
        ("longer", &|file| open_for_writing(file).set_len(65 * MB).unwrap()),
        ("another file of the same bytes", &|file| {
            fs::copy(file, file.with_extension("copy")).unwrap();
            fs::rename(file.with_extension("copy"), file).unwrap();
        }),
        ("a link to the disk", &|file| {
            fs::remove_file(file).unwrap();
            symlink(disk, file).unwrap();
        }),
        ("a link to itself from elsewhere", &|file| {
            fs::rename(file, file.with_extension("moved")).unwrap();
            symlink(file.with_extension("moved"), file).unwrap();
        }),
        ("a folder", &|file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        }),
        ("missing", &|file| fs::remove_file(file).unwrap()),
    ];
    for (what, change) in changes {
        let id = client.take_snapshot_id();
        assert_eq!(client.disk_range(&id, "a.img", MB, 4), expected[MB as usize..MB as usize + 4]);
        change(&snapshot_file(&world, &id));
        for headers in [&[][..], &[("Range", "bytes=0-0")]] {
            let answer = send(&client, Method::GET, &path(&id, "a.img"), headers);
            assert_eq!(answer.error(409), "snapshot_lost", "{what}");
        }
        assert_eq!(send(&client, Method::HEAD, &path(&id, "a.img"), &[]).status, 409, "{what}");
        assert_eq!(client.get(&format!("/vms/{VM}/snapshots/{id}")).error(409), "snapshot_lost", "{what}");
    }

    // Truncated or written to during the download: the body ends early, without padding.
    for (number, change) in ["cut", "write"].into_iter().enumerate() {
        let id = client.take_snapshot_id();
        let mut response = client.request(Method::GET, &path(&id, "a.img")).send().unwrap();
        let mut first = [0; 4096];
        response.read_exact(&mut first).unwrap();
        let file = snapshot_file(&world, &id);
        match change {
            "cut" => open_for_writing(&file).set_len(MB).unwrap(),
            _ => write_at(&file, 60 * MB, b"x"),
        }
        let mut received = first.to_vec();
        let ended = response.read_to_end(&mut received);
        assert!(ended.is_err() && received.len() < expected.len(), "{change}: {} bytes received", received.len());
        if change == "cut" {
            assert!(expected.starts_with(&received), "the service sent bytes that are not the snapshot's");
        }
        let aborted = world.exporter.log().matches("cannot read the disk; cutting the connection").count();
        assert_eq!(aborted, number + 1, "{change}");
    }
}

#[test]
fn download_completes_after_its_snapshot_is_deleted() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    let expected = noise(6, 64 * MB as usize);
    write_at(disk, 0, &expected);
    let client = world.client();
    let id = client.take_snapshot_id();
    let mut response = client.request(Method::GET, &path(&id, "a.img")).send().unwrap();
    let mut body = vec![0; 4096];
    response.read_exact(&mut body).unwrap();
    assert_eq!(client.delete(&format!("/vms/{VM}/snapshots/{id}")).status, 200);
    assert_eq!(client.get(&format!("/vms/{VM}/snapshots")).ok(), json!([]));
    response.read_to_end(&mut body).unwrap();
    assert!(body == expected, "the disk differs");
}
