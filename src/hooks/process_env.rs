//! How the processes of a hook are recognized, and how long the end of one may take.

use std::time::Duration;

/// The variable with the id of the call, which distinguishes the processes of one call from all others.
pub(super) const CALL_ENV: &str = "EXPORTER_CALL";

/// The variable with the id of the snapshot.
pub(super) const SNAPSHOT_ENV: &str = "EXPORTER_SNAPSHOT";

/// How long a killed process is waited for. One that hangs in the kernel, on a file system that it froze itself, ends
/// only when that is thawed.
pub(super) const KILL_WAIT: Duration = Duration::from_secs(3);
