//! Durations in requests.

use std::time::Duration;

use crate::app::Error;

/// Parses a duration of a request, from one second to `longest`.
pub(crate) fn parse_duration(name: &str, text: &str, longest: Duration) -> Result<Duration, Error> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    let hours = longest.as_secs() / 3600;
    parsed.filter(|duration| (Duration::from_secs(1)..=longest).contains(duration)).ok_or_else(|| {
        Error::BadRequest(format!("{name}: {text:?} is no time from 1s to {hours}h; write it as 72h or 1h30m"))
    })
}
