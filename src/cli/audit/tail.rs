//! Where the chain of an audit file continues after a restart.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::app::audit::{Head, Incomplete, Sealed, Unsealed};

/// The end of the file that is read. A line is much shorter.
const MAX_TAIL: u64 = 1 << 20;

/// Incomplete lines at the end that are accepted. More than one are there if the service was killed again while it wrote
/// the line that reports the first.
const MAX_INCOMPLETE: usize = 64;

const NO_LINE: &str = "the file has no complete line";

/// How each line of a chain starts.
const START: &[u8] = b"{\"seq\":";

/// The end of an audit file.
pub enum Tail {
    /// There is no file, or nothing in it.
    Empty,
    /// A line of a chain, after which incomplete ones may follow.
    Chained { head: Head, incomplete: Option<Incomplete>, has_newline: bool },
    /// Only incomplete lines: the service was killed while it wrote the first line. The chain continues from the file
    /// before this one.
    Torn { parts: Vec<Vec<u8>>, has_newline: bool },
    /// No line of a chain.
    Broken { why: &'static str, has_newline: bool },
}

impl Tail {
    /// Reads the end of the file at `path`, such as the newest rotated one.
    pub fn of_path(path: &Path) -> io::Result<Self> {
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) if file.metadata()?.is_file() => Self::of(&file),
            Ok(_) => Ok(Self::Empty),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::Empty),
            Err(error) => Err(error),
        }
    }

    /// The end of the chain, if this file is empty or torn and comes after the file with the tail `before`.
    pub fn after(self, before: Self) -> Self {
        match (self, before) {
            (Self::Torn { parts, has_newline }, Self::Chained { head, incomplete, .. }) => {
                let mut incomplete = incomplete.unwrap_or_default();
                parts.iter().for_each(|part| incomplete.add(part));
                Self::Chained { head, incomplete: Some(incomplete), has_newline }
            }
            (Self::Torn { has_newline, .. }, _) => Self::Broken { why: NO_LINE, has_newline },
            (_, Self::Torn { has_newline, .. }) => Self::Broken { why: NO_LINE, has_newline },
            (_, before) => before,
        }
    }

    /// Reads the end of `file`.
    pub fn of(file: &File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let start = size.saturating_sub(MAX_TAIL);
        let mut bytes = vec![0; usize::try_from(size - start).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, start)?;
        Ok(Self::of_bytes(&bytes, start == 0))
    }

    /// `is_whole`: the file has no other bytes.
    fn of_bytes(bytes: &[u8], is_whole: bool) -> Self {
        if bytes.is_empty() {
            return Self::Empty;
        }
        let mut lines = bytes.rsplit(|byte| *byte == b'\n').peekable();
        let rest = lines.next().unwrap_or_default();
        let has_newline = rest.is_empty();
        let broken = |why| Self::Broken { why, has_newline };
        // Only the newline of the last line is missing.
        if let Ok(Sealed { head, .. }) = Sealed::parse(rest) {
            return Self::Chained { head, incomplete: None, has_newline };
        }
        // From the last one.
        let mut parts = Vec::from_iter((!has_newline).then_some(rest));
        let head = loop {
            let Some(line) = lines.next() else {
                if is_whole && parts.iter().all(|part| is_incomplete(part)) {
                    let parts = parts.iter().rev().map(|part| part.to_vec()).collect();
                    return Self::Torn { parts, has_newline };
                }
                return broken(NO_LINE);
            };
            if lines.peek().is_none() && !is_whole {
                return broken("the last line of the file is too long");
            }
            match Sealed::parse(line) {
                Ok(Sealed { head, .. }) => break head,
                Err(Unsealed::NoHash) if is_incomplete(line) && parts.len() < MAX_INCOMPLETE => parts.push(line),
                Err(Unsealed::NoHash) => return broken("the last line of the file has no hash"),
                Err(Unsealed::WrongHash) => return broken("the last line of the file was changed: its hash is wrong"),
            }
        };
        let mut incomplete = Incomplete::default();
        parts.iter().rev().for_each(|part| incomplete.add(part));
        Self::Chained { head, incomplete: (!parts.is_empty()).then_some(incomplete), has_newline }
    }
}

/// Whether it is the start of a line of a chain. Others, such as lines of an older version, are not accepted.
fn is_incomplete(line: &[u8]) -> bool {
    let start = &START[..START.len().min(line.len())];
    !line.is_empty() && line.starts_with(start) && serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::audit::seal;

    #[test]
    fn the_chain_continues_after_the_last_complete_line() {
        let (first, head) = seal(b"{\"who\":\"a\"}\n", &Head::start(), None);
        let (second, next) = seal(b"{\"who\":\"b\"}\n", &head, None);
        let both = [first.clone(), second.clone()].concat();
        for end in 0..=both.len() {
            let expected = match end {
                end if end >= both.len() - 1 => Some(&next),
                end if end >= first.len() - 1 => Some(&head),
                _ => None,
            };
            match (Tail::of_bytes(&both[..end], true), expected) {
                (Tail::Empty, None) => assert_eq!(end, 0),
                (Tail::Torn { parts, has_newline }, None) => {
                    assert!(end > 0 && !has_newline && parts == [&both[..end]], "{end}");
                }
                (Tail::Chained { head, incomplete, has_newline }, Some(expected)) => {
                    assert_eq!(&head, expected, "{end}");
                    assert_eq!(has_newline, both[end - 1] == b'\n', "{end}");
                    let torn = &both[first.len().min(end)..end];
                    let is_torn = !torn.is_empty() && end < both.len() - 1;
                    let mut parts = Incomplete::default();
                    parts.add(torn);
                    assert_eq!(incomplete.map(|it| it.hash()), is_torn.then(|| parts.hash()), "{end}");
                }
                _ => panic!("{end}"),
            }
        }
    }

    #[test]
    fn other_files_have_no_chain() {
        let (line, _) = seal(b"{\"who\":\"admin\"}\n", &Head::start(), None);
        let changed = String::from_utf8(line.clone()).unwrap().replace("admin", "other");
        let long = vec![b'x'; MAX_TAIL as usize];
        for (bytes, is_whole, expected) in [
            (&b"{\"who\":\"admin\"}\n"[..], true, "no hash"),
            (changed.as_bytes(), true, "was changed"),
            (b"\n", true, "no hash"),
            (b"half a line", true, "no complete line"),
            (&long, false, "no complete line"),
            (&line, false, "too long"),
        ] {
            let Tail::Broken { why, .. } = Tail::of_bytes(bytes, is_whole) else { panic!("{expected}") };
            assert!(why.contains(expected), "{why}");
        }
    }
}
