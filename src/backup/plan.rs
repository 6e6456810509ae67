//! What a transfer has to do with a disk.

use std::fs;
use std::ops::Range;
use std::path::Path;

use super::blocks::BLOCK;
use super::error::{AtPath, BackupError, Result};
use super::files;

/// Bytes that are written, hashed and recorded together. No unit crosses a multiple of this.
pub const UNIT: u64 = 1 << 20;

const ZERO: u64 = 1 << 63;
const ENTRY: usize = 16;

/// The ranges of a disk to fetch, and those that become zeros: in order and disjoint.
///
/// A fragmented disk has millions of them, so an entry is two numbers: the start, and the length with the kind in its
/// highest bit. The file of a plan has the same numbers in little-endian order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan(Vec<[u64; 2]>);

impl Plan {
    /// Adds a range after all others.
    pub fn push(&mut self, range: Range<u64>, is_zero: bool) {
        let kind = if is_zero { ZERO } else { 0 };
        let length = range.end - range.start;
        if let Some([start, last]) = self.0.last_mut()
            && *last & ZERO == kind
            && *start + (*last & !ZERO) == range.start
        {
            *last += length;
            return;
        }
        self.0.push([range.start, length | kind]);
    }

    /// The ranges, and whether they are zeros.
    pub fn ranges(&self) -> impl Iterator<Item = (Range<u64>, bool)> + Clone + '_ {
        self.0.iter().map(decode)
    }

    /// The parts of the ranges that lie within `part`, and whether they are zeros.
    pub fn within(&self, part: Range<u64>) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        let first = self.0.partition_point(|entry| decode(entry).0.end <= part.start);
        let ranges = self.0[first..].iter().map(decode).take_while(move |(range, _)| range.start < part.end);
        ranges.map(move |(range, is_zero)| (range.start.max(part.start)..range.end.min(part.end), is_zero))
    }

    pub fn data(&self) -> impl Iterator<Item = Range<u64>> + Clone + '_ {
        self.ranges().filter(|(_, is_zero)| !is_zero).map(|(range, _)| range)
    }

    pub fn zeros(&self) -> impl Iterator<Item = Range<u64>> + Clone + '_ {
        self.ranges().filter(|(_, is_zero)| *is_zero).map(|(range, _)| range)
    }

    pub fn data_bytes(&self) -> u64 {
        self.data().map(|range| range.end - range.start).sum()
    }

    pub fn zero_bytes(&self) -> u64 {
        self.zeros().map(|range| range.end - range.start).sum()
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let mut bytes = Vec::with_capacity(self.0.len() * ENTRY);
        self.0.as_flattened().iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        files::write_atomically(path, &bytes).at(path)
    }

    /// # Errors
    /// The file is damaged.
    pub fn read(path: &Path, size: u64) -> Result<Self> {
        let bytes = fs::read(path).at(path)?;
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        let entries: Vec<[u64; 2]> = entries.iter().map(|entry| [number(&entry[..8]), number(&entry[8..])]).collect();
        let mut after = 0;
        let is_ordered = entries.iter().all(|[start, length]| {
            let end = start.checked_add(length & !ZERO);
            let fits = *start >= after && end.is_some_and(|end| end > *start && end <= size);
            after = end.unwrap_or_default();
            fits
        });
        if rest.is_empty() && is_ordered {
            return Ok(Self(entries));
        }
        Err(BackupError::Damaged(format!("{}: is damaged", path.display())))
    }

    /// The blocks that the plan changes only in a part, in order.
    pub fn partial_blocks(&self, size: u64) -> Vec<u64> {
        let mut blocks = Vec::new();
        let mut add = |block: u64| {
            if blocks.last() != Some(&block) {
                blocks.push(block);
            }
        };
        for (range, _) in self.ranges() {
            if range.start % BLOCK != 0 {
                add(range.start / BLOCK);
            }
            if range.end % BLOCK != 0 && range.end != size {
                add(range.end / BLOCK);
            }
        }
        blocks
    }
}

