//! The log: lines of `key=value`, to a file or to standard error.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;

/// Starts the log. `RUST_LOG` chooses what goes into it; by default all from `info` up.
///
/// # Errors
/// Where `file` cannot be opened.
pub fn start(file: Option<&Path>) -> io::Result<()> {
    // hyper tells of every client that dawdles, at a level of its own.
    let default = "info,hyper=error";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    match file {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
            subscriber.with_ansi(false).with_writer(Arc::new(file)).init();
        }
        None => subscriber.with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, message, "panic");
    }));
    Ok(())
}
