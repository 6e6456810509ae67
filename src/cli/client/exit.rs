//! The exit statuses of the client's commands (docs/client.md).

use std::process::ExitCode;

use crate::backup::BackupError;
use crate::client::ClientError;

pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const SOME_FAILED: u8 = 3;
pub const DIFFERENCE: u8 = 4;
/// EX_TEMPFAIL of sysexits.h.
pub const TRY_LATER: u8 = 75;

/// The status that an error gives.
pub fn status(error: &anyhow::Error) -> u8 {
    let is_temporary = match (error.downcast_ref::<BackupError>(), error.downcast_ref::<ClientError>()) {
        (Some(error), _) => error.is_temporary(),
        (_, Some(error)) => error.is_transient(),
        _ => false,
    };
    if let Some(NotAsked { status, .. }) = error.downcast_ref() {
        return *status;
    }
    match error.downcast_ref::<BackupError>() {
        Some(BackupError::Damaged(_)) => DIFFERENCE,
        _ if error.is::<UsageError>() => USAGE,
        _ if is_temporary => TRY_LATER,
        _ => FAILED,
    }
}

/// The command line asks for something that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// A VM that no service has, but that a service may have which failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("it was not looked for at {services}, which failed")]
pub struct NotAsked {
    services: String,
    status: u8,
}

impl NotAsked {
    /// Of the services that failed, with the status of each failure. Nothing if none did.
    pub fn of<'a>(failed: impl Iterator<Item = (&'a str, u8)>) -> Option<Self> {
        let (services, statuses): (Vec<_>, Vec<_>) = failed.unzip();
        // Another attempt helps only if all of them can succeed then.
        let first = statuses.iter().find(|status| **status != TRY_LATER).or(statuses.first());
        Some(Self { services: services.join(" and "), status: *first? })
    }
}

/// The status of work on several VMs.
pub fn of_several(done: usize, errors: &[anyhow::Error]) -> ExitCode {
    let statuses: Vec<u8> = errors.iter().map(status).collect();
    let status = match statuses.as_slice() {
        [] => return ExitCode::SUCCESS,
        _ if done > 0 => SOME_FAILED,
        [first, rest @ ..] if rest.iter().all(|status| status == first) => *first,
        _ => FAILED,
    };
    ExitCode::from(status)
}
