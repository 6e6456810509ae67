//! The real binary, over real TLS, on a real XFS repository: one module a journey.
#![allow(missing_docs, clippy::unwrap_used)] // tests name themselves, and may panic

mod harness;

mod python_client;
mod readme;
mod snapshots;
