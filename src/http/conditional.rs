//! Evaluates conditional requests (RFC 9110 section 13).
//!
//! The `headers` crate (0.4) is not used: it panics on a file older than 1970 and, in debug builds, on a tag like `"a
//! b"`; it drops a whole list for one tag beyond ASCII, and lets any later date match in `If-Range`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use http::{HeaderMap, Method};

/// 9999-12-31T23:59:59Z in seconds since 1970, the last HTTP-date.
const LAST_HTTP_SECOND: u64 = 253_402_300_799;

/// A strong entity tag (RFC 9110 8.8.3): equal tags promise equal bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrongTag(String);

impl StrongTag {
    /// Different identities have different tags.
    ///
    /// Letters, digits and `-._~` are kept; any other byte becomes `%XX`, because a tag cannot contain a quote or
    /// space, and some clients misread a comma or backslash.
    pub fn new(identity: &str) -> Self {
        let mut tag = String::from("\"");
        for byte in identity.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                tag.push(byte.into());
            } else {
                tag.push_str(&format!("%{byte:02X}"));
            }
        }
        tag.push('"');
        Self(tag)
    }

    /// The value of the `ETag` header, quotes included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Strong comparison (8.8.3.2). Ours is strong, so a weak tag differs by its `W/`.
    fn matches_strong(&self, tag: &[u8]) -> bool {
        tag == self.0.as_bytes()
    }

    /// Weak comparison (8.8.3.2), which ignores the `W/`.
    fn matches_weak(&self, tag: &[u8]) -> bool {
        self.matches_strong(tag.strip_prefix(b"W/").unwrap_or(tag))
    }
}

/// Identifies the current content (RFC 9110 8.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validators {
    /// Sent as `ETag`.
    pub etag: StrongTag,
    /// Sent as `Last-Modified`, formatted by [`Validators::last_modified_value`]. It must not be in the future
    /// (8.8.2.1), and the content must not change twice within its second, because `If-Range` uses it as a strong
    /// validator (8.8.2.2). A snapshot never changes.
    pub last_modified: SystemTime,
}

impl Validators {
    /// The value of the `Last-Modified` header: whole seconds, rounded down, and limited to 1970 to 9999.
    pub fn last_modified_value(&self) -> String {
        httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(self.last_modified_second()))
    }

    /// `last_modified` as a client sees it, in seconds since 1970.
    fn last_modified_second(&self) -> u64 {
        seconds_since_1970(self.last_modified).min(LAST_HTTP_SECOND)
    }
}

/// The result of the conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Perform the request.
    Proceed {
        /// Whether `Range` counts, see [`byte_range::select`](super::byte_range::select). If not, the answer is the
        /// whole content. Always false for HEAD, for which `Range` has no meaning (14.2).
        honour_range: bool,
    },
    /// 304, with `ETag` and `Last-Modified`, no body (15.4.5).
    NotModified,
    /// 412 (15.5.13).
    Failed,
}

/// Evaluates the conditional headers in the order of RFC 9110 13.2.2: `If-Match`, else `If-Unmodified-Since`;
/// `If-None-Match`, else `If-Modified-Since`; then `If-Range`.
///
/// Only for requests that would succeed without conditions (13.2.1). A malformed date, or several, are ignored; a list
/// element that is not a tag matches nothing; an `If-Range` that is neither one strong tag nor one date does not match,
/// so that the client gets the whole content.
pub fn evaluate(method: &Method, headers: &HeaderMap, current: &Validators) -> Precondition {
    let reads = method == Method::GET || method == Method::HEAD;
    let unmodified_since = |name| Some(current.last_modified_second() <= date(headers, name)?);

    let is_expected = any_tag(headers, IF_MATCH, |tag| current.etag.matches_strong(tag))
        .or_else(|| unmodified_since(IF_UNMODIFIED_SINCE));
    if is_expected == Some(false) {
        return Precondition::Failed;
    }

    let is_known = any_tag(headers, IF_NONE_MATCH, |tag| current.etag.matches_weak(tag))
        .or_else(|| unmodified_since(IF_MODIFIED_SINCE).filter(|_| reads));
    match is_known {
        Some(true) if reads => Precondition::NotModified,
        Some(true) => Precondition::Failed,
        Some(false) | None => {
            Precondition::Proceed { honour_range: method == Method::GET && part_is_of_current(headers, current) }
        }
    }
}

/// Whether the client has the content with this tag, by `If-None-Match` (13.1.2). For content without a date.
pub fn is_known(headers: &HeaderMap, etag: &StrongTag) -> bool {
    any_tag(headers, IF_NONE_MATCH, |tag| etag.matches_weak(tag)).unwrap_or(false)
}

/// `If-Range` (13.1.5): whether the requested part belongs to the content that the client has. Only exact matches
/// count.
fn part_is_of_current(headers: &HeaderMap, current: &Validators) -> bool {
    match lines(headers, IF_RANGE)[..] {
        [] => true,
        [line] => current.etag.matches_strong(line) || date(headers, IF_RANGE) == Some(current.last_modified_second()),
        _ => false,
    }
}

