//! Runs operations with hooks, and retries pending post hooks.

mod pending;
mod runner;

pub(crate) use pending::{Pending, PendingHooks};
pub(crate) use runner::{GuardedStep, HookReport, HookRunner};
