//! The log: lines of `key=value` in a file or on standard error, or entries of the journal.

use std::io::{self, IsTerminal};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::app::audit;
use crate::cli::log_fields::Escaped;
use crate::cli::log_file::LogFile;
use crate::cli::log_journal::{Entries, Journal};
use crate::cli::log_queue::{LogQueue, Writer};
use crate::config;
use crate::metrics::Counter;

/// How long the process waits for the log at its end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Log {
    queue: LogQueue,
    /// Only a file can be reopened.
    is_file: bool,
}

/// Starts the log.
///
/// # Errors
/// Those of [`prepare`]; no thread can be started.
pub fn start(config: &config::Log, dropped: Counter) -> io::Result<Log> {
    let (log, writer) = prepare(config, dropped)?;
    writer.start()?;
    Ok(log)
}

/// Opens the log, whose lines a thread writes once its writer starts. `RUST_LOG` sets its level, by default `info`; the
/// audit trail is always logged. `dropped` counts the lines that are lost because the log cannot be written.
///
/// # Errors
/// The log file cannot be opened.
pub fn prepare(config: &config::Log, dropped: Counter) -> io::Result<(Log, Writer)> {
    // hyper warns about every slow client.
    let default = "info,hyper=error";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let filter = filter.add_directive(format!("{}=info", audit::TARGET).parse().map_err(io::Error::other)?);
    let is_file = config.file.is_some();
    let journal = if is_file { None } else { Journal::open() };
    let is_journal = journal.is_some();
    let (queue, writer) = match (&config.file, journal) {
        (Some(path), _) => LogQueue::prepare(LogFile::open(path, config.max_size, config.max_files)?, dropped),
        (None, Some(journal)) => LogQueue::prepare(journal, dropped),
        (None, None) => LogQueue::prepare(io::stderr(), dropped),
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).fmt_fields(Escaped);
    let subscriber = subscriber.with_ansi(!is_file && io::stderr().is_terminal()).with_writer(queue.clone());
    if is_journal {
        subscriber.event_format(Entries).init();
    } else {
        subscriber.init();
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, message, "panic");
    }));
    Ok((Log { queue, is_file }, writer))
}

impl Log {
    /// Reopens the log file, if there is one, without waiting.
    pub fn reopen(&self) {
        if self.is_file {
            self.queue.reopen();
        }
    }

    /// Waits a limited time until all lines are written.
    pub fn flush(&self) {
        self.queue.flush(FLUSH_TIMEOUT);
    }
}
