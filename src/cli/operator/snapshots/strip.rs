//! Where on a disk something has changed: a strip with a character for each part of the disk.

use std::ops::Range;

/// From unchanged to wholly changed.
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];
const ASCII_SHADES: [char; 5] = ['.', '-', '+', '*', '#'];

/// The changed bytes of each part of a disk. Its size does not depend on the number of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strip {
    size: u64,
    changed: Vec<u64>,
}

impl Strip {
    /// With `width` parts, or fewer if the disk is very small.
    pub fn new(size: u64, width: usize) -> Self {
        let parts = (width.max(1) as u64).min(size) as usize;
        Self { size, changed: vec![0; parts] }
    }

    /// The bytes of a part, which differ by one at most.
    fn part(&self, index: usize) -> Range<u64> {
        let start = |index: usize| (u128::from(self.size) * index as u128 / self.changed.len() as u128) as u64;
        start(index)..start(index + 1)
    }

    /// A range of the disk has changed. What lies past the end of the disk is ignored.
    pub fn add(&mut self, range: &Range<u64>) {
        let end = range.end.min(self.size);
        if range.start >= end {
            return;
        }
        // The part may begin one later than by this rounding.
        let parts = self.changed.len() as u128;
        let first = (u128::from(range.start) * parts / u128::from(self.size)) as usize;
        for index in first..self.changed.len() {
            let part = self.part(index);
            if part.start >= end {
                break;
            }
            self.changed[index] += end.min(part.end).saturating_sub(range.start.max(part.start));
        }
    }

    /// The bytes of the longest part.
    pub fn part_bytes(&self) -> u64 {
        self.size.div_ceil((self.changed.len() as u64).max(1))
    }

    /// A character for each part. Any change is visible, and only a wholly changed part has the last shade.
    pub fn draw(&self, ascii: bool) -> String {
        let shades = if ascii { ASCII_SHADES } else { SHADES };
        let shade = |(index, changed): (usize, &u64)| {
            let part = self.part(index);
            let length = part.end - part.start;
            match *changed {
                0 => shades[0],
                changed if changed >= length => shades[4],
                changed => shades[1 + (u128::from(changed) * 3 / u128::from(length)) as usize],
            }
        };
        self.changed.iter().enumerate().map(shade).collect()
    }
}

/// What the characters mean.
pub fn legend(ascii: bool) -> String {
    let [unchanged, few, some, many, all] = if ascii { ASCII_SHADES } else { SHADES };
    format!("{unchanged} unchanged  {few} up to a third changed  {some} up to two thirds  {many} more  {all} all")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(size: u64, width: usize, ranges: &[Range<u64>]) -> String {
        let mut strip = Strip::new(size, width);
        ranges.iter().for_each(|range| strip.add(range));
        strip.draw(true)
    }

    #[test]
    fn parts_are_shaded_by_the_share_that_changed() {
        assert_eq!(draw(100, 10, &[]), "..........");
        assert_eq!(draw(100, 10, &[0..1, 10..14, 20..27, 35..40, 40..50, 99..100]), "-+*+#....-");
        assert_eq!(draw(100, 10, std::slice::from_ref(&(5..25))), "+#+.......");
        assert_eq!(draw(100, 10, std::slice::from_ref(&(0..100))), "##########");
        assert_eq!(draw(100, 4, &[24..26, 49..51]), "---.");
        // Adjacent changes add up.
        assert_eq!(draw(100, 10, &[0..3, 3..6, 6..9, 9..10]), "#.........");
        let mut strip = Strip::new(3 << 40, 3);
        strip.add(&(0..1));
        assert_eq!((strip.draw(false).as_str(), strip.part_bytes()), ("░··", 1 << 40));
    }

    #[test]
    fn odd_sizes_and_ranges_fit() {
        assert_eq!(draw(0, 10, &[]), "");
        assert_eq!(draw(3, 10, std::slice::from_ref(&(1..2))), ".#.");
        assert_eq!(draw(10, 0, std::slice::from_ref(&(9..20))), "-");
        assert_eq!(draw(7, 3, std::slice::from_ref(&(2..7))), ".##");
        assert_eq!(draw(10, 3, &[u64::MAX - 1..u64::MAX, 10..11]), "...");
        assert_eq!(draw(u64::MAX, 2, std::slice::from_ref(&(0..u64::MAX))), "##");
    }

    #[test]
    fn every_byte_is_counted_once() {
        for (size, width) in [(1, 1), (7, 3), (1 << 20, 79), (1_000_003, 80), (u64::MAX, 97)] {
            let mut whole = Strip::new(size, width);
            whole.add(&(0..size));
            assert_eq!(whole.changed.iter().map(|bytes| u128::from(*bytes)).sum::<u128>(), u128::from(size));
            let mut pieces = Strip::new(size, width);
            let step = (size / 101).max(1);
            let mut start = 0;
            while start < size {
                let end = start.saturating_add(step).min(size);
                pieces.add(&(start..end));
                start = end;
            }
            assert_eq!(pieces, whole, "{size} {width}");
        }
    }
}
