//! Medians of what was measured, and of the ratios inside each round, as a Markdown table.

use std::fmt::Write;

type Row = (&'static str, &'static str);

/// Measured values, by row and peer, in the order of the rounds.
#[derive(Default)]
pub struct Table {
    rows: Vec<(Row, Vec<(&'static str, Vec<f64>)>)>,
}

impl Table {
    pub fn add(&mut self, load: &'static str, measure: &'static str, peer: &'static str, value: f64) {
        let place = self.rows.iter().position(|(row, _)| *row == (load, measure)).unwrap_or_else(|| {
            self.rows.push(((load, measure), Vec::new()));
            self.rows.len() - 1
        });
        let peers = &mut self.rows[place].1;
        match peers.iter_mut().find(|(name, _)| *name == peer) {
            Some((_, values)) => values.push(value),
            None => peers.push((peer, vec![value])),
        }
    }

    /// A column for each of `peers`, and the ratio of the first to the second.
    pub fn markdown(&self, peers: &[&str]) -> String {
        let mut text = format!("| | | {} | ratio |\n|---|---|{}--:|\n", peers.join(" | "), "--:|".repeat(peers.len()));
        for ((load, measure), columns) in &self.rows {
            let of = |peer: &str| columns.iter().find(|(name, _)| *name == peer).map(|(_, values)| values.clone());
            write!(text, "| {load} | {measure} |").unwrap();
            for peer in peers {
                let value = of(peer).map_or_else(|| "–".to_owned(), |values| figure(median(values)));
                write!(text, " {value} |").unwrap();
            }
            let ratio = of(peers[0]).zip(of(peers[1])).map_or_else(String::new, |(ours, theirs)| {
                let ratios = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
                format!("{:.2}", median(ratios))
            });
            writeln!(text, " {ratio} |").unwrap();
        }
        text
    }
}

fn figure(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
