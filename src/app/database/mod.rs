//! The care of the database: checked each night, rebuilt from the manifests after damage, copied on request.

mod rebuild;
mod schedule;
mod service;

pub use service::Database;
