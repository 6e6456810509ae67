//! `[audit]`: where the audit goes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::file::File;
use super::log::size;
use super::{Check, optional};

/// `[audit]`: where the audit goes.
#[derive(Debug)]
pub struct Audit {
    /// `file`; the log where there is none.
    pub file: Option<PathBuf>,
    /// `max_size`: the file is rotated before it is larger, bytes. 0: it is not.
    pub max_size: u64,
    /// `max_files`: how many rotated files are kept, at least one.
    pub max_files: u32,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    pub(super) file: String,
    /// A number of bytes, or text with a unit.
    pub(super) max_size: toml::Value,
    pub(super) max_files: u32,
}

impl Default for Keys {
    fn default() -> Self {
        Self { file: String::new(), max_size: "10MiB".into(), max_files: 10 }
    }
}

impl Check {
    pub(super) fn audit(&mut self, file: &File) -> Audit {
        let keys = &file.audit;
        let max_size = size(&keys.max_size).unwrap_or_else(|| {
            let remedy = "is no size; write it as 10MiB, 512KiB or 10485760";
            self.problem("audit.max_size", format_args!("{} {remedy}", keys.max_size));
            0
        });
        if keys.max_files == 0 {
            self.problem("audit.max_files", "is 0; keep one at least, or set audit.max_size = 0 to rotate nothing");
        }
        for (key, other) in [("db_file", &file.db_file), ("log_file", &file.log_file)] {
            if optional(&keys.file).is_some_and(|audit| audit == other) {
                self.problem("audit.file", format_args!("is {key}; name another file"));
            }
        }
        Audit { file: optional(&keys.file).map(PathBuf::from), max_size, max_files: keys.max_files }
    }
}
