//! Why a request has no result.

use std::time::Duration;

use super::address::Address;

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
    /// There is no connection, so that nothing was sent.
    #[error("{0}")]
    Unconnected(String),
    /// A host of a pool lacks what another may have.
    #[error("{0}")]
    Unsure(String),
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
            Self::Connection(_) | Self::Unconnected(_) | Self::Unsure(_) => true,
            Self::Damaged(_) | Self::GaveUp { .. } => true,
            Self::Refused(refusal) => match refusal.status {
                429 | 502 | 503 | 504 => refusal.code != "hook_failed",
                500 => refusal.code == "io_error",
                408 => true,
                _ => false,
            },
            Self::Setup(_) | Self::Protocol(_) | Self::Changed(_) | Self::Cancelled | Self::Local(_) => false,
        }
    }

    /// Whether the service did not get the request, or did not accept its sender.
    pub(super) fn was_not_sent(&self) -> bool {
        matches!(self, Self::Unconnected(_) | Self::Setup(_)) || self.status() == Some(401)
    }

    /// The same error with the address of the host before its text.
    #[must_use]
    pub(super) fn of_host(self, host: &Address) -> Self {
        let named = |text: String| {
            let name = format!("{host}: ");
            if text.starts_with(&name) { text } else { name + &text }
        };
        match self {
            Self::Refused(refusal) => Self::Refused(Refusal { details: named(refusal.details), ..refusal }),
            Self::Connection(text) => Self::Connection(named(text)),
            Self::Unconnected(text) => Self::Unconnected(named(text)),
            Self::Setup(text) => Self::Setup(named(text)),
            Self::Damaged(text) => Self::Damaged(named(text)),
            Self::Protocol(text) => Self::Protocol(named(text)),
            Self::Changed(text) => Self::Changed(named(text)),
            Self::Unsure(_) | Self::GaveUp { .. } | Self::Cancelled | Self::Local(_) => self,
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
