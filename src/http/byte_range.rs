//! The bytes that a `Range` header selects (RFC 9110 section 14).
//!
//! Invariants, tested below: a selection is never empty, lies within the content, has the order of the request, and is
//! not longer than the content.

use std::fmt;
use std::ops::Range;

use http::HeaderMap;
use http::header::RANGE;

/// Ranges of one request, including those past the end.
pub const MAX_RANGES: usize = 64;

/// The part of the content to send. Ranges are byte offsets, end exclusive, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// No range was requested: 200 with the whole content.
    Whole,
    /// 206 with one `Content-Range`, even for the whole content.
    One(Range<u64>),
    /// 206 as `multipart/byteranges`: two or more, in request order, not merged.
    Many(Vec<Range<u64>>),
}

/// 416 with [`unsatisfied_content_range`] (RFC 9110 15.5.17).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsatisfiable;

impl fmt::Display for Unsatisfiable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no range in the Range header can be served")
    }
}

impl std::error::Error for Unsatisfiable {}

/// Resolves the `Range` header of a GET against content of `size` bytes (RFC 9110 14.1.2, 14.2).
///
/// `Range` has no meaning for other methods, and is evaluated after the preconditions: see
/// [`conditional::evaluate`](super::conditional::evaluate).
///
/// # Errors
/// No requested range overlaps the content. Also a malformed header, two of them, another unit than `bytes`, more than
/// 64 ranges, and overlapping ranges that are longer than the content: the RFC lets a server ignore these, but a client
/// that requested a part of a disk must not get all of it.
pub fn select(headers: &HeaderMap, size: u64) -> Result<Selection, Unsatisfiable> {
    let mut lines = headers.get_all(RANGE).iter();
    let line = match (lines.next(), lines.next()) {
        (None, _) => return Ok(Selection::Whole),
        (Some(line), None) => line.to_str().map_err(|_| Unsatisfiable)?,
        (Some(_), Some(_)) => return Err(Unsatisfiable),
    };
    let (unit, set) = line.split_once('=').ok_or(Unsatisfiable)?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return Err(Unsatisfiable);
    }

    let mut ranges = Vec::new();
    // List elements may be empty (5.6.1.2).
    let specs = set.split(',').map(str::trim_ascii).filter(|spec| !spec.is_empty());
    for (nth, spec) in specs.enumerate() {
        if nth == MAX_RANGES {
            return Err(Unsatisfiable);
        }
        ranges.extend(resolve(spec, size)?);
    }

    match ranges.as_slice() {
        [] => Err(Unsatisfiable),
        [one] => Ok(Selection::One(one.clone())),
        // A small request must not make us send the content many times (17.15).
        many if total_length(many) > u128::from(size) => Err(Unsatisfiable),
        _ => Ok(Selection::Many(ranges)),
    }
}

/// The value of `Content-Range` in a 206, or in one part of a multipart one (RFC 9110 14.4):
/// `bytes 0-499/1234`. `range` must not be empty, as no range of a [`Selection`] is.
pub fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1))
}

/// The value of `Content-Range` in a 416 (RFC 9110 14.4): `bytes */1234`.
pub fn unsatisfied_content_range(size: u64) -> String {
    format!("bytes */{size}")
}

/// Resolves one `range-spec` (14.1.1). `None` if it lies past the end.
fn resolve(spec: &str, size: u64) -> Result<Option<Range<u64>>, Unsatisfiable> {
    let range = match spec.split_once('-').ok_or(Unsatisfiable)? {
        ("", length) => size.saturating_sub(number(length)?)..size,
        (first, "") => number(first)?..size,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(Unsatisfiable);
            }
            first..last.saturating_add(1).min(size)
        }
    };
    Ok(Some(range).filter(|range| !range.is_empty()))
}

/// Parses `1*DIGIT`. The grammar has no largest number; ours is past the end of any content.
fn number(digits: &str) -> Result<u64, Unsatisfiable> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Unsatisfiable);
    }
    Ok(digits.parse().unwrap_or(u64::MAX)) // only an overflow can fail
}

