//! The restore invariant (docs/api.md#comparison) on a real file system.

use std::fs::{self, File};
use std::ops::RangeInclusive;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use crate::harness::{
    Client, Random, SNAPSHOTS, VM, World, chunks, define_vm, eventually, make_disk, text, write_at, xfs_io,
};
use crate::needs_root;
use crate::restore_invariant_options::Compared;

const BLOCK: u64 = 4096;

/// The size of a test run, and the abilities of its file system.
#[derive(Clone, Copy)]
pub struct Scale {
    pub chain: usize,
    /// The largest disk.
    pub largest: u64,
    /// The most bytes that one operation touches.
    pub reach: u64,
    /// Whether FALLOC_FL_ZERO_RANGE is supported.
    pub zero_range: bool,
    /// Whether space past the end of a disk may be reserved. OCFS2 cannot clone such a file.
    pub past_end: bool,
    /// Whether all options are checked for each pair, or only for the first with the last.
    pub all_options: bool,
}

const ON_XFS: Scale =
    Scale { chain: 5, largest: 3 << 20, reach: 96 << 10, zero_range: true, past_end: true, all_options: true };

/// A change of a disk by the guest or the host.
#[derive(Debug)]
enum Op {
    Write,
    WriteDirect,
    WriteMapped,
    WriteTheSame,
    WriteZeros,
    Punch,
    Zero,
    Preallocate,
    Resize,
    Append,
    Sync,
}

const OPS: [Op; 16] = [
    Op::Write,
    Op::Write,
    Op::WriteDirect,
    Op::WriteDirect,
    Op::WriteMapped,
    Op::WriteMapped,
    Op::WriteTheSame,
    Op::WriteZeros,
    Op::Punch,
    Op::Punch,
    Op::Zero,
    Op::Zero,
    Op::Preallocate,
    Op::Resize,
    Op::Append,
    Op::Sync,
];

/// Applies `op` to a random range, half of the time aligned to blocks.
fn apply(op: &Op, disk: &Path, scale: &Scale, random: &mut Random) {
    let Scale { largest, reach, .. } = *scale;
    let size = fs::metadata(disk).unwrap().len();
    let mut start = random.below(size.max(1));
    let mut length = (1 + random.below(reach)).min(size - start);
    if random.below(2) == 0 {
        start -= start % BLOCK;
        length = (length / BLOCK * BLOCK).max(BLOCK).min(size - start);
    }
    if length == 0 {
        return resize(disk, 1 + random.below(largest));
    }
    let io = |commands: &[String]| xfs_io(disk, &commands.iter().map(String::as_str).collect::<Vec<_>>());
    match op {
        Op::Write => write_at(disk, start, &random.bytes(length)),
        Op::WriteDirect => write_direct(disk, start, length, random),
        Op::WriteMapped => {
            let byte = random.below(256);
            // Mapped from 0, since a mapping has to start at a page. With and without msync.
            let mut commands = vec![format!("mmap -w 0 {size}"), format!("mwrite -S {byte} {start} {length}")];
            if random.below(2) == 0 {
                commands.push("msync -s".to_owned());
            }
            io(&commands);
        }
        Op::WriteTheSame => {
            let mut bytes = vec![0; usize::try_from(length).unwrap()];
            File::open(disk).unwrap().read_exact_at(&mut bytes, start).unwrap();
            write_at(disk, start, &bytes);
        }
        Op::WriteZeros => write_at(disk, start, &vec![0; usize::try_from(length).unwrap()]),
        Op::Punch => io(&[format!("fpunch {start} {length}")]),
        Op::Zero if scale.zero_range => io(&[format!("fzero {start} {length}")]),
        Op::Zero => io(&[format!("fpunch {start} {length}"), format!("falloc {start} {length}")]),
        Op::Preallocate => {
            let keep = if random.below(2) == 0 { "-k " } else { "" };
            io(&[format!("falloc {keep}{start} {length}")]);
            if scale.past_end {
                io(&[format!("falloc -k {size} {length}")]);
            }
        }
        Op::Resize => resize(disk, random.below(largest)),
        Op::Append => write_at(disk, size, &random.bytes(length.min(largest - size.min(largest)))),
        Op::Sync => File::open(disk).unwrap().sync_all().unwrap(),
    }
}

fn resize(disk: &Path, size: u64) {
    File::options().write(true).open(disk).unwrap().set_len(size).unwrap();
}

/// Writes whole blocks with O_DIRECT, within the size.
fn write_direct(disk: &Path, start: u64, length: u64, random: &mut Random) {
    let end = (start + length) / BLOCK * BLOCK;
    let start = start / BLOCK * BLOCK;
    if start >= end {
        return;
    }
    // O_DIRECT needs aligned memory: skip to the first boundary in a larger buffer.
    let mut memory = random.bytes(end - start + BLOCK);
    let skip = memory.as_ptr().align_offset(BLOCK as usize);
    let part = &mut memory[skip..][..(end - start) as usize];
    let file = File::options().write(true).custom_flags(nix::libc::O_DIRECT).open(disk).unwrap();
    file.write_all_at(part, start).unwrap();
}

