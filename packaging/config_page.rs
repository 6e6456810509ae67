//! The manual page of the config file, from the comments of the sample config.

use roff::{Roff, bold, roman};

use crate::{MANUAL, NAME, VERSION};

/// The path of the config by default.
pub const PATH: &str = "/etc/coriolis-ovm-exporter/config.toml";

/// The page. `sample` has comments, each before the keys that it describes, in sections.
pub fn page(sample: &str, date: &str) -> String {
    let mut page = Roff::new();
    page.control("TH", [&format!("{NAME}.toml"), "5", date, &format!("{NAME} {VERSION}"), MANUAL]);
    page.control("SH", ["NAME"]).text([roman(format!("{NAME}.toml - the config of the disk exporter"))]);
    page.control("SH", ["DESCRIPTION"]);
    page.text([
        roman(format!("{NAME}(1) reads this file at its start, by default ")),
        bold(PATH),
        roman(". It is TOML. An empty string means \"not set\". Each key below has its default. Unknown keys are errors. "),
        bold(format!("{NAME} check-config")),
        roman(" reports all of them."),
    ]);
    page.control("SH", ["KEYS OUTSIDE SECTIONS"]);
    // The first comment is about the file.
    let text = sample.split_once("\n\n").map_or(sample, |(_, rest)| rest);
    let mut lines = text.lines().filter(|line| !line.is_empty()).peekable();
    let mut is_first = true;
    while lines.peek().is_some() {
        let comment = take_while(&mut lines, |line| line.starts_with('#'));
        let keys = take_while(&mut lines, |line| !line.starts_with(['#', '[']));
        for key in &keys {
            page.control(if *key == keys[0] { "TP" } else { "TQ" }, []).text([bold(*key)]);
        }
        if keys.is_empty() && !comment.is_empty() && !is_first {
            page.control("PP", []);
        }
        write_comment(&mut page, &comment, !keys.is_empty());
        is_first = false;
        if let Some(section) = lines.next_if(|line| line.starts_with('[')) {
            page.control("SH", [section]);
            is_first = true;
        }
    }
    page.control("SH", ["SEE ALSO"]).text([bold(NAME), roman("(1)")]);
    page.to_roff()
}

fn take_while<'a, I: Iterator<Item = &'a str>>(
    lines: &mut std::iter::Peekable<I>,
    is_part: impl Fn(&str) -> bool,
) -> Vec<&'a str> {
    std::iter::from_fn(|| lines.next_if(|line| is_part(line))).collect()
}

/// Text is filled. Tables, which are indented, and examples keep their lines.
fn write_comment(page: &mut Roff, comment: &[&str], is_item: bool) {
    let mut lines = comment.iter().map(|line| line.strip_prefix('#').unwrap_or(line)).peekable();
    while let Some(first) = lines.next() {
        let is_fixed = |line: &str| line.starts_with("   ") || is_toml(line);
        if is_fixed(first) {
            if is_item {
                page.control("RS", []);
            }
            page.control("nf", []);
            page.text([roman(first)]);
            while let Some(line) = lines.next_if(|line| is_fixed(line)) {
                page.text([roman(line)]);
            }
            page.control("fi", []);
            if is_item {
                page.control("RE", []);
                if lines.peek().is_some() {
                    page.control("IP", []);
                }
            }
        } else {
            page.text([roman(first.trim_start())]);
        }
    }
}

/// Whether a line of a comment is an example of the config, such as ` [[access.rules]]`.
fn is_toml(line: &str) -> bool {
    line.trim().parse::<toml::Table>().is_ok()
}
