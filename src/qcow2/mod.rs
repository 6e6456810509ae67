//! qcow2 images: a writer whose file offsets are known before the first data byte ([`Layout`]), and a reader of chains
//! of qcow2 and raw files ([`Image`]).
//!
//! The format is specified in QEMU's `docs/interop/qcow2.rst`. `docs/formats.md` says which part of it is used.

mod chain_file;
mod error;
mod header;
mod image;
mod layout;
mod metadata;
mod run;
pub mod table_cache;
pub mod tables;
mod walk;

pub use error::{ImageError, Problem};
pub use header::Format;
pub use image::Image;
pub use layout::{Backing, BadLayout, Layout};
pub use run::Content;
pub use walk::Part;

#[cfg(test)]
mod tests;
