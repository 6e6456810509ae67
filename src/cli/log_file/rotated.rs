//! A file of lines that is rotated by size: `file`, then `file.1` (the newest), `file.2` and so on.
//!
//! No crate is used: of the two that rotate by size, file-rotate (0.8) panics in a read-only folder and drops lines
//! after losing its file, and logroller (0.1) cannot reopen its file after logrotate(8) moved it away.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::standard_error::to_standard_error;

/// How long a file that could not be rotated grows until the next attempt.
const ROTATE_RETRY: Duration = Duration::from_secs(60);

/// How files are opened and rotated.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// Files are rotated before they exceed this, in bytes; 0 disables rotation.
    pub max_size: u64,
    /// Rotated files that are kept, at least one.
    pub max_files: u32,
    /// Of new files.
    pub mode: u32,
    /// Whether only one process may write the file.
    pub is_exclusive: bool,
}

/// Every append is one whole line.
#[derive(Debug)]
pub struct RotatedFile {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    /// The last line in the file is incomplete.
    is_torn: bool,
    /// The time of the next attempt to rotate.
    pub(super) rotate_after: Option<Instant>,
}

/// A line that was not written completely.
#[derive(Debug)]
pub struct Unwritten {
    /// Bytes of it that are in the file.
    pub written: usize,
}

impl RotatedFile {
    /// Opens or creates the file at `path` for appending.
    ///
    /// # Errors
    /// The file is not a regular file, cannot be opened, or belongs to another process.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let file = open(path, rotation)?;
        let path = path.to_owned();
        Ok(Self { path, rotation, file, is_torn: false, rotate_after: None })
    }

    /// The open file. It can be read if it is exclusive.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The last line in the file has no newline.
    pub fn set_torn(&mut self) {
        self.is_torn = true;
    }

    /// Appends `line`, after it has rotated the file if necessary and ended an incomplete line.
    ///
    /// # Errors
    /// The line is not in the file, or only a part of it.
    pub fn append(&mut self, line: &[u8]) -> Result<(), Unwritten> {
        self.rotate_if_full(line.len());
        if self.is_torn {
            self.write_bytes(b"\n").map_err(|_| Unwritten { written: 0 })?;
        }
        match self.write_bytes(line) {
            Ok(()) => Ok(()),
            // Only the newline is missing, and the next line adds it.
            Err(written) if written > 0 && written + 1 == line.len() => Ok(()),
            Err(written) => Err(Unwritten { written }),
        }
    }

    fn rotate_if_full(&mut self, more: usize) {
        // Checked for every line, because others may truncate the file (logrotate's copytruncate).
        let size = self.file.metadata().map_or(0, |metadata| metadata.len());
        let max_size = self.rotation.max_size;
        let is_full = max_size > 0 && size > 0 && size.saturating_add(more as u64) > max_size;
        if !is_full || self.rotate_after.is_some_and(|after| Instant::now() < after) {
            return;
        }
        self.rotate_after = None;
        if let Err(error) = self.rotate() {
            self.rotate_after = Some(Instant::now() + ROTATE_RETRY);
            let log = self.path.display();
            let warning = format!("coriolis-ovm-exporter: cannot rotate {log}, which keeps growing: {error}\n");
            let _ = to_standard_error(warning.as_bytes());
        }
    }

    /// Renames the file to `.1`, and continues with a new one. If a step fails, no file is lost, and the old one stays
    /// in use.
    fn rotate(&mut self) -> io::Result<()> {
        if !self.is_at(&self.path)? {
            // Another program has renamed it.
            self.continue_with(open(&self.path, self.rotation)?);
            return Ok(());
        }
        // The new file first, so that a full disk changes nothing.
        let fresh_path = self.beside("new");
        let fresh = open(&fresh_path, self.rotation)?;
        let (old, max_files) = (|n: u32| self.beside(&n.to_string()), self.rotation.max_files.max(1));
        // Only up to the first gap, which a failed attempt may have left: then no file has to be deleted.
        let gap = (1..max_files).find(|n| fs::symlink_metadata(old(*n)).is_err()).unwrap_or(max_files);
        for n in (1..gap).rev() {
            fs::rename(old(n), old(n + 1))?;
        }
        fs::rename(&self.path, old(1))?;
        if let Err(error) = fs::rename(&fresh_path, &self.path) {
            let _ = fs::rename(old(1), &self.path);
            return Err(error);
        }
        // Older files: `max_files` may have been larger before.
        for n in max_files + 1.. {
            if fs::remove_file(old(n)).is_err() {
                break;
            }
        }
        self.continue_with(fresh);
        Ok(())
    }

    fn continue_with(&mut self, file: File) {
        self.file = file;
        self.is_torn = false;
    }

    /// Whether the open file is the one at `path`.
    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        let same = |there: fs::Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        Ok(fs::symlink_metadata(path).is_ok_and(same))
    }

    /// Reopens the file by its name: logrotate(8) and operators rename logs.
    ///
    /// # Errors
    /// It cannot be opened; the old one stays in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.rotate_after = None;
        // An incomplete line at its end, and the lock, remain.
        if !self.is_at(&self.path)? {
            self.continue_with(open(&self.path, self.rotation)?);
        }
        Ok(())
    }

    /// The path with `.ending`.
    fn beside(&self, ending: &str) -> PathBuf {
        beside(&self.path, ending)
    }

    /// Writes `bytes`. After an error it returns how many are in the file, which [`Write::write_all`] does not report.
    fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write(&bytes[done..]) {
                Ok(0) => return Err(done),
                Ok(written) => {
                    done += written;
                    self.is_torn = done < bytes.len();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(done),
            }
        }
        Ok(())
    }
}

/// The path with `.ending`.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(".");
    path.push(ending);
    path.into()
}

/// Opens a file. An error names the path.
fn open(path: &Path, rotation: Rotation) -> io::Result<File> {
    let with_path = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if let Ok(found) = fs::symlink_metadata(path) {
        regular(found.file_type()).map_err(with_path)?;
    }
    // The opened file is checked again, because the path may have changed. Opening follows no link and does not block.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let mut options = OpenOptions::new();
    options.create(true).append(true).read(rotation.is_exclusive).mode(rotation.mode).custom_flags(flags);
    let file = options.open(path).map_err(with_path)?;
    regular(file.metadata().map_err(with_path)?.file_type()).map_err(with_path)?;
    if rotation.is_exclusive {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let error = io::Error::new(ErrorKind::ResourceBusy, "is in use by another process");
                return Err(with_path(error));
            }
            // A file system without locks.
            Err(TryLockError::Error(error)) => {
                tracing::warn!(path = %path.display(), %error, "cannot lock the file: no other process may write it");
            }
        }
    }
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
