//! When the database is checked while the service runs, and when an unfinished rebuilding is tried again.

use std::time::{Duration, Instant};

/// Hours of local time in which the host has least to do.
const NIGHT: std::ops::Range<i8> = 0..6;

/// Each night has one check.
const SHORTEST: Duration = Duration::from_secs(20 * 3600);

/// After this time the database is checked at any hour in which no snapshot is created, even if downloads run.
const LONG: Duration = Duration::from_secs(48 * 3600);

/// After this time it is checked even if creations never pause. They wait while the file is copied, and no guest is
/// frozen meanwhile.
const LONGEST: Duration = Duration::from_secs(96 * 3600);

/// What the service has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    Idle,
    /// Only downloads run or wait.
    Downloads,
    Creations,
}

/// Whether the database is checked now. `since` is the time since the last check, `hour` is in local time.
pub(super) fn is_due(since: Duration, hour: i8, load: Load) -> bool {
    match load {
        Load::Idle if NIGHT.contains(&hour) => since >= SHORTEST,
        Load::Idle | Load::Downloads => since >= LONG,
        Load::Creations => since >= LONGEST,
    }
}

/// The first pause between two attempts to rebuild the database.
const FIRST_PAUSE: Duration = Duration::from_secs(60);

/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_secs(10 * 60);

/// When an unfinished rebuilding is tried again: the pauses double as long as nothing changes.
#[derive(Debug)]
pub(super) struct Retry<T> {
    /// The end of the last attempt.
    ended: Option<Instant>,
    pause: Duration,
    /// The repositories that were unavailable then.
    unavailable: Vec<String>,
    /// What was left then.
    left: Option<T>,
}

impl<T: PartialEq> Retry<T> {
    pub(super) fn new() -> Self {
        Self { ended: None, pause: FIRST_PAUSE, unavailable: Vec::new(), left: None }
    }

    /// Whether the next attempt is due. A repository that is available again is searched at once.
    pub(super) fn is_due(&self, now: Instant, unavailable: &[String]) -> bool {
        let has_waited = self.ended.is_none_or(|ended| now.saturating_duration_since(ended) >= self.pause);
        has_waited || self.unavailable.iter().any(|name| !unavailable.contains(name))
    }

    /// Records that an attempt has ended, and `left` something. Returns the pause until the next one.
    pub(super) fn ended(&mut self, now: Instant, unavailable: Vec<String>, left: T) -> Duration {
        let is_unchanged = self.left.as_ref() == Some(&left);
        self.pause = if is_unchanged { LONGEST_PAUSE.min(self.pause * 2) } else { FIRST_PAUSE };
        (self.ended, self.unavailable, self.left) = (Some(now), unavailable, Some(left));
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_is_checked_once_in_each_quiet_night() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert!(is_due(hours(24), 0, Load::Idle) && is_due(hours(24), 5, Load::Idle));
        for (since, hour, load, why) in [
            (hours(5), 3, Load::Idle, "it was checked in this night"),
            (hours(24), 6, Load::Idle, "it is day"),
            (hours(24), 23, Load::Idle, "it is evening"),
            (hours(24), 3, Load::Downloads, "the service has work"),
            (hours(49), 3, Load::Creations, "a snapshot is created"),
        ] {
            assert!(!is_due(since, hour, load), "{why}");
        }
        assert!(is_due(hours(48), 12, Load::Downloads), "the service is never idle at night");
        assert!(is_due(hours(96), 12, Load::Creations), "creations never pause");
    }

    #[test]
    fn pauses_between_attempts_grow_until_something_changes() {
        let (start, minutes) = (Instant::now(), |minutes: u64| Duration::from_secs(60 * minutes));
        let mut retry = Retry::new();
        let away = || vec!["away".to_owned()];
        assert!(retry.is_due(start, &away()));
        let pauses: Vec<_> = (0..6).map(|_| retry.ended(start, away(), "folder").as_secs() / 60).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
        assert!(!retry.is_due(start + minutes(9), &away()) && retry.is_due(start + minutes(10), &away()));
        assert!(retry.is_due(start, &[]), "a repository is available again");
        assert!(!retry.is_due(start, &["away".to_owned(), "other".to_owned()]));
        assert_eq!(retry.ended(start, away(), "other folder"), minutes(1));
    }
}
