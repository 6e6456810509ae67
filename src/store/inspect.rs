//! What is at the path of the database.

use std::fs::File;
use std::path::Path;

use redb::{DatabaseError, ReadTransaction, ReadableDatabase};

use super::database::{builder, catching_damage, refuse_foreign};
use super::overlay::Overlay;
use super::{StoreError, contents, schema};

/// What is at the path of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseState {
    /// No file. The service will create one.
    Missing,
    /// A database of this service.
    Good,
    /// A database that was not closed cleanly. The service will repair it.
    Unclean,
}

/// Checks the database at `path` without changing it.
///
/// # Errors
/// Those of [`Store::open`](super::Store::open).
pub fn inspect(path: &Path) -> Result<DatabaseState, StoreError> {
    refuse_foreign(path)?;
    if !path.try_exists()? {
        return Ok(DatabaseState::Missing);
    }
    catching_damage(path, || match builder().open_read_only(path) {
        // No process has it open: that is another error. So it is repaired here, but in memory.
        Err(DatabaseError::RepairAborted) => {
            let mut database = builder().create_with_backend(Overlay::new(File::open(path)?)?)?;
            database.check_integrity()?;
            check(&database.begin_read()?).map(|()| DatabaseState::Unclean)
        }
        opened => check(&opened?.begin_read()?).map(|()| DatabaseState::Good),
    })
}

fn check(transaction: &ReadTransaction) -> Result<(), StoreError> {
    schema::check(transaction)?;
    contents::read_all(transaction).map(|_| ())
}
