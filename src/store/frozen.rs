//! A copy of the file of an open database, as the last commit left it: for a check, and for a backup.
//!
//! A write transaction that writes nothing keeps others from writing while the file is copied. All else is done with the
//! copy, when writes go on.

use std::fs::{DirBuilder, File};
use std::io::{self, Seek};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase};

use super::contents::{self, Contents, Unreadable};
use super::database::{Handle, builder, catching_damage, drop_cached, file_id, folder_of};
use super::rebuild::suffixed;
use super::{StoreError, Trouble};
use crate::sys::fsinfo;

/// Free bytes beside the database that a copy leaves for the database itself.
const RESERVE: u64 = 16 << 20;

/// For the folder of copies.
const FOLDER_MODE: u32 = 0o700;

impl Handle {
    /// See [`super::Store::verify`].
    pub(super) fn verify(&self) -> Result<Unreadable, StoreError> {
        let (copy, expected) = self.frozen_copy()?;
        self.check(copy, expected, |_| Ok(()))
    }

    /// See [`super::Store::copy`].
    pub(super) fn copy(&self) -> Result<(File, Unreadable), StoreError> {
        let (mut copy, expected) = self.frozen_copy()?;
        let unreadable = self.check(copy.try_clone()?, expected, |database| {
            let transaction = database.begin_write()?;
            super::forget_unfinished(&transaction)?;
            // Until the copy is used, some of these end, and must not be valid again.
            super::tickets::forget_all(&transaction)?;
            super::sessions::forget_renewable(&transaction)?;
            // The original delivers them.
            super::events::forget_all(&transaction)?;
            Ok(transaction.commit()?)
        })?;
        copy.rewind()?;
        Ok((copy, unreadable))
    }

    /// A copy of the file, without a name, and what the open database contains at that moment. Writes wait only while
    /// the file is copied.
    fn frozen_copy(&self) -> Result<(File, Contents), StoreError> {
        let done = self.with(|database| {
            let transaction = database.begin_write()?;
            // The pages of this state are kept as long as it is read.
            let reader = database.begin_read()?;
            // An error of the copy says nothing about the open database, so it is not one of `with`.
            let copied = self.copy_file();
            transaction.abort()?;
            let contents = catching_damage(&self.path, || contents::read_all(&reader));
            Ok(copied.and_then(|copy| Ok((copy, contents?))))
        });
        done.flatten()
    }

    fn copy_file(&self) -> Result<File, StoreError> {
        let mut file = File::open(&self.path)?;
        let metadata = file.metadata()?;
        if file_id(&metadata) != self.opened {
            return Err(StoreError::FileLost(Trouble::Replaced));
        }
        let (needed, free) = (metadata.len(), self.free()?);
        if free < needed.saturating_add(RESERVE) {
            return Err(StoreError::NoRoom { needed, free });
        }
        drop_cached(&file)?;
        make_copies_folder(&self.path)?;
        let copied = tempfile::tempfile_in(copies_folder(&self.path)).and_then(|mut copy| {
            io::copy(&mut file, &mut copy)?;
            Ok(copy)
        });
        copied.map_err(|error| self.full(error, needed))
    }

    /// Checks that the copy is whole and has these contents, then does `work` with it. If its last commit is damaged, redb
    /// goes back to the one before, which has others. At the end the copy is closed cleanly, and needs no repair later.
    fn check(
        &self,
        copy: File,
        expected: Contents,
        work: impl FnOnce(&Database) -> Result<(), StoreError>,
    ) -> Result<Unreadable, StoreError> {
        let needed = copy.metadata()?.len();
        let checked = catching_damage(&self.path, || {
            let mut database = builder().create_file(copy)?;
            database.check_integrity()?;
            if contents::read_all(&database.begin_read()?)? != expected {
                return Err(StoreError::Damaged(self.path.clone()));
            }
            work(&database)
        });
        match checked {
            Ok(()) => Ok(expected.unreadable),
            Err(StoreError::Io(error)) => Err(self.full(error, needed)),
            Err(error) => Err(error),
        }
    }

    /// Free bytes beside the database.
    fn free(&self) -> io::Result<u64> {
        Ok(File::open(folder_of(&self.path)).and_then(fsinfo::space)?.free)
    }

    /// The error of a copy: others may have used the space since it was checked.
    fn full(&self, error: io::Error, needed: u64) -> StoreError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StoreError::NoRoom { needed, free: self.free().unwrap_or_default() }
            }
            _ => StoreError::Io(error),
        }
    }
}

