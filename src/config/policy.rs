//! `[policy]`: how much at once, how many snapshots, how full, how long.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::log::parse_size;
use super::{Check, optional};

/// `[policy]`: what is refused before it does harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `snapshot_concurrency`: snapshots that are made at a time.
    pub snapshot_concurrency: usize,
    /// `export_concurrency`: bodies of disks that are sent at a time.
    pub export_concurrency: usize,
    /// `export_wait`: how long a body may wait for its turn.
    pub export_wait: Duration,
    /// `max_snapshots_per_vm`, where there is a limit.
    pub max_snapshots_per_vm: Option<usize>,
    /// `min_free_space`: with less than that free, no snapshot is made.
    pub min_free_space: LowSpace,
    /// `max_extents`: of a disk that is cloned, where there is a limit.
    pub max_extents: Option<u32>,
    /// `default_ttl`, where snapshots expire unless something else is asked for.
    pub default_ttl: Option<Duration>,
    /// `superseded_grace`: how long a snapshot is kept after the next one of its VM was made.
    pub superseded_grace: Duration,
}

/// How much of a repository has to be free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LowSpace {
    /// Of its size.
    Percent(u8),
    /// Bytes.
    Bytes(u64),
}

impl LowSpace {
    /// The floor of a repository of `total` bytes, bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Percent(percent) => u64::try_from(u128::from(total) * u128::from(percent) / 100).unwrap_or(u64::MAX),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The longest that a time to live or a lease can be asked for: ten years. What is longer is a slip.
pub const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    pub(super) snapshot_concurrency: usize,
    pub(super) export_concurrency: usize,
    pub(super) export_wait: String,
    pub(super) max_snapshots_per_vm: usize,
    /// A percentage, a number of bytes, or text with a unit.
    pub(super) min_free_space: toml::Value,
    pub(super) max_extents: u32,
    pub(super) default_ttl: String,
    pub(super) superseded_grace: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            snapshot_concurrency: 2,
            export_concurrency: 12,
            export_wait: "30s".to_owned(),
            max_snapshots_per_vm: 0,
            min_free_space: "5%".into(),
            max_extents: 0,
            default_ttl: String::new(),
            superseded_grace: "1h".to_owned(),
        }
    }
}

/// The longest that a body may wait.
const EXPORT_WAIT_MAX: Duration = Duration::from_secs(3600);

/// More at a time than any host has use for.
const MAX_CONCURRENCY: usize = 1000;

impl Check {
    pub(super) fn policy(&mut self, keys: &Keys) -> Policy {
        for (key, value) in [
            ("policy.snapshot_concurrency", keys.snapshot_concurrency),
            ("policy.export_concurrency", keys.export_concurrency),
        ] {
            if !(1..=MAX_CONCURRENCY).contains(&value) {
                self.problem(key, format_args!("{value} is not between 1 and {MAX_CONCURRENCY}"));
            }
        }
        let min_free_space = parse_floor(&keys.min_free_space).unwrap_or_else(|| {
            let value = &keys.min_free_space;
            self.problem("policy.min_free_space", format_args!("{value} is no floor; write it as 5%, 20GiB or 0"));
            LowSpace::Bytes(0)
        });
        let export_wait = self.duration("policy.export_wait", &keys.export_wait);
        if export_wait > EXPORT_WAIT_MAX {
            self.problem("policy.export_wait", "is longer than an hour; clients give up before that");
        }
        let default_ttl = optional(&keys.default_ttl).map(|text| self.duration("policy.default_ttl", text));
        if default_ttl.is_some_and(|ttl| ttl > LONGEST) {
            self.problem("policy.default_ttl", "is longer than ten years; leave it empty to keep snapshots for ever");
        }
        let superseded_grace = match keys.superseded_grace.as_str() {
            "0" => Duration::ZERO,
            text => self.duration("policy.superseded_grace", text),
        };
        Policy {
            snapshot_concurrency: keys.snapshot_concurrency,
            export_concurrency: keys.export_concurrency,
            export_wait,
            max_snapshots_per_vm: Some(keys.max_snapshots_per_vm).filter(|limit| *limit > 0),
            min_free_space,
            max_extents: Some(keys.max_extents).filter(|limit| *limit > 0),
            default_ttl,
            superseded_grace,
        }
    }
}

fn parse_floor(value: &toml::Value) -> Option<LowSpace> {
    if let Some(bytes) = value.as_integer() {
        return u64::try_from(bytes).ok().map(LowSpace::Bytes);
    }
    let text = value.as_str()?;
    match text.strip_suffix('%') {
        Some(number) => number.trim().parse().ok().filter(|percent| *percent < 100).map(LowSpace::Percent),
        None => parse_size(text).map(LowSpace::Bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_a_share_or_a_size() {
        for (value, expected) in [
            ("5%".into(), Some(LowSpace::Percent(5))),
            ("0%".into(), Some(LowSpace::Percent(0))),
            ("99 %".into(), Some(LowSpace::Percent(99))),
            ("20GiB".into(), Some(LowSpace::Bytes(20 << 30))),
            ("512".into(), Some(LowSpace::Bytes(512))),
            (toml::Value::from(0), Some(LowSpace::Bytes(0))),
            (toml::Value::from(-1), None),
            ("100%".into(), None),
            ("-5%".into(), None),
            ("5.5%".into(), None),
            ("%".into(), None),
            ("5 percent".into(), None),
            ("".into(), None),
            (toml::Value::from(5.0), None),
        ] {
            assert_eq!(parse_floor(&value), expected, "{value}");
        }
        assert_eq!(LowSpace::Percent(5).of(1000), 50);
        assert_eq!(LowSpace::Percent(99).of(u64::MAX), u64::MAX / 100 * 99 + 14);
        assert_eq!(LowSpace::Bytes(7).of(1000), 7);
    }

    #[test]
    fn nought_is_no_limit_and_each_wrong_key_is_named() {
        let mut check = Check::default();
        let policy = check.policy(&Keys::default());
        assert_eq!((policy.snapshot_concurrency, policy.export_concurrency), (2, 12));
        assert_eq!(policy.export_wait, Duration::from_secs(30));
        assert_eq!((policy.max_snapshots_per_vm, policy.max_extents, policy.default_ttl), (None, None, None));
        assert_eq!(policy.min_free_space, LowSpace::Percent(5));
        assert_eq!(policy.superseded_grace, Duration::from_secs(3600));
        let off = check.policy(&Keys { superseded_grace: "0".to_owned(), ..Keys::default() });
        assert_eq!(off.superseded_grace, Duration::ZERO);
        assert!(check.problems.is_empty());
        check.policy(&Keys {
            snapshot_concurrency: 0,
            export_concurrency: 1001,
            export_wait: "2h".to_owned(),
            min_free_space: "little".into(),
            default_ttl: "1000000h".to_owned(),
            superseded_grace: "an hour".to_owned(),
            ..Keys::default()
        });
        let named: Vec<_> = check.problems.iter().filter_map(|problem| problem.split(": ").next()).collect();
        let expected = [
            "snapshot_concurrency",
            "export_concurrency",
            "min_free_space",
            "export_wait",
            "default_ttl",
            "superseded_grace",
        ];
        assert_eq!(named, expected.map(|key| format!("policy.{key}")));
    }
}
