//! `[audit]`: where the audit trail is written.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::units::size;
use super::validator::{Validator, optional};

#[derive(Debug)]
pub struct Audit {
    /// `None`: the log.
    pub file: Option<PathBuf>,
    /// Size at which the file is rotated, in bytes. 0 disables rotation.
    pub max_size: u64,
    /// Rotated files that are kept, at least one.
    pub max_files: u32,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    pub(super) file: String,
    max_size: toml::Value,
    max_files: u32,
}

impl Default for Keys {
    fn default() -> Self {
        Self { file: String::new(), max_size: "10MiB".into(), max_files: 10 }
    }
}

impl Validator {
    /// `others` are the keys and paths of other files that the service writes.
    pub(super) fn audit(&mut self, keys: &Keys, others: &[(&str, &str)]) -> Audit {
        let max_size = size(&keys.max_size).unwrap_or_else(|| {
            let expected = "expected 10MiB, 512KiB or 10485760";
            self.problem("audit.max_size", format_args!("invalid size {}; {expected}", keys.max_size));
            0
        });
        if keys.max_files == 0 {
            self.problem("audit.max_files", "is 0; expected at least 1, or set audit.max_size = 0 to disable rotation");
        }
        for (key, other) in others {
            if optional(&keys.file).is_some_and(|audit| audit == *other) {
                self.problem("audit.file", format_args!("is the same file as {key}; name another file"));
            }
        }
        Audit { file: optional(&keys.file).map(PathBuf::from), max_size, max_files: keys.max_files }
    }
}
