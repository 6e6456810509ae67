//! Tables for people: columns as wide as their longest cell, or as the terminal allows.

use std::io;

use console::{Alignment, measure_text_width, pad_str};

use crate::cli::terminal::{self, Lines};
use crate::model::printable;

const SEPARATOR: &str = "  ";

/// A narrower column of texts would break each word.
const NARROWEST_TEXT: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
    /// Left, and wrapped if the table is wider than the terminal.
    Text,
}

/// Rows under a header.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. Foreign text in it cannot control the terminal.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| printable(cell).into_owned()).collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Without the columns in which no row has a text.
    #[must_use]
    pub fn without_empty_columns(mut self) -> Self {
        let is_used = |column: usize| self.rows.iter().any(|row| row.get(column).is_some_and(|cell| !cell.is_empty()));
        let used: Vec<bool> = (0..self.columns.len()).map(is_used).collect();
        let keep = |column: usize| used.get(column).copied().unwrap_or(false);
        let mut index = 0..;
        self.columns.retain(|_| index.next().is_some_and(keep));
        for row in &mut self.rows {
            let mut index = 0..;
            row.retain(|_| index.next().is_some_and(keep));
        }
        self
    }

    /// Writes the table to standard output, as wide as the terminal if that is one.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn print(&self) -> io::Result<()> {
        self.lines_within(terminal::size().map(|(columns, _)| columns)).print()
    }

    /// The lines in full width.
    pub fn lines(&self) -> Lines {
        self.lines_within(None)
    }

    /// The lines, at most `limit` columns wide as far as wrapping texts can do that.
    pub fn lines_within(&self, limit: Option<usize>) -> Lines {
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let rows = || std::iter::once(&header).chain(&self.rows);
        let width = |column: usize| rows().filter_map(|row| row.get(column)).map(|cell| measure_text_width(cell)).max();
        let mut widths: Vec<usize> = (0..self.columns.len()).map(|column| width(column).unwrap_or(0)).collect();
        if let Some(limit) = limit {
            self.narrow(&mut widths, limit);
        }
        let mut lines = Lines::default();
        for row in rows() {
            let cells = row.iter().zip(&self.columns).zip(&widths);
            let cells: Vec<(Vec<String>, Alignment, usize)> = cells
                .map(|((cell, (_, align)), width)| match align {
                    Align::Left => (vec![cell.clone()], Alignment::Left, *width),
                    Align::Right => (vec![cell.clone()], Alignment::Right, *width),
                    Align::Text => (wrap(cell, *width), Alignment::Left, *width),
                })
                .collect();
            let height = cells.iter().map(|(parts, ..)| parts.len()).max().unwrap_or(0);
            for index in 0..height {
                let parts = cells.iter().map(|(parts, alignment, width)| {
                    pad_str(parts.get(index).map_or("", String::as_str), *width, *alignment, None).into_owned()
                });
                lines.add(parts.collect::<Vec<_>>().join(SEPARATOR).trim_end());
            }
        }
        lines
    }

    /// Narrows columns of texts, the widest first.
    fn narrow(&self, widths: &mut [usize], limit: usize) {
        let total = widths.iter().sum::<usize>() + SEPARATOR.len() * widths.len().saturating_sub(1);
        for _ in limit..total {
            let texts = widths.iter_mut().zip(&self.columns).filter(|(_, (_, align))| *align == Align::Text);
            match texts.map(|(width, _)| width).max_by_key(|width| **width) {
                Some(width) if *width > NARROWEST_TEXT => *width -= 1,
                _ => break,
            }
        }
    }
}

/// Breaks a text into lines at its spaces, or within a word that is longer than a line.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    if measure_text_width(text) <= width || width == 0 {
        return vec![text.to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().map(|line| (measure_text_width(line), line));
        if let Some((used, line)) = last
            && used > 0
            && used + 1 + measure_text_width(word) <= width
        {
            line.push(' ');
            line.push_str(word);
            continue;
        }
        if lines.last().is_some_and(|line| !line.is_empty()) {
            lines.push(String::new());
        }
        for c in word.chars() {
            let is_full = lines.last().is_some_and(|line| {
                !line.is_empty() && measure_text_width(line) + measure_text_width(c.encode_utf8(&mut [0; 4])) > width
            });
            if is_full {
                lines.push(String::new());
            }
            lines.last_mut().into_iter().for_each(|line| line.push(c));
        }
    }
    lines
}

/// A number of bytes with three digits or so: `6.2 MiB`.
pub fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A time in the local zone, to the second.
pub fn local(at: jiff::Timestamp) -> String {
    at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A time of the API in the local zone.
pub fn local_text(at: &str) -> String {
    at.parse().map_or_else(|_| at.to_owned(), local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_cannot_break_a_row() {
        let mut table = Table::new(&[("vm", Align::Left), ("size", Align::Right)]);
        table.row(vec!["a".to_owned(), "10".to_owned()]);
        table.row(vec!["Größe\n".to_owned(), "7".to_owned()]);
        assert_eq!(table.lines().as_str(), "vm       size\na          10\nGröße\\n     7\n");
    }

    #[test]
    fn texts_are_wrapped_to_the_terminal() {
        let mut table = Table::new(&[("id", Align::Left), ("note", Align::Left), ("why", Align::Text)]);
        table.row(["17", "", "the folder \"a\" is a symbolic link"].map(str::to_owned).to_vec());
        let table = table.without_empty_columns();
        assert_eq!(table.lines_within(Some(80)), table.lines());
        let wrapped = table.lines_within(Some(20));
        assert_eq!(wrapped.as_str(), "id  why\n17  the folder \"a\"\n    is a symbolic\n    link\n");
        // What cannot be wrapped keeps its width.
        assert_eq!(table.lines_within(Some(3)).as_str(), table.lines_within(Some(12)).as_str());
    }

    #[test]
    fn long_words_are_broken() {
        assert_eq!(wrap("ab cdefgh i", 4), ["ab", "cdef", "gh i"]);
        assert_eq!(wrap("漢字漢字", 5), ["漢字", "漢字"]);
        assert_eq!(wrap("", 4), [""]);
        assert_eq!(wrap("abc", 0), ["abc"]);
    }
}
