//! Comparisons list exactly what changed between two snapshots.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{
    Chunk, Client, MB, Random, SNAPSHOTS, VM, World, chunks, data, define_vm, make_disk, text, write_at, xfs_io, zero,
};
use crate::needs_root;

/// The first disk of `target` compared to `base`, with squashed chunks.
fn disk(client: &Client, target: &str, base: &str) -> Value {
    client.compare(target, base)["disks"][0].clone()
}

fn bytes_of(chunks: &[Chunk], zeros: bool) -> u64 {
    chunks.iter().filter(|chunk| chunk.zero == zeros).map(|chunk| chunk.length).sum()
}

fn resize(disk: &Path, size: u64) {
    File::options().write(true).open(disk).unwrap().set_len(size).unwrap();
}

/// A VM with a disk of 1 MiB whose first half is data.
fn with_half_a_disk() -> (World, PathBuf, Client) {
    let world = World::new(512);
    let path = world.define_vm(&[("a.img", MB)]).remove(0);
    write_at(&path, 0, &Random(1).bytes(MB / 2));
    let client = world.client();
    (world, path, client)
}

#[test]
fn small_write_into_a_large_extent_lists_one_block() {
    needs_root!();
    let world = World::new(8192); // allocation groups of 2 GiB: the disk fits into one extent
    let size = 600 * MB;
    let path = &world.define_vm(&[("a.img", size)])[0];
    xfs_io(path, &[&format!("falloc 0 {size}"), &format!("pwrite -q -b 4m -S 0x5a 0 {size}"), "fsync"]);
    let client = world.client();
    let base = client.take_snapshot();
    assert_eq!(chunks(&base["disks"][0]), [data(0, size)], "one extent");

    let at = 123 * MB + 4096;
    write_at(path, at, &[9; 4096]);
    let target = client.take_snapshot_id();
    let changed = disk(&client, &target, &text(&base["id"]));
    assert_eq!(chunks(&changed), [data(at, 4096)]);
    assert_eq!((&changed["data_bytes"], &changed["zero_bytes"]), (&json!(4096), &json!(0)));
    assert_eq!(changed["mode"], "incremental");
    assert_eq!(client.disk_range(&target, "a.img", at - 1, 4098), [&[0x5a][..], &[9; 4096], &[0x5a]].concat());
    // A write inside a block changes the whole block.
    write_at(path, 5 * MB + 100, &[9; 10]);
    assert_eq!(chunks(&disk(&client, &client.take_snapshot_id(), &target)), [data(5 * MB, 4096)]);
}

#[test]
fn hundred_small_writes_list_only_their_blocks() {
    needs_root!();
    let world = World::new(10_240);
    let size = 4096 * MB;
    let path = &world.define_vm(&[("a.img", size)])[0];
    // 64 pieces of 4 MiB at equal distances.
    for piece in 0..64 {
        write_at(path, piece * 64 * MB, &vec![0x5a; 4 << 20]);
    }
    let client = world.client();
    let base = client.take_snapshot();
    assert_eq!(base["disks"][0]["data_bytes"], 256 * MB);

    let mut random = Random(100);
    let mut written: Vec<u64> = (0..100).map(|_| random.below(64) * 64 * MB + random.below(1024) * 4096).collect();
    for (at, byte) in written.iter().zip(1..) {
        write_at(path, *at, &[byte; 4096]);
    }
    written.sort_unstable();
    written.dedup();
    let target = client.take_snapshot_id();
    let changed = disk(&client, &target, &text(&base["id"]));
    let listed = chunks(&changed);
    assert!(listed.len() <= 100, "{} chunks", listed.len());
    assert_eq!(changed["data_bytes"], json!(4096 * written.len()));
    let blocks: Vec<u64> =
        listed.iter().flat_map(|chunk| (0..chunk.length / 4096).map(|block| chunk.start + block * 4096)).collect();
    assert_eq!(blocks, written);
    for Chunk { start, length, .. } in listed {
        let file = File::open(path).unwrap();
        let mut expected = vec![0; usize::try_from(length).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut expected, start).unwrap();
        assert_eq!(client.disk_range(&target, "a.img", start, length), expected);
    }
}

