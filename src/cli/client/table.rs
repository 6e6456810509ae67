//! Tables for people: columns as wide as their longest cell.

use console::{Alignment, measure_text_width, pad_str};

use crate::cli::terminal::Lines;
use crate::model::printable;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
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

    pub fn lines(&self) -> Lines {
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let rows = || std::iter::once(&header).chain(&self.rows);
        let width = |column: usize| rows().filter_map(|row| row.get(column)).map(|cell| measure_text_width(cell)).max();
        let widths: Vec<usize> = (0..self.columns.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut lines = Lines::default();
        for row in rows() {
            let cells = row.iter().zip(&self.columns).zip(&widths).map(|((cell, (_, align)), width)| {
                let alignment = match align {
                    Align::Left => Alignment::Left,
                    Align::Right => Alignment::Right,
                };
                pad_str(cell, *width, alignment, None).into_owned()
            });
            lines.add(cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        lines
    }
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
}
