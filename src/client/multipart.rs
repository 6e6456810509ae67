//! The parts of a `multipart/byteranges` body (RFC 9110, section 14.6; RFC 2046, section 5.1).

use std::io::{self, BufRead, Read};

use super::error::ClientError;

/// The longest line between two parts.
const MAX_LINE: u64 = 1024;
/// The most lines of one part's head.
const MAX_LINES: usize = 16;

/// A body without the promised parts counts as damaged: it may arrive whole at the next attempt.
pub struct Parts {
    delimiter: String,
}

impl Parts {
    pub fn new(boundary: &str) -> Self {
        Self { delimiter: format!("--{boundary}") }
    }

    /// Reads up to the bytes of the next part. Returns its `Content-Range`.
    pub fn next(&mut self, body: &mut impl BufRead) -> Result<Option<String>, ClientError> {
        self.expect(body, &self.delimiter)?;
        let mut content_range = None;
        for _ in 0..MAX_LINES {
            let line = line(body)?;
            if line.is_empty() {
                return Ok(content_range);
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-range")
            {
                content_range = Some(value.trim().to_owned());
            }
        }
        Err(ClientError::Damaged("a part of the response has too many headers".to_owned()))
    }

    /// Reads the end of the last part.
    pub fn end(&mut self, body: &mut impl BufRead) -> Result<(), ClientError> {
        self.expect(body, &format!("{}--", self.delimiter))
    }

    /// Bytes of a part are followed by an empty line; a body may begin with one.
    fn expect(&self, body: &mut impl BufRead, expected: &str) -> Result<(), ClientError> {
        let mut found = line(body)?;
        if found.is_empty() {
            found = line(body)?;
        }
        if found == expected {
            return Ok(());
        }
        Err(ClientError::Damaged(format!("the response has {found:?} where {expected:?} should be")))
    }
}

fn line(body: &mut impl BufRead) -> Result<String, ClientError> {
    let mut text = Vec::new();
    let read = body.take(MAX_LINE).read_until(b'\n', &mut text);
    read.map_err(|error: io::Error| ClientError::Connection(error.to_string()))?;
    match text.strip_suffix(b"\r\n").or_else(|| text.strip_suffix(b"\n")) {
        Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
        None if text.len() as u64 == MAX_LINE => {
            Err(ClientError::Damaged("the response has bytes where a boundary should be".to_owned()))
        }
        // The closing delimiter may be the last bytes of the body.
        None if !text.is_empty() => Ok(String::from_utf8_lossy(&text).into_owned()),
        None => Err(ClientError::Damaged("the response ended too early".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_to_their_end() {
        let mut body: &[u8] =
            b"--b\r\nContent-Type: x\r\ncontent-range: bytes 0-1/9\r\n\r\nAB\r\n--b\r\n\r\nC\r\n--b--\r\n";
        let mut parts = Parts::new("b");
        assert_eq!(parts.next(&mut body).unwrap().as_deref(), Some("bytes 0-1/9"));
        body.consume(2);
        assert_eq!(parts.next(&mut body).unwrap(), None);
        body.consume(1);
        parts.end(&mut body).unwrap();
        assert!(body.is_empty());
        // Without the line end after the closing delimiter.
        let mut body: &[u8] = b"\r\n--b--";
        Parts::new("b").end(&mut body).unwrap();
    }

    #[test]
    fn broken_parts_are_refused() {
        for (body, expected) in [
            (&b"--c\r\n\r\n"[..], "the response has \"--c\" where \"--b\" should be"),
            (b"--b\r\nA: b", "the response ended too early"),
            (b"", "the response ended too early"),
            (&[b'x'; 2000], "the response has bytes where a boundary should be"),
        ] {
            let mut body = body;
            assert_eq!(Parts::new("b").next(&mut body).unwrap_err().to_string(), expected);
        }
        let endless = [&b"--b\r\n"[..], &b"A: b\r\n".repeat(50)].concat();
        let mut body = &endless[..];
        assert!(Parts::new("b").next(&mut body).is_err());
    }
}