fn total_length(ranges: &[Range<u64>]) -> u128 {
    ranges.iter().map(|range| u128::from(range.end - range.start)).sum()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::Selection::{Many, One, Whole};
    use super::*;

    fn select_lines(lines: &[&[u8]], size: u64) -> Result<Selection, Unsatisfiable> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(RANGE, HeaderValue::from_bytes(line).expect("a valid header"));
        }
        select(&headers, size)
    }

    fn select_one(line: &str, size: u64) -> Result<Selection, Unsatisfiable> {
        select_lines(&[line.as_bytes()], size)
    }

    #[test]
    fn no_range_is_the_whole() {
        assert_eq!(select_lines(&[], 1000), Ok(Whole));
        assert_eq!(select_lines(&[], 0), Ok(Whole));
    }

    #[test]
    fn a_single_range() {
        for (line, start, end) in [
            ("bytes=0-0", 0, 1),
            ("bytes=0-499", 0, 500),
            ("bytes=999-999", 999, 1000),
            ("bytes=0-999", 0, 1000),
            ("bytes=0-1000", 0, 1000),
            ("bytes=500-", 500, 1000),
            ("bytes=0-", 0, 1000),
            ("bytes=-1", 999, 1000),
            ("bytes=-1000", 0, 1000),
            ("bytes=-1001", 0, 1000),
            // grammar that many parsers refuse
            ("BYTES=1-2", 1, 3),
            ("bytes=0001-00000000000000000000002", 1, 3),
            ("bytes=1-99999999999999999999", 1, 1000),
            ("bytes=-99999999999999999999", 0, 1000),
            ("bytes=1-18446744073709551615", 1, 1000),
            ("bytes=,1-2", 1, 3),
            ("bytes=1-2,", 1, 3),
            ("bytes=\t, ,1-2 \t,\t", 1, 3),
            // one is left
            ("bytes=1-2,1000-", 1, 3),
            ("bytes=5000-6000,99999999999999999999-,-0,1-2", 1, 3),
        ] {
            assert_eq!(select_one(line, 1000), Ok(One(start..end)), "{line}");
        }
    }

    #[test]
    fn several_ranges_keep_their_order() {
        for (line, ranges) in [
            ("bytes=0-0,-1", vec![0..1, 999..1000]),
            ("bytes=900-,0-9 ,\t500-509", vec![900..1000, 0..10, 500..510]),
            ("bytes=0-9,10-19", vec![0..10, 10..20]),
            ("bytes=0-9,5-14,2000-", vec![0..10, 5..15]),
            ("bytes=0-499,500-999", vec![0..500, 500..1000]),
        ] {
            assert_eq!(select_one(line, 1000), Ok(Many(ranges)), "{line}");
        }
    }

    #[test]
    fn refused() {
        for line in [
            // past the end
            "bytes=1000-",
            "bytes=1000-1001",
            "bytes=-0",
            "bytes=-0,-00,1000-",
            "bytes=99999999999999999999-",
            // more bytes than there are
            "bytes=0-,0-0",
            "bytes=0-,0-,0-",
            // malformed; one bad element spoils the list
            "",
            "bytes",
            "bytes=",
            "bytes=,, ,",
            "bytes=-",
            "bytes=--1",
            "bytes=5",
            "bytes=2-1",
            "bytes=0-0,2-1",
            "bytes=0-0,x",
            "bytes=0-0;1-1",
            "bytes=0-0 1-1",
            "bytes=0 - 1",
            "bytes=1-2-3",
            "bytes=+1-2",
            "bytes=1-+2",
            "bytes=-+1",
            "bytes=0x1-2",
            "bytes=1.0-2",
            "bytes =0-1",
            "bytes:0-1",
            "bytes==0-1",
            // another unit
            "items=0-1",
            "byte=0-1",
            "=0-1",
            "none",
        ] {
            assert_eq!(select_one(line, 1000), Err(Unsatisfiable), "{line:?}");
        }
        for lines in [&[&b"bytes=0-1"[..], b"bytes=0-1"][..], &[b"bytes=0-1", b""], &[b"bytes=0-\xB2"]] {
            assert_eq!(select_lines(lines, 1000), Err(Unsatisfiable), "{lines:?}");
        }
    }

    #[test]
    fn the_number_of_ranges_is_limited() {
        let ranges = |count: usize| format!("bytes={}0-0", "5000-,".repeat(count - 1));
        assert_eq!(select_one(&ranges(MAX_RANGES), 1000), Ok(One(0..1)));
        assert_eq!(select_one(&ranges(MAX_RANGES + 1), 1000), Err(Unsatisfiable));
    }

    #[test]
    fn sizes_at_the_edges() {
        for line in ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0"] {
            assert_eq!(select_one(line, 0), Err(Unsatisfiable), "{line}");
        }
        let last = u64::MAX - 1;
        for line in ["bytes=-1", "bytes=18446744073709551614-", "bytes=18446744073709551614-18446744073709551615"] {
            assert_eq!(select_one(line, u64::MAX), Ok(One(last..u64::MAX)), "{line}");
        }
        assert_eq!(select_one("bytes=0-,0-", u64::MAX), Err(Unsatisfiable));
    }

    #[test]
    fn content_range_counts_to_the_last_byte() {
        assert_eq!(content_range(&(0..500), 1234), "bytes 0-499/1234");
        assert_eq!(content_range(&(1233..1234), 1234), "bytes 1233-1233/1234");
        assert_eq!(unsatisfied_content_range(1234), "bytes */1234");
    }

    #[derive(Debug, Clone)]
    enum Spec {
        Closed(u64, u64),
        Open(u64),
        Suffix(u64),
    }

    impl Spec {
        fn text(&self) -> String {
            match self {
                Spec::Closed(first, last) => format!("{first}-{last}"),
                Spec::Open(first) => format!("{first}-"),
                Spec::Suffix(length) => format!("-{length}"),
            }
        }

        fn names(&self, offset: u64, size: u64) -> bool {
            match *self {
                Spec::Closed(first, last) => first <= offset && offset <= last,
                Spec::Open(first) => first <= offset,
                Spec::Suffix(length) => offset + length >= size,
            }
        }
    }

    fn spec() -> impl Strategy<Value = Spec> {
        prop_oneof![
            4 => (0..80u64, 0..20u64).prop_map(|(first, more)| Spec::Closed(first, first + more)),
            1 => (0..80u64).prop_map(Spec::Open),
            1 => (0..80u64).prop_map(Spec::Suffix),
        ]
    }

    fn selected(selection: Selection) -> Vec<Range<u64>> {
        match selection {
            Whole => vec![],
            One(range) => vec![range],
            Many(ranges) => ranges,
        }
    }

    proptest! {
        /// Byte by byte, in the order of the request.
        #[test]
        fn the_specified_bytes_are_selected(
            specs in vec(spec(), 1..6),
            comma in "[ \t]{0,2},[ \t,]{0,2}",
            size in 0..64u64,
        ) {
            let line = specs.iter().map(Spec::text).collect::<Vec<_>>().join(&comma);
            let named: Vec<Vec<u64>> = specs
                .iter()
                .map(|spec| (0..size).filter(|&offset| spec.names(offset, size)).collect())
                .filter(|offsets: &Vec<u64>| !offsets.is_empty())
                .collect();
            let total: usize = named.iter().map(Vec::len).sum();

            match select_one(&format!("bytes={line}"), size) {
                Ok(selection) => {
                    let ranges = selected(selection).into_iter();
                    prop_assert_eq!(ranges.map(Vec::from_iter).collect::<Vec<_>>(), named);
                }
                Err(Unsatisfiable) => prop_assert!(named.is_empty() || total as u64 > size),
            }
        }

        #[test]
        fn the_invariants_hold_for_any_header(
            line in prop_oneof![
                vec(any::<u8>(), 0..60),
                "bytes=[-0-9, \t]{0,60}".prop_map(String::into_bytes),
            ],
            size in prop_oneof![0..1000u64, any::<u64>()],
        ) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&line) {
                headers.insert(RANGE, value);
            }
            if let Ok(selection) = select(&headers, size) {
                prop_assert_eq!(selection == Whole, headers.is_empty());
                prop_assert!(!matches!(&selection, Many(ranges) if ranges.len() < 2));
                let ranges = selected(selection);
                for range in &ranges {
                    prop_assert!(range.start < range.end && range.end <= size);
                }
                prop_assert!(total_length(&ranges) <= u128::from(size));
            }
        }
    }
}