struct Snapshot {
    id: String,
    /// The expected content.
    bytes: Vec<u8>,
}

/// Checks the invariant for each pair; returns the numbers of listed and of compared bytes.
fn check_all_pairs(client: &Client, chain: &[Snapshot], name: &str, what: &str, all_options: bool) -> (u64, u64) {
    let (mut listed, mut compared) = (0, 0);
    for (i, target) in chain.iter().enumerate() {
        assert!(client.disk(&target.id, name) == target.bytes, "{what}: snapshot {i} differs from the disk");
        for squash in ["true", "false"] {
            let part = |query: String| -> Value {
                let path = format!("{SNAPSHOTS}/{}?squashChunks={squash}{query}", target.id);
                client.get(&path).ok()["disks"][0].clone()
            };
            let full = client.patched(&part(String::new()), &[]);
            assert!(full == target.bytes, "{what}: full restore of snapshot {i} (squash={squash})");
            let full = client.patched(&part("&zero=include".to_owned()), &vec![0xee; 2 * target.bytes.len()]);
            assert!(full == target.bytes, "{what}: full restore of snapshot {i} with zeros (squash={squash})");
            for (j, base) in chain[..i].iter().enumerate() {
                let change = part(format!("&compareTo={}", base.id));
                assert_eq!(change["mode"], "incremental");
                let patched = client.patched(&change, &base.bytes);
                let differs = || (0..patched.len()).find(|at| patched[*at] != target.bytes[*at]);
                assert!(
                    patched == target.bytes,
                    "{what}: snapshot {j} patched to {i} (squash={squash}) differs at {:?}: {change}",
                    differs()
                );
                // The way back: from the target's bytes to the base's.
                let back = part(format!("&compareTo={}&reverse=true", base.id));
                assert_eq!((&back["mode"], &back["snapshot_id"]), (&"incremental".into(), &base.id.as_str().into()));
                assert!(
                    client.patched(&back, &target.bytes) == base.bytes,
                    "{what}: snapshot {i} patched back to {j} (squash={squash}): {back}"
                );
                listed += chunks(&change).iter().map(|chunk| chunk.length).sum::<u64>();
                compared += change["size"].as_u64().unwrap();
                if squash == "true" && (all_options || i - j + 1 == chain.len()) {
                    let pairs = [(base, target, false), (target, base, true)];
                    for (from, to, reverse) in pairs {
                        let (ids, bytes): (_, (&[u8], &[u8])) = ((&*from.id, &*to.id), (&from.bytes, &to.bytes));
                        Compared { client, ids, reverse, bytes, disk: name, what }.check();
                    }
                }
            }
        }
    }
    (listed, compared)
}

/// The seeds of `usual`, or the seed in RESTORE_SEED.
pub fn seeds(usual: RangeInclusive<u64>) -> RangeInclusive<u64> {
    std::env::var("RESTORE_SEED").map_or(usual, |seed| {
        let seed = seed.parse().expect("RESTORE_SEED has to be a number");
        seed..=seed
    })
}

/// Applies random operations to a disk with snapshots in between, and checks the invariant for all pairs. Returns the
/// numbers of listed and of compared bytes.
pub fn check_history(world: &World, client: &Client, seed: u64, scale: &Scale) -> (u64, u64) {
    let mut random = Random(seed);
    let name = format!("disk-{seed}.img");
    // Half of the disks end inside a block.
    let size = if seed.is_multiple_of(2) { scale.largest / 3 * 2 } else { 1 + random.below(scale.largest) };
    let disk = make_disk(&world.repository, &name, size);
    define_vm(&world.repository, VM, std::slice::from_ref(&disk));
    write_at(&disk, size / 4, &random.bytes(size / 2));
    let mut history = Vec::new();
    let mut chain = Vec::new();
    for _ in 0..scale.chain {
        for _ in 0..random.below(14) {
            let op = &OPS[random.below(OPS.len() as u64) as usize];
            apply(op, &disk, scale, &mut random);
            history.push(format!("{op:?}"));
        }
        history.push("snapshot".to_owned());
        // Read after the snapshot, since reading could write back dirty pages.
        let id = client.take_snapshot_id();
        chain.push(Snapshot { id, bytes: fs::read(&disk).unwrap() });
    }
    let what = format!("RESTORE_SEED={seed} ({})", history.join(", "));
    let (listed, compared) = check_all_pairs(client, &chain, &name, &what, scale.all_options);

    // Later writes reuse the blocks that the deletion of a snapshot in the middle frees.
    let middle = chain.remove(1 + random.below(scale.chain as u64 - 2) as usize);
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{}", middle.id)).status, 200);
    for op in [Op::Write, Op::WriteDirect, Op::WriteMapped, Op::Append, Op::Punch] {
        apply(&op, &disk, scale, &mut random);
    }
    let id = client.take_snapshot_id();
    chain.push(Snapshot { id, bytes: fs::read(&disk).unwrap() });
    check_all_pairs(client, &chain, &name, &format!("{what}, one deleted"), scale.all_options);
    assert_eq!(client.delete(SNAPSHOTS).status, 200);
    (listed, compared)
}

