//! The audit file, and the command that verifies it.

mod file;
mod log;
mod tail;
mod verify;

pub use log::start;
pub use verify::{AuditCommand, run};
