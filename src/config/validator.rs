//! Collects the problems of all keys, so that an operator can fix them at once.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use super::units;

#[derive(Default)]
pub(super) struct Validator {
    pub(super) problems: Vec<String>,
}

impl Validator {
    /// Adds a problem. The text after its first semicolon is the remedy.
    pub(super) fn problem(&mut self, key: &str, problem: impl Display) {
        let line = format!("{key}: {problem}");
        let has_remedy = line.contains("; ");
        self.problems.push(if has_remedy { line } else { line + "; config.example.toml explains this key" });
    }

    pub(super) fn path(&mut self, key: &str, path: &str) -> PathBuf {
        if path.is_empty() {
            self.problem(key, "is empty; name a file");
        }
        PathBuf::from(path)
    }

    pub(super) fn duration(&mut self, key: &str, text: &str) -> Duration {
        units::parse_duration(text).unwrap_or_else(|| {
            self.problem(key, format_args!("invalid duration {text:?}; expected 168h, 1h30m or 500ms"));
            Duration::ZERO
        })
    }
}

/// `None` for an empty text, which means "not set".
pub(super) fn optional(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
