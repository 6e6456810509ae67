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
mod health;
mod inventory;
mod law;
mod law_views;
mod login;
mod logs;
mod long_answers;
mod ocfs2;
mod python_client;
mod readme;
mod refine;
mod service;
mod snapshots;
mod static_binary;
mod tls;
mod which_vm;
