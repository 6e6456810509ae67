//! `[policy]`: limits on snapshots and downloads.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::parse_size;
use super::validator::{Validator, optional};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Snapshots that are created at the same time.
    pub snapshot_concurrency: usize,
    /// Downloads of disks at the same time.
    pub export_concurrency: usize,
    /// How long a download may wait for a slot.
    pub export_wait: Duration,
    pub max_snapshots_per_vm: Option<usize>,
    /// With less free space, no snapshot is created.
    pub min_free_space: MinFreeSpace,
    /// A disk with more extents is not cloned.
    pub max_extents: Option<u32>,
    /// The lifetime of a snapshot whose request names none. `None`: it is unlimited.
    pub default_ttl: Option<Duration>,
    /// How long a snapshot is kept after the VM's next one.
    pub superseded_grace: Duration,
    /// The longest time to live of a ticket. `None`: there are no tickets.
    pub max_ticket_ttl: Option<Duration>,
}

/// How much of a repository has to be free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFreeSpace {
    Percent(u8),
    Bytes(u64),
}

impl MinFreeSpace {
    /// The bytes that have to be free in a repository of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Percent(percent) => u64::try_from(u128::from(total) * u128::from(percent) / 100).unwrap_or(u64::MAX),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The longest time to live: ten years. Anything longer is taken for a mistake.
pub const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    snapshot_concurrency: usize,
    export_concurrency: usize,
    export_wait: String,
    max_snapshots_per_vm: usize,
    /// A percentage, a number of bytes, or text with a unit.
    min_free_space: toml::Value,
    max_extents: u32,
    default_ttl: String,
    superseded_grace: String,
    max_ticket_ttl: String,
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
            max_ticket_ttl: "24h".to_owned(),
        }
    }
}

/// The longest time to live of tickets that can be configured.
const MAX_TICKET_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

const MAX_EXPORT_WAIT: Duration = Duration::from_secs(3600);

const MAX_CONCURRENCY: usize = 1000;

impl Validator {
    pub(super) fn policy(&mut self, keys: &Keys) -> Policy {
        for (key, value) in [
            ("policy.snapshot_concurrency", keys.snapshot_concurrency),
            ("policy.export_concurrency", keys.export_concurrency),
        ] {
            if !(1..=MAX_CONCURRENCY).contains(&value) {
                self.problem(key, format_args!("invalid number {value}; expected 1 to {MAX_CONCURRENCY}"));
            }
        }
        let min_free_space = parse_min_free_space(&keys.min_free_space).unwrap_or_else(|| {
            let expected = "expected 5%, 20GiB or 0";
            self.problem("policy.min_free_space", format_args!("invalid value {}; {expected}", keys.min_free_space));
            MinFreeSpace::Bytes(0)
        });
        let export_wait = self.duration("policy.export_wait", &keys.export_wait);
        if export_wait > MAX_EXPORT_WAIT {
            self.problem("policy.export_wait", "is longer than an hour; clients time out before that");
        }
        let default_ttl = optional(&keys.default_ttl).map(|text| self.duration("policy.default_ttl", text));
        if default_ttl.is_some_and(|ttl| ttl > MAX_TTL) {
            self.problem("policy.default_ttl", "is longer than ten years; leave it empty to keep snapshots forever");
        }
        let superseded_grace = match keys.superseded_grace.as_str() {
            "0" => Duration::ZERO,
            text => self.duration("policy.superseded_grace", text),
        };
        let max_ticket_ttl = match keys.max_ticket_ttl.as_str() {
            "0" => None,
            text => Some(self.duration("policy.max_ticket_ttl", text)),
        };
        if max_ticket_ttl.is_some_and(|ttl| ttl > MAX_TICKET_TTL) {
            self.problem("policy.max_ticket_ttl", "is longer than a week; let tools request a new ticket instead");
        }
        Policy {
            snapshot_concurrency: keys.snapshot_concurrency,
            export_concurrency: keys.export_concurrency,
            export_wait,
            max_snapshots_per_vm: Some(keys.max_snapshots_per_vm).filter(|limit| *limit > 0),
            min_free_space,
            max_extents: Some(keys.max_extents).filter(|limit| *limit > 0),
            default_ttl,
            superseded_grace,
            max_ticket_ttl,
        }
    }
}

