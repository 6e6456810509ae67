//! Verifies the chain of an audit file.

use super::chain::{Head, Incomplete, NO_HASH, Sealed, Unsealed};
use crate::auth::AuditKey;

/// The place of a line: the number of its file, from 0, and of the line, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub file: usize,
    pub line: u64,
}

/// The first line that is not what the service wrote.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// `None` if no line of the files is meant.
    pub place: Option<Place>,
    pub what: String,
}

/// What a whole chain consists of.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The first and the last line. `None` if no line is in a chain.
    pub lines: Option<(u64, Head)>,
    /// The time of the last line.
    pub last_time: Option<String>,
    /// Lines with a proof of the key.
    pub proven: u64,
    /// Lines with the proof of an earlier key, before those.
    pub other_key: u64,
    /// Lines of an older version, before the first line of the chain.
    pub unchained: u64,
    /// Lines that were not written completely, as a later line says.
    pub incomplete: u64,
    /// The end of the last file is an incomplete line.
    pub ends_incomplete: bool,
    /// Expected heads that are older than the first line.
    pub older_heads: u64,
}

/// Takes lines in the order in which they were written.
pub struct Verifier<'a> {
    key: Option<&'a AuditKey>,
    /// Heads that are known from elsewhere.
    expected: &'a [Head],
    last: Option<(Head, Place)>,
    is_last_proven: bool,
    /// Lines without a hash since the last line with one, the place of the first, and whether the last one has its
    /// newline.
    unsealed: Incomplete,
    first_unsealed: Place,
    is_complete: bool,
    summary: Summary,
}

fn difference<T>(place: Place, what: impl Into<String>) -> Result<T, Difference> {
    Err(Difference { place: Some(place), what: what.into() })
}

impl<'a> Verifier<'a> {
    /// With a `key`, proofs are checked too.
    pub fn new(key: Option<&'a AuditKey>, expected: &'a [Head]) -> Self {
        Self {
            key,
            expected,
            last: None,
            is_last_proven: false,
            unsealed: Incomplete::default(),
            first_unsealed: Place::default(),
            is_complete: true,
            summary: Summary::default(),
        }
    }

    /// Checks the next line, with its newline if it has one.
    ///
    /// # Errors
    /// It is not the line that the service wrote there.
    pub fn line(&mut self, place: Place, line: &[u8]) -> Result<(), Difference> {
        let bytes = line.strip_suffix(b"\n").unwrap_or(line);
        let sealed = match Sealed::parse(bytes) {
            Ok(sealed) => sealed,
            Err(Unsealed::WrongHash) => return difference(place, "was changed: its hash is wrong"),
            Err(Unsealed::NoHash) => {
                if self.unsealed.lines == 0 {
                    self.first_unsealed = place;
                }
                self.unsealed.add(bytes);
                self.is_complete = bytes.len() < line.len();
                return Ok(());
            }
        };
        self.check_unsealed(&sealed)?;
        self.check_order(place, &sealed)?;
        self.check_proof(place, &sealed)?;
        let expected = self.expected.iter().find(|head| head.seq == sealed.head.seq);
        if expected.is_some_and(|head| head.hash != sealed.head.hash) {
            return difference(place, format!("line {} has another hash than expected", sealed.head.seq));
        }
        self.summary.last_time = sealed.fields.time;
        self.last = Some((sealed.head, place));
        Ok(())
    }

