//! The whole screen of the terminal, for a page that is shown again and again.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use super::{Lines, size};

// Control sequences of xterm, which terminals and their emulations understand (XTerm Control Sequences).
/// Shows the alternate screen and hides the cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
/// Shows the cursor, and the screen as it was before.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Shows pages until it is dropped; then the terminal is as before.
pub struct Screen(());

impl Screen {
    /// # Errors
    /// Standard output cannot be written.
    pub fn enter() -> io::Result<Self> {
        write(ENTER)?;
        Ok(Self(()))
    }

    /// Shows the lines that fit on the screen.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn show(&self, page: &Lines) -> io::Result<()> {
        let (columns, rows) = size().unwrap_or((80, 24));
        write(&frame(page, columns, rows))
    }

    /// Restores the terminal and ends the process. It may be called in any thread: the output stays locked, so that no
    /// other thread draws after it.
    pub fn leave_and_exit(status: i32) -> ! {
        let mut output = io::stdout().lock();
        let _ = output.write_all(LEAVE.as_bytes());
        let _ = output.flush();
        std::process::exit(status);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write(LEAVE);
    }
}

/// In one call, so that no half page is seen.
fn write(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// Draws over the page before: the screen does not flicker as it would if it were cleared first.
fn frame(page: &Lines, columns: usize, rows: usize) -> String {
    let lines: Vec<&str> = page.as_str().lines().collect();
    let fitting = if lines.len() > rows { rows.saturating_sub(1) } else { lines.len() };
    let mut text = HOME.to_owned();
    for (index, line) in lines[..fitting].iter().enumerate() {
        let end = if index + 1 == rows { "" } else { "\r\n" };
        let _ = write!(text, "{}{CLEAR_LINE}{end}", console::truncate_str(line, columns, "…"));
    }
    if fitting < lines.len() {
        let more = format!("{} more lines", lines.len() - fitting);
        let _ = write!(text, "{}{CLEAR_LINE}", console::truncate_str(&more, columns, ""));
    }
    text + CLEAR_BELOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cut_to_the_screen() {
        let mut page = Lines::default();
        ["one", "a long line", "three"].into_iter().for_each(|line| page.add(line));
        assert_eq!(frame(&page, 80, 24), "\x1b[Hone\x1b[K\r\na long line\x1b[K\r\nthree\x1b[K\r\n\x1b[J");
        assert_eq!(frame(&page, 6, 3), "\x1b[Hone\x1b[K\r\na lon…\x1b[K\r\nthree\x1b[K\x1b[J");
        assert_eq!(frame(&page, 80, 2), "\x1b[Hone\x1b[K\r\n2 more lines\x1b[K\x1b[J");
    }
}
