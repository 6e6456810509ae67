//! What an adoption has found in the repositories.

use std::collections::BTreeMap;
use std::path::Path;

use super::placement::{Parts, PlacedSnapshot};
use crate::api;
use crate::app::inventory::UnsearchedPart;
use crate::model::VmId;

/// What was found in the repositories.
#[derive(Default)]
pub(super) struct Found {
    /// By VM, and oldest first.
    pub candidates: BTreeMap<VmId, Vec<Candidate>>,
    /// The folders that cannot be adopted.
    pub report: api::Adoption,
    /// What could not be searched.
    pub unsearched: Vec<UnsearchedPart>,
}

/// A snapshot with a known VM, before it is adopted.
pub(super) struct Candidate {
    pub placed: PlacedSnapshot,
    pub parts: Parts,
}

impl Candidate {
    /// Its folders.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|(_, folder)| &*folder.path)
    }
}

impl Found {
    pub fn skip(&mut self, path: &Path, reason: String) {
        self.report.skipped.push(api::SkippedFolder { path: path.display().to_string(), reason });
    }

    /// Records that the repository, or something in it at `path`, could not be searched.
    pub fn leave_unsearched(&mut self, path: String, reason: String) {
        self.unsearched.push(UnsearchedPart { vm: None, path, reason });
    }
}
