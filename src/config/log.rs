//! `log_file` and `[log]`.

use std::path::PathBuf;

use super::file::File;
use super::{Check, optional};

/// `log_file` and `[log]`: where the log goes.
#[derive(Debug)]
pub struct Log {
    /// `log_file`; standard error where there is none.
    pub file: Option<PathBuf>,
    /// `log.max_size`: the file is rotated before it is larger, bytes. 0: it is not.
    pub max_size: u64,
    /// `log.max_files`: how many rotated files are kept, at least one.
    pub max_files: u32,
}

impl Check {
    pub(super) fn log(&mut self, file: &File) -> Log {
        let value = &file.log.max_size;
        let max_size = size(value).unwrap_or_else(|| {
            self.problem("log.max_size", format_args!("{value} is no size; write it as 10MiB, 512KiB or 10485760"));
            0
        });
        if file.log.max_files == 0 {
            self.problem("log.max_files", "is 0; keep one at least, or set log.max_size = 0 to rotate nothing");
        }
        if optional(&file.log_file).is_some_and(|log| log == file.db_file) {
            self.problem("log_file", "is db_file; name another file");
        }
        Log { file: optional(&file.log_file).map(PathBuf::from), max_size, max_files: file.log.max_files }
    }
}

/// A number of bytes, or text as [`parse_size`] takes it.
pub(super) fn size(value: &toml::Value) -> Option<u64> {
    let bytes = value.as_integer().and_then(|bytes| u64::try_from(bytes).ok());
    bytes.or_else(|| value.as_str().and_then(parse_size))
}

/// A number and `B`, `KiB`, `MiB` or `GiB`; bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}
