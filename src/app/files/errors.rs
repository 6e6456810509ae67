//! The errors if the file of a snapshot cannot be used.

use crate::app::Error;
use crate::model::SnapshotDisk;
use crate::repository::{MapError, OpenError};

/// The error of a snapshot whose disk cannot be used.
pub fn lost(disk: &SnapshotDisk, cause: impl Into<MapError>) -> Error {
    let cause = cause.into();
    if matches!(cause, MapError::File(OpenError::Gone)) {
        return Error::SnapshotGone;
    }
    temporary(disk, &cause)
        .unwrap_or_else(|| Error::SnapshotLost { disk: disk.name.to_string(), cause: cause.to_string() })
}

/// The error, if it is temporary and so does not concern the snapshot itself.
pub(crate) fn temporary(disk: &SnapshotDisk, cause: &MapError) -> Option<Error> {
    let disk = &disk.name;
    match cause {
        MapError::File(OpenError::RepositoryUnavailable(cause)) => {
            Some(Error::RepositoryUnavailable { disk: disk.to_string(), cause: format!("the repository {cause}") })
        }
        MapError::Io(error) | MapError::File(OpenError::Io(error)) => {
            Some(Error::Io { step: format!("reading {disk}"), cause: error.to_string() })
        }
        MapError::File(OpenError::Touched { .. }) => Some(Error::ContentCheckRunning { disk: disk.to_string() }),
        MapError::Inconsistent(_)
        | MapError::File(OpenError::Missing | OpenError::Gone | OpenError::Replaced | OpenError::Unproven) => None,
    }
}