    /// Lines without a hash are all right before the first chain, and if the next line says that they are incomplete.
    fn check_unsealed(&mut self, next: &Sealed<'_>) -> Result<(), Difference> {
        let unsealed = std::mem::take(&mut self.unsealed);
        let said = next.fields.incomplete.as_deref();
        if self.last.is_none() && next.is_first() && said.is_none() {
            self.summary.unchained = unsealed.lines;
            return Ok(());
        }
        match said {
            None if unsealed.lines == 0 => Ok(()),
            Some(hash) if unsealed.lines > 0 && unsealed.hash() == hash => {
                self.summary.incomplete += unsealed.lines;
                Ok(())
            }
            // After a rotation, the file with the incomplete lines may have been deleted.
            Some(_) if unsealed.lines == 0 && self.last.is_none() => Ok(()),
            Some(_) if unsealed.lines == 0 => {
                let after = self.last.as_ref().map(|(_, place)| *place).unwrap_or_default();
                difference(
                    after,
                    "is followed by a line that says that incomplete lines are before it; they were removed",
                )
            }
            _ => difference(self.first_unsealed, "has no hash: it was changed, or the service did not write it"),
        }
    }

    fn check_order(&mut self, place: Place, next: &Sealed<'_>) -> Result<(), Difference> {
        let seq = next.head.seq;
        let Some((last, _)) = &self.last else {
            if seq == 1 && next.fields.prev != NO_HASH {
                return difference(place, "was changed: line 1 of a chain has no line before it");
            }
            self.summary.lines = Some((seq, next.head.clone()));
            return Ok(());
        };
        if next.head == *last {
            return difference(place, format!("repeats the line before it ({seq})"));
        }
        if next.is_first() {
            let reason = next.fields.reason.as_deref().unwrap_or("no reason is known");
            let what = format!("begins a new chain after line {}: {reason}; lines may be missing here", last.seq);
            return difference(place, what);
        }
        let expected = last.seq.saturating_add(1);
        if seq < expected {
            return difference(place, format!("is line {seq}, after line {}: it was repeated or moved", last.seq));
        }
        if seq > expected {
            let missing = if seq - 1 == expected {
                format!("line {expected} was")
            } else {
                format!("lines {expected} to {} were", seq - 1)
            };
            return difference(place, format!("is line {seq}, after line {}: {missing} removed or moved", last.seq));
        }
        if next.fields.prev != last.hash {
            let what = format!("does not continue the line before it: line {} or {seq} was replaced", last.seq);
            return difference(place, what);
        }
        Ok(())
    }

    fn check_proof(&mut self, place: Place, next: &Sealed<'_>) -> Result<(), Difference> {
        let Some(key) = self.key else { return Ok(()) };
        match next.is_proven_by(key) {
            Some(true) => self.summary.proven += 1,
            Some(false) => return difference(place, "was not written by this service: its mac is wrong"),
            None if self.summary.proven > 0 => {
                return difference(
                    place,
                    "has not the key of the lines before it (was jwt.secret changed and changed back?)",
                );
            }
            None => self.summary.other_key += 1,
        }
        self.is_last_proven = self.summary.proven > 0;
        Ok(())
    }

    /// After the last line.
    ///
    /// # Errors
    /// The last lines are not what the service wrote, or are missing.
    pub fn finish(mut self) -> Result<Summary, Difference> {
        let Some((last, place)) = self.last else {
            self.summary.unchained = self.unsealed.lines;
            return match self.expected {
                [] => Ok(self.summary),
                [head, ..] => Err(Difference { place: None, what: format!("line {} is missing", head.seq) }),
            };
        };
        match self.unsealed.lines {
            0 => {}
            1 if !self.is_complete => self.summary.ends_incomplete = true,
            _ => {
                return difference(self.first_unsealed, "has no hash: it was changed, or the service did not write it");
            }
        }
        if self.key.is_some() && !self.is_last_proven {
            let what = "has not the key of this service: name the config of the service that wrote it";
            return difference(place, what);
        }
        if let Some(head) = self.expected.iter().find(|head| head.seq > last.seq) {
            let what = format!("the files end with line {}: line {} is missing", last.seq, head.seq);
            return Err(Difference { place: None, what });
        }
        let first = self.summary.lines.take().map_or(last.seq, |(first, _)| first);
        self.summary.older_heads = self.expected.iter().filter(|head| head.seq < first).count() as u64;
        self.summary.lines = Some((first, last));
        Ok(self.summary)
    }
}

#[cfg(test)]
mod tests;
