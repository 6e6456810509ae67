//! Runs operations with hooks, and retries pending post hooks.

mod pending;
mod report;
mod results;
mod runner;
mod threads;
mod unwritten;

pub(crate) use pending::{Pending, PendingHooks};
pub(crate) use report::HookReport;
pub(crate) use runner::{GuardedOperation, GuardedStep, HookRunner};
