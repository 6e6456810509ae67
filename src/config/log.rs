//! `log_file` and `[log]`: where the log is written.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::units::size;
use super::validator::{Validator, optional};

#[derive(Debug)]
pub struct Log {
    /// `None`: standard error.
    pub file: Option<PathBuf>,
    /// Size at which the file is rotated, in bytes. 0 disables rotation.
    pub max_size: u64,
    /// Rotated files that are kept, at least one.
    pub max_files: u32,
}

impl Log {
    pub fn to_standard_error() -> Self {
        Self { file: None, max_size: 0, max_files: 1 }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    max_size: toml::Value,
    max_files: u32,
}

impl Default for Keys {
    fn default() -> Self {
        Self { max_size: "10MiB".into(), max_files: 5 }
    }
}

impl Validator {
    pub(super) fn log(&mut self, keys: &Keys, log_file: &str, db_file: &str) -> Log {
        let max_size = size(&keys.max_size).unwrap_or_else(|| {
            let expected = "expected 10MiB, 512KiB or 10485760";
            self.problem("log.max_size", format_args!("invalid size {}; {expected}", keys.max_size));
            0
        });
        if keys.max_files == 0 {
            self.problem("log.max_files", "is 0; expected at least 1, or set log.max_size = 0 to disable rotation");
        }
        let file = optional(log_file);
        if file == Some(db_file) {
            self.problem("log_file", "is the same file as db_file; name another file");
        }
        Log { file: file.map(PathBuf::from), max_size, max_files: keys.max_files }
    }
}
