//! A problem with the config or with the files that it names. The start and check-config print the same text.

use super::ConfigError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key of the config.
    pub key: String,
    /// What is wrong.
    pub found: String,
    pub remedy: String,
    /// Whether another start with the same config may succeed.
    pub is_transient: bool,
}

impl Fault {
    /// A permanent fault.
    pub fn new(key: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { key: key.into(), found: found.into(), remedy: remedy.into(), is_transient: false }
    }

    #[must_use]
    pub fn transient(self) -> Self {
        Self { is_transient: true, ..self }
    }

    /// Splits a line at its first semicolon into problem and remedy. Without one, `remedy` is used.
    pub fn from_line(key: &str, line: &str, remedy: &str) -> Self {
        let (found, remedy) = line.split_once("; ").unwrap_or((line, remedy));
        Self::new(key, found, remedy)
    }
}

impl From<Fault> for anyhow::Error {
    fn from(fault: Fault) -> Self {
        let Fault { key, found, remedy, is_transient } = fault;
        let line = format!("{key}: {found}; {remedy}");
        if is_transient { Self::msg(line) } else { ConfigError::new(line).into() }
    }
}
