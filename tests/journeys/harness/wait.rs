//! Waiting for a condition, never for a fixed time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `condition` holds; panics with `what` after five minutes.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_within(LIMIT, what, condition);
}

/// As [`eventually`], with a limit that the service promises.
pub fn eventually_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait(limit, what, || condition().then_some(()).ok_or("false"));
}

/// Waits until `condition` holds, or until `limit` has passed.
pub fn perhaps_within(limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() && Instant::now() < end {
        std::thread::sleep(PAUSE);
    }
}

/// Lets a fault last for this time. Only for tests that show nothing by the time that it takes.
pub fn for_a_while(time: Duration) {
    perhaps_within(time, || false);
}

/// Waits until `probe` returns a value; returns it.
pub fn eventually_some<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    eventually_ok(what, || probe().ok_or("nothing"))
}

/// Waits until `probe` succeeds; returns its value, or panics with its last error.
pub fn eventually_ok<T, E: Debug>(what: &str, probe: impl FnMut() -> Result<T, E>) -> T {
    wait(LIMIT, what, probe)
}

fn wait<T, E: Debug>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) => assert!(Instant::now() < end, "not within {limit:?}: {what}; the last attempt: {last:?}"),
        }
        std::thread::sleep(PAUSE);
    }
}
