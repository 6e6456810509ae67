//! The audit file: a rotated file whose lines are a chain.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::tail::Tail;
use crate::app::audit::{Head, Incomplete, seal};
use crate::auth::AuditKey;
use crate::cli::log_file::{RotatedFile, Rotation, Unwritten, beside, to_standard_error};
use crate::cli::log_queue::Sink;

/// How long lines may wait for the disk while others follow without a pause.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

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

    /// The newest line that is certainly on the disk: a line that only others know looks as if it had been removed.
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
    /// When the first line was written that may not be on the disk yet.
    unsynced_since: Option<Instant>,
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
        // The service was killed in the middle of a rotation, or has written no whole line since.
        if let Tail::Empty | Tail::Torn { .. } = tail {
            tail = tail.after(Tail::of_path(&beside(path, "1")).map_err(with_path)?);
        }
        let is_torn = |has_newline: bool| !is_empty && !has_newline;
        let (head, incomplete, new_chain) = match tail {
            Tail::Empty | Tail::Torn { .. } => (Head::start(), None, Some("there was no audit file")),
            Tail::Chained { head, incomplete, has_newline } => {
                if is_torn(has_newline) {
                    file.set_torn();
                }
                (head, incomplete, None)
            }
            Tail::Broken { why, has_newline } => {
                tracing::warn!(path = %path.display(), why, "the chain of the audit file cannot be continued: beginning a new one");
                if !is_empty && let Err(error) = file.set_aside() {
                    tracing::warn!(path = %path.display(), %error, "cannot rotate the audit file; continuing in it");
                    if is_torn(has_newline) {
                        file.set_torn();
                    }
                }
                (Head::start(), None, Some(why))
            }
        };
        // The last lines of a service that was killed may not be on the disk.
        let unsynced_since = new_chain.is_none().then(Instant::now);
        let incomplete = incomplete.unwrap_or_default();
        let mut file = Self { file, head, unsynced_since, new_chain, incomplete, missed: 0, shared };
        file.sync();
        Ok(file)
    }

    /// Waits until all lines are on the disk, and then publishes the newest one.
    fn sync(&mut self) {
        if self.unsynced_since.take().is_none() {
            return;
        }
        match self.file.sync() {
            // A newest line stands for all lines before it, so a line has to say first that some may be lost.
            Ok(()) if self.file.is_unconfirmed() => {}
            Ok(()) => self.shared.set_head(self.head.clone()),
            Err(error) => tracing::error!(%error, "cannot write the audit file to the disk; its lines may be lost"),
        }
    }

    /// Adds a line to the chain, after the lines about the file that are due.
    fn add(&mut self, line: &[u8]) -> Result<(), Unwritten> {
        if self.unsynced_since.is_some_and(|since| since.elapsed() >= SYNC_INTERVAL) {
            self.sync();
        }
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
        if self.file.is_unconfirmed() {
            let reason = "the disk has not confirmed lines before this one: some of them may be lost";
            self.append(Record::new("unconfirmed-lines", "failed", reason).line().as_bytes())?;
            self.file.set_confirmed();
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
        self.head = head;
        self.unsynced_since.get_or_insert_with(Instant::now);
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

    /// Lines that are written one after the other share a wait for the disk.
    fn flush(&mut self) -> io::Result<()> {
        self.sync();
        Ok(())
    }
}

impl Sink for AuditFile {
    fn reopen(&mut self) -> io::Result<()> {
        self.file.reopen()
    }

    /// Unlike other lines, it does not go to standard error instead: the queue keeps the number until the file has it.
    fn report_dropped(&mut self, dropped: u64) -> io::Result<()> {
        let reason = "the file could not be written, so lines were dropped here";
        let record = Record { lines: Some(dropped), ..Record::new("missing-lines", "failed", reason) };
        self.add(record.line().as_bytes()).map_err(|_| io::Error::other("the audit file cannot be written"))?;
        tracing::error!(dropped, "audit lines were dropped: the audit file could not be written");
        Ok(())
    }
}

#[cfg(test)]
mod tests;
