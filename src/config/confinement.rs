//! `[confinement]`: what the service gives up when it starts.

use serde::{Deserialize, Serialize};

use super::validator::Validator;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    mode: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self { mode: "auto".to_owned() }
    }
}

/// Whether the service confines itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfinementMode {
    /// As far as the kernel can.
    Auto,
    Off,
}

impl Validator {
    pub(super) fn confinement(&mut self, keys: &Keys) -> ConfinementMode {
        match keys.mode.as_str() {
            "auto" => ConfinementMode::Auto,
            "off" => ConfinementMode::Off,
            other => {
                self.problem("confinement.mode", format_args!("invalid value {other:?}; expected auto or off"));
                ConfinementMode::Auto
            }
        }
    }
}