#[test]
fn patched_base_equals_the_target() {
    needs_root!();
    let world = World::new(1024);
    let client = world.client();
    let (mut listed, mut compared) = (0, 0);
    for seed in seeds(1..=10) {
        let of_seed = check_history(&world, &client, seed, &ON_XFS);
        (listed, compared) = (listed + of_seed.0, compared + of_seed.1);
    }
    // Listing everything or nothing would be no comparison.
    assert!(listed > 0 && listed < compared * 2 / 3, "{listed} bytes listed of {compared}");
}

/// The blocks of the disk that the writer below uses.
const NUMBERS: u64 = 512;

/// Writes 1, 2, 3, … each into the next block, round and round, until `stop` is set.
fn write_numbers(disk: &Path, flushes: bool, written: &AtomicU64, stop: &AtomicBool) {
    let file = File::options().write(true).open(disk).unwrap();
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let block = (number - 1) % NUMBERS;
        file.write_all_at(&number.to_le_bytes(), block * BLOCK + (number % 500) * 8).unwrap();
        if flushes && number % 64 == 0 {
            file.sync_data().unwrap();
        }
        written.store(number, Ordering::Relaxed);
    }
}

/// The last number in `bytes`; checks that the disk once had exactly this content.
fn last_number(bytes: &[u8]) -> u64 {
    let slots = bytes.chunks_exact(8).map(|slot| u64::from_le_bytes(slot.try_into().unwrap()));
    let last = slots.clone().max().unwrap();
    let mut expected = vec![0_u64; bytes.len() / 8];
    for number in 1..=last {
        let block = (number - 1) % NUMBERS;
        expected[usize::try_from(block * BLOCK / 8 + number % 500).unwrap()] = number;
    }
    let wrong: Vec<_> =
        slots.zip(&expected).enumerate().filter(|(_, (is, expected))| is != *expected).take(5).collect();
    assert!(wrong.is_empty(), "not a past state of the disk: up to {last}, but {wrong:?}");
    last
}

#[test]
fn snapshot_during_writes_is_a_past_disk_state() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", NUMBERS * BLOCK)])[0];
    let client = world.client();
    for flushes in [false, true] {
        resize(disk, 0);
        resize(disk, NUMBERS * BLOCK);
        let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let mut chain = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| write_numbers(disk, flushes, &written, &stop));
            // The writer has to end even if an assertion fails.
            let _stop = StopOnDrop(&stop);
            let mut seen = 0;
            for _ in 0..8 {
                eventually("the writer writes", || written.load(Ordering::Relaxed) > seen);
                let before = written.load(Ordering::Relaxed);
                let id = client.take_snapshot_id();
                let after = written.load(Ordering::Relaxed);
                let bytes = client.disk(&id, "a.img");
                seen = last_number(&bytes);
                assert!(before <= seen && seen <= after + 1, "{seen} is not within {before} and {after}");
                chain.push(Snapshot { id, bytes });
            }
        });
        check_all_pairs(&client, &chain, "a.img", "under a writer", false);
        assert_eq!(client.delete(SNAPSHOTS).status, 200);
    }
}

#[test]
fn concurrent_snapshots_are_ordered_disk_states() {
    needs_root!();
    let world = World::new(512);
    let disk = &world.define_vm(&[("a.img", NUMBERS * BLOCK)])[0];
    let clients: Vec<Client> = (0..4).map(|_| world.client()).collect();
    let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| write_numbers(disk, false, &written, &stop));
        let _stop = StopOnDrop(&stop);
        std::thread::scope(|scope| {
            for client in &clients {
                scope.spawn(|| (0..6).for_each(|_| drop(client.take_snapshot())));
            }
        });
    });
    let list = clients[0].get(&format!("{SNAPSHOTS}?chunks=false")).ok();
    let ids = list.as_array().unwrap().iter().map(|snapshot| text(&snapshot["id"]));
    let states: Vec<u64> = ids.map(|id| last_number(&clients[0].disk(&id, "a.img"))).collect();
    assert!(states.len() == 24 && states.is_sorted(), "the snapshots in listed order contain {states:?}");
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