pub(super) fn parse_min_free_space(value: &toml::Value) -> Option<MinFreeSpace> {
    if let Some(bytes) = value.as_integer() {
        return u64::try_from(bytes).ok().map(MinFreeSpace::Bytes);
    }
    let text = value.as_str()?;
    match text.strip_suffix('%') {
        Some(number) => number.trim().parse().ok().filter(|percent| *percent < 100).map(MinFreeSpace::Percent),
        None => parse_size(text).map(MinFreeSpace::Bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_free_space_is_a_percentage_or_a_size() {
        for (value, expected) in [
            ("5%".into(), Some(MinFreeSpace::Percent(5))),
            ("0%".into(), Some(MinFreeSpace::Percent(0))),
            ("99 %".into(), Some(MinFreeSpace::Percent(99))),
            ("20GiB".into(), Some(MinFreeSpace::Bytes(20 << 30))),
            ("512".into(), Some(MinFreeSpace::Bytes(512))),
            (toml::Value::from(0), Some(MinFreeSpace::Bytes(0))),
            (toml::Value::from(-1), None),
            ("100%".into(), None),
            ("-5%".into(), None),
            ("5.5%".into(), None),
            ("%".into(), None),
            ("5 percent".into(), None),
            ("".into(), None),
            (toml::Value::from(5.0), None),
        ] {
            assert_eq!(parse_min_free_space(&value), expected, "{value}");
        }
        assert_eq!(MinFreeSpace::Percent(5).of(1000), 50);
        assert_eq!(MinFreeSpace::Percent(99).of(u64::MAX), u64::MAX / 100 * 99 + 14);
        assert_eq!(MinFreeSpace::Bytes(7).of(1000), 7);
    }

    #[test]
    fn zero_is_no_limit_and_every_wrong_key_is_named() {
        let mut validator = Validator::default();
        let policy = validator.policy(&Keys::default());
        assert_eq!((policy.snapshot_concurrency, policy.export_concurrency), (2, 12));
        assert_eq!(policy.export_wait, Duration::from_secs(30));
        assert_eq!((policy.max_snapshots_per_vm, policy.max_extents, policy.default_ttl), (None, None, None));
        assert_eq!(policy.min_free_space, MinFreeSpace::Percent(5));
        assert_eq!(policy.superseded_grace, Duration::from_secs(3600));
        assert_eq!(policy.max_ticket_ttl, Some(Duration::from_secs(24 * 3600)));
        assert_eq!(validator.policy(&Keys { max_ticket_ttl: "0".to_owned(), ..Keys::default() }).max_ticket_ttl, None);
        let off = validator.policy(&Keys { superseded_grace: "0".to_owned(), ..Keys::default() });
        assert_eq!(off.superseded_grace, Duration::ZERO);
        assert!(validator.problems.is_empty());
        validator.policy(&Keys {
            snapshot_concurrency: 0,
            export_concurrency: 1001,
            export_wait: "2h".to_owned(),
            min_free_space: "little".into(),
            default_ttl: "1000000h".to_owned(),
            superseded_grace: "an hour".to_owned(),
            max_ticket_ttl: "200h".to_owned(),
            ..Keys::default()
        });
        let named: Vec<_> = validator.problems.iter().filter_map(|problem| problem.split(": ").next()).collect();
        let expected = [
            "snapshot_concurrency",
            "export_concurrency",
            "min_free_space",
            "export_wait",
            "default_ttl",
            "superseded_grace",
            "max_ticket_ttl",
        ];
        assert_eq!(named, expected.map(|key| format!("policy.{key}")));
    }
}
