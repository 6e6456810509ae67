//! What can go wrong with the database.

use std::path::PathBuf;

use crate::model::SnapshotId;

/// Why the database did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database's own error.
    #[error("the database failed: {0}")]
    Database(Box<redb::Error>),
    /// The file cannot be opened or made.
    #[error("the database file cannot be used: {0}")]
    Io(std::io::Error),
    /// Another process has it open.
    #[error("the database is in use by another process; is the service running already?")]
    InUse,
    /// A newer program has made it.
    #[error(
        "the database has schema {found}, and this program knows schemas up to {supported}: \
         it was made by a newer version; run that, or name another db_file"
    )]
    NewerSchema {
        /// The file's.
        found: u64,
        /// This program's.
        supported: u64,
    },
    /// The original exporter's database.
    #[error(
        "{} is the database of the original exporter (Bolt) and is left untouched; name another db_file, \
         start the service, and take the original's snapshots over with: coriolis-ovm-exporter adopt", .0.display()
    )]
    Bolt(PathBuf),
    /// Something else than a database of ours.
    #[error(
        "{} is no database of this service, and is left untouched; name another db_file, or, if it was one, \
         restore it from a copy", .0.display()
    )]
    NotADatabase(PathBuf),
    /// Pages do not check out.
    #[error(
        "the database {} is damaged and is left as it is; restore it from a copy, or move it away to \
         start with an empty one (the snapshots stay in the repositories)", .0.display()
    )]
    Damaged(PathBuf),
    /// A record cannot be read.
    #[error("the database's record of the snapshot {id} cannot be read: {cause}")]
    Record {
        /// Whose record.
        id: SnapshotId,
        /// What is wrong with it.
        cause: String,
    },
    /// It could not be opened anew after a failure.
    #[error("the database is closed after a failure")]
    Closed,
    /// The open file is not the one at the path any more: what is written to it is lost with the service's end.
    #[error("{0}")]
    FileLost(Trouble),
}

/// What is wrong with the database's file or its disk while the service goes on with the file that it has open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Nothing is at its path.
    #[error("the database's file was removed")]
    Gone,
    /// Another file is at its path.
    #[error("the database's file was replaced by another one")]
    Replaced,
    /// Somebody has truncated it.
    #[error("the database's file was emptied")]
    Emptied,
    /// Its path cannot be looked at.
    #[error("the database's file cannot be looked at")]
    Unreadable(String),
    /// Its file system takes no writes.
    #[error("the database is on a read-only file system")]
    ReadOnly,
    /// Its file system is full.
    #[error("the database's disk is full")]
    Full,
    /// The last write failed.
    #[error("the last write to the database failed")]
    WriteFailed(String),
}

impl Trouble {
    /// Whether a restart would not find what is written now.
    pub fn loses_writes(&self) -> bool {
        matches!(self, Self::Gone | Self::Replaced | Self::Emptied)
    }

    /// What an operator is to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Gone | Self::Replaced | Self::Emptied => {
                "put the right file back, or leave it, and restart the service; snapshots that the file does not know \
                 are taken back from their manifests with: coriolis-ovm-exporter adopt --manifests"
            }
            Self::Unreadable(_) => "look at the folder of db_file",
            Self::ReadOnly => "mount it read-write; the kernel's log may say why it is not",
            Self::Full => "make room there",
            Self::WriteFailed(_) => "look at the disk of db_file",
        }
    }
}

impl StoreError {
    /// Whether redb needs to be opened anew before it works again.
    pub(super) fn needs_reopening(&self) -> bool {
        match self {
            Self::Database(_) | Self::Damaged(_) | Self::Io(_) => true,
            Self::InUse
            | Self::NewerSchema { .. }
            | Self::Bolt(_)
            | Self::NotADatabase(_)
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