fn decode([start, length]: &[u64; 2]) -> (Range<u64>, bool) {
    (*start..*start + (*length & !ZERO), length & ZERO != 0)
}

/// The blocks that lie within `range`, of a disk of `size` bytes.
pub fn whole_blocks(range: &Range<u64>, size: u64) -> Range<u64> {
    let end = if range.end == size { size.div_ceil(BLOCK) } else { range.end / BLOCK };
    let start = range.start.div_ceil(BLOCK);
    start..end.max(start)
}

/// The data ranges of a plan without those that are done, in requests.
pub struct Remaining<'a> {
    data: Box<dyn Iterator<Item = Range<u64>> + Send + 'a>,
    /// In order and disjoint.
    done: std::iter::Peekable<std::vec::IntoIter<Range<u64>>>,
    /// The rest of a range of which a part was taken.
    rest: Option<Range<u64>>,
}

impl<'a> Remaining<'a> {
    pub fn new(plan: &'a Plan, done: Vec<Range<u64>>) -> Self {
        Self { data: Box::new(plan.data()), done: done.into_iter().peekable(), rest: None }
    }

    /// The next range, of about `limit` bytes at most, and whether the limit cut it.
    fn take(&mut self, limit: u64) -> Option<(Range<u64>, bool)> {
        loop {
            let range = self.rest.take().or_else(|| self.data.next())?;
            let mut end = range.end;
            match self.done.peek() {
                Some(done) if done.end <= range.start => {
                    self.done.next();
                    self.rest = Some(range);
                    continue;
                }
                Some(done) if done.start <= range.start => {
                    self.rest = Some(done.end..range.end).filter(|rest| !rest.is_empty());
                    continue;
                }
                Some(done) => end = end.min(done.start),
                None => {}
            }
            let is_cut = end - range.start > limit;
            if is_cut {
                end = cut(range.start, limit, end);
            }
            self.rest = Some(end..range.end).filter(|rest| !rest.is_empty());
            return Some((range.start..end, is_cut));
        }
    }

    /// Whether nothing is left.
    pub fn is_done(&mut self) -> bool {
        let next = self.take(u64::MAX);
        let is_done = next.is_none();
        if let Some((range, _)) = next {
            // What follows the range begins at its end or later.
            let end = self.rest.take().map_or(range.end, |rest| rest.end);
            self.rest = Some(range.start..end);
        }
        is_done
    }

    /// The ranges of the next request: at most `max_ranges` with at most `max_bytes`. None if all is done.
    pub fn request(&mut self, max_ranges: usize, max_bytes: u64) -> Vec<Range<u64>> {
        let (mut ranges, mut bytes) = (Vec::new(), 0);
        while ranges.len() < max_ranges && bytes < max_bytes {
            let Some((range, is_cut)) = self.take(max_bytes - bytes) else { break };
            bytes += range.end - range.start;
            ranges.push(range);
            if is_cut {
                // The next request begins with the rest.
                break;
            }
        }
        ranges
    }
}

