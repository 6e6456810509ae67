//! A touched snapshot file is accepted again if its content can be proven unchanged. Changed content is detected even
//! if the modification time was restored.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::Method;
use serde_json::Value;

use crate::harness::{Client, MB, SNAPSHOTS, VM, World, chunks, data, eventually, run, text, write_at};
use crate::needs_root;

fn world() -> (World, PathBuf, Client) {
    let world = World::new(512);
    let disk = world.define_vm(&[("a.img", 4 * MB)]).remove(0);
    write_at(&disk, 0, &vec![1; 4 << 20]);
    let client = world.client();
    (world, disk, client)
}

/// Writes to the VM's disk and syncs, so that the file system allocates new blocks.
pub fn write_and_sync(disk: &Path, at: u64, bytes: &[u8]) {
    write_at(disk, at, bytes);
    fs::File::open(disk).unwrap().sync_all().unwrap();
}

/// Takes a snapshot; returns its id and the path of its disk file.
pub fn take_snapshot(client: &Client) -> (String, PathBuf) {
    let made = client.take_snapshot();
    (text(&made["id"]), text(&made["disks"][0]["path"]).into())
}

fn command(line: &[&str]) {
    run(Command::new(line[0]).args(&line[1..]));
}

/// Sets an extended attribute, as setfattr(1) does.
fn set_xattr(path: &str, name: &str) {
    command(&[
        "python3",
        "-c",
        "import os, sys; os.setxattr(*sys.argv[1:], b'system_u:object_r:etc_t:s0')",
        path,
        name,
    ]);
}

/// A change of a file that updates its ctime and not its content.
type Touch = fn(&Path);

fn touches() -> [(&'static str, Touch); 7] {
    fn path(file: &Path) -> &str {
        file.to_str().unwrap()
    }
    [
        ("linked and unlinked", |file| {
            let link = file.with_extension("link");
            command(&["ln", path(file), path(&link)]);
            fs::remove_file(link).unwrap();
        }),
        ("labelled", |file| set_xattr(path(file), "user.note")),
        // As `restorecon -R` does.
        ("relabelled", |file| set_xattr(path(file), "security.selinux")),
        ("given to another group", |file| command(&["chown", ":1", path(file)])),
        ("made executable", |file| command(&["chmod", "0550", path(file)])),
        ("read", |file| command(&["touch", "-a", path(file)])),
        ("linked into a copy of the folder", |file| {
            let copy = file.ancestors().nth(2).unwrap().with_extension("copy");
            command(&["cp", "-al", path(file.parent().unwrap()), path(&copy)]);
            fs::remove_dir_all(copy).unwrap();
        }),
    ]
}

/// Writes into a file and restores its modification time to the nanosecond.
pub fn forge(file: &Path, at: u64) {
    let before = fs::metadata(file).unwrap();
    write_at(file, at, &[0xee; 4096]);
    let back = format!("@{}.{:09}", before.mtime(), before.mtime_nsec());
    command(&["touch", "-m", "-d", &back, file.to_str().unwrap()]);
    let after = fs::metadata(file).unwrap();
    assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
}

fn compared(client: &Client, target: &str, base: &str) -> Value {
    client.get(&format!("{SNAPSHOTS}/{target}?compareTo={base}")).ok()["disks"][0].clone()
}

#[test]
fn touched_file_is_accepted_again() {
    needs_root!();
    let (mut world, disk, mut client) = world();
    for (number, (what, touch)) in (0..).zip(touches()) {
        let (base, base_file) = take_snapshot(&client);
        let expected = fs::read(&disk).unwrap();
        touch(&base_file);
        assert_eq!(client.disk(&base, "a.img"), expected, "{what}: the content differs");
        write_and_sync(&disk, 8192 * number, &[2; 4096]);
        let (target, target_file) = take_snapshot(&client);
        touch(&target_file);
        // The base now has blocks of its own.
        touch(&base_file);
        let entry = compared(&client, &target, &base);
        assert_eq!(entry["mode"], "incremental", "{what}: {entry}");
        assert_eq!(chunks(&entry), [data(8192 * number, 4096)], "{what}");
        assert_eq!(client.disk(&target, "a.img"), fs::read(&disk).unwrap(), "{what}");
        let log = world.exporter.log();
        assert!(log.contains("the content of a touched file is proven"), "{what}: {log}");
        // After a restart the target is still accepted, and the base is checked again.
        world.exporter.restart();
        client = world.client();
        assert_eq!(chunks(&compared(&client, &target, &base)), [data(8192 * number, 4096)], "{what}: after a restart");
        for id in [base, target] {
            assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200, "{what}");
        }
    }
}