#[cfg(test)]
impl super::Store {
    /// Does `work` while all writes wait.
    pub(crate) fn while_writes_wait<T>(&self, work: impl FnOnce() -> T) -> T {
        let done = self.handle.with(|database| {
            let transaction = database.begin_write()?;
            let done = work();
            transaction.abort()?;
            Ok(done)
        });
        done.unwrap()
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
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use super::super::tests::{begin, snapshot};
    use super::super::{
        Clock, DatabaseState, NewEvent, Revocation, SNAPSHOTS, Store, Ticket, TicketLimits, TicketSource, inspect,
    };
    use super::*;
    use crate::model::{Described, SnapshotId};

    /// A store with many complete snapshots and one that is being made.
    fn store(path: &Path) -> Store {
        let store = Store::open(path).unwrap();
        for number in 0..200 {
            let made = begin(&store, snapshot(number), None);
            store.commit(&[(Described::alone(made.clone()), None)]).unwrap();
        }
        begin(&store, snapshot(500), None);
        store
    }

    /// A database that was closed cleanly, and whose records can all be read.
    fn good() -> DatabaseState {
        DatabaseState::Present { was_closed: true, unreadable: Unreadable::default() }
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
    fn copy_has_the_revocations_and_nothing_that_may_end_before_its_use() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir.path().join("db"));
        let target = ("vm".to_owned(), SnapshotId::from_u128(7), "a.img".to_owned());
        let ticket = Ticket::new(("ann".to_owned(), TicketSource::LogIn), target, (true, false), (0, 1000));
        store.tickets().add(&[1; 32], &ticket, TicketLimits { of_user: 8, of_all: 8 }).unwrap();
        let event = NewEvent { webhooks: vec!["a".to_owned()], body: b"{}".to_vec(), max_queued: 1 };
        store.events().add(&event).unwrap();
        let (sessions, clock) = (store.sessions(), Clock { now: 1, latest_ms: 1999 });
        sessions.begin(1, "ann", [1; 32], (1000, 5000), 1).unwrap();
        sessions.revoke(Revocation::LogIn { id: 2, user: "ben", until: 5000 }, clock).unwrap();
        sessions.revoke(Revocation::Before { user: Some("carl"), before_ms: 1000 }, clock).unwrap();
        let mut bytes = Vec::new();
        store.copy().unwrap().0.read_to_end(&mut bytes).unwrap();
        let copied = dir.path().join("copy");
        fs::write(&copied, bytes).unwrap();
        let copy = Store::open(&copied).unwrap();
        let counts = |of: &Store| {
            let queued = of.events().waiting("a", &BTreeMap::new()).unwrap().queued;
            (of.tickets().all().unwrap().len(), of.sessions().renewable(1).unwrap(), queued)
        };
        assert_eq!((counts(&store), counts(&copy)), ((1, 1, 1), (0, 0, 0)));
        assert_eq!(copy.sessions().revoked(1).unwrap(), sessions.revoked(1).unwrap());
        assert_eq!(copy.snapshots().unwrap().len(), store.snapshots().unwrap().len());
    }

    #[test]
    fn copy_has_the_complete_snapshots_and_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = store(&path);
        let mut bytes = Vec::new();
        store.copy().unwrap().0.read_to_end(&mut bytes).unwrap();
        assert_eq!(fs::read_dir(copies_folder(&path)).unwrap().count(), 0, "a file is left");
        let copied = dir.path().join("copy");
        fs::write(&copied, bytes).unwrap();
        assert_eq!(inspect(&copied).unwrap(), good());
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

    #[test]
    fn record_that_cannot_be_read_is_copied_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir.path().join("db"));
        let spoil = |transaction: &redb::WriteTransaction| {
            transaction.open_table(SNAPSHOTS)?.insert(7, [0xff; 3].as_slice())?;
            Ok(())
        };
        store.handle.write(spoil).unwrap();
        let found = store.verify().unwrap();
        assert!(found.count == 1 && found.first.contains("00000007 cannot be read"), "{found:?}");
        assert_eq!(store.unreadable().unwrap(), found);
        let (mut copy, unreadable) = store.copy().unwrap();
        assert_eq!(unreadable, found);
        let (path, mut bytes) = (dir.path().join("copy"), Vec::new());
        copy.read_to_end(&mut bytes).unwrap();
        fs::write(&path, bytes).unwrap();
        assert_eq!(inspect(&path).unwrap(), DatabaseState::Present { was_closed: true, unreadable: found });
        let copy = Store::open(&path).unwrap();
        let kept = copy
            .handle
            .read(|transaction| Ok(transaction.open_table(SNAPSHOTS)?.get(7)?.map(|bytes| bytes.value().to_vec())));
        assert_eq!(kept.unwrap(), Some(vec![0xff; 3]));
        // The unfinished one is not in the copy, although another record cannot be read.
        assert_eq!((copy.snapshots().unwrap().len(), copy.unfinished().unwrap().len()), (199, 0));
    }

    #[test]
    fn writes_go_on_while_a_copy_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir.path().join("db"));
        let (copy, expected) = store.handle.frozen_copy().unwrap();
        let checked = store.handle.check(copy, expected, |_| {
            let made = begin(&store, snapshot(501), None);
            store.commit(&[(Described::alone(made.clone()), None)])
        });
        assert_eq!(checked.unwrap(), Unreadable::default());
        assert_eq!(store.snapshots().unwrap().len(), 201);
    }

    #[test]
    fn full_disk_during_the_copy_is_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir.path().join("db"));
        let (copy, expected) = store.handle.frozen_copy().unwrap();
        let length = copy.metadata().unwrap().len();
        let full = |_: &Database| Err(io::Error::from(io::ErrorKind::StorageFull).into());
        let error = store.handle.check(copy, expected, full).unwrap_err();
        assert!(matches!(error, StoreError::NoRoom { needed, .. } if needed == length), "{error}");
        assert!(store.copy().is_ok());
    }

    #[test]
    fn inspection_finds_damage_of_a_database_that_was_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        drop(store(&path));
        assert_eq!(inspect(&path).unwrap(), good());
        let bytes = fs::read(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        for at in (0..bytes.len() - 5).filter(|at| &bytes[*at..][..5] == b"admin") {
            file.write_all_at(b"Admin", at as u64).unwrap();
        }
        let damaged = fs::read(&path).unwrap();
        let error = inspect(&path).unwrap_err();
        assert!(matches!(error, StoreError::Damaged(_)), "{error}");
        assert!(fs::read(&path).unwrap() == damaged, "the file was changed");
    }
}
