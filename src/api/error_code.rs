//! The codes of errors. They are stable, because programs depend on them.

use serde::{Deserialize, Serialize};

/// Why a request failed. docs/api.md has the meaning and remedy of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    OtherVm,
    BaseNotOlder,
    NotSnapshottable,
    BaseLost,
    FullRequired,
    SnapshotLost,
    NotRemoved,
    NotAdopted,
    HookFailed,
    NotQuiesced,
    CloneTimeout,
    ManagerUnavailable,
    Throttled,
    InsufficientSpace,
    ReadOnly,
    IoError,
    VmBusy,
    BaseUnsettled,
    SnapshotBeingChecked,
    RepositoryUnavailable,
    OvsAgentDbUnreadable,
    DatabaseUnavailable,
    DatabaseRebuilding,
    Internal,
    UnknownDisk,
    AmbiguousDisk,
    UnfitDisk,
    NoDiskLeft,
    TooManySnapshots,
    TooManyExtents,
    TooManyTickets,
    IdempotencyKeyReused,
    IdempotencyKeySpent,
    BodyTooLarge,
    BodyTooSlow,
    PreconditionFailed,
    RangeNotSatisfiable,
    UriTooLong,
    HeadersTooLarge,
    HttpsRequired,
    /// A code of a newer server.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::OtherVm => "other_vm",
            Self::BaseNotOlder => "base_not_older",
            Self::NotSnapshottable => "not_snapshottable",
            Self::BaseLost => "base_lost",
            Self::FullRequired => "full_required",
            Self::SnapshotLost => "snapshot_lost",
            Self::NotRemoved => "not_removed",
            Self::NotAdopted => "not_adopted",
            Self::HookFailed => "hook_failed",
            Self::NotQuiesced => "not_quiesced",
            Self::CloneTimeout => "clone_timeout",
            Self::ManagerUnavailable => "manager_unavailable",
            Self::Throttled => "throttled",
            Self::InsufficientSpace => "insufficient_space",
            Self::ReadOnly => "read_only",
            Self::IoError => "io_error",
            Self::VmBusy => "vm_busy",
            Self::BaseUnsettled => "base_unsettled",
            Self::SnapshotBeingChecked => "snapshot_being_checked",
            Self::RepositoryUnavailable => "repository_unavailable",
            Self::OvsAgentDbUnreadable => "ovs_agent_db_unreadable",
            Self::DatabaseUnavailable => "database_unavailable",
            Self::DatabaseRebuilding => "database_rebuilding",
            Self::Internal => "internal",
            Self::UnknownDisk => "unknown_disk",
            Self::AmbiguousDisk => "ambiguous_disk",
            Self::UnfitDisk => "unfit_disk",
            Self::NoDiskLeft => "no_disk_left",
            Self::TooManySnapshots => "too_many_snapshots",
            Self::TooManyExtents => "too_many_extents",
            Self::TooManyTickets => "too_many_tickets",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::IdempotencyKeySpent => "idempotency_key_spent",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTooSlow => "body_too_slow",
            Self::PreconditionFailed => "precondition_failed",
            Self::RangeNotSatisfiable => "range_not_satisfiable",
            Self::UriTooLong => "uri_too_long",
            Self::HeadersTooLarge => "headers_too_large",
            Self::HttpsRequired => "https_required",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_and_as_str_agree() {
        for code in [ErrorCode::BadRequest, ErrorCode::OvsAgentDbUnreadable, ErrorCode::SnapshotBeingChecked] {
            let text = serde_json::to_string(&code).unwrap();
            assert_eq!(text, format!("\"{}\"", code.as_str()));
            assert_eq!(serde_json::from_str::<ErrorCode>(&text).unwrap(), code);
        }
        assert_eq!(serde_json::from_str::<ErrorCode>("\"future_code\"").unwrap(), ErrorCode::Unknown);
    }
}
