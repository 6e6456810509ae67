//! `backup-db`: a copy of the database while the service works, and a start from the copy.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::harness::{Client, MB, SNAPSHOTS, Tmpfs, VM, World, eventually, write_at};
use crate::needs_root;

/// Runs `backup-db`; returns its exit status and its output.
fn backup(world: &World, file: &Path) -> (Option<i32>, String) {
    world.exporter.command(&["backup-db", file.to_str().unwrap()])
}

/// How many files there are in the folder, and in the folders of copies in it.
fn files_below(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files_below(&path) } else { 1 }).sum()
}

#[test]
fn copy_has_every_snapshot_of_its_moment() {
    needs_root!();
    let mut world = World::new(512);
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[7; 8192]);
    let client = world.client();
    let stay: [String; 3] = std::array::from_fn(|_| client.take_snapshot_id());
    let dir = tempfile::tempdir().unwrap();
    // Confirmed snapshots whose deletion was not requested.
    let alive = Mutex::new(BTreeSet::from(stay.clone()));
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut copies = Vec::new();
    thread::scope(|scope| {
        for _ in 0..2 {
            let client = Client::logged_in(&world.exporter, &world.certificates);
            let (alive, stop, rounds) = (&alive, &stop, &rounds);
            scope.spawn(move || {
                let mut own = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let id = client.take_snapshot_id();
                    alive.lock().unwrap().insert(id.clone());
                    own.push(id);
                    if own.len() > 3 {
                        let id = own.remove(0);
                        alive.lock().unwrap().remove(&id);
                        assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for number in 0..4 {
            let before = rounds.load(Ordering::Relaxed);
            eventually("snapshots come and go", || rounds.load(Ordering::Relaxed) > before + 2);
            let file = dir.path().join(format!("copy-{number}.db"));
            let at_first = alive.lock().unwrap().clone();
            let (status, output) = backup(&world, &file);
            assert_eq!(status, Some(0), "{output}");
            let at_last = alive.lock().unwrap().clone();
            copies.push((file, at_first.intersection(&at_last).cloned().collect::<BTreeSet<_>>()));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let files = world.snapshot_files();
    world.exporter.kill();
    for (file, expected) in copies {
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert!(expected.len() >= stay.len());
        world.exporter.settings().db_file = Some(file);
        world.exporter.restart();
        let client = world.client();
        let listed: BTreeSet<String> = client.snapshot_ids().into_iter().collect();
        let alive = alive.lock().unwrap();
        for id in expected.intersection(&alive) {
            assert!(listed.contains(id), "{id} was there when the copy was made");
            assert_eq!(client.disk(id, "a.img")[..8192], [7; 8192]);
        }
        client.compare(&stay[2], &stay[0]);
        assert_eq!(client.get("/status").ok()["database"]["status"], "ok");
        // Not even a snapshot that was being made at that moment is removed.
        assert_eq!(world.snapshot_files(), files);
        world.exporter.kill();
    }
    assert_eq!(files_below(dir.path()), 4, "a temporary file is left");
}

#[test]
fn copy_replaces_only_files_that_may_be_replaced() {
    needs_root!();
    let mut world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    world.client().take_snapshot_id();
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("copy.db"), dir.path().join("link.db"));
    symlink(&file, &link).unwrap();
    let db_file = world.exporter.db_file();
    for (target, expected) in [
        (db_file.as_path(), "is the database of a running service"),
        (dir.path(), "is not a regular file"),
        (&link, "is not a regular file"),
        (&dir.path().join("missing/copy.db"), "missing/copy.db"),
    ] {
        let (status, output) = backup(&world, target);
        assert!(status == Some(1) && output.contains(expected), "{output}");
    }
    fs::write(&file, "an older copy").unwrap();
    assert_eq!(backup(&world, &file).0, Some(0));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    assert!(fs::read(&file).unwrap().starts_with(b"redb"));
    assert_eq!(world.anonymous_client().get("/database").error(401), "unauthorized");
    world.exporter.kill();
    let (status, output) = backup(&world, &file);
    assert!(status == Some(75) && output.contains("no process listens"), "{output}");
    assert!(fs::read(&file).unwrap().starts_with(b"redb"), "the older copy stays");
}

/// Requests a copy on the Unix socket, and reads only the beginning. A copy does not fit into the buffers of the sockets.
fn begin_copy(world: &World) -> UnixStream {
    let mut stream = UnixStream::connect(world.exporter.socket()).unwrap();
    stream.write_all(b"GET /api/v1/database HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    stream
}

#[test]
fn copies_that_are_sent_slowly_are_bounded() {
    needs_root!();
    let mut world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    // The database keeps a definition for each snapshot, so that it is larger than all buffers on the way.
    let definition = world.repository.join(format!("VirtualMachines/{VM}/vm.cfg"));
    let comment = format!("# {}\n", "x".repeat(97)).repeat(600);
    fs::write(&definition, fs::read_to_string(&definition).unwrap() + &comment).unwrap();
    let client = world.client();
    (0..60).for_each(|_| drop(client.take_snapshot_id()));
    assert!(fs::metadata(world.exporter.db_file()).unwrap().len() > 3 * MB);
    let slow = [(); 2].map(|()| begin_copy(&world));
    let refused = client.get("/database");
    assert_eq!(refused.header("retry-after"), "10");
    assert_eq!(refused.error(429), "throttled");
    let file = world.repository.with_file_name("copy.db");
    let (status, output) = backup(&world, &file);
    assert!(status != Some(0) && output.contains("copies of the database"), "{output}");
    drop(slow);
    eventually("a copy is made again", || client.get("/database").status == 200);
    // Copies take no space when they are sent.
    let open = || {
        let files = fs::read_dir(format!("/proc/{}/fd", world.exporter.pid())).unwrap();
        let names = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
        names.filter(|name| name.to_string_lossy().contains("(deleted)")).count()
    };
    eventually("the copies are closed", || open() == 0);
    world.exporter.kill();
}

#[test]
fn copy_leaves_room_for_the_database() {
    needs_root!();
    let mut world = World::new(512);
    let small = Tmpfs::new("size=12m");
    world.exporter.settings().db_file = Some(small.path().join("exporter.db"));
    world.exporter.restart();
    let client = world.client();
    assert_eq!(client.get("/database").error(507), "insufficient_space");
    assert_eq!(files_below(small.path()), 1, "a part of a copy is left");
    assert_eq!(client.get(&format!("/vms/{VM}")).status, 404);
}
