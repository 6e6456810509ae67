//! Durations in requests.

use std::time::Duration;

use crate::app::Error;

/// Parses a duration from one second to `max`.
pub(crate) fn parse_duration(name: &str, text: &str, max: Duration) -> Result<Duration, Error> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    let hours = max.as_secs() / 3600;
    parsed.filter(|duration| (Duration::from_secs(1)..=max).contains(duration)).ok_or_else(|| {
        Error::BadRequest(format!("{name}: invalid duration {text:?}; expected 1s to {hours}h, such as 72h or 1h30m"))
    })
}
