//! The audit file: a rotated file whose lines are a chain.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::Serialize;

use super::tail::Tail;
use crate::app::audit::{Head, Incomplete, seal};
use crate::auth::AuditKey;
use crate::cli::log_file::{RotatedFile, Rotation, Unwritten, beside, to_standard_error};
use crate::cli::log_queue::Sink;

/// What the thread of the file shares with the service.
#[derive(Default)]
pub struct Shared {
    /// It exists before the first line.
    key: RwLock<Option<AuditKey>>,
    newest: Mutex<Option<Head>>,
}

impl Shared {
    /// Proves further lines with `key`.
    pub fn set_key(&self, key: AuditKey) {
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }

    /// The newest line in the file.
    pub fn head(&self) -> Option<Head> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_head(&self, head: Head) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
    }
}

pub struct AuditFile {
    file: RotatedFile,
    head: Head,
    /// Why a new chain begins, until its first line is written.
    new_chain: Option<&'static str>,
    /// Incomplete lines at the end of the file that no line reports yet.
    incomplete: Incomplete,
    /// Lines that went to standard error since the last successful write.
    missed: u64,
    shared: Arc<Shared>,
}

/// A line about the file itself. It has the fields that all lines have.
#[derive(Serialize)]
struct Record<'a> {
    time: String,
    who: &'static str,
    address: Option<()>,
    action: &'static str,
    what: &'static str,
    outcome: &'static str,
    reason: &'a str,
    bytes: Option<()>,
    ranges: Option<()>,
    request_id: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    incomplete: Option<String>,
}

impl<'a> Record<'a> {
    fn new(what: &'static str, outcome: &'static str, reason: &'a str) -> Self {
        Self {
            time: format!("{:.3}", jiff::Timestamp::now()),
            who: "service",
            address: None,
            action: "audit",
            what,
            outcome,
            reason,
            bytes: None,
            ranges: None,
            request_id: None,
            lines: None,
            incomplete: None,
        }
    }

    fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

impl AuditFile {
    /// Opens the file, and finds where its chain continues.
    ///
    /// # Errors
    /// It cannot be opened or read, or another process writes it.
    pub fn open(path: &Path, rotation: Rotation, shared: Arc<Shared>) -> io::Result<Self> {
        let mut file = RotatedFile::open(path, rotation)?;
        let with_path = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let mut tail = Tail::of(file.file()).map_err(with_path)?;
        let is_empty = matches!(tail, Tail::Empty);
        if is_empty {
            // The service was killed in the middle of a rotation, or has written nothing since.
            tail = Tail::of_path(&beside(path, "1")).map_err(with_path)?;
        }
        if !is_empty
            && matches!(tail, Tail::Chained { has_newline: false, .. } | Tail::Broken { has_newline: false, .. })
        {
            file.set_torn();
        }
        let (head, incomplete, new_chain) = match tail {
            Tail::Empty => (Head::start(), None, Some("there was no audit file")),
            Tail::Chained { head, incomplete, .. } => {
                shared.set_head(head.clone());
                (head, incomplete, None)
            }
            Tail::Broken { why, .. } => {
                tracing::warn!(path = %path.display(), why, "the chain of the audit file cannot be continued: beginning a new one");
                (Head::start(), None, Some(why))
            }
        };
        Ok(Self { file, head, new_chain, incomplete: incomplete.unwrap_or_default(), missed: 0, shared })
    }

    /// Adds a line to the chain, after the lines about the file that are due.
    fn add(&mut self, line: &[u8]) -> Result<(), Unwritten> {
        if let Some(why) = self.new_chain {
            self.append(Record::new("new-chain", "done", why).line().as_bytes())?;
            self.new_chain = None;
        }
        if self.incomplete.lines > 0 {
            let reason = "the lines before this one are incomplete: the disk was full, or the service was killed";
            let mut record = Record::new("incomplete-lines", "failed", reason);
            (record.lines, record.incomplete) = (Some(self.incomplete.lines), Some(self.incomplete.hash()));
            self.append(record.line().as_bytes())?;
            self.incomplete = Incomplete::default();
        }
        if self.missed > 0 {
            let reason = "lines could not be written here; they went to standard error, without hashes";
            let record = Record { lines: Some(self.missed), ..Record::new("missing-lines", "failed", reason) };
            self.append(record.line().as_bytes())?;
            self.missed = 0;
        }
        self.append(line)
    }

    /// Appends one line, and makes it the head.
    fn append(&mut self, line: &[u8]) -> Result<(), Unwritten> {
        let key = self.shared.key.read().unwrap_or_else(PoisonError::into_inner);
        let (sealed, head) = seal(line, &self.head, key.as_ref());
        drop(key);
        if let Err(unwritten) = self.file.append(&sealed) {
            if unwritten.written > 0 {
                self.incomplete.add(&sealed[..unwritten.written]);
            }
            return Err(unwritten);
        }
        self.head = head.clone();
        self.shared.set_head(head);
        Ok(())
    }
}

impl Write for AuditFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.add(line).is_err() {
            to_standard_error(line)?;
            self.missed += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for AuditFile {
    fn reopen(&mut self) -> io::Result<()> {
        self.file.reopen()
    }

    fn dropped(&self, dropped: u64) -> String {
        tracing::error!(dropped, "audit lines were dropped: the audit file could not be written");
        let reason = "the file could not be written, so lines were dropped here";
        Record { lines: Some(dropped), ..Record::new("missing-lines", "failed", reason) }.line()
    }
}

#[cfg(test)]
mod tests;