#[test]
fn each_kind_of_change_lists_exactly_the_change() {
    needs_root!();
    let (_world, path, client) = with_half_a_disk();
    let write = |at: u64, bytes: &[u8]| write_at(&path, at, bytes);
    let io = |command: &str| xfs_io(&path, &[command]);
    let steps: &[(&str, &dyn Fn(), &[Chunk])] = &[
        ("nothing", &|| {}, &[]),
        ("a write", &|| write(8192, &[1; 4096]), &[data(8192, 4096)]),
        (
            "two writes",
            &|| [0, 16384].iter().for_each(|at| write(*at, &[2; 4096])),
            &[data(0, 4096), data(16384, 4096)],
        ),
        ("a hole", &|| io("fpunch 65536 32768"), &[zero(65536, 32768)]),
        ("nothing again", &|| {}, &[]),
        ("a write into the hole", &|| write(69632, &[3; 4096]), &[data(69632, 4096)]),
        ("a hole over data and hole", &|| io("fpunch 65536 65536"), &[zero(69632, 4096), zero(98304, 32768)]),
        ("zeros made by the file system", &|| io("fzero 131072 8192"), &[zero(131_072, 8192)]),
        ("zeros written", &|| write(262_144, &[0; 4096]), &[data(262_144, 4096)]),
        ("preallocation in a hole", &|| io("falloc 786432 65536"), &[]),
        ("a write into it", &|| write(790_528, &[4; 4096]), &[data(790_528, 4096)]),
        ("preallocation past the end", &|| io("falloc -k 1048576 65536"), &[]),
        ("growth into it", &|| resize(&path, MB + 10_000), &[]),
        ("a write to the unaligned end", &|| write(MB + 9_999, &[5]), &[data(MB + 8192, 1808)]),
        // The file system rewrites the block of the old end.
        ("growth from the unaligned end", &|| resize(&path, 2 * MB), &[data(MB + 8192, 4096)]),
        (
            "data and zeros side by side",
            &|| (io("fpunch 0 4096"), write(4096, &[6; 4096])).0,
            &[zero(0, 4096), data(4096, 4096)],
        ),
        ("an end inside a block", &|| resize(&path, 300_001), &[data(299_008, 993)]),
        ("growth over what was cut off", &|| resize(&path, MB), &[data(299_008, 4096)]),
        ("one byte", &|| write(262_145, &[7]), &[data(262_144, 4096)]),
    ];
    let mut base = (client.take_snapshot_id(), fs::read(&path).unwrap());
    for (what, change, expected) in steps {
        change();
        let now = fs::read(&path).unwrap();
        let target = client.take_snapshot_id();
        let part = disk(&client, &target, &base.0);
        let listed = chunks(&part);
        // Other kernels may not rewrite the block of a moved end.
        let not_rewritten = now.len() != base.1.len() && listed.is_empty();
        assert!(listed == *expected || not_rewritten, "{what}: {listed:?}, not {expected:?}");
        assert_eq!(part["size"], json!(now.len()), "{what}");
        assert_eq!((&part["mode"], &part["reason"]), (&json!("incremental"), &Value::Null), "{what}");
        assert_eq!(part["data_bytes"], json!(bytes_of(&listed, false)), "{what}");
        assert_eq!(part["zero_bytes"], json!(bytes_of(&listed, true)), "{what}");
        assert!(client.patched(&part, &base.1) == now, "{what}: the patched base is not the target");
        base = (target, now);
    }
}

#[test]
fn comparison_honors_squash_zero_and_chunks_options() {
    needs_root!();
    let (_world, path, client) = with_half_a_disk();
    let base = client.take_snapshot_id();
    // The snapshot between the writes moves the second one elsewhere: three adjacent extents.
    write_at(&path, 4096, &[1; 12288]);
    client.take_snapshot_id();
    write_at(&path, 8192, &[2; 4096]);
    xfs_io(&path, &["fpunch 16384 8192"]);
    let target = client.take_snapshot_id();
    let get = |query: &str| {
        let document = client.get(&format!("{SNAPSHOTS}/{target}?compareTo={base}{query}")).ok();
        assert_eq!(document["compare_to"], json!(base));
        document["disks"][0].clone()
    };
    let joined = get("");
    assert_eq!(chunks(&joined), [data(4096, 12288), zero(16384, 8192)], "a chunk has one type");
    assert_eq!(get("&squashChunks=True"), joined);
    let apart = get("&squashChunks=False");
    assert_eq!(chunks(&apart), [data(4096, 4096), data(8192, 4096), data(12288, 4096), zero(16384, 8192)]);
    assert_eq!(apart["chunks"][0]["physical_start"], joined["chunks"][0]["physical_start"]);
    assert!(client.patched(&apart, &client.disk(&base, "a.img")) == fs::read(&path).unwrap());

    assert_eq!(get("&zero=include"), joined);
    let omitted = get("&zero=omit");
    assert_eq!(chunks(&omitted), [data(4096, 12288)]);
    assert_eq!(omitted["zero_bytes"], 8192);
    assert_eq!(get("&chunks=false")["chunks"], Value::Null);
}

