//! Why a request has no result.

use std::time::Duration;

/// The service's own error response.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{details} ({code}{})", request(.request_id))]
pub struct Refusal {
    pub status: u16,
    /// Stable ([docs/api.md]). A text, because a newer service may have codes that this program does not know.
    ///
    /// [docs/api.md]: ../../docs/api.md
    pub code: String,
    pub details: String,
    pub request_id: String,
    pub retry_after: Option<Duration>,
}

fn request(id: &str) -> String {
    if id.is_empty() { String::new() } else { format!(", request {id}") }
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No connection, or it broke.
    #[error("{0}")]
    Connection(String),
    /// The certificate, or something else that another attempt does not change.
    #[error("{0}")]
    Setup(String),
    /// The bytes of a response are damaged or end too early.
    #[error("{0}")]
    Damaged(String),
    /// The server does not follow the API.
    #[error("{0}")]
    Protocol(String),
    /// The file on the server is no longer the one that was asked for.
    #[error("{0}")]
    Changed(String),
    /// No success for as long as the caller wants to wait.
    #[error("gave up after {} s without success; the last error: {last}", waited.as_secs())]
    GaveUp { waited: Duration, last: Box<ClientError> },
    #[error("interrupted")]
    Cancelled,
    /// The caller's own sink failed: the local disk.
    #[error(transparent)]
    Local(#[from] std::io::Error),
}

impl ClientError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connection(_) | Self::Damaged(_) | Self::GaveUp { .. } => true,
            Self::Refused(refusal) => match refusal.status {
                429 | 502 | 503 | 504 => refusal.code != "hook_failed",
                500 => refusal.code == "io_error",
                408 => true,
                _ => false,
            },
            Self::Setup(_) | Self::Protocol(_) | Self::Changed(_) | Self::Cancelled | Self::Local(_) => false,
        }
    }

    /// The stable code of the service's refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => Some(&refusal.code),
            Self::GaveUp { last, .. } => last.code(),
            _ => None,
        }
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.status),
            Self::GaveUp { last, .. } => last.status(),
            _ => None,
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }
}
