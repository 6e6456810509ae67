//! Services for operators: status, health, and the check of the config.

mod check_config;
mod exclusive_usage;
mod service;
pub(crate) mod start_faults;

pub use check_config::{CheckStatus, Finding, check_config};
pub use service::{Ops, StatusQuery};
