//! The log: lines of `key=value`, to a file or to standard error.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;

use crate::app::audit;
use crate::cli::log_fields::Escaped;
use crate::cli::log_file::LogFile;
use crate::config;

/// The log that was started.
#[derive(Debug)]
pub struct Log(Option<Arc<LogFile>>);

/// Starts the log. `RUST_LOG` chooses what goes into it; by default all from `info` up. Who did what
/// always does.
///
/// # Errors
/// Where `log_file` cannot be opened.
pub fn start(config: &config::Log) -> io::Result<Log> {
    // hyper tells of every client that dawdles, at a level of its own.
    let default = "info,hyper=error";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let filter = filter.add_directive(format!("{}=info", audit::TARGET).parse().map_err(io::Error::other)?);
    // Told of a line that it cannot write, the library panics where standard error is on a full disk.
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).fmt_fields(Escaped);
    let subscriber = subscriber.log_internal_errors(false);
    let open = |path| LogFile::open(path, config.max_size, config.max_files).map(Arc::new);
    let file = config.file.as_deref().map(open).transpose()?;
    match &file {
        Some(file) => subscriber.with_ansi(false).with_writer(Arc::clone(file)).init(),
        None => subscriber.with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, message, "panic");
    }));
    Ok(Log(file))
}

impl Log {
    /// Opens the log file by its name again, where there is one.
    pub fn reopen(&self) {
        match self.0.as_deref().map(LogFile::reopen) {
            Some(Ok(())) => tracing::info!("log opened anew"),
            Some(Err(error)) => tracing::error!(%error, "the log cannot be opened anew; the old one stays"),
            None => {}
        }
    }
}
