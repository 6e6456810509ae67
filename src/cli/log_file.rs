//! A log file that is rotated by size: `log`, then `log.1` (the newest), `log.2` and so on.
//!
//! No crate is used: of the two that rotate by size, file-rotate (0.8) panics in a read-only folder and drops lines
//! after losing its file, and logroller (0.1) cannot reopen its file after logrotate(8) moved it away.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::log_queue::Sink;

/// How long a log that could not be rotated grows until the next attempt.
const ROTATE_RETRY: Duration = Duration::from_secs(60);

/// Every write is one or more whole lines.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    /// In bytes; 0 disables rotation.
    max_size: u64,
    /// Of new files.
    mode: u32,
    /// Rotated files that are kept, at least one.
    max_files: u32,
    file: File,
    /// The last line in the file is incomplete.
    torn: bool,
    /// Lines that went to standard error since the last successful write.
    missed: u64,
    /// The time of the next attempt to rotate.
    rotate_after: Option<Instant>,
}

impl LogFile {
    /// Opens or creates (with mode 0640) the file at `path` for appending. It is rotated before it exceeds `max_size`
    /// bytes (0: never), and `max_files` rotated files are kept.
    ///
    /// # Errors
    /// The file is not a regular file, or cannot be opened.
    pub fn open(path: &Path, max_size: u64, max_files: u32) -> io::Result<Self> {
        Self::open_with_mode(path, max_size, max_files, 0o640)
    }

    /// Like [`LogFile::open`] with another mode.
    pub fn open_with_mode(path: &Path, max_size: u64, max_files: u32, mode: u32) -> io::Result<Self> {
        Ok(Self {
            mode,
            path: path.to_owned(),
            max_size,
            max_files: max_files.max(1),
            file: open(path, mode)?,
            torn: false,
            missed: 0,
            rotate_after: None,
        })
    }

    /// Appends `line`, or writes it to standard error if that fails.
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        // Checked for every line, because others may truncate the file (logrotate's copytruncate).
        let size = self.file.metadata().map_or(0, |metadata| metadata.len());
        let is_full = self.max_size > 0 && size > 0 && size.saturating_add(line.len() as u64) > self.max_size;
        if is_full && self.rotate_after.is_none_or(|after| Instant::now() >= after) {
            self.rotate_after = None;
            if let Err(error) = self.rotate() {
                self.rotate_after = Some(Instant::now() + ROTATE_RETRY);
                let log = self.path.display();
                let warning = format!("coriolis-ovm-exporter: cannot rotate {log}, which keeps growing: {error}\n");
                let _ = to_standard_error(warning.as_bytes());
            }
        }
        if self.write_line(line).is_err() {
            self.missed += 1;
            to_standard_error(line)?;
        }
        Ok(())
    }

    /// Renames the file to `.1`, and continues with a new one. If a step fails, no file is lost, and the old one stays
    /// in use.
    fn rotate(&mut self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        let same = |there: fs::Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        if !fs::symlink_metadata(&self.path).is_ok_and(same) {
            // Another program has renamed it.
            self.file = open(&self.path, self.mode)?;
            return Ok(());
        }
        // The new file first, so that a full disk changes nothing.
        let fresh_path = self.beside("new");
        let fresh = open(&fresh_path, self.mode)?;
        let old = |n: u32| self.beside(&n.to_string());
        // Only up to the first gap, which a failed attempt may have left: then no file has to be deleted.
        let gap = (1..self.max_files).find(|n| fs::symlink_metadata(old(*n)).is_err()).unwrap_or(self.max_files);
        for n in (1..gap).rev() {
            fs::rename(old(n), old(n + 1))?;
        }
        fs::rename(&self.path, old(1))?;
        if let Err(error) = fs::rename(&fresh_path, &self.path) {
            let _ = fs::rename(old(1), &self.path);
            return Err(error);
        }
        // Older files: `max_files` may have been larger before.
        for n in self.max_files + 1.. {
            if fs::remove_file(old(n)).is_err() {
                break;
            }
        }
        self.file = fresh;
        self.torn = false;
        Ok(())
    }

    /// The path with `.ending`.
    fn beside(&self, ending: &str) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(".");
        path.push(ending);
        path.into()
    }

    /// Writes a line, after the end of an incomplete one.
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.write_bytes(b"\n")?;
        }
        if self.missed > 0 {
            let report = format!("{} lines could not be written here; they went to standard error\n", self.missed);
            self.write_bytes(report.as_bytes())?;
            self.missed = 0;
        }
        self.write_bytes(line)
    }

    /// Records whether writing ended inside a line, which [`Write::write_all`] does not report.
    fn write_bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.torn = !bytes.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
    /// Reopens the file by its name: logrotate(8) and operators rename logs.
    fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path, self.mode)?;
        self.torn = false;
        self.rotate_after = None;
        Ok(())
    }
}

/// Writes to standard error without blocking: a full pipe must not block the log file, which may be writable again.
fn to_standard_error(line: &[u8]) -> io::Result<()> {
    let mut stderr = io::stderr();
    for piece in line.chunks(nix::libc::PIPE_BUF) {
        let mut writable = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut writable, PollTimeout::ZERO)? == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        stderr.write_all(piece)?;
    }
    Ok(())
}

/// Opens a log file. An error names the path.
fn open(path: &Path, mode: u32) -> io::Result<File> {
    let with_path = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if let Ok(found) = fs::symlink_metadata(path) {
        regular(found.file_type()).map_err(with_path)?;
    }
    // The opened file is checked again, because the path may have changed. Opening follows no link and does not block.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file =
        OpenOptions::new().create(true).append(true).mode(mode).custom_flags(flags).open(path).map_err(with_path)?;
    regular(file.metadata().map_err(with_path)?.file_type()).map_err(with_path)?;
    Ok(file)
}

/// A link could lead to any file of the host, and the service writes as root.
fn regular(kind: FileType) -> io::Result<()> {
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_symlink() => "is a symbolic link; name its target",
        kind if kind.is_dir() => "is a folder; name a file in it",
        kind if kind.is_fifo() => "is a pipe; name a file",
        _ => "is not a regular file; leave log_file empty for standard error",
    };
    Err(io::Error::new(ErrorKind::InvalidInput, what))
}

#[cfg(test)]
mod tests;
