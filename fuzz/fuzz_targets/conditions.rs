//! Evaluates arbitrary conditions and ranges of a request.
//!
//! The first nine bytes are the size of the content and the method. Each line after them is a header: its first byte
//! chooses the name, the rest is the value.

#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use coriolis_ovm_exporter::fuzzing::byte_range::{self, Selection};
use coriolis_ovm_exporter::fuzzing::conditional::{self, Precondition, StrongTag, Validators};
use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE};
use http::{HeaderMap, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;

const NAMES: [http::HeaderName; 6] = [RANGE, IF_RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];

fuzz_target!(|input: &[u8]| {
    let Some((size, [method, lines @ ..])) =
        input.split_first_chunk().map(|(size, rest)| (u64::from_le_bytes(*size), rest))
    else {
        return;
    };
    let method = [Method::GET, Method::HEAD, Method::DELETE][usize::from(method % 3)].clone();
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some((name, value)) = line.split_first() else { continue };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(NAMES[usize::from(*name) % NAMES.len()].clone(), value);
        }
    }
    // Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110.
    let last_modified = UNIX_EPOCH + Duration::from_secs(784_111_777);
    let current = Validators { etag: StrongTag::new("a tag"), last_modified };
    let reads = method != Method::DELETE;
    let has = |name| headers.contains_key(name);
    match conditional::evaluate(&method, &headers, &current) {
        Precondition::Proceed { honour_range } => assert!(!honour_range || method == Method::GET),
        Precondition::NotModified => assert!(reads && (has(IF_NONE_MATCH) || has(IF_MODIFIED_SINCE))),
        Precondition::Failed => {
            assert!(has(IF_MATCH) || has(IF_UNMODIFIED_SINCE) || (!reads && has(IF_NONE_MATCH)));
        }
    }
    let Ok(selection) = byte_range::select(&headers, size) else {
        assert!(has(RANGE));
        assert_eq!(byte_range::unsatisfied_content_range(size), format!("bytes */{size}"));
        return;
    };
    let ranges = match selection {
        Selection::Whole => {
            assert!(!has(RANGE), "a part of the disk was requested");
            vec![]
        }
        Selection::One(range) => vec![range],
        Selection::Many(ranges) => {
            assert!((2..=byte_range::MAX_RANGES).contains(&ranges.len()));
            ranges
        }
    };
    let mut total = 0;
    for range in &ranges {
        assert!(range.start < range.end && range.end <= size, "{range:?} of {size}");
        total += u128::from(range.end - range.start);
        assert_eq!(byte_range::content_range(range, size), format!("bytes {}-{}/{size}", range.start, range.end - 1));
    }
    assert!(total <= u128::from(size), "more than the content");
});
