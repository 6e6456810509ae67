//! What people read on a terminal. All printing of commands goes through here.

use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};
use std::sync::mpsc;
use std::time::Duration;

use crate::model::printable;

/// Lines of text. Whatever is put into a line can neither end it nor steer the terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines(String);

impl Lines {
    /// Adds a line.
    pub fn add(&mut self, line: impl Display) {
        let _ = writeln!(self.0, "{}", printable(&line.to_string()));
    }

    /// Writes them to standard output.
    ///
    /// # Errors
    /// The errno of write(2).
    pub fn print(&self) -> io::Result<()> {
        io::stdout().write_all(self.0.as_bytes())
    }

    /// The lines as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How long the reader of an error is waited for.
const READER: Duration = Duration::from_secs(2);

/// Writes an error to standard error, with all its causes. A pipe that nobody reads must not keep the process, so a
/// thread writes, and is not waited for long.
pub fn complain(error: &anyhow::Error) {
    let lines = lines_of(error);
    let (done, written) = mpsc::channel();
    let write = move || {
        let _ = io::stderr().write_all(lines.as_str().as_bytes());
        let _ = done.send(());
    };
    if std::thread::Builder::new().spawn(write).is_ok() {
        let _ = written.recv_timeout(READER);
    }
}

/// Each line of an error is one.
fn lines_of(error: &anyhow::Error) -> Lines {
    let mut lines = Lines::default();
    format!("coriolis-ovm-exporter: {error:#}").lines().for_each(|line| lines.add(line));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_and_steers_nothing() {
        let mut lines = Lines::default();
        lines.add(format_args!("left  {}: {}", "/r/a\nadopted  b\x1b[2J", "is odd"));
        lines.add("next");
        assert_eq!(lines.as_str(), "left  /r/a\\nadopted  b\\u{1b}[2J: is odd\nnext\n");
        let told = lines_of(&anyhow::anyhow!("one\ntwo\r").context("config"));
        assert_eq!(told.as_str(), "coriolis-ovm-exporter: config: one\ntwo\\r\n");
    }
}
