//! Output on a terminal. All commands print through this module.

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::sync::mpsc;
use std::time::Duration;

use crate::model::printable;

/// Lines of escaped text: a value can neither end its line nor control the terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines(String);

impl Lines {
    pub fn add(&mut self, line: impl Display) {
        let _ = writeln!(self.0, "{}", printable(&line.to_string()));
    }

    /// Writes the lines to standard output.
    pub fn print(&self) -> io::Result<()> {
        io::stdout().write_all(self.0.as_bytes())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Writes a line to standard error.
pub fn notice(line: impl Display) {
    let mut lines = Lines::default();
    lines.add(line);
    let _ = io::stderr().write_all(lines.as_str().as_bytes());
}

/// Whether standard error is a terminal.
pub fn shows_progress() -> bool {
    io::stderr().is_terminal()
}

/// Asks a question on the terminal, and returns the answer.
pub fn ask(question: impl Display) -> io::Result<String> {
    let question = question.to_string();
    write!(io::stderr(), "{} ", printable(&question))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.trim().to_owned())
}

/// Writes a document to standard output, in one line or in several.
pub fn print_json(document: &impl serde::Serialize, is_pretty: bool) -> io::Result<()> {
    let mut text = if is_pretty { serde_json::to_vec_pretty(document)? } else { serde_json::to_vec(document)? };
    text.push(b'\n');
    io::stdout().write_all(&text)
}

/// Standard output, for bytes that are no text.
pub fn output() -> io::Stdout {
    io::stdout()
}

/// How long writing an error may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Writes an error with all its causes to standard error. A thread writes it, so that a full pipe does not keep the
/// process from ending.
pub fn print_error(error: &anyhow::Error) {
    let lines = lines_of(error);
    let (done, written) = mpsc::channel();
    let write = move || {
        let _ = io::stderr().write_all(lines.as_str().as_bytes());
        let _ = done.send(());
    };
    if std::thread::Builder::new().spawn(write).is_ok() {
        let _ = written.recv_timeout(WRITE_TIMEOUT);
    }
}

fn lines_of(error: &anyhow::Error) -> Lines {
    let mut lines = Lines::default();
    format!("coriolis-ovm-exporter: {error:#}").lines().for_each(|line| lines.add(line));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_end_a_line_or_control_the_terminal() {
        let mut lines = Lines::default();
        lines.add(format_args!("left  {}: {}", "/r/a\nadopted  b\x1b[2J", "is odd"));
        lines.add("next");
        assert_eq!(lines.as_str(), "left  /r/a\\nadopted  b\\u{1b}[2J: is odd\nnext\n");
        let printed = lines_of(&anyhow::anyhow!("one\ntwo\r").context("config"));
        assert_eq!(printed.as_str(), "coriolis-ovm-exporter: config: one\ntwo\\r\n");
    }
}
