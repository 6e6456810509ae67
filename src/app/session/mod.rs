//! Log-in and sessions.

mod manager_address;
mod service;

pub(crate) use manager_address::ManagerAddress;
pub use service::Sessions;
