use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn fixture(name: &str) -> Vec<u8> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ovs-agent-db");
    fs::read(fixtures.join(name).join("repository")).unwrap()
}

/// Little-endian pages of 512 bytes: one hash page and the overflow pages of its value.
fn small() -> Vec<u8> {
    fixture("locking")
}

fn set_u32(file: &mut [u8], page: usize, at: usize, value: u32) {
    file[page * 512 + at..][..4].copy_from_slice(&value.to_le_bytes());
}

/// The first page of that type.
fn page_of_type(file: &[u8], wanted: u8) -> usize {
    (1..file.len() / 512).find(|page| file[page * 512 + field::TYPE] == wanted).unwrap()
}

/// The offset of the first item that lies on overflow pages.
fn off_page_item(file: &[u8]) -> usize {
    let pages = (1..file.len() / 512).filter(|page| file[page * 512 + field::TYPE] == PAGE_HASH);
    let mut indexes = pages.flat_map(|page| (0..12).map(move |index| page * 512 + field::HEADER + 2 * index));
    indexes
        .find_map(|index| {
            let at = index / 512 * 512 + usize::from(u16::from_le_bytes([file[index], file[index + 1]]));
            (at % 512 != 0 && file[at] == ITEM_OFF_PAGE).then_some(at)
        })
        .unwrap()
}

fn problem(file: &[u8]) -> String {
    pairs(file).unwrap_err().to_string()
}

#[test]
fn both_byte_orders_and_checksums_give_the_same_pairs() {
    let plain = pairs(&fixture("py2str-p0")).unwrap();
    assert_eq!(plain.len(), 3);
    for name in ["big-endian", "checksums", "big-endian-checksums", "ps4096"] {
        assert_eq!(pairs(&fixture(name)).unwrap(), plain, "{name}");
    }
}

#[test]
fn a_checksum_detects_a_changed_byte() {
    for name in ["checksums", "big-endian-checksums"] {
        let file = fixture(name);
        // On page 0 the other checked fields, on the others a byte of the content.
        for at in [100, 512 + 500, 2 * 512 + 500, 3 * 512 + 40] {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert!(problem(&damaged).contains("checksum"), "{name}: byte {at}");
        }
    }
}

#[test]
fn the_count_is_right_only_without_locks() {
    for (name, counted, there) in [("py2str-p0", 3, 3), ("deleted", 5, 5), ("locking", 0, 3), ("empty", 0, 0)] {
        let file = fixture(name);
        assert_eq!((element_count(&file).unwrap(), pairs(&file).unwrap().len()), (counted, there), "{name}");
    }
}

#[test]
fn other_access_methods_are_named() {
    for (magic, name) in [(MAGIC, "hash"), (0x0005_3162, "btree"), (0x0004_2253, "queue"), (0x0007_4582, "heap")] {
        let mut file = small();
        set_u32(&mut file, 0, 12, magic);
        match pairs(&file) {
            Ok(_) => assert_eq!(name, "hash"),
            Err(error) => assert!(error.to_string().contains(name), "{error}"),
        }
    }
}

const MAGIC: u32 = 0x0006_1561;

#[test]
fn invalid_metadata_is_refused() {
    let patched = |at: usize, value: u32| {
        let mut file = small();
        set_u32(&mut file, 0, at, value);
        problem(&file)
    };
    assert!(patched(20, 0).contains("pages of 0 bytes"));
    assert!(patched(20, 513).contains("expected a power of two"));
    assert!(patched(20, 1 << 17).contains("expected a power of two"));
    assert!(patched(32, u32::MAX).contains("is cut off"));
    assert!(patched(24, 0x0002_0800).contains("partitioned"));
    assert!(patched(48, 2).contains("sub-databases"));
}

#[test]
fn pages_past_the_last_one_are_not_read() {
    let mut file = small();
    let before = pairs(&file).unwrap();
    let copy = file[512..1024].to_vec();
    file.extend(copy);
    assert_eq!(pairs(&file).unwrap(), before);
}

