//! Retention: expiry, leases, and which snapshots are in use.

mod duration;
mod service;
mod uses;

pub(crate) use duration::{SHORTEST, parse_duration};
pub use service::{LONGEST_LEASE, Retention};
pub use uses::InUse;
