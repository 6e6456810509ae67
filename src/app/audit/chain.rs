//! The chain of hashes over the lines of the audit file. Each line has the hash of the line before it, so that a
//! removed, changed, added or moved line breaks the chain.
//!
//! A hash needs no key, so that everyone can verify a chain; the proof needs the service's key, so that only the service
//! can make one. Both are computed over bytes of the line as it is in the file, so that no form of JSON has to be agreed
//! on.

use aws_lc_rs::digest::{Context, SHA256, digest};
use serde::Deserialize;

use crate::auth::AuditKey;
use crate::model::hex;

/// `prev` of the first line of a chain.
pub(super) const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The ends of a line, from its proof and from its hash on.
const MAC_START: &str = ",\"mac\":\"";
const HASH_START: &str = ",\"hash\":\"";
const HASH_END: &str = "\"}";
const DIGITS: usize = NO_HASH.len();

/// The newest line of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of the line. The first one has 1.
    pub seq: u64,
    /// SHA-256, hexadecimal digits.
    pub hash: String,
}

impl Head {
    /// The head before the first line.
    pub fn start() -> Self {
        Self { seq: 0, hash: NO_HASH.to_owned() }
    }
}

/// Lines that were not written completely, because the disk was full or the service was killed.
#[derive(Clone)]
pub struct Incomplete {
    pub lines: u64,
    hash: Context,
}

impl Default for Incomplete {
    fn default() -> Self {
        Self { lines: 0, hash: Context::new(&SHA256) }
    }
}

impl Incomplete {
    /// Adds the part of a line that is in the file.
    pub fn add(&mut self, part: &[u8]) {
        self.lines += 1;
        self.hash.update(part);
        self.hash.update(b"\n");
    }

    /// SHA-256 of the parts, each with a newline.
    pub fn hash(&self) -> String {
        hex(self.hash.clone().finish().as_ref())
    }
}

/// Makes `line`, a JSON object with its newline, the one after `head`. Returns the line for the file, and the new head.
pub fn seal(line: &[u8], head: &Head, key: Option<&AuditKey>) -> (Vec<u8>, Head) {
    let fields = line.strip_prefix(b"{").unwrap_or(line);
    let fields = fields.strip_suffix(b"}\n").unwrap_or(fields);
    let seq = head.seq.saturating_add(1);
    let mut sealed = format!("{{\"seq\":{seq},").into_bytes();
    sealed.extend_from_slice(fields);
    sealed.extend_from_slice(format!(",\"prev\":\"{}\"", head.hash).as_bytes());
    if let Some(key) = key {
        sealed.extend_from_slice(format!(",\"key\":\"{}\"", key.id()).as_bytes());
        let proof = key.proof(&sealed);
        sealed.extend_from_slice(format!("{MAC_START}{proof}\"").as_bytes());
    }
    let hash = hex(digest(&SHA256, &sealed).as_ref());
    sealed.extend_from_slice(format!("{HASH_START}{hash}{HASH_END}\n").as_bytes());
    (sealed, Head { seq, hash })
}

/// A line of the file whose hash is right.
#[derive(Debug)]
pub struct Sealed<'a> {
    pub head: Head,
    pub(super) fields: Fields,
    /// The bytes that the hash is computed over.
    hashed: &'a [u8],
}

/// The fields that matter to the chain.
#[derive(Debug, Deserialize)]
pub(super) struct Fields {
    seq: u64,
    pub(super) prev: String,
    pub(super) key: Option<String>,
    mac: Option<String>,
    /// SHA-256 of the incomplete lines before this one.
    pub(super) incomplete: Option<String>,
    pub(super) time: Option<String>,
    pub(super) reason: Option<String>,
}

/// Why a line of a file is not a sealed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsealed {
    /// It is no line of a chain: an incomplete one, or one that others or an older version wrote.
    NoHash,
    /// It has been changed.
    WrongHash,
}

impl<'a> Sealed<'a> {
    /// Reads a line without its newline.
    ///
    /// # Errors
    /// [`Unsealed`].
    pub fn parse(line: &'a [u8]) -> Result<Self, Unsealed> {
        let (hashed, hash) = split_end(line, HASH_START, HASH_END).ok_or(Unsealed::NoHash)?;
        if hex(digest(&SHA256, hashed).as_ref()).as_bytes() != hash {
            return Err(Unsealed::WrongHash);
        }
        let fields: Fields = serde_json::from_slice(line).map_err(|_| Unsealed::WrongHash)?;
        let hash = String::from_utf8_lossy(hash).into_owned();
        Ok(Self { head: Head { seq: fields.seq, hash }, fields, hashed })
    }

    /// Whether it is the first line of a chain.
    pub fn is_first(&self) -> bool {
        self.head.seq == 1 && self.fields.prev == NO_HASH
    }

    /// Whether this key has proven it. `None` if it names another key, or none.
    pub(super) fn is_proven_by(&self, key: &AuditKey) -> Option<bool> {
        if self.fields.key.as_deref() != Some(key.id()) {
            return None;
        }
        let split = split_end(self.hashed, MAC_START, "\"");
        Some(split.is_some_and(|(proven, mac)| key.proof(proven).as_bytes() == mac && self.fields.mac.is_some()))
    }
}

/// Splits a line before its last value, which has as many digits as a hash.
fn split_end<'a>(line: &'a [u8], start: &str, end: &str) -> Option<(&'a [u8], &'a [u8])> {
    let rest = line.strip_suffix(end.as_bytes())?;
    let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(DIGITS)?)?;
    Some((rest.strip_suffix(start.as_bytes())?, digits))
}
