//! Durations in requests.

use std::time::Duration;

use crate::app::Error;

/// The shortest `ttl`, of a snapshot or of a lease.
pub(crate) const SHORTEST: Duration = Duration::from_secs(1);

/// Parses a duration from [`SHORTEST`] to `max`.
pub(crate) fn parse_duration(name: &str, text: &str, max: Duration) -> Result<Duration, Error> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    let hours = max.as_secs() / 3600;
    parsed.filter(|duration| (SHORTEST..=max).contains(duration)).ok_or_else(|| {
        Error::BadRequest(format!("{name}: invalid duration {text:?}; expected 1s to {hours}h, such as 72h or 1h30m"))
    })
}
