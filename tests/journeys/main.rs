//! The real binary, over real TLS, on a real XFS repository: one module a journey.
#![allow(missing_docs, clippy::unwrap_used, clippy::type_complexity)] // tests name themselves, and may panic

mod harness;

mod adopt;
mod agent;
mod away;
mod bad_input;
mod bytes;
mod check_config;
mod checksum;
mod compare;
mod crash;
mod disk_full;
mod export;
mod foreign_files;
mod foreign_links;
mod grace;
mod hanging;
mod health;
mod held;
mod hook_examples;
mod hooks;
mod idempotency;
mod inventory;
mod law;
mod law_views;
mod login;
mod logs;
mod long_answers;
mod lost_database;
mod metrics;
mod ocfs2;
mod policy;
mod python_client;
mod readme;
mod refine;
mod retention;
mod service;
mod snapshots;
mod static_binary;
mod status;
mod sync_hooks;
mod tls;
mod unfinished;
mod which_vm;
mod window;
