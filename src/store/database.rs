//! The redb file: opening, migration, reopening after a failure. Panics of redb are caught here.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use redb::{Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, WriteTransaction};

use super::{StoreError, Trouble, schema};
use crate::sys::{fsinfo, page_cache, sync};

/// Memory for cached pages, bytes. A snapshot takes a few KiB in the database.
const CACHE_BYTES: usize = 8 << 20;

/// With less than this free, bytes, the next write may fail.
const MIN_FREE_BYTES: u64 = 1 << 20;

/// [`Builder::create`] or [`Builder::open`].
type OpenFn = fn(&Builder, PathBuf) -> Result<Database, DatabaseError>;

/// An open database that survives a full disk.
pub(super) struct Handle {
    pub(super) path: PathBuf,
    /// `None` after a failure: after a failed write, redb refuses all writes until it is reopened, even if there is
    /// space again.
    database: RwLock<Option<Database>>,
    /// Device and inode of the open file. Another file at its path is another database.
    pub(super) opened: (u64, u64),
    failed: Mutex<Option<String>>,
}

impl Handle {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let database = opened(path, Builder::create)?;
        let (database, opened) = (RwLock::new(Some(database)), file_id(&fs::metadata(path)?));
        let handle = Self { path: path.to_owned(), database, opened, failed: Mutex::default() };
        handle.write(schema::migrate)?;
        // Sync the folder, so that a new file survives a crash.
        sync::directory_at(folder_of(path))?;
        Ok(handle)
    }

    /// A handle of `database`, whose bytes are elsewhere. The file at `path` stands for them where the file is checked.
    #[cfg(test)]
    pub(super) fn over(database: Database, path: &Path) -> Result<Self, StoreError> {
        let (database, opened) = (RwLock::new(Some(database)), file_id(&fs::metadata(path)?));
        let handle = Self { path: path.to_owned(), database, opened, failed: Mutex::default() };
        handle.write(schema::migrate)?;
        Ok(handle)
    }

    /// Runs `work` in a transaction. When this returns, the transaction is on stable storage.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let written = self.with(|database| {
            let transaction = database.begin_write()?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        });
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match &written {
            Ok(_) => *failed = None,
            Err(error) if error.needs_reopening() => *failed = Some(error.to_string()),
            // The work itself refused. That says nothing about the disk.
            Err(_) => {}
        }
        drop(failed);
        written
    }

    /// What is wrong with the file or its disk. The open file stays usable, so only this check notices.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(Trouble::Gone),
            Err(error) => return Some(Trouble::Unreadable(error.to_string())),
            Ok(metadata) if file_id(&metadata) != self.opened => return Some(Trouble::Replaced),
            Ok(metadata) if metadata.len() == 0 => return Some(Trouble::Emptied),
            Ok(_) => {}
        }
        match File::open(folder_of(&self.path)).and_then(fsinfo::space) {
            Err(error) => return Some(Trouble::Unreadable(error.to_string())),
            Ok(space) if space.is_read_only => return Some(Trouble::ReadOnly),
            Ok(space) if space.total > 0 && space.free < MIN_FREE_BYTES => return Some(Trouble::Full),
            Ok(_) => {}
        }
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().map(|cause| Trouble::WriteFailed(cause.clone()))
    }

    /// Runs `work` on one consistent state of the database.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.with(|database| work(&database.begin_read()?))
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.reopen_if_closed()?;
        let outcome = {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let Some(database) = database.as_ref() else { return Err(StoreError::Closed) };
            // The request fails; the service goes on.
            catching_damage(&self.path, || work(database))
        };
        if outcome.as_ref().err().is_some_and(StoreError::needs_reopening) {
            *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        outcome
    }

    fn reopen_if_closed(&self) -> Result<(), StoreError> {
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        if let Some(trouble) = self.trouble().filter(Trouble::loses_writes) {
            return Err(StoreError::FileLost(trouble));
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            // The file existed before: do not create an empty one in its place.
            *database = Some(opened(&self.path, Builder::open)?);
        }
        Ok(())
    }
}

/// The folder of the database at `path`.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Identifies a file on this host.
pub(super) fn file_id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Opens the database at `path` and checks its integrity.
fn opened(path: &Path, open: OpenFn) -> Result<Database, StoreError> {
    catching_damage(path, || {
        refuse_foreign(path)?;
        if path.try_exists()? {
            drop_cached(&File::open(path)?)?;
        }
        let mut database = open(&builder(), path.to_owned())?;
        // Damaged data pages do not keep a database from opening. Checked now, they do not fail a request later.
        if !database.check_integrity()? {
            tracing::warn!(path = %path.display(), "the database was not closed cleanly and has been repaired");
        }
        Ok(database)
    })
}

/// Makes the next reads of `file` come from the disk. What is in the page cache may no longer be on the disk.
pub(super) fn drop_cached(file: &File) -> io::Result<()> {
    // Pages that are not on the disk yet cannot be dropped.
    file.sync_data()?;
    page_cache::drop_cached(file, &(0..file.metadata()?.len()))
}

pub(super) fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Runs `work` on the database at `path`. All that shows damage becomes [`StoreError::Damaged`].
pub(super) fn catching_damage<T>(path: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // A damaged page makes redb panic.
    let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(StoreError::Damaged(path.to_owned())));
    done.map_err(|error| error.into_damage(path))
}

/// Every redb file begins with this.
const MAGIC: &[u8] = b"redb";

/// Refuses a path that is not a regular file, and a file that is not a redb database. A database of the original
/// exporter (Bolt) has the magic number 0xED0CDAED after the 16 bytes of the first page's header, in the machine's byte
/// order.
pub(super) fn refuse_foreign(path: &Path) -> Result<(), StoreError> {
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() => return Err(StoreError::NotADatabase(path.to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let mut head = Vec::new();
    File::open(path)?.take(20).read_to_end(&mut head)?;
    if head.get(16..) == Some(&0xED0C_DAED_u32.to_ne_bytes()) {
        Err(StoreError::Bolt(path.to_owned()))
    } else if head.is_empty() || head.starts_with(MAGIC) {
        Ok(())
    } else {
        Err(StoreError::NotADatabase(path.to_owned()))
    }
}
