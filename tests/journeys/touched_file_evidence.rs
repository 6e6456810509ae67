//! Which evidence proves a touched snapshot file, and which is not needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Client, MB, SNAPSHOTS, World, chunks, data, run};
use crate::needs_root;
use crate::touched_files::{forge, take_snapshot, write_and_sync};

fn world() -> (World, PathBuf, Client) {
    let world = World::new(512);
    let disk = world.define_vm(&[("a.img", 4 * MB)]).remove(0);
    write_and_sync(&disk, 0, &vec![1; 4 << 20]);
    let client = world.client();
    (world, disk, client)
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").args(["--reflink=always", "--preserve=timestamps"]).args([from, to]));
}

#[test]
fn copy_of_a_forged_snapshot_does_not_prove_it() {
    needs_root!();
    for removes_first in [true, false] {
        let (_world, disk, client) = world();
        let (id, file) = take_snapshot(&client);
        // Now only the snapshot has this block: a write changes it in place.
        write_and_sync(&disk, MB, &[2; 4096]);
        forge(&file, MB);
        if removes_first {
            fs::remove_file(&disk).unwrap();
        }
        copy(&file, &disk);
        // A later snapshot, a clone of the copy, is no proof either.
        let (_later, _) = take_snapshot(&client);
        let answer = client.get(&format!("{SNAPSHOTS}/{id}/disks/a.img"));
        assert_eq!(answer.error(409), "snapshot_lost", "removed first: {removes_first}");
    }
}

#[test]
fn comparison_does_not_checksum_its_base() {
    needs_root!();
    let (world, disk, client) = world();
    let (base, file) = take_snapshot(&client);
    client.get(&format!("{SNAPSHOTS}/{base}/disks/a.img/checksum")).ok();
    write_and_sync(&disk, MB, &[2; 4096]);
    let (target, _) = take_snapshot(&client);
    run(Command::new("chmod").arg("0400").arg(&file));
    let entry = client.get(&format!("{SNAPSHOTS}/{target}?compareTo={base}")).ok()["disks"][0].clone();
    assert_eq!(chunks(&entry), [data(MB, 4096)]);
    let log = world.exporter.log();
    assert!(
        log.contains("can be used again as a base only") && !log.contains("calculating the checksum of a touched file"),
        "{log}"
    );
}
