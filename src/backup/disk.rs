//! A disk of an unfinished point.

use std::ops::Range;
use std::path::PathBuf;

use super::blocks::Blocks;
use super::image::Image;
use super::journal::Journal;
use super::plan::Plan;
use super::progress::DiskLabel;

/// A disk on its way.
pub struct Disk {
    pub label: DiskLabel,
    /// Of the disk in the API, below the base path.
    pub path: String,
    pub etag: String,
    pub size: u64,
    pub plan: Plan,
    pub image: Image,
    /// Of the image.
    pub file: PathBuf,
    pub blocks: Blocks,
    pub journal: Journal,
    /// What an earlier run brought, in order and disjoint.
    pub done: Vec<Range<u64>>,
}
