//! How long snapshots are kept: expiry, leases, and who is using them.

mod duration;
mod service;
mod uses;

pub(crate) use duration::parse_duration;
pub use service::Retention;
pub use uses::InUse;
