//! A log file that is rotated by size: `log`, then `log.1` (the newest), `log.2` and so on.
//!
//! Why not a crate: of the two that rotate by size, file-rotate (0.8) panics where a folder is not
//! writable and drops lines once it has lost its file, and logroller (0.1) cannot open its file
//! again after logrotate(8) took it away. Neither may take the service down, or lose a line.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::log_queue::Sink;

/// How long the log grows on after it could not be rotated, until that is tried again.
const ROTATE_AGAIN: Duration = Duration::from_secs(60);

/// A log file. Every write is one whole line, or several.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    /// Bytes; 0 is "never rotated".
    max_size: u64,
    /// Of files that it makes.
    mode: u32,
    /// Rotated files that are kept, at least one.
    max_files: u32,
    file: File,
    /// The last line in the file has no end.
    torn: bool,
    /// Lines that had to go to standard error since the last one that did not.
    missed: u64,
    /// Not to be rotated before this.
    rotate_after: Option<Instant>,
}

impl LogFile {
    /// Opens the file at `path`, to be written at its end; makes it, with mode 0640, where it is not
    /// there. It is rotated before it passes `max_size` bytes (0: never), and `max_files` old ones
    /// are kept beside it.
    ///
    /// # Errors
    /// Where it is not a regular file, or cannot be opened.
    pub fn open(path: &Path, max_size: u64, max_files: u32) -> io::Result<Self> {
        Self::open_with_mode(path, max_size, max_files, 0o640)
    }

    /// The same with another mode.
    ///
    /// # Errors
    /// As [`LogFile::open`].
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

    /// Appends `line`. Where that fails, the line goes to standard error.
    ///
    /// # Errors
    /// Where the line could not be written to standard error either.
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        // Asked each time, for others may cut the file (logrotate's copytruncate).
        let size = self.file.metadata().map_or(0, |metadata| metadata.len());
        let is_full = self.max_size > 0 && size > 0 && size.saturating_add(line.len() as u64) > self.max_size;
        if is_full && self.rotate_after.is_none_or(|after| Instant::now() >= after) {
            self.rotate_after = None;
            if let Err(error) = self.rotate() {
                self.rotate_after = Some(Instant::now() + ROTATE_AGAIN);
                let log = self.path.display();
                let told = format!("coriolis-ovm-exporter: {log} cannot be rotated, and grows on: {error}\n");
                let _ = to_standard_error(told.as_bytes());
            }
        }
        if self.write_line(line).is_err() {
            self.missed += 1;
            to_standard_error(line)?;
        }
        Ok(())
    }

    /// Gives the file the name `.1`, and goes on with a new one. A step that fails leaves every file
    /// there, and the old one in use.
    fn rotate(&mut self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        let same = |there: fs::Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        if !fs::symlink_metadata(&self.path).is_ok_and(same) {
            // Somebody else moved it away, and will have a name for it.
            self.file = open(&self.path, self.mode)?;
            return Ok(());
        }
        // First the new file, so that a full disk changes nothing.
        let fresh_path = self.beside("new");
        let fresh = open(&fresh_path, self.mode)?;
        let old = |n: u32| self.beside(&n.to_string());
        // Up to the first gap: where the last attempt ended half-way, none is pushed out for it.
        let gap = (1..self.max_files).find(|n| fs::symlink_metadata(old(*n)).is_err()).unwrap_or(self.max_files);
        for n in (1..gap).rev() {
            fs::rename(old(n), old(n + 1))?;
        }
        fs::rename(&self.path, old(1))?;
        if let Err(error) = fs::rename(&fresh_path, &self.path) {
            let _ = fs::rename(old(1), &self.path);
            return Err(error);
        }
        // Those of a time when more were kept.
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

    /// Writes one line, and before it what the last one failed to.
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.write_bytes(b"\n")?;
        }
        if self.missed > 0 {
            let told = format!("{} lines could not be written here; they went to standard error\n", self.missed);
            self.write_bytes(told.as_bytes())?;
            self.missed = 0;
        }
        self.write_bytes(line)
    }

    /// Notes whether it ended within a line, which [`Write::write_all`] does not tell.
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
    /// Opens the file by its name again: logrotate(8) and operators move logs away.
    fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path, self.mode)?;
        self.torn = false;
        self.rotate_after = None;
        Ok(())
    }
}

/// Writes to standard error as far as that takes it at once: a pipe that nobody reads must not block the log
/// file, which may be writable again.
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

/// Opens a log file; says which path it is that cannot be opened, and why.
fn open(path: &Path, mode: u32) -> io::Result<File> {
    let told = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if let Ok(found) = fs::symlink_metadata(path) {
        regular(found.file_type()).map_err(told)?;
    }
    // And again for what was opened: neither followed, nor waited for, should it change meanwhile.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().create(true).append(true).mode(mode).custom_flags(flags).open(path).map_err(told)?;
    regular(file.metadata().map_err(told)?.file_type()).map_err(told)?;
    Ok(file)
}

/// A link could be made to point at any file of the host, and the service writes as root.
fn regular(kind: FileType) -> io::Result<()> {
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_symlink() => "is a symbolic link; name the file that it leads to",
        kind if kind.is_dir() => "is a folder; name a file in it",
        kind if kind.is_fifo() => "is a pipe; name a file",
        _ => "is no regular file; leave log_file empty for standard error",
    };
    Err(io::Error::new(ErrorKind::InvalidInput, what))
}

#[cfg(test)]
mod tests;
