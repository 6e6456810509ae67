//! Hooks around operations, and `post` hooks that are still to be called.

mod pending;
mod runner;

pub(crate) use pending::{Pending, PendingHooks};
pub(crate) use runner::{GuardedStep, HookReport, HookRunner};
