//! Parses the parts of a request's head that determine where the request ends. hyper and a proxy must agree on these.

use super::refusal::RejectedInput;

/// Bytes of the first line of a request. hyper accepts targets of up to 65,534.
pub(super) const LINE_LIMIT: usize = 60 << 10;

/// Bytes of a head, including its first line.
const HEAD_LIMIT: usize = 128 << 10;

/// Bytes of the buffer that are kept between two heads.
const RETAINED_CAPACITY: usize = 4 << 10;

/// What comes next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    Head,
    /// A body with this many bytes left.
    Body(u64),
    /// A body with an unknown end, and nothing after it.
    Rest,
}

/// The head of a request, as far as it has been read.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// The unfinished line.
    line: Vec<u8>,
    /// Of the whole head so far, in bytes.
    length: usize,
    has_begun: bool,
    is_http_11: bool,
    /// Whether the method is HEAD.
    pub(super) is_for_head: bool,
    hosts: usize,
    is_host_malformed: bool,
    /// `Content-Length`; the inner value is `None` unless it is one number.
    content_length: Option<Option<u64>>,
    is_encoded: bool,
}

impl Head {
    /// Reads more bytes. If the head ends within them, returns where, and what follows.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Option<(usize, Follows)>, RejectedInput> {
        let mut at = 0;
        while at < bytes.len() {
            if self.length == 0 {
                *self = Self { line: std::mem::take(&mut self.line), ..Self::default() };
            }
            let newline = bytes[at..].iter().position(|byte| *byte == b'\n');
            let end = newline.map_or(bytes.len(), |newline| at + newline + 1);
            self.length += end - at;
            self.line.extend_from_slice(&bytes[at..end]);
            at = end;
            if !self.has_begun && self.line.len() > LINE_LIMIT {
                return Err(RejectedInput::line_too_long(LINE_LIMIT));
            }
            if self.length > HEAD_LIMIT {
                return Err(RejectedInput::head_too_large(format!(
                    "the request's head is longer than {HEAD_LIMIT} bytes"
                )));
            }
            if newline.is_none() {
                break;
            }
            let mut line = std::mem::take(&mut self.line);
            let read = match line.strip_suffix(b"\r\n") {
                None => Err(RejectedInput::malformed("a line of the request's head ends with LF instead of CR LF")),
                Some([]) if self.has_begun => self.follows().map(Some),
                Some([]) => Ok(None),
                Some(line) => {
                    self.take(line);
                    Ok(None)
                }
            };
            line.clear();
            line.shrink_to(RETAINED_CAPACITY);
            self.line = line;
            if let Some(follows) = read? {
                self.length = 0;
                return Ok(Some((at, follows)));
            }
        }
        Ok(None)
    }

    fn take(&mut self, line: &[u8]) {
        if !self.has_begun {
            self.has_begun = true;
            self.is_http_11 = line.ends_with(b" HTTP/1.1");
            self.is_for_head = line.starts_with(b"HEAD ");
            return;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
            self.is_host_malformed |= !value.iter().all(|byte| is_of_host(*byte));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.is_encoded = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(value).ok().filter(|_| is_number);
            let length = text.and_then(|text| text.parse().ok());
            // Two different lengths are invalid.
            self.content_length = Some(length.filter(|_| self.content_length.is_none_or(|other| other == length)));
        }
    }

    /// What follows the complete head.
    fn follows(&self) -> Result<Follows, RejectedInput> {
        if self.hosts > 1 {
            return Err(RejectedInput::malformed("the request has more than one Host header"));
        }
        if self.is_http_11 && self.hosts == 0 {
            return Err(RejectedInput::malformed("the request has no Host header, which HTTP/1.1 requires"));
        }
        if self.is_host_malformed {
            return Err(RejectedInput::malformed(
                "the Host header is not a host name or address, with or without a port",
            ));
        }
        match (self.content_length, self.is_encoded) {
            (Some(_), true) => {
                Err(RejectedInput::malformed("the request has both Content-Length and Transfer-Encoding; keep one"))
            }
            (None | Some(Some(0)), false) => Ok(Follows::Head),
            (Some(Some(length)), false) => Ok(Follows::Body(length)),
            // hyper refuses an invalid length.
            (Some(None), false) | (None, true) => Ok(Follows::Rest),
        }
    }
}