#[test]
fn chains_with_shared_pages_are_refused() {
    let file = small();
    let overflow = page_of_type(&file, PAGE_OVERFLOW);
    let mut looped = file.clone();
    set_u32(&mut looped, overflow, field::NEXT, overflow as u32);
    // The item is longer than any chain, so only the loop can stop it.
    let item = off_page_item(&file);
    looped[item + 4..item + 8].copy_from_slice(&(overflow as u32).to_le_bytes());
    looped[item + 8..item + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(problem(&looped).contains("twice to one"), "{}", problem(&looped));

    let mut away = file.clone();
    set_u32(&mut away, overflow, field::NEXT, 0x7fff_ffff);
    assert!(problem(&away).contains("ends before it") || problem(&away).contains("past the length"));
    let mut wrong = file.clone();
    wrong[item + 4..item + 8].copy_from_slice(&1u32.to_le_bytes());
    assert!(problem(&wrong).contains("is not an overflow page"), "{}", problem(&wrong));
}

#[test]
fn impossible_lengths_are_refused() {
    let file = small();
    let item = off_page_item(&file);
    for (len, expected) in [(u32::MAX, "ends too early"), (0, "past the length")] {
        let mut file = file.clone();
        file[item + 8..item + 12].copy_from_slice(&len.to_le_bytes());
        assert!(problem(&file).contains(expected), "{}", problem(&file));
    }
    let overflow = page_of_type(&file, PAGE_OVERFLOW);
    let mut full = file.clone();
    full[overflow * 512 + field::DATA_LEN..][..2].fill(0xff);
    assert!(problem(&full).contains("more data than space"));
}

#[test]
fn impossible_items_are_refused() {
    let file = small();
    let hash = (1..file.len() / 512).find(|page| file[page * 512 + field::ENTRIES] >= 2).unwrap();
    for (at, bytes, expected) in [
        (field::ENTRIES, [1, 0], "a key without a value"),
        (field::ENTRIES, [0xfe, 0xff], "at an impossible offset"),
        (field::HEADER, [0, 0], "at an impossible offset"),
        (field::HEADER, [0xff, 0xff], "at an impossible offset"),
        (field::NUMBER, [0x77, 0], "number of another page"),
        (24, [0, 9], "has an unexpected type"),
    ] {
        let mut file = file.clone();
        file[hash * 512 + at..][..2].copy_from_slice(&bytes);
        assert!(problem(&file).contains(expected), "{at}: {}", problem(&file));
    }
    let first = usize::from(u16::from_le_bytes([file[hash * 512 + 26], file[hash * 512 + 27]]));
    for (kind, expected) in [(2, "several values"), (4, "several values"), (5, "unknown kind")] {
        let mut file = file.clone();
        file[hash * 512 + first] = kind;
        assert!(problem(&file).contains(expected), "{kind}: {}", problem(&file));
    }
}

#[test]
fn a_duplicate_key_is_refused() {
    let file = fixture("many-200");
    let pages: Vec<usize> = (1..25).filter(|page| file[page * 4096 + field::TYPE] == PAGE_HASH).collect();
    let mut twice = file.clone();
    twice.copy_within(pages[0] * 4096..(pages[0] + 1) * 4096, pages[1] * 4096);
    let number = (pages[1] as u32).to_le_bytes();
    twice[pages[1] * 4096 + field::NUMBER..][..4].copy_from_slice(&number);
    assert!(problem(&twice).contains("twice"), "{}", problem(&twice));
}

/// Checks that `pairs` takes no longer than reading the whole file.
fn bounded(file: &[u8]) {
    let start = Instant::now();
    if let Ok(pairs) = pairs(file) {
        let len: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert!(len <= file.len());
    }
    assert!(start.elapsed() < Duration::from_secs(2));
}

const MUTATED: [&str; 6] =
    ["locking", "big-endian", "big-endian-checksums", "deleted", "big-overflow-ps512", "many-200"];

proptest! {
    #[test]
    fn any_bytes_are_read_in_bounded_time(mut file in proptest::collection::vec(any::<u8>(), 0..4096), hash in any::<bool>()) {
        if hash && file.len() >= 512 {
            file[12..16].copy_from_slice(&MAGIC.to_le_bytes());
            file[16..20].copy_from_slice(&9u32.to_le_bytes());
            file[20..24].copy_from_slice(&512u32.to_le_bytes());
            file[24..27].copy_from_slice(&[0, 8, 0]);
            file[32..36].copy_from_slice(&[0, 0, 0, 0]);
            file[32] = (file.len() / 512 - 1) as u8;
            file[48..52].fill(0);
        }
        bounded(&file);
    }

    #[test]
    fn any_damage_is_read_in_bounded_time(
        name in proptest::sample::select(&MUTATED[..]),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0..8u8), 0..40),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut file = fixture(name);
        for (at, bit) in flips {
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        bounded(&file);
    }
}
