//! The audit: records who did what, from which address, with what outcome.

mod line;
mod trail;

pub(crate) use line::{Actor, Outcome};
pub use line::{TARGET, send_to};
pub use trail::AuditTrail;
pub(crate) use trail::{ROUND_OF_LINES, Sent};
