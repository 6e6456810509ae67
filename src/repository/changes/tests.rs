//! Comparisons over a scripted FIEMAP.

use std::io;
use std::rc::Rc;

use proptest::prelude::*;

use super::script::Block::{At, Hole, Opaque, Unwritten};
use super::script::{BLOCK, Block, File, ScriptedFile};
use super::*;
use crate::model::chunk::joined;
use crate::model::diff::changed;
use crate::repository::disk_file::OpenError;
use crate::sys::fiemap::{LAST, RawExtent};

fn finder(base: ScriptedFile, target: ScriptedFile, from: u64) -> ChangeFinder<ScriptedFile> {
    ChangeFinder::new(Base::File(BaseFile::new(base.windows())), target.windows(), from)
}

/// All changes, joined where they are one run on the device, and the error that ended them, if any.
fn all(finder: &mut ChangeFinder<ScriptedFile>) -> (Vec<Chunk>, Option<CompareError>) {
    let (mut chunks, mut broken) = (Vec::new(), None);
    for chunk in joined(std::iter::from_fn(|| finder.next(&|| true)), Chunk::continues_in) {
        assert!(broken.is_none(), "{chunk:?} followed {broken:?}");
        match chunk {
            Ok(chunk) => chunks.push(chunk),
            Err(error) => broken = Some(error),
        }
    }
    assert!(finder.next(&|| true).is_none(), "it goes on after its end");
    (chunks, broken)
}

/// All changes, of a comparison that must not fail.
fn whole(base: ScriptedFile, target: ScriptedFile) -> Vec<Chunk> {
    let (chunks, broken) = all(&mut finder(base, target, 0));
    assert!(broken.is_none(), "{broken:?}");
    chunks
}

fn ranges(chunks: &[Chunk]) -> Vec<(u64, u64)> {
    chunks.iter().map(|chunk| (chunk.range.start() / BLOCK, chunk.range.end() / BLOCK)).collect()
}

/// Every second block is data, so each is an extent.
fn scattered(blocks: u64, first: u64) -> Vec<Block> {
    (0..blocks).map(|block| if block % 2 == 0 { At(first + 2 * block) } else { Hole }).collect()
}

#[test]
fn a_base_that_moves_is_read_until_it_is_stable() {
    let was = File::of(&scattered(8, 100));
    let moved = File::of(&scattered(8, 500));
    // By the first reading of the base, nothing would have changed.
    let target = was.clone();
    let base = ScriptedFile::new(&was, 100);
    let (file, requests) = (Rc::clone(&base.file), Rc::clone(&base.requests));
    let target = ScriptedFile::new(&target, 100).with_fault({
        let moved = moved.clone();
        move |_, _, page| {
            // While the target is read.
            *file.borrow_mut() = moved.clone();
            Ok(page)
        }
    });
    let asked = Rc::clone(&target.requests);
    assert_eq!(whole(base, target), changed(&moved.map(), &was.map()));
    assert_eq!((requests.get(), asked.get()), (3, 2), "the target is read again, between two readings that agree");
}

#[test]
fn a_base_that_never_becomes_stable_is_an_error() {
    let file = File::of(&scattered(8, 100));
    let base = ScriptedFile::new(&file, 2).with_fault(|request, _, mut page| {
        // From the second window on.
        if request > 2 {
            page.iter_mut().for_each(|raw| raw.physical += u64::from(request) * BLOCK * 1000);
        }
        Ok(page)
    });
    let requests = Rc::clone(&base.requests);
    let (chunks, broken) = all(&mut finder(base, ScriptedFile::new(&file, 2), 0));
    assert_eq!(chunks, []);
    assert!(matches!(broken, Some(CompareError::BaseUnstable)), "{broken:?}");
    assert_eq!(requests.get(), 2 + 1 + MAX_READS as u32);
}

#[test]
fn pages_may_differ_in_density() {
    let base = File::of(&scattered(64, 1000));
    let mut target = base.clone();
    target.blocks[20..40].iter_mut().zip(5000..).for_each(|(block, address)| *block = At(address));
    for block in [0, 1, 3, 62, 63] {
        target.blocks[block] = Opaque;
    }
    for (base_room, target_room) in [(1, 1), (1, 100), (100, 1), (3, 7), (7, 3), (100, 100)] {
        let found = whole(ScriptedFile::new(&base, base_room), ScriptedFile::new(&target, target_room));
        assert_eq!(found, changed(&base.map(), &target.map()), "{base_room} and {target_room} extents a page");
    }
}

