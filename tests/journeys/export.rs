//! Downloads: device errors, the page cache, rate limits and stalled clients.

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coriolis_ovm_exporter::testing::page_cache;
use reqwest::Method;

use crate::harness::{Client, MB, Random, VM, World, eventually, eventually_ok, text, write_at, xfs_io};
use crate::needs_root;

fn path(id: &str) -> String {
    format!("/api/v1/vms/{VM}/snapshots/{id}/disks/a.img")
}

fn snapshot_file(world: &World, id: &str) -> PathBuf {
    world.snapshot_folder(id).join("a.img")
}

/// Defines a VM with a disk of random bytes.
fn define_full_vm(world: &World, size: u64) -> Vec<u8> {
    let bytes = Random(size).bytes(size);
    write_at(&world.define_vm(&[("a.img", size)])[0], 0, &bytes);
    bytes
}

#[test]
fn read_error_aborts_the_body_and_is_logged() {
    needs_root!();
    let world = World::new(512);
    // Places the disk behind the file system's log, so that the device can be truncated inside the disk.
    let filler = world.repository.join("VirtualDisks/filler");
    File::create(&filler).unwrap();
    xfs_io(&filler, &["falloc 0 240m"]);
    let size = 48 * MB;
    let expected = define_full_vm(&world, size);
    let client = world.client();
    let snapshot = client.take_snapshot();
    let (id, chunks) = (text(&snapshot["id"]), snapshot["disks"][0]["chunks"].as_array().unwrap().clone());
    let (start, length) = (chunks[0]["physical_start"].as_u64().unwrap(), chunks[0]["length"].as_u64().unwrap());
    assert!(chunks.len() == 1 && length == size && start > 320 * MB, "the disk is not where it should be: {chunks:?}");
    world.volume.sync();
    let image = File::options().write(true).open(world.volume.image()).unwrap();
    image.set_len(start + size / 2).unwrap();

    let mut response = client.request(Method::GET, &path(&id)).send().unwrap();
    let mut received = Vec::new();
    let ended = response.read_to_end(&mut received);
    assert!(ended.is_err() && received.len() as u64 <= size / 2, "{} bytes received: {ended:?}", received.len());
    assert!(received.len() as u64 >= size / 4 && expected.starts_with(&received), "wrong bytes");
    assert!(world.exporter.log().contains("cannot read the disk; cutting the connection"));
    // If nothing has been sent yet, the client gets an error.
    let range = |range: String| client.send(client.request(Method::GET, &path(&id)).header("Range", range));
    let disconnects = || world.exporter.log().matches("client disconnected").count();
    let before = disconnects();
    assert_eq!(range(format!("bytes={}-", size - 4096)).error(500), "io_error");
    assert_eq!(disconnects(), before, "an answered error was logged as a disconnect");
    // Several ranges of which only the first is readable: short ranges are read together before the answer.
    assert_eq!(range(format!("bytes=0-9,{}-", size - 4096)).error(500), "io_error");
    let both = client.request(Method::GET, &path(&id)).header("Range", format!("bytes=0-{MB},{}-", size - 4096));
    assert!(client.try_send(both).is_err(), "an unreadable part was sent");
    assert_eq!(client.disk_range(&id, "a.img", 4096, 4096), expected[4096..8192]);

    // The failure is not cached.
    image.set_len(512 * MB).unwrap();
    assert_eq!(range(format!("bytes={}-", size - 4096)).status, 206);
}

#[test]
fn ranges_of_all_lengths_match_the_disk() {
    needs_root!();
    let world = World::new(512);
    let size = 12 * MB + 777;
    let disk = world.define_vm(&[("a.img", size)]).remove(0);
    let mut random = Random(7);
    for _ in 0..60 {
        let length = [4096, 65_536, 131_072, 262_144, MB][random.below(5) as usize];
        let start = random.below((size - length) >> 12) << 12;
        write_at(&disk, start, &random.bytes(length));
    }
    let expected = fs::read(&disk).unwrap();
    let client = world.client();
    let id = client.take_snapshot_id();
    for _ in 0..200 {
        let mut of_request = || {
            let length = [1, 4096, 65_535, 65_536, 65_537, 262_143, 262_144, 262_145, MB][random.below(9) as usize];
            let start = random.below(size - length);
            start..start + length
        };
        let ranges: Vec<Range<u64>> = (0..12).map(|_| of_request()).collect();
        let list: Vec<String> = ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
        let request = client.request(Method::GET, &path(&id)).header("Range", format!("bytes={}", list.join(",")));
        let answer = client.send(request);
        assert_eq!(answer.status, 206, "{list:?}");
        let mut rest = answer.body.as_slice();
        for range in ranges {
            let header = format!("bytes {}-{}/{size}\r\n\r\n", range.start, range.end - 1);
            let head = rest.windows(header.len()).position(|window| window == header.as_bytes()).expect(&header);
            assert!(head < 200, "{header:?} comes late in {list:?}");
            let (part, after) = rest[head + header.len()..].split_at((range.end - range.start) as usize);
            assert!(part == &expected[range.start as usize..range.end as usize], "{header:?} differs in {list:?}");
            rest = after;
        }
    }
}

