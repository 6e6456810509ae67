//! Services for operators: status, health, and the faults that keep the service from starting.

mod audit_head;
mod conditions;
mod config_state;
mod exclusive_usage;
mod limits;
mod measure;
mod service;
pub(crate) mod start_faults;
mod summary;
mod tls_state;
pub(crate) mod warnings;

pub(crate) use audit_head::log_audit_head;
pub(crate) use conditions::Conditions;
pub(crate) use service::Observed;
pub use service::{Ops, StatusQuery};
pub use warnings::Warnings;