#[test]
fn a_reading_of_the_base_serves_two_windows() {
    // A page of the target reaches an eighth as far.
    let base = File::of(&scattered(64, 1000));
    let target = ScriptedFile::new(&base, 2);
    let (base, file) = (ScriptedFile::new(&base, 16), base);
    let (of_base, of_target) = (Rc::clone(&base.requests), Rc::clone(&target.requests));
    assert_eq!(whole(base, target), changed(&file.map(), &file.map()));
    assert_eq!(of_target.get(), 16);
    assert!(of_base.get() <= of_target.get() + 2, "{} readings of the base", of_base.get());
}

#[test]
fn the_target_may_be_shorter_or_longer() {
    let long = File::of(&scattered(32, 1000));
    let mut short = File { size: 9 * BLOCK + 100, ..long.clone() };
    short.blocks.truncate(10);
    let empty = File::of(&[]);
    for room in [1, 2, 100] {
        for (base, target) in [(&long, &short), (&short, &long), (&empty, &long), (&long, &empty)] {
            let found = whole(ScriptedFile::new(base, room), ScriptedFile::new(target, room));
            assert_eq!(found, changed(&base.map(), &target.map()), "{} to {} bytes", base.size, target.size);
        }
    }
    // Past the base's end everything was zeros.
    let grown = whole(ScriptedFile::new(&short, 2), ScriptedFile::new(&long, 2));
    assert_eq!(grown.last().unwrap().range.end(), 31 * BLOCK);
}

#[test]
fn contradictory_extents_are_read_again_and_then_an_error() {
    let file = File::of(&scattered(16, 100));
    let mut target = file.clone();
    target.blocks[0] = At(900);
    target.blocks[12] = At(901);
    for times in [1, MAX_READS as u32 - 1, MAX_READS as u32] {
        let of_base = move |request: u32, start: u64, mut page: Vec<RawExtent>| {
            if start > 0 && (3..3 + times).contains(&request) {
                // The second extent lies in the first.
                page[1].logical = page[0].logical;
            }
            Ok(page)
        };
        let (chunks, broken) =
            all(&mut finder(ScriptedFile::new(&file, 4).with_fault(of_base), ScriptedFile::new(&target, 4), 0));
        if times < MAX_READS as u32 {
            assert_eq!((ranges(&chunks), broken.is_none()), (vec![(0, 1), (12, 13)], true), "{times} times");
        } else {
            assert!(matches!(broken, Some(CompareError::Base(MapError::Inconsistent(_)))), "{broken:?}");
            assert_eq!(ranges(&chunks), [(0, 1)], "changes found before stay valid");
        }
    }
}

#[test]
fn an_error_in_the_middle_names_its_file() {
    let file = File::of(&scattered(16, 100));
    let mut target = file.clone();
    (0..16).step_by(2).zip(900..).for_each(|(block, address)| target.blocks[block] = At(address));
    let failing = |at: u64| {
        move |_: u32, start: u64, page: Vec<RawExtent>| {
            if start < at { Ok(page) } else { Err(io::Error::from_raw_os_error(nix::libc::EIO)) }
        }
    };
    let is_eio =
        |error: &MapError| matches!(error, MapError::Io(error) if error.raw_os_error() == Some(nix::libc::EIO));
    let (chunks, broken) =
        all(&mut finder(ScriptedFile::new(&file, 2), ScriptedFile::new(&target, 2).with_fault(failing(8 * BLOCK)), 0));
    assert!(matches!(&broken, Some(CompareError::Target(error)) if is_eio(error)), "{broken:?}");
    assert_eq!(ranges(&chunks), [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]);
    let (chunks, broken) =
        all(&mut finder(ScriptedFile::new(&file, 2).with_fault(failing(1)), ScriptedFile::new(&target, 2), 0));
    assert!(matches!(&broken, Some(CompareError::Base(error)) if is_eio(error)), "{broken:?}");
    assert_eq!(ranges(&chunks), [(0, 1), (2, 3)]);
}

#[test]
fn data_missing_from_a_map_is_listed_as_changed() {
    let file = File::of(&scattered(16, 100));
    let early = |mut page: Vec<RawExtent>| {
        page.truncate(1);
        page[0].flags |= LAST;
        Ok(page)
    };
    for holes_are_reliable in [false, true] {
        // In the base, in the target, in both: never "unchanged".
        for (of_base, of_target) in [(true, false), (false, true), (true, true)] {
            let asked = |lies: bool| {
                let asked = ScriptedFile { holes_are_reliable, ..ScriptedFile::new(&file, 4) };
                asked.with_fault(move |_, start, page| if lies && start > 0 { early(page) } else { Ok(page) })
            };
            let mut finder = finder(asked(of_base), asked(of_target), 0);
            let (chunks, broken) = all(&mut finder);
            assert!(broken.is_none(), "{broken:?}");
            // The first page has the blocks 0 to 6, the second one only block 8.
            assert_eq!(ranges(&chunks), [(10, 11), (12, 13), (14, 15)], "base {of_base}, target {of_target}");
            let lying = u64::from(of_base) + u64::from(of_target);
            assert_eq!(finder.unverified, lying * 3 * BLOCK);
        }
    }
}