#[test]
fn preallocated_space_is_not_data() {
    needs_root!();
    let world = World::new(512);
    let path = &world.define_vm(&[("a.img", 4 * MB)])[0];
    xfs_io(path, &["falloc 0 2m", "falloc -k 4m 1m"]);
    let client = world.client();
    let base = client.take_snapshot();
    assert_eq!(chunks(&base["disks"][0]), []);
    assert_eq!((&base["disks"][0]["data_bytes"], &base["disks"][0]["zero_bytes"]), (&json!(0), &json!(4 * MB)));
    write_at(path, MB, &[1; 4096]);
    assert_eq!(chunks(&disk(&client, &client.take_snapshot_id(), &text(&base["id"]))), [data(MB, 4096)]);
}

#[test]
fn rewriting_the_same_bytes_lists_at_most_the_rewritten_range() {
    needs_root!();
    let (_world, path, client) = with_half_a_disk();
    let base = client.take_snapshot_id();
    let bytes = fs::read(&path).unwrap();
    write_at(&path, 65536, &bytes[65536..131_072]);
    let part = disk(&client, &client.take_snapshot_id(), &base);
    // The rewritten blocks may be listed, but nothing else.
    assert!(chunks(&part).iter().all(|chunk| chunk.start >= 65536 && chunk.start + chunk.length <= 131_072), "{part}");
    assert!(client.patched(&part, &bytes) == bytes);
}

