//! Operations on snapshots: create, describe, delete, recover, adopt.

mod admit;
mod adopt;
mod candidates;
mod create;
mod create_request;
mod delete;
mod document;
mod found;
mod holds;
mod make;
mod notice;
mod placement;
mod plan;
mod reconcile;
mod recover;
mod removal;
mod seen;
mod service;
mod shared_leases;
mod shared_snapshot;
mod stray;
mod sweep;
mod watched;

pub(crate) use adopt::Readoption;
pub use adopt::{AdoptOptions, Adopter, Manifests};
pub use create_request::CreateRequest;
pub use document::{DiskDocument, DocumentOptions, Documents, MapDocument, SnapshotDocument};
pub(crate) use notice::Noticing;
pub(crate) use reconcile::Reconciler;
pub(crate) use recover::Recovery;
pub(crate) use removal::Removals;
pub use service::Snapshots;
pub(crate) use sweep::Sweeper;
