//! From credentials to a session.

mod manager_address;
mod service;

pub(crate) use manager_address::ManagerAddress;
pub use service::Sessions;
