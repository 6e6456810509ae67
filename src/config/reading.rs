//! Parses the text of the file into its sections. A key of the wrong type is reported and removed, so that the other
//! keys are checked too.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, Error};

use super::file::File;

/// Returns the keys of `text`, and a line about each problem. Values are not quoted, since one may be a secret.
pub(super) fn read(text: &str) -> (File, Vec<String>) {
    let line_of = |span: Option<Range<usize>>| {
        let start = span.map_or(0, |span| span.start).min(text.len());
        text[..start].matches('\n').count() + 1
    };
    let (mut root, errors) = DeTable::parse_recoverable(text);
    let mut problems: Vec<_> = errors.iter().map(|error| syntax(text, line_of(error.span()), error)).collect();
    loop {
        let error = match File::deserialize(Deserializer::from(root.clone())) {
            Ok(file) => return (file, problems),
            Err(error) => error,
        };
        let line = line_of(error.span());
        let path = error.span().and_then(|span| path_at(root.get_ref(), &span));
        let removed = path.and_then(|path| Some((remove(root.get_mut(), &path)?, path)));
        let Some((value, path)) = removed else {
            problems.push(format!("line {line}: {}", error.message()));
            return (File::default(), problems);
        };
        problems.push(format!("line {line}: {}: {}", path.join("."), explain(&error, &path, value.get_ref())));
    }
}

fn syntax(text: &str, line: usize, error: &Error) -> String {
    let key = text.lines().nth(line - 1).and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
    // In a malformed line, the text before an equals sign may be anything.
    let is_key = |key: &&str| key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'));
    let key = key.filter(is_key).map(|key| format!("{key}: ")).unwrap_or_default();
    format!("line {line}: {key}{}; look at the quotes and brackets of this line", error.message())
}

/// The path of the key at `span`. The sections of a list are counted from 1.
fn path_at(table: &DeTable<'_>, span: &Range<usize>) -> Option<Vec<String>> {
    let contains = |found: Range<usize>| found.start <= span.start && span.start < found.end.max(found.start + 1);
    table.iter().find_map(|(key, value)| {
        // The span of a section covers only its header.
        let below = match value.get_ref() {
            DeValue::Table(table) => path_at(table, span),
            DeValue::Array(list) => list.iter().enumerate().find_map(|(index, section)| {
                let mut path = path_at(section.get_ref().as_table()?, span)?;
                path.insert(0, (index + 1).to_string());
                Some(path)
            }),
            _ => None,
        };
        let here = || (contains(key.span()) || contains(value.span())).then(Vec::new);
        let mut path = below.or_else(here)?;
        path.insert(0, key.get_ref().to_string());
        Some(path)
    })
}

fn remove<'i>(table: &mut DeTable<'i>, path: &[String]) -> Option<Spanned<DeValue<'i>>> {
    let (first, rest) = path.split_first()?;
    if rest.is_empty() {
        return table.remove(first.as_str());
    }
    match (table.get_mut(first.as_str())?.get_mut(), rest) {
        (DeValue::Table(below), _) => remove(below, rest),
        (DeValue::Array(list), [index, rest @ ..]) => {
            let index = index.parse::<usize>().ok()?.checked_sub(1)?;
            match list.get_mut(index)?.get_mut() {
                DeValue::Table(below) => remove(below, rest),
                _ => None,
            }
        }
        _ => None,
    }
}

fn explain(error: &Error, path: &[String], value: &DeValue<'_>) -> String {
    let message = error.message();
    if message.starts_with("unknown field") {
        return unknown(path).unwrap_or_else(|| message.to_owned());
    }
    let Some((_, expected)) = message.rsplit_once("expected ") else { return message.to_owned() };
    let expected = match expected {
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number, at least 0",
        "a boolean" => "true or false, without quotes",
        "a string" => "text in quotes",
        "a sequence" => "a list, such as [\"one\", \"two\"]",
        other if other.starts_with("struct ") || other == "a map" => "a section, such as [section]",
        other => other,
    };
    let found = match value {
        DeValue::Integer(number) if expected.contains("number") => number.to_string(),
        DeValue::Integer(_) => "a whole number".to_owned(),
        DeValue::Float(_) => "a number with a fraction".to_owned(),
        DeValue::String(_) => "text".to_owned(),
        DeValue::Boolean(_) => "true or false".to_owned(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    };
    format!("is {found}; expected {expected}")
}

/// Names with at least this similarity are suggested; 1 is equality.
const SIMILAR: f64 = 0.85;

/// Explains an unknown key. `None` for a key of a section in a list: the defaults have none to suggest a key from.
fn unknown(path: &[String]) -> Option<String> {
    let (leaf, section) = path.split_last()?;
    let known = toml::Table::try_from(File::default()).unwrap_or_default();
    let siblings = section.iter().try_fold(&known, |table, key| table.get(key).and_then(toml::Value::as_table))?;
    let siblings: Vec<&str> = siblings.keys().map(String::as_str).collect();
    let similarity = |key: &&str| strsim::jaro_winkler(key, leaf);
    let nearest = siblings.iter().copied().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let remedy = match (nearest.filter(|key| similarity(key) >= SIMILAR), elsewhere(&known, leaf)) {
        (Some(nearest), _) => format!("did you mean `{nearest}`?"),
        (None, Some(place)) => format!("`{leaf}` belongs {place}"),
        (None, None) => format!("the keys here are {}", siblings.join(", ")),
    };
    Some(format!("unknown field `{leaf}`; {remedy}"))
}

/// The section to which a key of this name belongs.
fn elsewhere(known: &toml::Table, leaf: &str) -> Option<String> {
    fn find(table: &toml::Table, leaf: &str, section: &str) -> Option<String> {
        if table.contains_key(leaf) {
            return Some(section.to_owned());
        }
        let dot = if section.is_empty() { "" } else { "." };
        table.iter().find_map(|(key, value)| find(value.as_table()?, leaf, &format!("{section}{dot}{key}")))
    }
    Some(match find(known, leaf, "")? {
        section if section.is_empty() => "at the top of the file, before the first section".to_owned(),
        section => format!("in the section [{section}]"),
    })
}
