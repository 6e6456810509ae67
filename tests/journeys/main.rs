//! The real binary, over real TLS, on a real XFS repository: one module a journey.
#![allow(missing_docs)] // tests name themselves

mod harness;

mod python_client;
mod readme;
mod snapshots;
