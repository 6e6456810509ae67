//! The command line: what the program is asked to do, and where its log goes.

pub mod args;
pub mod log_file;
pub mod logging;
