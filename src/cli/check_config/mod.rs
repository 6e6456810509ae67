//! `check-config`: what the checks find, as a table.

mod checks;
mod findings;
mod hooks;
mod notifications;
mod table;
mod unit;

pub use checks::check_config;
pub use findings::CheckStatus;
pub use table::table;
