//! What operators ask: status, health, whether the config is right.

pub mod check_config;
pub mod exclusive_usage;
pub mod health;
pub mod start_faults;
pub mod status;