#[test]
fn a_map_without_progress_is_an_error() {
    let file = File::of(&scattered(16, 100));
    for of_base in [false, true] {
        let stuck = |is_stuck: bool| {
            ScriptedFile::new(&file, 2).with_fault(move |_, _, page| {
                // Always the first page.
                let first = [0, 2].map(|block| RawExtent::new(block * BLOCK, (100 + 2 * block) * BLOCK, BLOCK, 0));
                Ok(if is_stuck { first.to_vec() } else { page })
            })
        };
        let (base, target) = (stuck(of_base), stuck(!of_base));
        let requests = [Rc::clone(&base.requests), Rc::clone(&target.requests)];
        let (chunks, broken) = all(&mut finder(base, target, 0));
        assert_eq!(chunks, []);
        let is_inconsistent = match &broken {
            Some(CompareError::Base(MapError::Inconsistent(_))) => of_base,
            Some(CompareError::Target(MapError::Inconsistent(_))) => !of_base,
            _ => false,
        };
        assert!(is_inconsistent, "{broken:?}");
        assert!(requests.iter().all(|requests| requests.get() < 20), "{requests:?}");
    }
}

#[test]
fn a_file_changed_in_the_middle_is_an_error() {
    let file = File::of(&scattered(16, 100));
    let mut newer = file.clone();
    (0..16).step_by(2).zip(900..).for_each(|(block, address)| newer.blocks[block] = At(address));
    for of_base in [false, true] {
        let (base, target) = (ScriptedFile::new(&file, 2), ScriptedFile::new(&newer, 2));
        let is_replaced = Rc::clone(if of_base { &base.is_replaced } else { &target.is_replaced });
        let mut finder = finder(base, target, 0);
        let first = finder.next(&|| true).unwrap().unwrap();
        assert_eq!(ranges(&[first]), [(0, 1)]);
        is_replaced.set(true);
        let (chunks, broken) = all(&mut finder);
        // The rest of the window that was found before, and nothing of the next.
        assert_eq!(ranges(&chunks), [(2, 3)]);
        match broken {
            Some(CompareError::Base(MapError::File(OpenError::Replaced))) => assert!(of_base),
            Some(CompareError::Target(MapError::File(OpenError::Replaced))) => assert!(!of_base),
            other => panic!("{other:?}"),
        }
    }
}

fn block(address: u64) -> impl Strategy<Value = Block> {
    prop_oneof![2 => Just(Hole), 1 => Just(Unwritten), 4 => Just(At(address)), 1 => Just(Opaque)]
}

/// A base, and a target that shares some of its blocks.
fn pair() -> impl Strategy<Value = (File, File)> {
    let base = (0..48u64).map(|i| block(1000 + i)).collect::<Vec<_>>();
    let other = (0..48u64).map(|i| block(5000 + i * 3 / 2)).collect::<Vec<_>>();
    let size = || (0..48 * BLOCK).prop_flat_map(|size| prop_oneof![Just(size), Just(size / BLOCK * BLOCK)]);
    (base, other, prop::collection::vec(prop::bool::weighted(0.3), 48), size(), size()).prop_map(
        |(base, other, changes, base_size, target_size)| {
            let target: Vec<Block> = base
                .iter()
                .zip(other)
                .zip(changes)
                .map(|((was, now), changes)| if changes { now } else { *was })
                .collect();
            // File systems reserve space past the end, too.
            let file = |size: u64, blocks: &[Block]| File { size, blocks: blocks.to_vec() };
            (file(base_size, &base), file(target_size, &target))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn windows_find_the_same_changes_as_whole_maps(
        (base, target) in pair(),
        base_room in 1..12usize,
        target_room in 1..12usize,
        from in 0..50 * BLOCK,
        holes_are_reliable: bool,
    ) {
        let expected = changed(&base.map(), &target.map());
        for from in [0, from.min(target.size)] {
            let asked = |file: &File, room| ScriptedFile { holes_are_reliable, ..ScriptedFile::new(file, room) };
            let mut finder = finder(asked(&base, base_room), asked(&target, target_room), from);
            let (found, broken) = all(&mut finder);
            prop_assert!(broken.is_none(), "{:?}", broken);
            let rest = ByteRange::new(from, u64::MAX).unwrap();
            let expected: Vec<Chunk> = expected.iter().filter_map(|chunk| chunk.within(rest)).collect();
            prop_assert_eq!(found, expected, "from {}", from);
            prop_assert_eq!(finder.unverified, 0);
        }
    }
}
