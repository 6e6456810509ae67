//! The command line: what the program is asked to do, its log, its life as a service.

pub mod args;
pub mod logging;
pub mod serve;
