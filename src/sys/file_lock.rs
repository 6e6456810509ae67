//! flock(2) whose end is certain.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Deref;

/// An open file whose lock is released when this is dropped.
///
/// Closing the file would not be enough: until it calls execve(2), a child of this process has the same open file, and
/// keeps the lock.
#[derive(Debug)]
pub struct LockFile(File);

impl LockFile {
    /// Locks nothing yet.
    pub fn new(file: File) -> Self {
        Self(file)
    }

    /// Takes the exclusive lock. False: another open file has a lock.
    ///
    /// # Errors
    /// Those of flock(2); for example, the file system has no locks.
    pub fn try_lock(&self) -> io::Result<bool> {
        is_locked(self.0.try_lock())
    }

    /// Takes a shared lock. False: another open file has the exclusive one.
    ///
    /// # Errors
    /// As for [`try_lock`](Self::try_lock).
    pub fn try_lock_shared(&self) -> io::Result<bool> {
        is_locked(self.0.try_lock_shared())
    }
}

fn is_locked(result: Result<(), TryLockError>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl Deref for LockFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // A file that is not locked stays as it is.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_lock_is_free_although_a_child_has_the_same_open_file() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || LockFile::new(File::open(path.path()).unwrap());
        let locked = open();
        assert!(locked.try_lock().unwrap());
        // As fork(2) does, this shares the open file.
        let of_child = locked.try_clone().unwrap();
        let other = open();
        assert!(!other.try_lock().unwrap());
        assert!(!other.try_lock_shared().unwrap());
        drop(locked);
        assert!(other.try_lock_shared().unwrap());
        assert!(open().try_lock_shared().unwrap(), "shared locks exclude each other");
        drop(of_child);
    }

    #[test]
    fn a_failed_attempt_does_not_release_the_lock_of_others() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || LockFile::new(File::open(path.path()).unwrap());
        let locked = open();
        assert!(locked.try_lock().unwrap());
        for _ in 0..2 {
            assert!(!open().try_lock().unwrap());
        }
    }
}