#[test]
fn changed_content_is_detected_with_mtime_restored() {
    needs_root!();
    let (_world, disk, client) = world();
    // A write to blocks shared with other files allocates new ones.
    let (shared, shared_file) = take_snapshot(&client);
    forge(&shared_file, MB);
    // A write to an exclusive block changes it in place, at the same address.
    write_and_sync(&disk, 2 * MB, &[3; 4096]);
    let (alone, alone_file) = take_snapshot(&client);
    write_and_sync(&disk, 2 * MB, &[4; 4096]);
    forge(&alone_file, 2 * MB);
    // As before, and then a copy shares the block.
    write_and_sync(&disk, 3 * MB, &[5; 4096]);
    let (copied, copied_file) = take_snapshot(&client);
    write_and_sync(&disk, 3 * MB, &[6; 4096]);
    forge(&copied_file, 3 * MB);
    command(&["cp", "--reflink=always", copied_file.to_str().unwrap(), disk.with_extension("copy").to_str().unwrap()]);
    // The target, without changes.
    let (target, _) = take_snapshot(&client);

    for (what, id) in [("shared", &shared), ("alone", &alone), ("copied", &copied)] {
        let path = format!("{SNAPSHOTS}/{id}");
        for route in ["", "/disks/a.img", "/disks/a.img/checksum", "/disks/a.img/chunks"] {
            assert_eq!(client.get(&format!("{path}{route}")).error(409), "snapshot_lost", "{what}: {route}");
        }
        let range = client.request(Method::GET, &format!("/api/v1{path}/disks/a.img")).header("Range", "bytes=0-9");
        assert_eq!(client.send(range).error(409), "snapshot_lost", "{what}");
    }
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{target}?compareTo={shared}")).error(409), "base_lost");
    // A block that only the base has is always listed, so that the client's copy of the original base becomes the
    // target. The comparison is not refined, since the content of the base may be forged.
    for (base, at) in [(&alone, 2 * MB), (&copied, 3 * MB)] {
        for query in ["", "&refine=4096"] {
            let entry = client.get(&format!("{SNAPSHOTS}/{target}?compareTo={base}{query}")).ok()["disks"][0].clone();
            let listed = chunks(&entry);
            assert!(listed.contains(&data(at, 4096)), "{query}: {entry}");
            assert_eq!(entry.get("refine").unwrap_or(&Value::Null), &Value::Null, "{query}: {entry}");
        }
    }
}

#[test]
fn recorded_checksum_proves_a_touched_file() {
    needs_root!();
    let (world, disk, client) = world();
    let (id, file) = take_snapshot(&client);
    let expected = fs::read(&disk).unwrap();
    let sum = client.get(&format!("{SNAPSHOTS}/{id}/disks/a.img/checksum?algorithm=sha256")).ok();
    // Without the live disk, all blocks belong to the snapshot only.
    fs::remove_file(&disk).unwrap();
    command(&["chmod", "0400", file.to_str().unwrap()]);
    let bytes = format!("/api/v1{SNAPSHOTS}/{id}/disks/a.img");
    // The checksum is computed in the background.
    let first = client.send(client.request(Method::HEAD, &bytes));
    assert_eq!((first.status, first.header("retry-after")), (503, "10"), "{first:?}");
    eventually("the file is accepted", || client.send(client.request(Method::HEAD, &bytes)).status == 200);
    assert_eq!(client.disk(&id, "a.img"), expected);
    assert!(world.exporter.log().contains("its checksum matches the recorded one"));
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}/disks/a.img/checksum?algorithm=sha256")).ok(), sum);
    forge(&file, MB);
    let route = format!("/vms/{VM}/snapshots/{id}/disks/a.img");
    let range = || client.send(client.request(Method::GET, &bytes).header("Range", "bytes=0-9"));
    assert_eq!(range().error(503), "snapshot_being_checked");
    eventually("the file is rejected", || range().status == 409);
    assert_eq!(client.get(&route).error(409), "snapshot_lost");
    // One checksum is enough for each ctime.
    assert_eq!(world.exporter.log().matches("calculating the checksum of a touched file").count(), 2);
}
