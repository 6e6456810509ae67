//! The kinds of events that webhooks get, and patterns for them.

use std::str::FromStr;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    SnapshotCreated,
    SnapshotFailed,
    SnapshotDeleted,
    HookFailed,
    HookRecovered,
    SpaceLow,
    SpaceRecovered,
    RepositoryUnavailable,
    RepositoryAvailable,
    CertificateExpiring,
    DatabaseDamaged,
    DatabaseRecovered,
    /// An operator tests a webhook. No pattern selects it.
    Test,
}

impl EventKind {
    /// Those that happen by themselves.
    pub const ALL: [Self; 12] = [
        Self::SnapshotCreated,
        Self::SnapshotFailed,
        Self::SnapshotDeleted,
        Self::HookFailed,
        Self::HookRecovered,
        Self::SpaceLow,
        Self::SpaceRecovered,
        Self::RepositoryUnavailable,
        Self::RepositoryAvailable,
        Self::CertificateExpiring,
        Self::DatabaseDamaged,
        Self::DatabaseRecovered,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::SnapshotCreated => "snapshot.created",
            Self::SnapshotFailed => "snapshot.failed",
            Self::SnapshotDeleted => "snapshot.deleted",
            Self::HookFailed => "hook.failed",
            Self::HookRecovered => "hook.recovered",
            Self::SpaceLow => "space.low",
            Self::SpaceRecovered => "space.recovered",
            Self::RepositoryUnavailable => "repository.unavailable",
            Self::RepositoryAvailable => "repository.available",
            Self::CertificateExpiring => "certificate.expiring",
            Self::DatabaseDamaged => "database.damaged",
            Self::DatabaseRecovered => "database.recovered",
            Self::Test => "notification.test",
        }
    }
}

/// Selects kinds of events: a name, or the start of names with `*` at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPattern(String);

/// No kind of event has such a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("selects no event; name one, such as snapshot.failed, or several, such as snapshot.* or *")]
pub struct UnknownEvent;

impl EventPattern {
    pub fn matches(&self, kind: EventKind) -> bool {
        match self.0.strip_suffix('*') {
            Some(start) => kind.as_str().starts_with(start),
            None => kind.as_str() == self.0,
        }
    }
}

impl FromStr for EventPattern {
    type Err = UnknownEvent;

    fn from_str(text: &str) -> Result<Self, UnknownEvent> {
        let pattern = Self(text.to_owned());
        if EventKind::ALL.into_iter().any(|kind| pattern.matches(kind)) { Ok(pattern) } else { Err(UnknownEvent) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_select_events_by_name_or_start() {
        for (text, expected) in [
            ("*", EventKind::ALL.len()),
            ("snapshot.*", 3),
            ("snapshot.failed", 1),
            ("s*", 5),
            ("snapshot", 0),
            ("snapshot.*.*", 0),
            ("notification.test", 0),
            ("", 0),
        ] {
            let pattern = text.parse::<EventPattern>();
            let found = pattern
                .as_ref()
                .map_or(0, |pattern| EventKind::ALL.into_iter().filter(|kind| pattern.matches(*kind)).count());
            assert_eq!((found, pattern.is_ok()), (expected, expected > 0), "{text:?}");
        }
    }
}
