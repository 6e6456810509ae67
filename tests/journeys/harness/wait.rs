//! Waiting for what a test can see, never for a time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// What has not come by then does not come, on a loaded machine either.
const LIMIT: Duration = Duration::from_secs(300);

const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `is_so`; panics with `what` where that does not come.
pub fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    eventually_within(LIMIT, what, is_so);
}

/// The same for a time that the service promises.
pub fn eventually_within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    wait(limit, what, || is_so().then_some(()).ok_or("false"));
}

/// Waits until `is_so`, and no longer than `limit` where that does not come.
pub fn perhaps_within(limit: Duration, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !is_so() && Instant::now() < end {
        std::thread::sleep(PAUSE);
    }
}

/// Waits until `probe` returns a value; returns it.
pub fn eventually_some<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    eventually_ok(what, || probe().ok_or("nothing"))
}

/// Waits until `probe` succeeds; returns its value, and panics with its last error where it never does.
pub fn eventually_ok<T, E: Debug>(what: &str, probe: impl FnMut() -> Result<T, E>) -> T {
    wait(LIMIT, what, probe)
}

fn wait<T, E: Debug>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) => assert!(Instant::now() < end, "not within {limit:?}: {what}; the last look found {last:?}"),
        }
        std::thread::sleep(PAUSE);
    }
}
