//! A scripted FIEMAP under the code that reads the real one.

use super::*;
use crate::sys::fiemap::{LAST, RawExtent, UNWRITTEN};

const K: u64 = 1 << 10;

/// Answers call after call from `pages`; `data` is what SEEK_DATA and SEEK_HOLE know.
fn collect_from(size: u64, pages: &[&[RawExtent]], data: &[(u64, u64)]) -> Result<ExtentMap, MapError> {
    let mut pages = pages.iter();
    let next_data = |from: u64| {
        Ok(data.iter().find(|(_, end)| *end > from).map(|(start, _)| (*start).max(from)).filter(|at| *at < size))
    };
    let next_hole = |from: u64| {
        Ok(Some(data.iter().find(|(start, end)| *start <= from && from < *end).map_or(from, |(_, end)| *end)))
    };
    collect(
        size,
        |_, out| {
            out.extend_from_slice(pages.next().copied().unwrap_or_default());
            Ok(())
        },
        next_data,
        next_hole,
    )
}

fn listed(map: &ExtentMap) -> Vec<(u64, u64, Backing)> {
    map.extents().iter().map(|e| (e.range.start(), e.range.end(), e.backing)).collect()
}

fn at(address: u64) -> Backing {
    Backing::Stored(PhysAddr(address))
}

#[test]
fn pages_are_put_together_and_clipped_to_the_size() {
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
fn each_flag_that_makes_an_address_worthless_does() {
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
    // Unwritten space that holds data not yet placed is data.
    let raw = [RawExtent::new(0, 0, 4 * K, 0x800 | 0x4 | LAST)];
    assert_eq!(listed(&collect_from(4 * K, &[&raw], &[]).unwrap()), [(0, 4 * K, Backing::Opaque)]);
}

#[test]
fn a_map_that_ends_early_is_found_out() {
    let lies = [RawExtent::new(0, 100 * K, 4 * K, LAST)];
    let data = [(0, 4 * K), (16 * K, 20 * K), (24 * K, 32 * K)];
    let expected = [(0, 4 * K, at(100 * K)), (16 * K, 20 * K, Backing::Opaque), (24 * K, 32 * K, Backing::Opaque)];
    assert_eq!(listed(&collect_from(32 * K, &[&lies], &data).unwrap()), expected);
    // The same where the next page is empty without any extent having been the last.
    let silent = [RawExtent::new(0, 100 * K, 4 * K, 0)];
    assert_eq!(listed(&collect_from(32 * K, &[&silent, &[]], &data).unwrap()), expected);
}

/// An older OCFS2: a request that starts above 0 ends after `early` extents, and calls that the end.
#[test]
fn extents_that_older_ocfs2_loses_are_found_out() {
    let raws: Vec<_> = (0..100)
        .map(|i| RawExtent::new(i * 8 * K, (1000 + i * 16) * K, 4 * K, if i == 99 { LAST } else { 0 }))
        .collect();
    let size = 800 * K;
    let is_data = |at: u64| at % (8 * K) < 4 * K;
    let collect_with = |room: usize, early: usize, flag: u32| {
        collect(
            size,
            |start, out| {
                let rest = raws.iter().filter(|raw| raw.logical + raw.length > start);
                out.extend(rest.take(if start == 0 { room } else { early.min(room) }));
                if start > 0
                    && let Some(last) = out.last_mut()
                {
                    last.flags |= flag;
                }
                Ok(())
            },
            |from| Ok(Some(if is_data(from) { from } else { from.next_multiple_of(8 * K) }).filter(|at| *at < size)),
            |from| Ok(Some(if is_data(from) { from - from % (8 * K) + 4 * K } else { from })),
        )
        .unwrap()
    };
    let whole = listed(&collect_with(101, 0, 0));
    assert_eq!(whole, raws.iter().map(|raw| (raw.logical, raw.logical + 4 * K, at(raw.physical))).collect::<Vec<_>>());
    // Read in pages, all that was lost is listed, as something that cannot be trusted.
    for (early, flag) in [(0, 0), (1, LAST), (3, LAST)] {
        let paged = listed(&collect_with(10, early, flag));
        assert_eq!(paged.len(), 100);
        for (i, (found, told)) in paged.iter().zip(&whole).enumerate() {
            let backing = if i < 10 + early { told.2 } else { Backing::Opaque };
            assert_eq!(*found, (told.0, told.1, backing), "extent {i} of a map that ends {early} after the tenth");
        }
    }
}

#[test]
fn an_extent_lost_in_the_middle_is_found_out() {
    let lies = [RawExtent::new(0, 100 * K, 4 * K, 0), RawExtent::new(12 * K, 300 * K, 4 * K, LAST)];
    let map = collect_from(16 * K, &[&lies], &[(0, 8 * K), (12 * K, 16 * K)]).unwrap();
    let expected = [(0, 4 * K, at(100 * K)), (4 * K, 8 * K, Backing::Opaque), (12 * K, 16 * K, at(300 * K))];
    assert_eq!(listed(&map), expected);
}

#[test]
fn nonsense_is_an_error_not_a_map() {
    let cases: [(&str, Vec<RawExtent>); 5] = [
        ("overlap", vec![RawExtent::new(0, K, 8 * K, 0), RawExtent::new(4 * K, 0, 8 * K, LAST)]),
        ("disorder", vec![RawExtent::new(8 * K, 0, 4 * K, 0), RawExtent::new(0, 0, 4 * K, LAST)]),
        ("no length", vec![RawExtent::new(0, 0, 0, LAST)]),
        ("past the end of numbers", vec![RawExtent::new(8, 0, u64::MAX, LAST)]),
        ("more after the last", vec![RawExtent::new(0, 0, K, LAST), RawExtent::new(K, 0, K, LAST)]),
    ];
    for (name, raws) in &cases {
        assert!(matches!(collect_from(32 * K, &[raws], &[]), Err(MapError::Nonsense(_))), "{name}");
    }
    // No progress: the second page repeats the first.
    let page = [RawExtent::new(0, 0, 4 * K, 0)];
    assert!(matches!(collect_from(32 * K, &[&page, &page], &[]), Err(MapError::Nonsense(_))));
}

#[test]
fn an_error_of_the_kernel_is_passed_on() {
    let refused = collect(K, |_, _| Err(io::Error::from_raw_os_error(nix::libc::EIO)), |_| Ok(None), |_| Ok(None));
    assert!(matches!(refused, Err(MapError::Io(error)) if error.raw_os_error() == Some(nix::libc::EIO)));
}
