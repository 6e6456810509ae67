//! The errors of the database.

use std::io;
use std::path::{Path, PathBuf};

use crate::model::SnapshotId;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database failed: {0}")]
    Database(Box<redb::Error>),
    #[error("the database file cannot be used: {0}")]
    Io(io::Error),
    #[error("the database is in use by another process; is the service running already?")]
    InUse,
    #[error(
        "the database has schema {found}, and this program knows schemas up to {supported}: \
         it was made by a newer version; run that, or name another db_file"
    )]
    NewerSchema {
        /// The file's schema.
        found: u64,
        /// The newest schema that this program knows.
        supported: u64,
    },
    #[error(
        "{} is the database of the original exporter (Bolt) and is left untouched; name another db_file, \
         start the service, and take the original's snapshots over with: coriolis-ovm-exporter adopt", .0.display()
    )]
    Bolt(PathBuf),
    #[error(
        "{} is not a database of this service and is left untouched; name another db_file, or, if it was one, \
         restore it from a backup", .0.display()
    )]
    NotADatabase(PathBuf),
    #[error(
        "the database {} is damaged and is left untouched; put a copy in its place (made with: coriolis-ovm-exporter \
         backup-db), or set db_rebuild = true and start the service, or move the file away, start the service, and \
         run: coriolis-ovm-exporter adopt --manifests (the snapshots are in the repositories)", .0.display()
    )]
    Damaged(PathBuf),
    /// For a copy of the database beside it.
    #[error(
        "a copy of the database needs {needed} bytes beside it, and {free} bytes are free; free some space on the file \
         system of db_file"
    )]
    NoRoom { needed: u64, free: u64 },
    #[error("the database's record of the snapshot {id} cannot be read: {cause}")]
    Record { id: SnapshotId, cause: String },
    /// It could not be reopened after a failure.
    #[error("the database is closed after a failure")]
    Closed,
    /// The open file is no longer the one at its path. Writes to it are lost when the service stops.
    #[error("{0}")]
    FileLost(Trouble),
}

/// A problem with the database's file or its disk. The service goes on with the file that it has open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("the database's file was removed")]
    Gone,
    #[error("the database's file was replaced by another one")]
    Replaced,
    #[error("the database's file was emptied")]
    Emptied,
    #[error("the database's file cannot be checked")]
    Unreadable(String),
    #[error("the database is on a read-only file system")]
    ReadOnly,
    #[error("the database's disk is full")]
    Full,
    #[error("the last write to the database failed")]
    WriteFailed(String),
}

impl Trouble {
    /// Whether the next start would not find what is written now.
    pub fn loses_writes(&self) -> bool {
        matches!(self, Self::Gone | Self::Replaced | Self::Emptied)
    }

    /// What an operator can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Gone | Self::Replaced | Self::Emptied => {
                "put the right file back if you have it, and restart the service; snapshots that are not in the file \
                 can be taken back from their manifests with: coriolis-ovm-exporter adopt --manifests"
            }
            Self::Unreadable(_) => "check the folder of db_file",
            Self::ReadOnly => "mount it read-write; the kernel log may tell why it is read-only",
            Self::Full => "free some space there",
            Self::WriteFailed(_) => "check the disk of db_file",
        }
    }
}

impl StoreError {
    /// [`StoreError::Damaged`], if redb found that the file at `path` is damaged.
    #[must_use]
    pub(super) fn into_damage(self, path: &Path) -> Self {
        let is_damage = match &self {
            Self::Database(error) => matches!(**error, redb::Error::Corrupted(_)),
            Self::Io(error) => matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
            _ => false,
        };
        if !is_damage {
            return self;
        }
        tracing::error!(error = %self, path = %path.display(), "the database is damaged");
        Self::Damaged(path.to_owned())
    }

    /// Whether redb must be reopened before it works again.
    pub(super) fn needs_reopening(&self) -> bool {
        match self {
            Self::Database(_) | Self::Damaged(_) | Self::Io(_) => true,
            Self::InUse
            | Self::NewerSchema { .. }
            | Self::Bolt(_)
            | Self::NotADatabase(_)
            | Self::NoRoom { .. }
            | Self::Record { .. }
            | Self::Closed
            | Self::FileLost(_) => false,
        }
    }
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            redb::Error::Io(error) => Self::Io(error),
            other => Self::Database(Box::new(other)),
        }
    }
}
