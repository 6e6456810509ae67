//! The file of an open database while nothing is written to it: for a check, and for a copy.
//!
//! A write transaction that writes nothing keeps others from writing, so the file has the state after the last commit.
//! Reads go on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase};

use super::contents::{self, Contents};
use super::database::{Handle, builder, catching_damage, file_id, folder_of};
use super::overlay::Overlay;
use super::rebuild::suffixed;
use super::{StoreError, Trouble};
use crate::sys::fsinfo;

/// Free bytes beside the database that a copy leaves for the database itself.
const RESERVE: u64 = 16 << 20;

/// For the file of a copy.
const MODE: u32 = 0o600;

/// For the folder of copies.
const FOLDER_MODE: u32 = 0o700;

impl Handle {
    /// See [`super::Store::verify`].
    pub(super) fn verify(&self) -> Result<(), StoreError> {
        self.frozen(|file, contents| {
            let overlay = Overlay::new(file)?;
            self.check(contents, || Ok(builder().create_with_backend(overlay)?)).map(|_| ())
        })
    }

    /// See [`super::Store::copy`].
    pub(super) fn copy(&self) -> Result<File, StoreError> {
        self.frozen(|mut file, contents| {
            let needed = file.metadata()?.len();
            let free = File::open(folder_of(&self.path)).and_then(fsinfo::space)?.free;
            if free < needed.saturating_add(RESERVE) {
                return Err(StoreError::NoRoom { needed, free });
            }
            let mut copy = self.nameless_file()?;
            io::copy(&mut file, &mut copy)?;
            let opened = copy.try_clone()?;
            let database = self.check(contents, || Ok(builder().create_file(opened)?))?;
            let transaction = database.begin_write()?;
            super::forget_unfinished(&transaction)?;
            transaction.commit()?;
            // Now it is closed cleanly, and needs no repair later.
            drop(database);
            copy.rewind()?;
            Ok(copy)
        })
    }

    /// Runs `work` with the file and its expected contents while nothing is written to it.
    fn frozen<T>(&self, work: impl FnOnce(File, Contents) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let done = self.with(|database| {
            let transaction = database.begin_write()?;
            let contents = catching_damage(&self.path, || contents::read_all(&database.begin_read()?));
            // An error of this work says nothing about the open database, so it is not one of `with`.
            let done = contents.and_then(|contents| {
                let file = File::open(&self.path)?;
                match file_id(&file.metadata()?) {
                    id if id == self.opened => work(file, contents),
                    _ => Err(StoreError::FileLost(Trouble::Replaced)),
                }
            });
            transaction.abort()?;
            Ok(done)
        });
        done.flatten()
    }

    /// Checks that the database that `open` opens is whole, and has these contents. If its last commit is damaged, redb
    /// goes back to the one before.
    fn check(
        &self,
        expected: Contents,
        open: impl FnOnce() -> Result<Database, StoreError>,
    ) -> Result<Database, StoreError> {
        catching_damage(&self.path, || {
            let mut database = open()?;
            database.check_integrity()?;
            let found = contents::read_all(&database.begin_read()?)?;
            if found == expected { Ok(database) } else { Err(StoreError::Damaged(self.path.clone())) }
        })
    }

    /// A file in the folder for copies, on the file system that was checked for space.
    fn nameless_file(&self) -> io::Result<File> {
        make_copies_folder(&self.path)?;
        let path = copies_folder(&self.path).join("copy");
        // Left by a service that was killed just then.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(MODE).open(&path)?;
        fs::remove_file(&path)?;
        Ok(file)
    }
}

/// The folder for copies of the database at `path`. The confined service may create no other file beside it.
pub fn copies_folder(path: &Path) -> PathBuf {
    suffixed(path, ".copies")
}

/// Creates the folder for copies of the database at `path`, if it does not exist.
///
/// # Errors
/// The errno of mkdir(2).
pub fn make_copies_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(FOLDER_MODE).create(copies_folder(path)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use super::super::tests::{begin, snapshot};
    use super::super::{CommitOptions, Store};
    use super::*;

    /// A store with many complete snapshots and one that is being made.
    fn store(path: &Path) -> Store {
        let store = Store::open(path).unwrap();
        for number in 0..200 {
            let made = begin(&store, snapshot(number), None);
            store.commit(&[(&made, &CommitOptions::default())]).unwrap();
        }
        begin(&store, snapshot(500), None);
        store
    }

    #[test]
    fn check_finds_damage_that_the_open_database_has_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = store(&path);
        let before = fs::read(&path).unwrap();
        store.verify().unwrap();
        assert!(fs::read(&path).unwrap() == before, "the check changed the file");
        // One bit of each record of a page.
        let at = before.windows(5).rposition(|bytes| bytes == b"admin").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"Admin", at as u64).unwrap();
        let damaged = fs::read(&path).unwrap();
        // That page may be of an older state. Then all of them.
        if store.verify().is_ok() {
            for at in (0..before.len() - 5).filter(|at| &before[*at..][..5] == b"admin") {
                file.write_all_at(b"Admin", at as u64).unwrap();
            }
        }
        let error = store.verify().unwrap_err();
        assert!(matches!(error, StoreError::Damaged(_)), "{error}");
        assert_eq!(damaged.len(), fs::read(&path).unwrap().len());
        assert!(matches!(store.copy().unwrap_err(), StoreError::Damaged(_)), "a damaged copy is no copy");
        // What is in memory is still served.
        assert_eq!(store.snapshots().unwrap().len(), 200);
        drop(store);
        let error = Store::open(&path).map(|_| ()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged(_)), "{error}");
    }

    #[test]
    fn copy_has_the_complete_snapshots_and_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = store(&path);
        let mut bytes = Vec::new();
        store.copy().unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(fs::read_dir(copies_folder(&path)).unwrap().count(), 0, "a file is left");
        let copied = dir.path().join("copy");
        fs::write(&copied, bytes).unwrap();
        assert_eq!(super::super::inspect(&copied).unwrap(), super::super::DatabaseState::Good);
        let copy = Store::open(&copied).unwrap();
        assert_eq!((copy.unfinished().unwrap().len(), store.unfinished().unwrap().len()), (0, 1));
        let sorted = |store: &Store| {
            let mut snapshots = store.snapshots().unwrap();
            snapshots.sort_by_key(|snapshot| snapshot.sequence);
            snapshots
        };
        assert_eq!(sorted(&copy), sorted(&store));
        // The next sequence is not one that the original has given away.
        assert!(begin(&copy, snapshot(501), None).sequence > store.unfinished().unwrap()[0].sequence);
    }
}
