//! Where the bytes of a file are stored, from its first byte to its last.

use super::range::{ByteRange, PhysAddr};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A hole, or space that is allocated and not yet written. Reads as zeros.
    Zero,
    /// Data that is stored from this device address on.
    Stored(PhysAddr),
    /// Data whose address says nothing about its content: compressed, inline, not yet placed, or unverified.
    Opaque,
}

impl Backing {
    /// The backing `bytes` further on in the same extent.
    pub fn advanced(self, bytes: u64) -> Self {
        match self {
            Backing::Stored(address) => Backing::Stored(address.advanced(bytes)),
            Backing::Zero => Backing::Zero,
            Backing::Opaque => Backing::Opaque,
        }
    }

    /// Whether two files with these backings at one offset certainly have the same bytes there.
    ///
    /// This holds while both files exist: a copy-on-write file system neither rewrites a block that two files share nor
    /// gives its address to another file.
    pub fn certainly_equals(self, other: Self) -> bool {
        match (self, other) {
            (Backing::Zero, Backing::Zero) => true,
            (Backing::Stored(a), Backing::Stored(b)) => a == b,
            (Backing::Zero | Backing::Stored(_) | Backing::Opaque, _) => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub range: ByteRange,
    /// The backing of its first byte.
    pub backing: Backing,
}

/// The extents of a file that hold data, in order. The gaps read as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentMap {
    size: u64,
    extents: Vec<Extent>,
}

/// Extents that are not in ascending order, or that overlap.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the extent at {start} starts before the one ahead of it ends, at {previous_end}")]
pub struct UnorderedExtents {
    /// Offset of the extent, bytes.
    pub start: u64,
    /// Where the previous extent ends, bytes.
    pub previous_end: u64,
}

impl ExtentMap {
    /// The map of a file of `size` bytes. File systems report whole blocks, so extents may pass the end: they are
    /// clipped. [`Backing::Zero`] extents are dropped.
    pub fn new(size: u64, extents: Vec<Extent>) -> Result<Self, UnorderedExtents> {
        let mut extents = extents;
        let mut previous_end = 0;
        for extent in &extents {
            let start = extent.range.start();
            if start < previous_end {
                return Err(UnorderedExtents { start, previous_end });
            }
            previous_end = extent.range.end();
        }
        extents.retain_mut(|extent| match extent.range.clipped(size) {
            Some(range) if extent.backing != Backing::Zero => {
                extent.range = range;
                true
            }
            _ => false,
        });
        Ok(Self { size, extents })
    }

    /// The map of an empty file: the base of a client that holds nothing.
    pub fn empty() -> Self {
        Self { size: 0, extents: Vec::new() }
    }

    /// The map of a file of which nothing is known, not even its size. Compared with it, everything has changed.
    pub fn unknown() -> Self {
        let extents =
            ByteRange::new(0, u64::MAX).map(|range| Extent { range, backing: Backing::Opaque }).into_iter().collect();
        Self { size: u64::MAX, extents }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// In order, disjoint, and within the size.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Whether both maps have the same backings in `window`.
    pub fn agrees_with(&self, other: &Self, window: ByteRange) -> bool {
        let (mut ours, mut theirs) = (self.cursor(), other.cursor());
        let mut at = window.start();
        while at < window.end() {
            let ((one, one_end), (another, another_end)) = (ours.backing_at(at), theirs.backing_at(at));
            if one != another {
                return false;
            }
            at = one_end.min(another_end);
        }
        true
    }

    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor { ahead: &self.extents }
    }
}

/// Reads a map in ascending order, in one pass.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    ahead: &'a [Extent],
}

impl Cursor<'_> {
    /// The backing at offset `at`, and where that run ends. `at` must not decrease from call to call. Past the last
    /// extent the map reads as zeros.
    pub(super) fn backing_at(&mut self, at: u64) -> (Backing, u64) {
        while let Some((first, rest)) = self.ahead.split_first() {
            if at < first.range.start() {
                return (Backing::Zero, first.range.start());
            }
            if at < first.range.end() {
                return (first.backing.advanced(at - first.range.start()), first.range.end());
            }
            self.ahead = rest;
        }
        (Backing::Zero, u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, end: u64, backing: Backing) -> Extent {
        Extent { range: ByteRange::new(start, end).unwrap(), backing }
    }

    #[test]
    fn extents_are_clipped_to_the_size_and_zeros_are_dropped() {
        let stored = Backing::Stored(PhysAddr(1 << 20));
        let map = ExtentMap::new(
            5000,
            vec![extent(0, 4096, Backing::Zero), extent(4096, 8192, stored), extent(8192, 9000, stored)],
        )
        .unwrap();
        assert_eq!(map.extents(), [extent(4096, 5000, stored)]);
    }

    #[test]
    fn unordered_extents_are_refused() {
        let overlapping = vec![extent(0, 4096, Backing::Opaque), extent(4095, 8192, Backing::Opaque)];
        assert_eq!(ExtentMap::new(9000, overlapping), Err(UnorderedExtents { start: 4095, previous_end: 4096 }));
    }

    #[test]
    fn maps_agree_within_a_window() {
        let stored = |address| Backing::Stored(PhysAddr(address));
        let one = vec![extent(0, 8192, stored(4096)), extent(12288, 16384, Backing::Opaque)];
        // The same map with other cuts, and a difference from 16384 on.
        let mut other = vec![extent(0, 4096, stored(4096)), extent(4096, 8192, stored(8192))];
        other.extend([extent(12288, 16384, Backing::Opaque), extent(16384, 20480, stored(4096))]);
        let (one, other) = (ExtentMap::new(20480, one).unwrap(), ExtentMap::new(20480, other).unwrap());
        let agree = |start, end| {
            let window = ByteRange::new(start, end).unwrap();
            assert_eq!(one.agrees_with(&other, window), other.agrees_with(&one, window));
            one.agrees_with(&other, window)
        };
        assert!(agree(0, 16384) && agree(5000, 13000) && agree(8192, 12288));
        assert!(!agree(0, 16385) && !agree(16384, 20480));
        let moved = ExtentMap::new(20480, vec![extent(0, 8192, stored(4097))]).unwrap();
        assert!(!one.agrees_with(&moved, ByteRange::new(8191, 8192).unwrap()));
    }

    #[test]
    fn opaque_data_equals_nothing() {
        let all = [Backing::Zero, Backing::Stored(PhysAddr(0)), Backing::Stored(PhysAddr(4096)), Backing::Opaque];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(a.certainly_equals(*b), i == j && *a != Backing::Opaque, "{a:?} {b:?}");
            }
        }
    }
}
