//! `[export]`: how fast bytes go out, and whose reads go first.

use std::num::NonZero;

use serde::{Deserialize, Serialize};

use super::Check;
use super::log::size;

/// `[export]`: what bodies of disks may take of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// `max_rate`: of all connections together, bytes a second, where there is a limit.
    pub max_rate: Option<NonZero<u64>>,
    /// `max_rate_per_connection`: of each of them.
    pub max_rate_per_connection: Option<NonZero<u64>>,
    /// `min_rate`: a client that takes less, bytes a second, is cut while others wait.
    pub min_rate: Option<NonZero<u64>>,
    /// `io_class = "idle"`: everybody else's reads and writes go first.
    pub is_idle: bool,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    /// Numbers of bytes, or text with a unit.
    pub(super) max_rate: toml::Value,
    pub(super) max_rate_per_connection: toml::Value,
    pub(super) min_rate: toml::Value,
    pub(super) io_class: String,
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

/// With less, clients give up between two pieces of a body.
const SLOWEST: u64 = 64 << 10;

impl Check {
    pub(super) fn export(&mut self, keys: &Keys) -> Export {
        let mut rate = |key: &str, value: &toml::Value| match size(value) {
            Some(rate @ (0 | SLOWEST..)) => NonZero::new(rate),
            _ => {
                let remedy = "is no rate; write bytes a second as 100MiB, at least 64KiB, or 0 for no limit";
                self.problem(key, format_args!("{value} {remedy}"));
                None
            }
        };
        let max_rate = rate("export.max_rate", &keys.max_rate);
        let max_rate_per_connection = rate("export.max_rate_per_connection", &keys.max_rate_per_connection);
        let min_rate = size(&keys.min_rate).map(NonZero::new).unwrap_or_else(|| {
            let value = &keys.min_rate;
            let remedy = "is no rate; write bytes a second as 64KiB, or 0 to cut nobody";
            self.problem("export.min_rate", format_args!("{value} {remedy}"));
            None
        });
        if !["idle", "normal"].contains(&keys.io_class.as_str()) {
            self.problem("export.io_class", format_args!("{:?} is no class; write idle or normal", keys.io_class));
        }
        Export { max_rate, max_rate_per_connection, min_rate, is_idle: keys.io_class == "idle" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nought_is_no_limit_and_each_wrong_key_is_named() {
        let mut check = Check::default();
        let min_rate = NonZero::new(64 << 10);
        let none = Export { max_rate: None, max_rate_per_connection: None, min_rate, is_idle: true };
        assert_eq!(check.export(&Keys::default()), none);
        let keys = Keys {
            max_rate: "100MiB".into(),
            max_rate_per_connection: 65_536.into(),
            min_rate: 0.into(),
            io_class: "normal".into(),
        };
        let export = check.export(&keys);
        assert_eq!(export.max_rate.map(NonZero::get), Some(100 << 20));
        assert_eq!(export.max_rate_per_connection.map(NonZero::get), Some(65_536));
        assert!(!export.is_idle && export.min_rate.is_none() && check.problems.is_empty());
        check.export(&Keys {
            max_rate: "1KiB".into(),
            max_rate_per_connection: "fast".into(),
            min_rate: "slow".into(),
            io_class: String::new(),
        });
        let named: Vec<_> = check.problems.iter().filter_map(|problem| problem.split(": ").next()).collect();
        assert_eq!(
            named,
            ["max_rate", "max_rate_per_connection", "min_rate", "io_class"].map(|key| format!("export.{key}"))
        );
    }
}
