//! A scripted FIEMAP for the code that reads the real one.

use super::*;
use crate::sys::fiemap::{LAST, RawExtent, UNWRITTEN};

const K: u64 = 1 << 10;

/// Answers one call after the other from `pages`. SEEK_DATA and SEEK_HOLE know `data`.
struct Script<'a> {
    pages: std::slice::Iter<'a, &'a [RawExtent]>,
    data: &'a [(u64, u64)],
    size: u64,
}

impl ExtentSource for Script<'_> {
    fn page(&mut self, _: u64, page: &mut Vec<RawExtent>) -> io::Result<()> {
        page.extend_from_slice(self.pages.next().copied().unwrap_or_default());
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        let after = self.data.iter().find(|(_, end)| *end > from);
        Ok(after.map(|(start, _)| (*start).max(from)).filter(|at| *at < self.size))
    }

    fn next_hole(&self, from: u64) -> io::Result<Option<u64>> {
        Ok(Some(self.data.iter().find(|(start, end)| *start <= from && from < *end).map_or(from, |(_, end)| *end)))
    }

    fn holes_are_reliable(&self) -> bool {
        false
    }

    fn verify(&self) -> Result<(), OpenError> {
        Ok(())
    }
}

/// Reads a whole map, window by window.
fn whole(source: impl ExtentSource, size: u64) -> Result<ExtentMap, MapError> {
    let mut windows = MapWindows::new(source, size);
    let (mut at, mut extents) = (0, Vec::new());
    while at < size {
        let window = windows.read_once(at)?;
        assert!(window.end > at, "no progress at {at}");
        let within = |extent: &&Extent| extent.range.start() < window.end;
        extents.extend(window.map.extents().iter().filter(within).copied());
        at = window.end;
    }
    Ok(ExtentMap::new(size, extents).unwrap())
}

fn collect_from(size: u64, pages: &[&[RawExtent]], data: &[(u64, u64)]) -> Result<ExtentMap, MapError> {
    whole(Script { pages: pages.iter(), data, size }, size)
}

fn listed(map: &ExtentMap) -> Vec<(u64, u64, Backing)> {
    map.extents().iter().map(|e| (e.range.start(), e.range.end(), e.backing)).collect()
}

fn at(address: u64) -> Backing {
    Backing::Stored(PhysAddr(address))
}

#[test]
fn pages_are_joined_and_clipped_to_the_size() {
    let first = [RawExtent::new(0, 100 * K, 4 * K, 0), RawExtent::new(8 * K, 200 * K, 4 * K, UNWRITTEN)];
    let second = [RawExtent::new(12 * K, 300 * K, 8 * K, LAST)];
    let map = collect_from(17 * K, &[&first, &second], &[(0, 4 * K), (12 * K, 17 * K)]).unwrap();
    assert_eq!(listed(&map), [(0, 4 * K, at(100 * K)), (12 * K, 17 * K, at(300 * K))]);
}

#[test]
fn an_empty_file_has_an_empty_map() {
    assert_eq!(listed(&collect_from(0, &[], &[]).unwrap()), []);
    assert_eq!(listed(&collect_from(K, &[&[]], &[]).unwrap()), []);
}

#[test]
fn flags_decide_whether_an_address_is_trusted() {
    for bit in 0..32 {
        let flag = 1_u32 << bit;
        let raw = [RawExtent::new(0, 100 * K, 4 * K, flag | LAST)];
        let map = collect_from(4 * K, &[&raw], &[(0, 4 * K)]).unwrap();
        let expected: &[_] = match flag {
            // LAST, MERGED, SHARED
            0x1 | 0x1000 | 0x2000 => &[(0, 4 * K, at(100 * K))],
            // UNWRITTEN
            0x800 => &[],
            // UNKNOWN, DELALLOC, ENCODED, ENCRYPTED, NOT_ALIGNED, INLINE, TAIL, and those to come
            _ => &[(0, 4 * K, Backing::Opaque)],
        };
        assert_eq!(listed(&map), expected, "flag {flag:#x}");
    }
    // Unwritten space with data that is not yet placed is data.
    let raw = [RawExtent::new(0, 0, 4 * K, 0x800 | 0x4 | LAST)];
    assert_eq!(listed(&collect_from(4 * K, &[&raw], &[]).unwrap()), [(0, 4 * K, Backing::Opaque)]);
}

#[test]
fn data_past_an_early_end_is_found() {
    let lies = [RawExtent::new(0, 100 * K, 4 * K, LAST)];
    let data = [(0, 4 * K), (16 * K, 20 * K), (24 * K, 32 * K)];
    let expected = [(0, 4 * K, at(100 * K)), (16 * K, 20 * K, Backing::Opaque), (24 * K, 32 * K, Backing::Opaque)];
    assert_eq!(listed(&collect_from(32 * K, &[&lies], &data).unwrap()), expected);
    // The next page is empty although no extent was the last.
    let silent = [RawExtent::new(0, 100 * K, 4 * K, 0)];
    assert_eq!(listed(&collect_from(32 * K, &[&silent, &[]], &data).unwrap()), expected);
}

/// An older OCFS2: a request that starts above 0 ends after `early` extents, which may be marked as the last.
struct OldOcfs2<'a> {
    raws: &'a [RawExtent],
    room: usize,
    early: usize,
    flag: u32,
}

