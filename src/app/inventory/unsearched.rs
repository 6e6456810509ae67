//! What may have snapshots that the database does not know.

use std::sync::atomic::{AtomicBool, Ordering};
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
pub(super) struct Search {
    unsearched: Mutex<Arc<Unsearched>>,
    /// Whether the repositories were listed since the start.
    is_looked_at: AtomicBool,
}

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
        if !self.is_looked_at.load(Ordering::Acquire) {
            return Arc::new(Unsearched::Everything);
        }
        Arc::clone(&self.unsearched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn end_first_look(&self) {
        self.is_looked_at.store(true, Ordering::Release);
    }

    pub(super) fn set(&self, unsearched: Unsearched) {
        *self.unsearched.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(unsearched);
    }
}