/// Whether a list of tags (13.1.1, 13.1.2) is `*` or contains a tag that `matches`. `None` without the header.
fn any_tag(headers: &HeaderMap, name: HeaderName, matches: impl Fn(&[u8]) -> bool) -> Option<bool> {
    let lines = lines(headers, name);
    match lines[..] {
        [] => None,
        [b"*"] => Some(true),
        _ => Some(lines.into_iter().flat_map(elements).any(matches)),
    }
}

/// The elements of one line of a list. Inside quotes, a comma is part of the tag, and a backslash escapes nothing
/// (8.8.3).
fn elements(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut in_quotes = false;
    let separates = move |&byte: &u8| {
        in_quotes ^= byte == b'"';
        byte == b',' && !in_quotes
    };
    line.split(separates).map(<[u8]>::trim_ascii)
}

/// The HTTP-date in a header, in seconds since 1970. `None` for several or a malformed one (13.1.3, 13.1.4).
fn date(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    let [line] = lines(headers, name)[..] else {
        return None;
    };
    let date = httpdate::parse_http_date(str::from_utf8(line).ok()?).ok()?;
    Some(seconds_since_1970(date))
}

fn lines(headers: &HeaderMap, name: HeaderName) -> Vec<&[u8]> {
    headers.get_all(name).iter().map(|line| line.as_bytes().trim_ascii()).collect()
}