#[test]
fn downloads_leave_the_page_cache_unchanged() {
    needs_root!();
    let world = World::new(512);
    let size = 64 * MB + 12_345;
    let expected = define_full_vm(&world, size);
    let client = world.client();
    let id = client.take_snapshot_id();
    world.volume.sync();
    let path_of_file = snapshot_file(&world, &id);
    let cached_in = |range: Range<u64>| {
        let file = File::open(&path_of_file).unwrap();
        range.step_by(64 << 10).filter(|at| page_cache::is_resident(file.as_fd(), *at).unwrap()).count()
    };
    let cached = || cached_in(0..size);
    // The service drops the last bytes from the cache after the answer.
    let check_cached = |what: &str, most: usize, count: &dyn Fn() -> usize| {
        eventually_ok(&format!("at most {most} windows of {what} are cached"), || {
            let now = count();
            if now > most { Err(now) } else { Ok(()) }
        });
    };
    // Pages under read-ahead cannot be dropped, and a later short range would make the kernel continue from them.
    let inflight = format!("/sys/block/{}/inflight", world.volume.device().trim_start_matches("/dev/"));
    let drop_cache = || {
        eventually("the device is idle, and nothing of the disk is cached", || {
            let is_idle = fs::read_to_string(&inflight).unwrap().split_whitespace().all(|count| count == "0");
            page_cache::drop_cached(File::open(&path_of_file).unwrap(), &(0..size)).unwrap();
            is_idle && cached() == 0
        });
    };
    drop_cache();
    assert!(client.disk(&id, "a.img") == expected, "the disk differs");
    // The pages of incomplete windows may stay.
    check_cached("a whole disk", 2, &cached);
    assert!(client.disk_range(&id, "a.img", 5 * MB, 7 * MB) == expected[5 << 20..12 << 20]);
    // The kernel's read-ahead past the end of the range is dropped, too.
    check_cached("a range", 0, &|| cached_in(6 * MB..12 * MB));
    // Short ranges; then backwards, at distances larger than the read-ahead.
    drop_cache();
    for start in (0..32 * MB).step_by(128 << 10) {
        assert!(client.disk_range(&id, "a.img", start, 64 << 10) == expected[start as usize..][..64 << 10]);
    }
    // With a fast device some ranges look as if they had been cached before.
    check_cached("256 short ranges", 128, &cached);
    let backwards: Vec<String> = (0..4).rev().map(|n| format!("{}-{}", 16 * n * MB, (16 * n + 1) * MB - 1)).collect();
    let request = client.request(Method::GET, &path(&id)).header("Range", format!("bytes={}", backwards.join(",")));
    assert_eq!(client.send(request).status, 206);
    check_cached("ranges in reverse order", 4, &|| {
        (0..4).map(|n| cached_in(16 * n * MB..(16 * n + 1) * MB)).sum::<usize>()
    });
    drop_cache();
    // Pages that were cached before stay, except those that the kernel reclaims.
    drop(fs::read(&path_of_file).unwrap());
    let whole = cached();
    assert!(whole as u64 > size / (64 << 10) - 2, "the kernel caches nothing");
    assert!(client.disk(&id, "a.img") == expected, "the disk differs");
    assert!(cached() > whole / 4 * 3, "{} of {whole} windows are left", cached());
}

#[test]
fn downloads_keep_the_rate_limits() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.sections = "[export]\nmax_rate = \"8MiB\"\nmax_rate_per_connection = \"4MiB\"\n".to_owned();
    });
    let expected = define_full_vm(&world, 16 * MB);
    let client = world.client();
    let id = client.take_snapshot_id();
    // Small requests on one connection: a little less than 6 MiB, at 4 MiB/s.
    let started = Instant::now();
    for start in (0..6 * MB).step_by(64 << 10) {
        assert!(client.disk_range(&id, "a.img", start, 64 << 10) == expected[start as usize..][..64 << 10]);
    }
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(1400), "6 MiB took {took:?}");
    // Four connections: 16 MiB, at 8 MiB/s in total.
    let started = Instant::now();
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (world, id, expected) = (&world, &id, &expected);
            scope.spawn(move || {
                let got = world.client().disk_range(id, "a.img", part * 4 * MB, 4 * MB);
                assert!(got == expected[(part * 4 * MB) as usize..][..4 << 20]);
            });
        }
    });
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(1800), "16 MiB took {took:?}");
}

#[test]
fn stalled_client_is_disconnected() {
    needs_root!();
    let world = World::new(512);
    let expected = define_full_vm(&world, 64 * MB);
    let client: Client = world.client();
    let id = client.take_snapshot_id();
    let mut stalled = world.send_get(&client, &format!("/vms/{VM}/snapshots/{id}/disks/a.img"));
    let mut first = [0; 1000];
    stalled.read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200 "));
    // Other clients are served meanwhile.
    assert!(client.disk(&id, "a.img") == expected, "the disk differs");
    world.exporter.wait_for_log("client disconnected before the end");
    // The stalled client gets only a part.
    let mut rest = Vec::new();
    assert!(stalled.read_to_end(&mut rest).is_err() && rest.len() < 32 << 20, "{} bytes received", rest.len());
}
