//! fsync(2) of directories.

use std::fs::File;
use std::io;
use std::path::Path;

/// Writes the entries of the directory to stable storage.
///
/// # Errors
/// Those of fsync(2); `EIO` if the file system has failed, in which case the entries may be lost.
pub fn directory(directory: &File) -> io::Result<()> {
    directory.sync_all()?;
    // On an XFS that has shut down, fsync(2) of a directory succeeds although its changes are lost (seen with Linux
    // 6.18). fstat(2) fails there.
    directory.metadata().map(drop)
}

/// As [`directory`], by path.
///
/// # Errors
/// Also those of open(2).
pub fn directory_at(path: &Path) -> io::Result<()> {
    directory(&File::open(path)?)
}
