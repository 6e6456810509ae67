//! The life of a snapshot: create, describe, delete, recover, adopt.

pub mod admit;
pub mod adopt;
pub mod create;
pub mod create_request;
pub mod delete;
pub mod document;
pub mod gone;
pub mod recover;
pub mod sweep;
pub mod unknown;