impl ExtentSource for OldOcfs2<'_> {
    fn page(&mut self, start: u64, page: &mut Vec<RawExtent>) -> io::Result<()> {
        let rest = self.raws.iter().filter(|raw| raw.logical + raw.length > start);
        page.extend(rest.take(if start == 0 { self.room } else { self.early.min(self.room) }));
        if start > 0
            && let Some(last) = page.last_mut()
        {
            last.flags |= self.flag;
        }
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        let is_data = from % (8 * K) < 4 * K;
        Ok(Some(if is_data { from } else { from.next_multiple_of(8 * K) }).filter(|at| *at < 800 * K))
    }

    fn next_hole(&self, from: u64) -> io::Result<Option<u64>> {
        Ok(Some(if from % (8 * K) < 4 * K { from - from % (8 * K) + 4 * K } else { from }))
    }

    fn holes_are_reliable(&self) -> bool {
        false
    }

    fn verify(&self) -> Result<(), OpenError> {
        Ok(())
    }
}

#[test]
fn extents_that_older_ocfs2_loses_are_found() {
    let raws: Vec<_> = (0..100)
        .map(|i| RawExtent::new(i * 8 * K, (1000 + i * 16) * K, 4 * K, if i == 99 { LAST } else { 0 }))
        .collect();
    let read = |room, early, flag| listed(&whole(OldOcfs2 { raws: &raws, room, early, flag }, 800 * K).unwrap());
    let all = read(101, 0, 0);
    assert_eq!(all, raws.iter().map(|raw| (raw.logical, raw.logical + 4 * K, at(raw.physical))).collect::<Vec<_>>());
    // Read in pages, all lost extents are listed as opaque data.
    for (early, flag) in [(0, 0), (1, LAST), (3, LAST)] {
        let paged = read(10, early, flag);
        assert_eq!(paged.len(), 100);
        for (i, (found, expected)) in paged.iter().zip(&all).enumerate() {
            let backing = if i < 10 + early { expected.2 } else { Backing::Opaque };
            assert_eq!(
                *found,
                (expected.0, expected.1, backing),
                "extent {i} of a map that ends {early} after the tenth"
            );
        }
    }
}

/// From any offset, a map is the rest of the whole one.
#[test]
fn a_map_can_be_read_from_anywhere() {
    let raws = [RawExtent::new(0, 100 * K, 8 * K, 0), RawExtent::new(16 * K, 200 * K, 8 * K, LAST)];
    for (start, expected) in [
        (0, vec![(0, 8 * K, at(100 * K)), (16 * K, 24 * K, at(200 * K))]),
        (5000, vec![(5000, 8 * K, at(100 * K + 5000)), (16 * K, 24 * K, at(200 * K))]),
        (8 * K, vec![(16 * K, 24 * K, at(200 * K))]),
        (20 * K, vec![(20 * K, 24 * K, at(204 * K))]),
    ] {
        let rest: Vec<_> = raws.iter().filter(|raw| raw.logical + raw.length > start).copied().collect();
        let data = [(0, 8 * K), (16 * K, 24 * K)];
        let page = [&rest[..]];
        let mut windows = MapWindows::new(Script { pages: page.iter(), data: &data, size: 24 * K }, 24 * K);
        let window = windows.read_once(start).unwrap();
        assert_eq!((listed(&window.map), window.end), (expected, 24 * K), "from {start}");
    }
}

#[test]
fn an_extent_lost_in_the_middle_is_found() {
    let lies = [RawExtent::new(0, 100 * K, 4 * K, 0), RawExtent::new(12 * K, 300 * K, 4 * K, LAST)];
    let map = collect_from(16 * K, &[&lies], &[(0, 8 * K), (12 * K, 16 * K)]).unwrap();
    let expected = [(0, 4 * K, at(100 * K)), (4 * K, 8 * K, Backing::Opaque), (12 * K, 16 * K, at(300 * K))];
    assert_eq!(listed(&map), expected);
}

#[test]
fn contradictory_extents_are_an_error() {
    let cases: [(&str, Vec<RawExtent>); 5] = [
        ("overlap", vec![RawExtent::new(0, K, 8 * K, 0), RawExtent::new(4 * K, 0, 8 * K, LAST)]),
        ("disorder", vec![RawExtent::new(8 * K, 0, 4 * K, 0), RawExtent::new(0, 0, 4 * K, LAST)]),
        ("no length", vec![RawExtent::new(0, 0, 0, LAST)]),
        ("past the end of numbers", vec![RawExtent::new(8, 0, u64::MAX, LAST)]),
        ("more after the last", vec![RawExtent::new(0, 0, K, LAST), RawExtent::new(K, 0, K, LAST)]),
    ];
    for (name, raws) in &cases {
        assert!(matches!(collect_from(32 * K, &[raws], &[]), Err(MapError::Inconsistent(_))), "{name}");
    }
    // No progress: the second page repeats the first.
    let page = [RawExtent::new(0, 0, 4 * K, 0)];
    assert!(matches!(collect_from(32 * K, &[&page, &page], &[]), Err(MapError::Inconsistent(_))));
}

/// A source that always fails.
struct Broken;

impl ExtentSource for Broken {
    fn page(&mut self, _: u64, _: &mut Vec<RawExtent>) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(nix::libc::EIO))
    }

    fn next_data(&self, _: u64) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn next_hole(&self, _: u64) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn holes_are_reliable(&self) -> bool {
        true
    }

    fn verify(&self) -> Result<(), OpenError> {
        Ok(())
    }
}

#[test]
fn an_error_of_the_kernel_is_passed_on() {
    let refused = whole(Broken, K);
    assert!(matches!(refused, Err(MapError::Io(error)) if error.raw_os_error() == Some(nix::libc::EIO)));
}
