//! The file of the audit trail: lines of JSON, written through a queue, so that no request waits for it.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::log_file::LogFile;
use super::log_queue::{LogQueue, Sink};
use crate::app::audit;
use crate::config;
use crate::metrics::Counter;

/// How long the process waits for the file at its end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// It contains users' names and addresses.
const MODE: u32 = 0o600;

/// `None`: the audit trail goes to the log.
pub struct AuditLog(Option<LogQueue>);

/// `dropped` counts the lines that are lost because the file cannot be written.
///
/// # Errors
/// The file cannot be opened.
pub fn start(config: &config::Audit, dropped: Counter) -> io::Result<AuditLog> {
    let Some(path) = &config.file else { return Ok(AuditLog(None)) };
    let file = LogFile::open_with_mode(path, config.max_size, config.max_files, MODE)?;
    let queue = LogQueue::start(AuditFile(file), dropped)?;
    let lines = queue.clone();
    audit::send_to(move |line| {
        let _ = (&lines).write_all(line); // never fails
    });
    Ok(AuditLog(Some(queue)))
}

impl AuditLog {
    /// Reopens the file by its name, without waiting.
    pub fn reopen(&self) {
        self.0.iter().for_each(LogQueue::reopen);
    }

    /// Waits a limited time until all lines are written.
    pub fn flush(&self) {
        if let Some(queue) = &self.0
            && !queue.flush(FLUSH_TIMEOUT)
        {
            tracing::error!("the last audit lines could not be written");
        }
    }
}

struct AuditFile(LogFile);

impl Write for AuditFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Sink for AuditFile {
    fn reopen(&mut self) -> io::Result<()> {
        self.0.reopen()
    }

    fn dropped(&self, dropped: u64) -> String {
        #[derive(Serialize)]
        struct Dropped {
            time: String,
            action: &'static str,
            outcome: &'static str,
            reason: &'static str,
            lines: u64,
        }
        tracing::error!(dropped, "audit lines were dropped: the audit file could not be written");
        let time = format!("{:.3}", jiff::Timestamp::now());
        let reason = "the file could not be written, so lines were dropped here";
        let line = Dropped { time, action: "audit", outcome: "failed", reason, lines: dropped };
        serde_json::to_string(&line).unwrap_or_default() + "\n"
    }
}
