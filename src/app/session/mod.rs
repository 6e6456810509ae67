//! Log-in and sessions.

mod ending;
mod manager_address;
mod rechecking;
mod rechecks;
mod revocations;
mod service;
mod throttle;

pub(crate) use manager_address::ManagerAddress;
pub use service::{KeptToken, LogInRequest, Sessions};
