//! Why a backup, a restore or a verification has no result.

use std::io;
use std::path::Path;

use crate::client::ClientError;

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file of the backup directory.
    #[error("{path}: {error}{}", remedy(.error))]
    Local { path: String, error: io::Error },
    /// Another program works here.
    #[error("{0}")]
    Busy(String),
    /// The user asked for something that cannot be done.
    #[error("{0}")]
    Unusable(String),
    /// A backup does not have the bytes that it had.
    #[error("{0}")]
    Damaged(String),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free space (see the command prune) and run the same command again: it goes on from here"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable and run the same command again",
        _ => "",
    }
}

impl BackupError {
    /// Whether the same command may succeed later without any change.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Client(error) => error.is_transient(),
            Self::Busy(_) => true,
            Self::Local { .. } | Self::Unusable(_) | Self::Damaged(_) => false,
        }
    }

    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Client(ClientError::Cancelled))
    }
}

/// Adds the path to an error of the local file system.
pub trait AtPath<T> {
    fn at(self, path: &Path) -> Result<T, BackupError>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, BackupError> {
        self.map_err(|error| BackupError::Local { path: path.display().to_string(), error })
    }
}

pub type Result<T, E = BackupError> = std::result::Result<T, E>;
