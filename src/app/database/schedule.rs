//! When the database is checked while the service runs.

use std::time::Duration;

/// Hours of local time in which the host has least to do.
const NIGHT: std::ops::Range<i8> = 0..6;

/// Each night has one check.
const SHORTEST: Duration = Duration::from_secs(20 * 3600);

/// After this time the database is checked at any hour, even if the service is never idle.
const LONGEST: Duration = Duration::from_secs(48 * 3600);

/// Whether the database is checked now. `since` is the time since the last check, `hour` is in local time.
pub(super) fn is_due(since: Duration, hour: i8, is_idle: bool) -> bool {
    since >= LONGEST || (since >= SHORTEST && is_idle && NIGHT.contains(&hour))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_is_checked_once_in_each_quiet_night() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert!(is_due(hours(24), 0, true) && is_due(hours(24), 5, true));
        for (since, hour, is_idle, why) in [
            (hours(5), 3, true, "it was checked in this night"),
            (hours(24), 6, true, "it is day"),
            (hours(24), 23, true, "it is evening"),
            (hours(24), 3, false, "the service has work"),
        ] {
            assert!(!is_due(since, hour, is_idle), "{why}");
        }
        assert!(is_due(hours(48), 12, false), "the service is never idle at night");
    }
}
