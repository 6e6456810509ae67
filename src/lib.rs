//! Incremental disk exporter for virtualization hosts: copy-on-write snapshots of VM disks, the bytes that changed
//! between two of them, and those bytes over HTTPS.
//!
//! `ARCHITECTURE.md` describes the modules and which of them may import which. All of them are private, so that the
//! compiler finds unused code; [`testing`] has what tests and benchmarks use.

mod api;
mod app;
mod auth;
mod backup;
mod cli;
mod client;
mod config;
mod dns;
mod hooks;
mod http;
mod inventory;
mod metrics;
mod model;
mod qcow2;
mod repository;
mod service;
mod store;
mod sys;
mod tls;
mod webhooks;

pub use cli::main;

/// What the integration tests and the benchmarks use besides the program itself.
#[doc(hidden)]
pub mod testing {
    /// The types of requests and answers.
    pub mod api {
        pub use crate::api::*;
    }

    /// Reads and writes disk images.
    pub mod qcow2 {
        pub use crate::qcow2::{Backing, BadLayout, Content, Format, Image, ImageError, Layout, Part, Problem};
    }

    pub use crate::auth::Tokens;
    pub use crate::cli::command;
    pub use crate::config::{Api, Pages};
    pub use crate::http::probe::prober;
    pub use crate::http::server::{Listeners, Options, serve};
    pub use crate::model::{ByteRange, DiskName, DiskSource, SnapshotDisk, SnapshotId};
    pub use crate::repository::clone::{Clones, Source, Target};
    pub use crate::repository::executor::{Access, JobKind};
    pub use crate::repository::refine::{BaseContents, Refined};
    pub use crate::repository::{Changes, DiskFile, Repository, SnapshotDir};
    pub use crate::sys::{fiemap, folder::Folder, page_cache};
    pub use crate::tls::server_tls;
}

/// What the fuzz targets use (`fuzz/`).
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::app::confinement::Confinement;
    pub use crate::app::{App, Opened};
    pub use crate::config::parse_with_faults;
    pub use crate::hooks::Launcher;
    pub use crate::http::server::serve_operator;
    pub use crate::http::{byte_range, conditional, router};
    pub use crate::inventory::oracle_vm::{definition, ovsmeta, python_literal, vm_cfg};
    pub use crate::inventory::ovs_agent::{berkeley_db, pickle};
    pub use crate::metrics::Metrics;
    pub use crate::model::{
        Chunk, ChunkKind, Described, DiskSource, FileIdentity, Provenance, Snapshot, SnapshotDisk, SnapshotId,
    };
    pub use crate::qcow2::{table_cache, tables};
    pub use crate::repository::changes::{CompareError, changes_of_sources};
    pub use crate::repository::disk_file::OpenError;
    pub use crate::repository::manifest;
    pub use crate::repository::map::ExtentSource;
    pub use crate::store::record;
    pub use crate::sys::fiemap;
    pub use crate::sys::host::service_id;
}
