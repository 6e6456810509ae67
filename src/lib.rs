//! Incremental disk exporter for virtualization hosts: copy-on-write snapshots of VM disks, the
//! bytes that changed between two of them, and those bytes over HTTPS.
//!
//! `ARCHITECTURE.md` draws the rooms and which may import which.

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod hooks;
pub mod http;
pub mod inventory;
pub mod metrics;
pub mod model;
pub mod repository;
pub mod service;
pub mod store;
pub mod sys;
pub mod tls;
