//! The command line, and where the log is written.

pub mod adopt;
pub mod args;
pub mod audit_log;
pub mod check_config;
pub mod log_fields;
pub mod log_file;
pub mod log_queue;
pub mod logging;
pub mod terminal;