/// Where to end a range that is longer than `limit`. The checksum of a block needs all its bytes at once, so a cut is at
/// the end of a block, and if possible at that of a unit.
fn cut(start: u64, limit: u64, range_end: u64) -> u64 {
    let end = start + limit;
    let aligned = [UNIT, BLOCK].map(|step| end - end % step);
    let next_block = (start / BLOCK + 1) * BLOCK;
    aligned.into_iter().find(|end| *end > start).unwrap_or(next_block).min(range_end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(ranges: &[(u64, u64, bool)]) -> Plan {
        let mut plan = Plan::default();
        ranges.iter().for_each(|(start, end, is_zero)| plan.push(*start..*end, *is_zero));
        plan
    }

    fn requests(plan: &Plan, done: Vec<Range<u64>>, max_ranges: usize, max_bytes: u64) -> Vec<Vec<Range<u64>>> {
        let mut remaining = Remaining::new(plan, done);
        let requests = std::iter::from_fn(|| Some(remaining.request(max_ranges, max_bytes)));
        requests.take_while(|request| !request.is_empty()).collect()
    }

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan");
        let written = plan(&[(0, 10, false), (10, 20, false), (20, 30, true), (1 << 40, (1 << 40) + 5, false)]);
        assert_eq!(written.0.len(), 3);
        written.write(&path).unwrap();
        assert_eq!(Plan::read(&path, 1 << 41).unwrap(), written);
        assert_eq!((written.data_bytes(), written.zero_bytes()), (25, 10));
        assert_eq!(written.within(15..25).collect::<Vec<_>>(), [(15..20, false), (20..25, true)]);
        assert_eq!(written.within(30..1 << 40).count(), 0);
        Plan::read(&path, 1 << 40).unwrap_err();
        fs::write(&path, [0; 20]).unwrap();
        Plan::read(&path, 1 << 41).unwrap_err();
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)] // a request may have one range
    fn requests_hold_what_is_not_done() {
        let plan = plan(&[(0, 100, false), (100, 150, true), (200, 300, false), (400, 410, false)]);
        assert_eq!(requests(&plan, Vec::new(), 2, 1000), [vec![0..100, 200..300], vec![400..410]]);
        assert_eq!(requests(&plan, vec![10..20, 90..220, 300..500], 9, 1000), [vec![0..10, 20..90, 220..300]]);
        assert_eq!(requests(&plan, vec![0..1000], 9, 1000), Vec::<Vec<_>>::new());
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn long_ranges_are_cut_at_units() {
        let plan = plan(&[(UNIT - 10, 5 * UNIT + 7, false)]);
        let expected = [vec![UNIT - 10..2 * UNIT], vec![2 * UNIT..4 * UNIT], vec![4 * UNIT..5 * UNIT + 7]];
        assert_eq!(requests(&plan, Vec::new(), 64, 2 * UNIT), expected);
    }

    #[test]
    fn blocks_are_whole_or_partial() {
        let size = 10 * BLOCK + 5;
        let plan = plan(&[(0, BLOCK, false), (BLOCK + 1, 2 * BLOCK, false), (9 * BLOCK + 7, size, true)]);
        assert_eq!(plan.partial_blocks(size), [1, 9]);
        assert_eq!(whole_blocks(&(9 * BLOCK + 7..size), size), 10..11);
        assert_eq!(whole_blocks(&(1..BLOCK), size), 1..1);
        assert_eq!(whole_blocks(&(1..BLOCK - 1), size), 1..1);
    }

    proptest! {
        /// The transfer writes the checksum of a block that one piece covers, and the end of the work that of a partial
        /// block. No block that changes may have neither.
        #[test]
        fn every_block_that_changes_gets_a_checksum(
            lengths in prop::collection::vec((1..3 * BLOCK, 0..2 * BLOCK, any::<bool>()), 1..40),
            done in prop::collection::vec(any::<bool>(), 1..40),
            max_ranges in 1..6_usize,
            max_bytes in 1..2 * UNIT,
        ) {
            let (mut plan, mut at) = (Plan::default(), 0);
            for (length, gap, is_zero) in lengths {
                plan.push(at..at + length, is_zero);
                at += length + gap;
            }
            let size = at;
            // An earlier run wrote some whole requests.
            let earlier = requests(&plan, Vec::new(), max_ranges, max_bytes);
            let done: Vec<Range<u64>> =
                earlier.into_iter().zip(done.iter().cycle()).filter(|(_, done)| **done).flat_map(|(it, _)| it).collect();
            let now = requests(&plan, done.clone(), max_ranges, max_bytes);
            let pieces: Vec<Range<u64>> = done.into_iter().chain(now.into_iter().flatten()).collect();
            let partial = plan.partial_blocks(size);
            let zeros: Vec<Range<u64>> = plan.zeros().collect();
            for (range, is_zero) in plan.ranges() {
                let by = if is_zero { &zeros } else { &pieces };
                for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                    let is_whole = by.iter().any(|piece| whole_blocks(piece, size).contains(&block));
                    prop_assert!(is_whole || partial.contains(&block), "block {block} of {range:?}");
                }
            }
            let transferred: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
            prop_assert_eq!(transferred, plan.data_bytes());
        }
    }
}
