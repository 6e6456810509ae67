//! The command line, and where the log is written.

mod args;
mod audit;
mod check_config;
mod client;
mod log_fields;
mod log_file;
mod log_journal;
mod log_queue;
mod logging;
mod operator;
mod program;
mod support;
mod terminal;

pub use args::command;
pub use program::main;
