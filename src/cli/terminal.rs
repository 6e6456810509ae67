//! Output on a terminal. All commands print through this module.

mod screen;

use std::borrow::Cow;
use std::env;
use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::sync::mpsc;
use std::time::Duration;

use crate::model::printable;

pub use screen::Screen;

/// Lines of escaped text: a value can neither end its line nor control the terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines(String);

impl Lines {
    pub fn add(&mut self, line: impl Display) {
        let _ = writeln!(self.0, "{}", printable(&line.to_string()));
    }

    /// Adds the lines of `others` after these.
    pub fn append(&mut self, others: &Self) {
        self.0.push_str(&others.0);
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

/// Asks whether to do something that cannot be undone. Only `y` and `yes` mean that.
pub fn confirm(question: impl Display) -> io::Result<bool> {
    let answer = ask(format_args!("{question} [y/N]"))?;
    Ok(matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Whether a user can answer a question.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Of a terminal that does not know its own, such as a serial line.
const USUAL_SIZE: (u16, u16) = (24, 80);

/// Columns and rows of the terminal that standard output is. `None` if it is none.
pub fn size() -> Option<(usize, usize)> {
    let (rows, columns) = console::Term::stdout().size_checked().unwrap_or(USUAL_SIZE);
    io::stdout().is_terminal().then_some((columns.into(), rows.into()))
}

/// Whether the locale of the environment has more characters than ASCII (locale(7)).
pub fn is_utf8() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(|name| env::var(name).ok());
    let locale = set.into_iter().find(|value| !value.is_empty()).unwrap_or_default().to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// Writes a document to standard output, in one line or in several.
pub fn print_json(document: &(impl serde::Serialize + ?Sized), is_pretty: bool) -> io::Result<()> {
    let text = if is_pretty { serde_json::to_string_pretty(document)? } else { serde_json::to_string(document)? };
    io::stdout().write_all(format!("{}\n", printable_json(&text)).as_bytes())
}

/// The same document, without characters that could control the terminal. JSON escapes only those below U+0020 itself;
/// the others can only be in strings.
fn printable_json(text: &str) -> Cow<'_, str> {
    let is_risky = |c: char| c >= '\x7f' && matches!(printable(c.encode_utf8(&mut [0; 4])), Cow::Owned(_));
    if !text.contains(is_risky) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_risky(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
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
        let mut both = Lines::default();
        both.append(&lines);
        assert_eq!(both, lines);
        let printed = lines_of(&anyhow::anyhow!("one\ntwo\r").context("config"));
        assert_eq!(printed.as_str(), "coriolis-ovm-exporter: config: one\ntwo\\r\n");
    }

    #[test]
    fn documents_keep_their_meaning_and_cannot_control_the_terminal() {
        let text = "a \u{9b}2J \u{202e} \x7f \u{e0041} Größe 漢字";
        let json = serde_json::to_string(text).unwrap();
        let printed = printable_json(&json);
        assert_eq!(printed, "\"a \\u009b2J \\u202e \\u007f \\udb40\\udc41 Größe 漢字\"");
        assert_eq!(serde_json::from_str::<String>(&printed).unwrap(), text);
        assert!(matches!(printable_json("[\"Größe\"]"), Cow::Borrowed(_)));
    }
}
