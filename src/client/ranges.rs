//! Ranges of a disk in one request.

use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::Method;

use super::connection::{Body, Connection, DATA_TIMEOUT};
use super::error::ClientError;
use super::multipart::Parts;
use super::server::Client;

/// Bytes handed to the sink at a time, at most.
const PIECE: usize = 256 << 10;

/// Time until the response to a request for bytes begins: longer than a download waits for its turn, by default.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// The bytes to get from a disk.
pub struct Fetch<'a> {
    /// Path of the disk below the base path.
    pub path: &'a str,
    /// The version of the file. Bytes of another version must not mix in.
    pub etag: &'a str,
    pub size: u64,
    /// In order and disjoint; as many as the service accepts.
    pub ranges: &'a [Range<u64>],
    /// Ask for a digest of the content, and compare it.
    pub digest: bool,
}

/// Takes the bytes in the order of the ranges.
pub trait RangeSink {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

impl Client {
    /// Gets the ranges in one request, without trying again.
    ///
    /// # Errors
    /// The sink may have received bytes of the first ranges. With `digest` nothing is known of them.
    pub fn fetch(&self, fetch: &Fetch<'_>, sink: &mut dyn RangeSink) -> Result<(), ClientError> {
        let list: Vec<String> = fetch.ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
        let list = format!("bytes={}", list.join(","));
        let build = |to: &Connection| {
            let request = to.request(Method::GET, fetch.path).header("range", &list);
            let request = if fetch.etag.is_empty() { request } else { request.header("if-range", fetch.etag) };
            if fetch.digest { request.header("want-content-digest", "sha-256=1") } else { request }
        };
        let mut body = self.send_within(HEAD_TIMEOUT, &build)?;
        body.set_timeout(DATA_TIMEOUT);
        if body.status() != 206 || (!fetch.etag.is_empty() && body.header("etag") != Some(fetch.etag)) {
            return Err(ClientError::Changed(format!("{}: the file of the snapshot has changed", fetch.path)));
        }
        let promised = body.header("content-digest").filter(|_| fetch.digest).map(sha256_of).transpose()?;
        if fetch.digest && promised.is_none() {
            return Err(ClientError::Protocol(format!("{}: the service sent no digest", fetch.path)));
        }
        let boundary = body.header("content-type").and_then(boundary_of);
        let content_range = body.header("content-range").map(str::to_owned);
        let mut content = Content { body, hash: promised.is_some().then(|| digest::Context::new(&digest::SHA256)) };
        match (boundary, fetch.ranges) {
            (None, [range]) => {
                check_content_range(content_range.as_deref(), range, fetch.size)?;
                content.copy(range, sink)?;
            }
            (None, _) => return Err(ClientError::Protocol(format!("{}: one range instead of several", fetch.path))),
            (Some(boundary), ranges) => {
                let mut parts = Parts::new(&boundary);
                for range in ranges {
                    let content_range = parts.next(&mut content)?;
                    // It is in the body, which may be damaged.
                    check_content_range(content_range.as_deref(), range, fetch.size)
                        .map_err(|error| ClientError::Damaged(error.to_string()))?;
                    content.copy(range, sink)?;
                }
                parts.end(&mut content)?;
            }
        }
        content.finish(promised, fetch.path)
    }
}

/// The body, hashed as it is read.
struct Content<'a> {
    body: Body<'a>,
    hash: Option<digest::Context>,
}

impl Content<'_> {
    fn copy(&mut self, range: &Range<u64>, sink: &mut dyn RangeSink) -> Result<(), ClientError> {
        let mut at = range.start;
        while at < range.end {
            let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let bytes = self.body.next(left.min(PIECE))?;
            if bytes.is_empty() {
                return Err(ClientError::Damaged("the response ended too early".to_owned()));
            }
            if let Some(hash) = &mut self.hash {
                hash.update(&bytes);
            }
            sink.write(at, &bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Reads to the end, so that the connection can be used again, and compares the digest.
    fn finish(mut self, promised: Option<Vec<u8>>, path: &str) -> Result<(), ClientError> {
        if !self.body.next(1)?.is_empty() {
            return Err(ClientError::Protocol(format!("{path}: more bytes than promised")));
        }
        match (self.hash, promised) {
            (Some(hash), Some(promised)) if hash.clone().finish().as_ref() != promised => {
                Err(ClientError::Damaged(format!("{path}: the bytes do not have the digest that the service sent")))
            }
            _ => Ok(()),
        }
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.body.read(buffer)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..length]);
        }
        Ok(length)
    }
}

impl BufRead for Content<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.body.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let (Some(hash), Ok(bytes)) = (&mut self.hash, self.body.fill_buf()) {
            hash.update(&bytes[..amount]);
        }
        self.body.consume(amount);
    }
}

fn check_content_range(found: Option<&str>, range: &Range<u64>, size: u64) -> Result<(), ClientError> {
    let expected = format!("bytes {}-{}/{size}", range.start, range.end - 1);
    if found == Some(expected.as_str()) {
        return Ok(());
    }
    Err(ClientError::Protocol(format!("the service sent {:?}, not {expected:?}", found.unwrap_or("no Content-Range"))))
}

/// The boundary of a `multipart/byteranges` (RFC 9110, section 14.6).
fn boundary_of(content_type: &str) -> Option<String> {
    let mut parameters = content_type.split(';').map(str::trim);
    if !parameters.next()?.eq_ignore_ascii_case("multipart/byteranges") {
        return None;
    }
    parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// The SHA-256 in a `Content-Digest` (RFC 9530).
fn sha256_of(header: &str) -> Result<Vec<u8>, ClientError> {
    let value = header.split(',').find_map(|member| member.trim().strip_prefix("sha-256=:")?.strip_suffix(':'));
    let digest = value.and_then(|value| BASE64.decode(value).ok()).filter(|digest| digest.len() == 32);
    digest.ok_or_else(|| ClientError::Protocol(format!("the digest {header:?} has no sha-256")))
}
