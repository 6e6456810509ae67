//! `[login]`: how many wrong passwords are checked at the manager.

use std::num::NonZero;

use serde::{Deserialize, Serialize};

/// Failed log-ins per hour, all of which may come at once. `None`: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Login {
    pub failures_per_address: Option<NonZero<u32>>,
    pub failures_per_account: Option<NonZero<u32>>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    failures_per_address: u32,
    failures_per_account: u32,
}

impl Default for Keys {
    fn default() -> Self {
        Self { failures_per_address: 300, failures_per_account: 100 }
    }
}

impl From<&Keys> for Login {
    fn from(keys: &Keys) -> Self {
        Self {
            failures_per_address: NonZero::new(keys.failures_per_address),
            failures_per_account: NonZero::new(keys.failures_per_account),
        }
    }
}