fn seconds_since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::Precondition::{Failed, NotModified, Proceed};
    use super::*;

    const PART: Precondition = Proceed { honour_range: true };
    const WHOLE: Precondition = Proceed { honour_range: false };

    /// 1994-11-06T08:49:37.9Z
    const MODIFIED: Duration = Duration::from_millis(784_111_777_900);
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const EXACT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    /// The content has the tag `"now"` and was [`MODIFIED`]. Each row has the method, the status of the answer to a
    /// request with a `Range`, and the conditional headers, separated by ` | `.
    const DECISIONS: &str = r#"
        GET 206
        HEAD 200

        GET 206 If-Match: "now"
        GET 206 If-Match: *
        GET 206 If-Match: "old",, "a,b" ,"now"
        GET 206 If-Match: "a\","now"
        GET 206 If-Match: "ä b", "now"
        GET 206 If-Match: garbage, "now"
        GET 412 If-Match: W/"now"
        GET 412 If-Match: "old"
        GET 412 If-Match: "a,"now",b"
        GET 412 If-Match: "Now"
        GET 412 If-Match: now
        GET 412 If-Match: "now
        GET 412 If-Match: *, "old"
        GET 412 If-Match:
        HEAD 412 If-Match: "old"

        GET 412 If-Unmodified-Since: BEFORE
        GET 206 If-Unmodified-Since: EXACT
        GET 206 If-Unmodified-Since: AFTER
        GET 206 If-Unmodified-Since: BEFORE, BEFORE
        GET 206 If-Unmodified-Since: Mon, 06 Nov 1994 08:49:36 GMT
        GET 206 If-Unmodified-Since: yesterday

        GET 304 If-None-Match: "now"
        GET 304 If-None-Match: W/"now"
        GET 304 If-None-Match: "old", W/"now"
        GET 304 If-None-Match: *
        GET 206 If-None-Match: "old", W/"older"
        GET 206 If-None-Match: w/"now"
        GET 206 If-None-Match: W/W/"now"
        GET 206 If-None-Match: now
        GET 206 If-None-Match:
        HEAD 304 If-None-Match: "now"
        DELETE 412 If-None-Match: *

        GET 206 If-Modified-Since: BEFORE
        GET 304 If-Modified-Since: EXACT
        GET 304 If-Modified-Since: AFTER
        GET 304 If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT
        GET 304 If-Modified-Since: Sun Nov  6 08:49:37 1994
        GET 206 If-Modified-Since: 784111777
        GET 206 If-Modified-Since:
        HEAD 304 If-Modified-Since: EXACT
        DELETE 200 If-Modified-Since: EXACT

        GET 206 If-Range: "now"
        GET 206 If-Range: EXACT
        GET 206 If-Range: Sunday, 06-Nov-94 08:49:37 GMT
        GET 200 If-Range: BEFORE
        GET 200 If-Range: AFTER
        GET 200 If-Range: W/"now"
        GET 200 If-Range: "old"
        GET 200 If-Range: "old", "now"
        GET 200 If-Range: *
        GET 200 If-Range: yesterday
        GET 200 If-Range:
        HEAD 200 If-Range: "now"

        # Several lines are one field.
        GET 206 If-Match: "old" | If-Match: "now"
        GET 206 If-None-Match: * | If-None-Match: "old"
        GET 304 If-None-Match: "old" | If-None-Match: "now"
        GET 206 If-Unmodified-Since: BEFORE | If-Unmodified-Since: BEFORE
        GET 206 If-Modified-Since: EXACT | If-Modified-Since: EXACT
        GET 200 If-Range: "now" | If-Range: "now"
        GET 200 If-Range: EXACT | If-Range: EXACT

        # A tag outranks its date.
        GET 206 If-Match: "now" | If-Unmodified-Since: BEFORE
        GET 412 If-Match: "old" | If-Unmodified-Since: AFTER
        GET 206 If-None-Match: "old" | If-Modified-Since: AFTER
        GET 304 If-None-Match: "now" | If-Modified-Since: BEFORE

        # 412 comes before 304, and that before If-Range.
        GET 412 If-None-Match: "now" | If-Match: "old"
        GET 412 If-None-Match: "now" | If-Unmodified-Since: BEFORE
        GET 304 If-None-Match: "now" | If-Match: "now"
        GET 304 If-Modified-Since: EXACT | If-Match: "now"
        GET 304 If-Range: "old" | If-None-Match: "now"
        GET 200 If-Range: "old" | If-Match: "now"
        GET 206 If-Range: "now" | If-None-Match: "old"
    "#;

    fn current(etag: &str, last_modified: SystemTime) -> Validators {
        let etag = StrongTag::new(etag);
        Validators { etag, last_modified }
    }

    fn value(text: &str) -> HeaderValue {
        HeaderValue::from_bytes(text.as_bytes()).expect("a header value")
    }

    #[test]
    fn decisions() {
        let current = current("now", UNIX_EPOCH + MODIFIED);
        let is_case = |row: &&str| !row.is_empty() && !row.starts_with('#');
        for row in DECISIONS.lines().map(str::trim).filter(is_case) {
            let row = row.replace("BEFORE", BEFORE).replace("EXACT", EXACT).replace("AFTER", AFTER);
            let (method, rest) = row.split_once(' ').expect("a method");
            let (status, lines) = rest.split_at(3);
            let mut headers = HeaderMap::new();
            for (name, text) in lines.split(" | ").filter_map(|line| line.split_once(':')) {
                headers.append(name.trim().parse::<HeaderName>().expect("a name"), value(text));
            }
            let method = method.parse().expect("a method");
            let decided = match evaluate(&method, &headers, &current) {
                PART => "206",
                WHOLE => "200",
                NotModified => "304",
                Failed => "412",
            };
            assert_eq!(decided, status, "{row}");
        }
    }

    #[test]
    fn tags_are_escaped() {
        for (identity, tag) in
            [("0004fb-1.img", r#""0004fb-1.img""#), ("a \"%,ä", r#""a%20%22%25%2C%C3%A4""#), ("", r#""""#)]
        {
            assert_eq!(StrongTag::new(identity).as_str(), tag);
        }
    }

    #[test]
    fn last_modified_is_always_a_date() {
        let at = |time| current("now", time).last_modified_value();
        let (early, late) = (Duration::from_millis(1), Duration::from_secs(1 << 40));
        assert_eq!(at(UNIX_EPOCH + MODIFIED), EXACT);
        assert_eq!(at(UNIX_EPOCH - early), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(at(UNIX_EPOCH + late), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    proptest! {
        /// Our own validators match, for any age of the file.
        #[test]
        fn validators_match_themselves(identity: String, old: bool, micros in 0..1u64 << 60) {
            let age = Duration::from_micros(micros);
            let last_modified = if old { UNIX_EPOCH - age } else { UNIX_EPOCH + age };
            let current = current(&identity, last_modified);
            let (tag, date) = (value(current.etag.as_str()), value(&current.last_modified_value()));
            for (name, value, expected) in [
                (IF_MATCH, &tag, PART),
                (IF_UNMODIFIED_SINCE, &date, PART),
                (IF_NONE_MATCH, &tag, NotModified),
                (IF_MODIFIED_SINCE, &date, NotModified),
                (IF_RANGE, &tag, PART),
                (IF_RANGE, &date, PART),
            ] {
                let headers = HeaderMap::from_iter([(name, value.clone())]);
                prop_assert_eq!(evaluate(&Method::GET, &headers, &current), expected);
            }
        }

        #[test]
        fn different_identities_have_different_tags(a in "[%2C,]{0,4}", b in "[%2C,]{0,4}") {
            prop_assert_eq!(a == b, StrongTag::new(&a) == StrongTag::new(&b));
        }

        #[test]
        fn any_headers_are_evaluated(
            lines in vec((0..5usize, prop_oneof![
                vec(any::<u8>(), 0..40),
                "[*W/\"now, \t\\\\]{0,20}".prop_map(String::into_bytes),
                "Sun, [0-9]{2} (Nov|Feb|Dec) [0-9]{4} [0-9:]{8} GMT".prop_map(String::into_bytes),
                "Sunday, [0-9]{2}-Nov-[0-9]{2} [0-9:]{8} GMT".prop_map(String::into_bytes),
            ]), 0..6),
        ) {
            let names = [IF_MATCH, IF_UNMODIFIED_SINCE, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE];
            let mut headers = HeaderMap::new();
            for (name, line) in lines {
                if let Ok(value) = HeaderValue::from_bytes(&line) {
                    headers.append(&names[name], value);
                }
            }
            let current = current("now", UNIX_EPOCH + MODIFIED);
            evaluate(&Method::GET, &headers, &current);
            prop_assert_ne!(evaluate(&Method::HEAD, &headers, &current), PART);
        }
    }
}
