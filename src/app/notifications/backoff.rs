//! When a webhook is tried again.

use std::time::Duration;

const FIRST_DELAY: Duration = Duration::from_secs(1);

const MAX_DELAY: Duration = Duration::from_secs(3600);

/// The pause after so many failures in a row: it doubles. A part of it is random, so that the services of a pool do not
/// come at the same time.
pub(super) fn delay(failures: u32, asked: Option<Duration>) -> Duration {
    let exponential = FIRST_DELAY.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(MAX_DELAY);
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    let jittered = exponential / 2 + (exponential / 2).mul_f64(f64::from(random) / f64::from(u32::MAX));
    jittered.max(asked.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_an_hour() {
        for (failures, most) in [(0, 1), (1, 1), (2, 2), (5, 16), (12, 2048), (13, 3600), (u32::MAX, 3600)] {
            let (found, most) = (delay(failures, None), Duration::from_secs(most));
            assert!(most / 2 <= found && found <= most, "{failures}: {found:?}");
        }
        assert_eq!(delay(1, Some(Duration::from_secs(77))), Duration::from_secs(77));
        assert!(delay(13, Some(Duration::from_secs(77))) >= MAX_DELAY / 2);
    }
}
