//! The log file.

mod rotated;
mod standard_error;

use std::io::{self, Write};
use std::path::Path;

use super::log_queue::Sink;

pub use rotated::{RotatedFile, Rotation, Unwritten, beside};
pub use standard_error::to_standard_error;

/// Every write is one or more whole lines.
#[derive(Debug)]
pub struct LogFile {
    file: RotatedFile,
    /// Lines that went to standard error since the last successful write.
    missed: u64,
}

impl LogFile {
    /// Opens or creates (with mode 0640) the file at `path` for appending. It is rotated before it exceeds `max_size`
    /// bytes (0: never), and `max_files` rotated files are kept.
    ///
    /// # Errors
    /// The file is not a regular file, or cannot be opened.
    pub fn open(path: &Path, max_size: u64, max_files: u32) -> io::Result<Self> {
        let rotation = Rotation { max_size, max_files, mode: 0o640, is_exclusive: false, is_durable: false };
        Ok(Self { file: RotatedFile::open(path, rotation)?, missed: 0 })
    }

    /// Appends `line`, or writes it to standard error if that fails.
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.append_after_report(line).is_err() {
            self.missed += 1;
            to_standard_error(line)?;
        }
        Ok(())
    }

    fn append_after_report(&mut self, line: &[u8]) -> Result<(), Unwritten> {
        if self.missed > 0 {
            let report = format!("{} lines could not be written here; they went to standard error\n", self.missed);
            self.file.append(report.as_bytes())?;
            self.missed = 0;
        }
        self.file.append(line)
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.append(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for LogFile {
    /// To standard error too, because the file may be on a file system that is frozen until this process calls a hook.
    fn write_early(&mut self, line: &[u8]) -> bool {
        let _ = to_standard_error(line);
        false
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.file.reopen()
    }
}

#[cfg(test)]
mod tests;
