//! What may have snapshots that the database does not know, while it is rebuilt from the manifests.

use std::sync::{Arc, Mutex, PoisonError};

use crate::api;
use crate::model::VmId;

/// What was not searched yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Unsearched {
    /// The database is not rebuilt, or the search is complete.
    #[default]
    Nothing,
    /// The first search runs.
    Everything,
    /// The search left these out.
    Some(Vec<UnsearchedPart>),
}

/// A repository, or something in it, that could not be searched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnsearchedPart {
    /// The only VM whose snapshots are concerned, if that is known.
    pub vm: Option<VmId>,
    /// For operators.
    pub path: String,
    pub reason: String,
}

/// The current state.
#[derive(Default)]
pub(super) struct Search(Mutex<Arc<Unsearched>>);

impl Unsearched {
    /// For `GET /status`.
    pub(crate) fn describe(&self) -> Vec<api::SkippedFolder> {
        let describe =
            |part: &UnsearchedPart| api::SkippedFolder { path: part.path.clone(), reason: part.reason.clone() };
        match self {
            Self::Some(parts) => parts.iter().map(describe).collect(),
            Self::Nothing | Self::Everything => Vec::new(),
        }
    }
}

impl Search {
    pub(super) fn get(&self) -> Arc<Unsearched> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set(&self, unsearched: Unsearched) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(unsearched);
    }
}
