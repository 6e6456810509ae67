//! The audit trail in a file: lines of JSON, written through a queue, so that no request waits for it.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use super::file::{AuditFile, Shared};
use crate::app::audit::{self, Head};
use crate::auth::AuditKey;
use crate::cli::log_file::Rotation;
use crate::cli::log_queue::LogQueue;
use crate::config;
use crate::metrics::Counter;

/// How long the process waits for the file at its end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// It contains users' names and addresses.
const MODE: u32 = 0o600;

/// `None`: the audit trail goes to the log.
pub struct AuditLog(Option<File>);

#[derive(Clone)]
struct File {
    lines: LogQueue,
    shared: Arc<Shared>,
}

/// `dropped` counts the lines that are lost because the file cannot be written.
///
/// # Errors
/// The file cannot be opened, or another process writes it.
pub fn start(config: &config::Audit, dropped: Counter) -> io::Result<AuditLog> {
    let Some(path) = &config.file else { return Ok(AuditLog(None)) };
    let (max_size, max_files) = (config.max_size, config.max_files);
    let rotation = Rotation { max_size, max_files, mode: MODE, is_exclusive: true, is_durable: true };
    let shared = Arc::new(Shared::default());
    let file = AuditFile::open(path, rotation, Arc::clone(&shared))?;
    let file = File { lines: LogQueue::start(file, dropped)?, shared };
    audit::send_to(file.clone());
    Ok(AuditLog(Some(file)))
}

impl audit::Sink for File {
    fn prove_with(&self, key: AuditKey) {
        self.shared.set_key(key);
    }

    fn write(&self, line: &[u8]) {
        let _ = (&self.lines).write_all(line); // never fails
    }

    fn head(&self) -> Option<Head> {
        self.shared.head()
    }
}

impl AuditLog {
    /// Reopens the file by its name, without waiting.
    pub fn reopen(&self) {
        self.0.iter().for_each(|file| file.lines.reopen());
    }

    /// Waits a limited time until all lines are written, and logs the head of the chain.
    pub fn finish(&self) {
        let Some(file) = &self.0 else { return };
        if !file.lines.flush(FLUSH_TIMEOUT) {
            tracing::error!("the last audit lines could not be written");
        }
        let dropped = file.lines.unreported();
        if dropped > 0 {
            tracing::error!(
                dropped,
                "audit lines were dropped, and the audit file does not say so: it cannot be written"
            );
        }
        if let Some(head) = file.shared.head() {
            audit::log_head(&head);
        }
    }
}