#[test]
fn disk_missing_from_the_base_is_full() {
    needs_root!();
    let (_xfs, second, world) = World::with_two_repositories(512);
    let a = make_disk(&world.repository, "a.img", MB);
    write_at(&a, 0, &[1; 4096]);
    define_vm(&world.repository, VM, std::slice::from_ref(&a));
    let client = world.client();
    let base = client.take_snapshot_id();

    // A disk that was added later. The client may still have a file of that name from an older snapshot, so zeros are
    // listed, too.
    let b = make_disk(&world.repository, "b.img", MB);
    write_at(&b, 8192, &[2; 4096]);
    define_vm(&world.repository, VM, &[a.clone(), b.clone()]);
    let target = client.take_snapshot_id();
    let parts = client.compare(&target, &base)["disks"].clone();
    assert_eq!((&parts[0]["mode"], &parts[1]["mode"]), (&json!("incremental"), &json!("full")));
    assert_eq!(parts[0]["chunks"], json!([]));
    assert_eq!(chunks(&parts[1]), [zero(0, 8192), data(8192, 4096), zero(12288, MB - 12288)]);
    assert!(parts[1]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{}", parts[1]);
    for base in [Vec::new(), Random(2).bytes(2 * MB)] {
        assert!(client.patched(&parts[1], &base) == fs::read(&b).unwrap());
    }

    // A file of the same name in another folder, or in another repository.
    let template = world.repository.join("Templates");
    fs::create_dir(&template).unwrap();
    fs::rename(&b, template.join("b.img")).unwrap();
    let moved = [a.clone(), template.join("b.img")];
    let elsewhere = [a, make_disk(&second, "b.img", MB)];
    write_at(&elsewhere[1], 65536, &[3; 4096]);
    for disks in [moved, elsewhere] {
        define_vm(&world.repository, VM, &disks);
        let part = client.compare(&client.take_snapshot_id(), &target)["disks"][1].clone();
        assert_eq!((&part["name"], &part["mode"]), (&json!("b.img"), &json!("full")));
        assert!(part["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{part}");
        let listed = chunks(&part);
        assert_eq!((listed.len(), bytes_of(&listed, false), bytes_of(&listed, true)), (3, 4096, MB - 4096));
        assert!(client.patched(&part, &Random(1).bytes(2 * MB)) == fs::read(&disks[1]).unwrap());
    }
}

#[test]
fn full_list_is_an_error_on_request() {
    needs_root!();
    let (_volume, second_repository, world) = World::with_two_repositories(512);
    let a = make_disk(&world.repository, "a.img", MB);
    define_vm(&world.repository, VM, std::slice::from_ref(&a));
    let client = world.client();
    let base = client.take_snapshot_id();
    let compare =
        |target: &str, query: &str| client.get(&format!("{SNAPSHOTS}/{target}{query}compareTo={base}&ifFull=error"));
    let same = client.take_snapshot_id();
    for query in ["?", "?chunks=false&", "?summary=true&", "/disks/a.img/chunks?"] {
        assert_eq!(compare(&same, query).status, 200, "{query}");
    }
    // The second disk is new; then the first one is another disk of the same name.
    let b = make_disk(&world.repository, "b.img", MB);
    for (disks, named, reason) in [
        (vec![a.clone(), b.clone()], "b.img", "no such disk"),
        (vec![make_disk(&second_repository, "a.img", MB)], "a.img", "another disk"),
    ] {
        define_vm(&world.repository, VM, &disks);
        let target = client.take_snapshot_id();
        for query in ["?", "?chunks=false&", "?summary=true&", &format!("/disks/{named}/chunks?")] {
            let answer = compare(&target, query);
            assert_eq!(answer.error(409), "full_required", "{query}");
            let details = text(&answer.json()["details"]);
            assert!(details.contains(named) && details.contains(reason), "{details}");
        }
        let lines = format!("/api/v1{SNAPSHOTS}/{target}/disks/{named}/chunks?compareTo={base}&ifFull=error");
        let lines = client.request(reqwest::Method::GET, &lines).header("Accept", "application/x-ndjson");
        assert_eq!(client.send(lines).error(409), "full_required");
        let full = client.get(&format!("{SNAPSHOTS}/{target}?compareTo={base}&ifFull=full")).ok();
        assert_eq!(full, client.compare(&target, &base));
    }
    // The parameter is only for comparisons, so that it cannot be ignored.
    for route in ["", &format!("/{same}"), &format!("/{same}/disks/a.img/chunks")] {
        assert_eq!(client.get(&format!("{SNAPSHOTS}{route}?ifFull=error")).error(400), "bad_request", "{route}");
    }
    assert_eq!(client.post(&format!("{SNAPSHOTS}?ifFull=error")).error(400), "bad_request");
    for query in ["ifFull=fail", "iffull=error", "ifFull=error&ifFull=error"] {
        let answer = client.get(&format!("{SNAPSHOTS}/{same}?compareTo={base}&{query}"));
        assert_eq!(answer.error(400), "bad_request", "{query}");
    }
}

#[test]
fn damaged_base_is_rejected() {
    needs_root!();
    let (_world, path, client) = with_half_a_disk();
    let damages: [(&str, fn(&Path)); 7] = [
        ("removed", |base| fs::remove_file(base).unwrap()),
        ("its folder removed", |base| fs::remove_dir_all(base.parent().unwrap()).unwrap()),
        ("written to", |base| write_at(base, 0, &[0xee])),
        ("written to with its own bytes", |base| write_at(base, 0, &fs::read(base).unwrap()[..4096])),
        ("replaced by a copy", |base| {
            let copy = base.with_extension("copy");
            fs::copy(base, &copy).unwrap();
            fs::rename(&copy, base).unwrap();
        }),
        ("touched", |base| File::open(base).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap()),
        ("replaced by a link to the disk", |base| {
            let repository = base.ancestors().nth(3).unwrap();
            fs::remove_file(base).unwrap();
            std::os::unix::fs::symlink(repository.join("VirtualDisks/a.img"), base).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let base = client.take_snapshot();
        write_at(&path, 4096, &[1; 4096]);
        let (id, target) = (text(&base["id"]), client.take_snapshot_id());
        assert_eq!(chunks(&disk(&client, &target, &id)), [data(4096, 4096)]);
        damage(Path::new(&text(&base["disks"][0]["path"])));
        let answer = client.get(&format!("{SNAPSHOTS}/{target}?compareTo={id}"));
        assert_eq!(answer.error(409), "base_lost", "{what}");
        assert!(text(&answer.json()["details"]).contains("full"), "{what}: no remedy");
        // A missing folder means that another service has deleted the snapshot.
        let is_gone = what == "its folder removed";
        let (status, code) = if is_gone { (404, "not_found") } else { (409, "snapshot_lost") };
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}")).error(status), code, "{what}");
        // The target itself is still good.
        assert_eq!(chunks(&client.get(&format!("{SNAPSHOTS}/{target}")).ok()["disks"][0]), [data(0, MB / 2)], "{what}");
        let deleted = client.delete(&format!("{SNAPSHOTS}/{id}"));
        // Files of other owners are not removed.
        if what.starts_with("replaced") {
            assert_eq!(deleted.error(409), "not_removed", "{what}");
        } else {
            assert_eq!(deleted.status, 200, "{what}");
        }
    }
}

#[test]
fn base_must_be_an_older_snapshot() {
    needs_root!();
    let (_world, _path, client) = with_half_a_disk();
    let (first, second) = (client.take_snapshot_id(), client.take_snapshot_id());
    let compare = |target: &str, base: &str| client.get(&format!("{SNAPSHOTS}/{target}?compareTo={base}"));
    assert_eq!(compare(&first, &second).error(400), "base_not_older");
    assert_eq!(compare(&first, &first).error(400), "base_not_older");
    assert_eq!(compare(&second, &uuid::Uuid::nil().to_string()).error(404), "not_found");
    assert_eq!(compare(&second, "no-uuid").error(404), "not_found");
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
    assert_eq!(compare(&second, &first).error(404), "not_found");
    assert_eq!(compare(&second, "").ok()["disks"][0]["mode"], "full");
}
