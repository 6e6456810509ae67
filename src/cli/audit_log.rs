//! The audit's own file: lines of JSON, through a queue as the log's, so that no request waits for it.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::log_file::LogFile;
use super::log_queue::{LogQueue, Sink};
use crate::app::audit;
use crate::config;
use crate::metrics::Counter;

/// How long the end of the process waits for the file.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Who may read it: users' names and addresses are in it.
const MODE: u32 = 0o600;

/// The audit's file, where the config names one.
pub struct AuditLog(Option<LogQueue>);

/// Starts the audit's file. `dropped` counts the lines that are lost because it cannot be written.
///
/// # Errors
/// Where it cannot be opened.
pub fn start(config: &config::Audit, dropped: Counter) -> io::Result<AuditLog> {
    let Some(path) = &config.file else { return Ok(AuditLog(None)) };
    let file = LogFile::open_with_mode(path, config.max_size, config.max_files, MODE)?;
    let queue = LogQueue::start(AuditFile(file), dropped)?;
    let lines = queue.clone();
    audit::send_to(move |line| {
        let _ = (&lines).write_all(line); // which never fails
    });
    Ok(AuditLog(Some(queue)))
}

impl AuditLog {
    /// Opens the file by its name again, and does not wait for it.
    pub fn reopen(&self) {
        self.0.iter().for_each(LogQueue::reopen);
    }

    /// Waits until the file is written, but not for long.
    pub fn flush(&self) {
        if let Some(queue) = &self.0
            && !queue.flush(LAST_LINES)
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
        tracing::error!(dropped, "audit lines were dropped: the audit's file could not be written");
        let time = format!("{:.3}", jiff::Timestamp::now());
        let reason = "the file could not be written, so lines were dropped here";
        let line = Dropped { time, action: "audit", outcome: "failed", reason, lines: dropped };
        serde_json::to_string(&line).unwrap_or_default() + "\n"
    }
}
