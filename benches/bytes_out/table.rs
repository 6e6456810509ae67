//! A Markdown table with the medians of the measurements, and of the ratios in each round.

use std::collections::HashMap;
use std::fmt::Write;

/// The names of a load and of a measurement.
type Row = (&'static str, &'static str);

/// Measured values in the order of the rounds.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
    values: HashMap<(Row, String), Vec<f64>>,
}

impl Table {
    pub fn add(&mut self, load: &'static str, measure: &'static str, peer: &str, value: f64) {
        let row = (load, measure);
        if !self.rows.contains(&row) {
            self.rows.push(row);
        }
        self.values.entry((row, peer.to_owned())).or_default().push(value);
    }

    /// Makes a column for each of `peers`, and the ratios of all but the last to the last.
    pub fn markdown(&self, peers: &[&str]) -> String {
        let (last, others) = peers.split_last().unwrap();
        let ratios: String = others.iter().map(|peer| format!(" {peer} ÷ {last} |")).collect();
        let mut text = format!("| | | {} |{ratios}\n", peers.join(" | "));
        writeln!(text, "|---|---|{}", "--:|".repeat(peers.len() + others.len())).unwrap();
        for row in &self.rows {
            let of = |peer: &str| self.values.get(&(*row, peer.to_owned()));
            write!(text, "| {} | {} |", row.0, row.1).unwrap();
            for peer in peers {
                write!(text, " {} |", of(peer).map_or_else(String::new, |values| figure(median(values)))).unwrap();
            }
            for peer in others {
                let ratios = of(peer).zip(of(last)).map(|(ours, theirs)| {
                    let each: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
                    median(&each)
                });
                let ratio = ratios.filter(|ratio| ratio.is_finite()).map(|ratio| format!("{ratio:.2}"));
                write!(text, " {} |", ratio.unwrap_or_default()).unwrap();
            }
            text.push('\n');
        }
        text
    }
}

fn figure(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
