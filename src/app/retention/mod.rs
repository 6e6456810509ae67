//! Retention: expiry, leases, and which snapshots are in use.

mod duration;
mod service;
mod uses;

pub(crate) use duration::parse_duration;
pub use service::Retention;
pub use uses::InUse;
