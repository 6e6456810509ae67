//! What is at the path of the database.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::ReadableDatabase;

use super::contents::Unreadable;
use super::database::{builder, catching_damage, drop_cached, refuse_foreign};
use super::overlay::Overlay;
use super::schema::{self, CURRENT_SCHEMA};
use super::{StoreError, contents};
use crate::sys::file_lock::LockFile;

/// What is at the path of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseState {
    /// No file, or an empty one. The service will create a database.
    Missing,
    /// A database of this service.
    Present {
        /// Whether it was closed cleanly. Otherwise the service will repair it.
        was_closed: bool,
        unreadable: Unreadable,
    },
}

/// Checks every page and every record of the database at `path` without changing it.
///
/// # Errors
/// Those of [`Store::open`](super::Store::open).
pub fn inspect(path: &Path) -> Result<DatabaseState, StoreError> {
    refuse_foreign(path)?;
    if !path.try_exists()? {
        return Ok(DatabaseState::Missing);
    }
    let file = LockFile::new(File::open(path)?);
    // redb locks the file that it has open.
    if !file.try_lock_shared()? {
        return Err(StoreError::InUse);
    }
    if file.metadata()?.len() == 0 {
        return Ok(DatabaseState::Missing);
    }
    drop_cached(&file)?;
    catching_damage(path, || {
        let (mut builder, is_repaired) = (builder(), Arc::new(AtomicBool::new(false)));
        let repaired = Arc::clone(&is_repaired);
        builder.set_repair_callback(move |_| repaired.store(true, Ordering::Relaxed));
        // redb repairs it and verifies it, in memory.
        let mut database = builder.create_with_backend(Overlay::new(file)?)?;
        let was_closed = database.check_integrity()? && !is_repaired.load(Ordering::Relaxed);
        let transaction = database.begin_read()?;
        let (schema, contents) = (schema::of(&transaction)?, contents::read_all(&transaction)?);
        // Older records are migrated before they are read.
        let unreadable = if schema == CURRENT_SCHEMA { contents.unreadable } else { Unreadable::default() };
        Ok(DatabaseState::Present { was_closed, unreadable })
    })
}
