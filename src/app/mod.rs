//! The operations of the service, without its network side.
//!
//! Each sub-folder is a service with its few dependencies; [`App`] wires them. Every operation except the log-in takes
//! a `Session`, which only a valid token yields. Blocking work runs through [`tasks::Service`].

pub mod admission;
pub mod audit;
pub mod cancellation;
pub mod changeable;
pub mod compare;
pub mod confinement;
pub mod database;
pub mod error;
pub mod export;
pub mod files;
pub mod hooks;
pub mod inventory;
pub mod notifications;
pub mod ops;
pub mod retention;
pub mod session;
pub mod snapshots;
pub mod tasks;
pub mod tickets;

mod common;
mod file_cache;
mod opened;
mod start;

pub use error::Error;
pub use opened::Opened;
pub use start::App;
