//! The audit: records who did what, from which address, with what outcome.

mod chain;
mod line;
mod trail;
mod verifier;

pub use chain::{Head, Incomplete, Sealed, Unsealed, seal};
pub(crate) use line::{Actor, Outcome, head, replace_key, start, stop};
pub use line::{Sink, TARGET, log_head, send_to};
pub use trail::AuditTrail;
pub(crate) use trail::{ROUND_OF_LINES, Sent};
pub use verifier::{Difference, Place, Summary, Verifier};
