//! What the exporters of a pool share in a repository besides the snapshots: `CoriolisSnapshots/.pool/`.

use std::ffi::OsStr;
use std::io::{self, Write};

use super::SNAPSHOTS;
use crate::sys::folder::Folder;

/// The folder in the folder of all snapshots.
pub(super) const NAME: &str = ".pool";

/// Ends the name of a document that is being written.
const UNFINISHED: &str = ".new";

/// The folder `name` for a kind of document. It is created if it is missing.
///
/// # Errors
/// Those of mkdirat(2) and openat(2); [`UnexpectedEntry`](crate::sys::folder::UnexpectedEntry) for a link.
pub(super) fn make_folder(root: &Folder, name: &str) -> io::Result<Folder> {
    make_below(&make_below(&make_below(root, SNAPSHOTS)?, NAME)?, name)
}

/// As [`make_folder`]. `None`: it does not exist.
pub(super) fn folder(root: &Folder, name: &str) -> io::Result<Option<Folder>> {
    let found = root.folder(SNAPSHOTS).and_then(|snapshots| snapshots.folder(NAME)?.folder(name));
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// The folder `name` in `parent`. It is created if it is missing.
pub(super) fn make_below(parent: &Folder, name: &str) -> io::Result<Folder> {
    match parent.folder(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        folder => return folder,
    }
    match parent.create_folder(name, 0o750) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let folder = parent.folder(name)?;
    // Its entry, so that what is written into it survives a loss of power.
    parent.sync()?;
    Ok(folder)
}

/// Writes a document to stable storage. Readers see all of it, or the former one.
pub(super) fn write(folder: &Folder, name: &str, text: &[u8]) -> io::Result<()> {
    let unfinished = format!("{name}.{}{UNFINISHED}", uuid::Uuid::new_v4());
    let written = folder.create_file(&unfinished, 0o640).and_then(|mut file| {
        file.write_all(text)?;
        file.sync_all()?;
        folder.rename(&unfinished, name)?;
        folder.sync()
    });
    if written.is_err() {
        let _ = folder.unlink(&unfinished);
    }
    written
}

/// Removes a document, if it exists, on stable storage.
pub(super) fn remove(folder: &Folder, name: impl AsRef<OsStr>) -> io::Result<()> {
    match folder.unlink(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| folder.sync()),
    }
}