/// Whether a byte may occur in a host with its port (RFC 9110, 7.2). A comma is allowed there, but some would read it
/// as two hosts.
fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &str) -> String {
        format!("GET / HTTP/1.1\r\n{lines}\r\n")
    }

    /// Reads a head in pieces of `size` bytes. Returns what follows, and how many bytes are left.
    fn read(text: &str, size: usize) -> Result<Option<(Follows, usize)>, (u16, String)> {
        let mut reader = Head::default();
        let mut gone = 0;
        for piece in text.as_bytes().chunks(size) {
            match reader.read(piece) {
                Ok(None) => gone += piece.len(),
                Ok(Some((end, follows))) => return Ok(Some((follows, text.len() - gone - end))),
                Err(refusal) => return Err((refusal.status.as_u16(), refusal.details)),
            }
        }
        Ok(None)
    }

    #[test]
    fn the_end_of_a_head_does_not_depend_on_its_pieces() {
        for (text, expected) in [
            (head("Host: x\r\n"), Some((Follows::Head, 0))),
            (head("hOST:\r\n") + "GET", Some((Follows::Head, 3))),
            (head("Host:  a_b.example:5544 \t\r\n"), Some((Follows::Head, 0))),
            (head("Host: [fe80::1%25eth0]:5544\r\n"), Some((Follows::Head, 0))),
            ("\r\n\r\n".to_owned() + &head("Host: x\r\n"), Some((Follows::Head, 0))),
            (head("Host: x\r\nContent-Length: 12\r\n") + "{}", Some((Follows::Body(12), 2))),
            (head("Host: x\r\nContent-Length: 12\r\nContent-Length:12 \r\n"), Some((Follows::Body(12), 0))),
            (head("Host: x\r\nContent-Length: 0\r\n"), Some((Follows::Head, 0))),
            (head("Host: x\r\nTransfer-Encoding: chunked\r\n") + "0", Some((Follows::Rest, 1))),
            // hyper refuses these.
            (head("Host: x\r\nContent-Length: 12\r\nContent-Length: 13\r\n"), Some((Follows::Rest, 0))),
            (head("Host: x\r\nContent-Length: +1\r\n"), Some((Follows::Rest, 0))),
            (head("Host: x\r\nContent-Length:\r\n"), Some((Follows::Rest, 0))),
            ("GET / HTTP/1.0\r\n\r\n".to_owned(), Some((Follows::Head, 0))),
            ("GET / HTTP/1.1\r\nHost: x\r\n".to_owned(), None),
        ] {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(read(&text, size), Ok(expected), "{text:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        let long = "a".repeat(LINE_LIMIT);
        let large = format!("X: {long}\r\n").repeat(3);
        for (text, status, expected) in [
            (head(""), 400, "no Host"),
            (head("Host : x\r\n"), 400, "no Host"),
            (head("Host: x\r\nHost: x\r\n"), 400, "more than one Host"),
            ("GET / HTTP/1.0\r\nHost: x\r\nhost: y\r\n\r\n".to_owned(), 400, "more than one Host"),
            (head("Host: x y\r\n"), 400, "not a host name"),
            (head("Host: x\ty\r\n"), 400, "not a host name"),
            (head("Host: x,y\r\n"), 400, "not a host name"),
            (head("Host: x, y\r\n"), 400, "not a host name"),
            (head("Host: x/y\r\n"), 400, "not a host name"),
            (head("Host: https://x\r\n"), 400, "not a host name"),
            (head("Host: user@x\r\n"), 400, "not a host name"),
            (head("Host: x\\y\r\n"), 400, "not a host name"),
            ("GET / HTTP/1.0\r\nHost: x y\r\n\r\n".to_owned(), 400, "not a host name"),
            ("GET / HTTP/1.1\nHost: x\r\n\r\n".to_owned(), 400, "ends with LF"),
            (head("Host: x\n"), 400, "ends with LF"),
            ("\nGET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400, "ends with LF"),
            ("GET / HTTP/1.1\r\nHost: x\r\n\n".to_owned(), 400, "ends with LF"),
            (head("Host: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n"), 400, "both"),
            (head("Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n"), 400, "both"),
            (head("Host: x\r\nTransfer-Encoding:\r\nContent-Length: x\r\n"), 400, "both"),
            (format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), 414, "longer than 61440"),
            (format!("GET /{long}"), 414, "longer than 61440"),
            (head(&format!("Host: x\r\n{large}")), 431, "longer than 131072"),
        ] {
            for size in [1, 5, 4096, 1 << 20] {
                let (found, details) = read(&text, size).unwrap_err();
                assert_eq!(found, status, "{text:.80?} in pieces of {size}");
                assert!(details.contains(expected), "{details:?} lacks {expected:?}");
            }
        }
    }
}
