//! `[export]`: what downloads of disks may take of the host.

use std::num::NonZero;

use serde::{Deserialize, Serialize};

use super::units::size;
use super::validator::Validator;

/// Rates are in bytes per second; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Of all connections together.
    pub max_rate: Option<NonZero<u64>>,
    pub max_rate_per_connection: Option<NonZero<u64>>,
    /// Slower clients are disconnected while others wait.
    pub min_rate: Option<NonZero<u64>>,
    /// `io_class = "idle"`: all other reads and writes of the host go first.
    pub is_idle: bool,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    max_rate: toml::Value,
    max_rate_per_connection: toml::Value,
    min_rate: toml::Value,
    io_class: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            max_rate: 0.into(),
            max_rate_per_connection: 0.into(),
            min_rate: "64KiB".into(),
            io_class: "idle".to_owned(),
        }
    }
}

/// At a lower rate, clients time out between two pieces of a body.
const LOWEST_MAX_RATE: u64 = 64 << 10;

impl Validator {
    pub(super) fn export(&mut self, keys: &Keys) -> Export {
        let mut rate = |key: &str, value: &toml::Value| match size(value) {
            Some(rate @ (0 | LOWEST_MAX_RATE..)) => NonZero::new(rate),
            _ => {
                let expected = "expected bytes per second such as 100MiB, at least 64KiB, or 0 for no limit";
                self.problem(key, format_args!("invalid rate {value}; {expected}"));
                None
            }
        };
        let max_rate = rate("export.max_rate", &keys.max_rate);
        let max_rate_per_connection = rate("export.max_rate_per_connection", &keys.max_rate_per_connection);
        let min_rate = size(&keys.min_rate).map(NonZero::new).unwrap_or_else(|| {
            let expected = "expected bytes per second such as 64KiB, or 0 for no limit";
            self.problem("export.min_rate", format_args!("invalid rate {}; {expected}", keys.min_rate));
            None
        });
        if !["idle", "normal"].contains(&keys.io_class.as_str()) {
            self.problem("export.io_class", format_args!("invalid class {:?}; expected idle or normal", keys.io_class));
        }
        Export { max_rate, max_rate_per_connection, min_rate, is_idle: keys.io_class == "idle" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_no_limit_and_every_wrong_key_is_named() {
        let mut validator = Validator::default();
        let min_rate = NonZero::new(64 << 10);
        let none = Export { max_rate: None, max_rate_per_connection: None, min_rate, is_idle: true };
        assert_eq!(validator.export(&Keys::default()), none);
        let keys = Keys {
            max_rate: "100MiB".into(),
            max_rate_per_connection: 65_536.into(),
            min_rate: 0.into(),
            io_class: "normal".into(),
        };
        let export = validator.export(&keys);
        assert_eq!(export.max_rate.map(NonZero::get), Some(100 << 20));
        assert_eq!(export.max_rate_per_connection.map(NonZero::get), Some(65_536));
        assert!(!export.is_idle && export.min_rate.is_none() && validator.problems.is_empty());
        validator.export(&Keys {
            max_rate: "1KiB".into(),
            max_rate_per_connection: "fast".into(),
            min_rate: "slow".into(),
            io_class: String::new(),
        });
        let named: Vec<_> = validator.problems.iter().filter_map(|problem| problem.split(": ").next()).collect();
        assert_eq!(
            named,
            ["max_rate", "max_rate_per_connection", "min_rate", "io_class"].map(|key| format!("export.{key}"))
        );
    }
}
