//! A file of lines that is rotated by size: `file`, then `file.1` (the newest), `file.2` and so on.
//!
//! No crate is used: of the two that rotate by size, file-rotate (0.8) panics in a read-only folder and drops lines
//! after losing its file, and logroller (0.1) cannot reopen its file after logrotate(8) moved it away.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::standard_error::to_standard_error;
use crate::sys::file_lock::LockFile;
use crate::sys::sync;

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
    /// Whether lines must be on the disk before another file takes the next ones.
    pub is_durable: bool,
}

/// Every append is one whole line.
#[derive(Debug)]
pub struct RotatedFile {
    path: PathBuf,
    rotation: Rotation,
    file: LockFile,
    /// The last line in the file is incomplete.
    is_torn: bool,
    /// The folder may not know the file yet, if the power fails.
    is_new: bool,
    /// The disk has not confirmed all lines. Later attempts say nothing about these: the system reports a loss once.
    is_unconfirmed: bool,
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
        Ok(Self { path, rotation, file, is_torn: false, is_new: true, is_unconfirmed: false, rotate_after: None })
    }

    /// The open file. It can be read if it is exclusive.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The last line in the file has no newline.
    pub fn set_torn(&mut self) {
        self.is_torn = true;
    }

    /// Writes to another file.
    #[cfg(test)]
    pub fn replace(&mut self, file: LockFile) -> LockFile {
        std::mem::replace(&mut self.file, file)
    }

    /// Appends `line`, after it has rotated the file if necessary and ended an incomplete line.
    ///
    /// # Errors
    /// The line is not in the file, or only a part of it.
    pub fn append(&mut self, line: &[u8]) -> Result<(), Unwritten> {
        self.rotate_if_full(line.len());
        let end: &[u8] = if self.is_torn { b"\n" } else { b"" };
        // One write, so that the service is hardly ever killed in between.
        match self.write_bytes(&[end, line].concat()) {
            Ok(()) => Ok(()),
            Err(written) => {
                let of_line = written.saturating_sub(end.len());
                if written > 0 && of_line == 0 {
                    self.is_torn = false;
                }
                // Only the newline is missing, and the next line adds it.
                let is_whole = of_line > 0 && of_line + 1 == line.len();
                if is_whole { Ok(()) } else { Err(Unwritten { written: of_line }) }
            }
        }
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// They may not be.
    pub fn sync(&mut self) -> io::Result<()> {
        let synced = self.try_sync();
        self.is_unconfirmed |= synced.is_err();
        synced
    }

    fn try_sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.is_new {
            let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
            sync::directory_at(folder.unwrap_or(Path::new(".")))?;
            self.is_new = false;
        }
        Ok(())
    }

    /// Whether lines may be lost, of this file or of one before it, since [`Self::set_confirmed`].
    pub fn is_unconfirmed(&self) -> bool {
        self.is_unconfirmed
    }

    /// A line says that lines may be lost.
    pub fn set_confirmed(&mut self) {
        self.is_unconfirmed = false;
    }

    /// Renames the file to `.1`, and continues with an empty one. Keeps all older files.
    ///
    /// # Errors
    /// The file stays in use.
    pub fn set_aside(&mut self) -> io::Result<()> {
        self.rotate(u32::MAX)
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
        if let Err(error) = self.rotate(self.rotation.max_files.max(1)) {
            self.rotate_after = Some(Instant::now() + ROTATE_RETRY);
            let log = self.path.display();
            let warning = format!("coriolis-ovm-exporter: cannot rotate {log}, which keeps growing: {error}\n");
            let _ = to_standard_error(warning.as_bytes());
        }
    }

    /// Renames the file to `.1`, and continues with a new one. Keeps `max_files` older ones. If a step fails, no file is
    /// lost, and the old one stays in use.
    fn rotate(&mut self, max_files: u32) -> io::Result<()> {
        if !self.is_at(&self.path)? {
            // Another program has renamed it.
            self.continue_with(open(&self.path, self.rotation)?);
            return Ok(());
        }
        // The new file first, so that a full disk changes nothing.
        let fresh_path = self.beside("new");
        let fresh = open(&fresh_path, self.rotation)?;
        let old = |n: u32| self.beside(&n.to_string());
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
        let mut excess = max_files.checked_add(1);
        while let Some(n) = excess.filter(|n| fs::remove_file(old(*n)).is_ok()) {
            excess = n.checked_add(1);
        }
        self.continue_with(fresh);
        Ok(())
    }

    fn continue_with(&mut self, file: LockFile) {
        if self.rotation.is_durable
            && let Err(error) = self.file.sync_data()
        {
            tracing::error!(path = %self.path.display(), %error, "cannot write the rotated file to the disk");
            self.is_unconfirmed = true;
        }
        self.file = file;
        (self.is_torn, self.is_new) = (false, true);
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
            match (&*self.file).write(&bytes[done..]) {
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
fn open(path: &Path, rotation: Rotation) -> io::Result<LockFile> {
    let with_path = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if let Ok(found) = fs::symlink_metadata(path) {
        regular(found.file_type()).map_err(with_path)?;
    }
    // The opened file is checked again, because the path may have changed. Opening follows no link and does not block.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let mut options = OpenOptions::new();
    options.create(true).append(true).read(rotation.is_exclusive).mode(rotation.mode).custom_flags(flags);
    let file = LockFile::new(options.open(path).map_err(with_path)?);
    regular(file.metadata().map_err(with_path)?.file_type()).map_err(with_path)?;
    if rotation.is_exclusive {
        match file.try_lock() {
            Ok(true) => {}
            Ok(false) => {
                let error = io::Error::new(ErrorKind::ResourceBusy, "is in use by another process");
                return Err(with_path(error));
            }
            // A file system without locks.
            Err(error) => {
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
