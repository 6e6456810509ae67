//! The codes of the errors.

use super::{Error, Refusal};
use crate::api::ErrorCode;

impl Error {
    /// The stable word for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::BadRequest(_) => ErrorCode::BadRequest,
            Self::BadCredentials | Self::NoSession(_) | Self::UnknownCertificate(_) | Self::BadRefreshToken => {
                ErrorCode::Unauthorized
            }
            Self::NotAnOperator { .. } | Self::CrossSite | Self::Forbidden { .. } | Self::NotInTicket(_) => {
                ErrorCode::Forbidden
            }
            Self::NotFound(_) | Self::SnapshotGone | Self::NoVm => ErrorCode::NotFound,
            Self::OtherVm(_) => ErrorCode::OtherVm,
            Self::NotOlder(_) => ErrorCode::BaseNotOlder,
            Self::NotSnapshottable(_) => ErrorCode::NotSnapshottable,
            Self::Refused(refusal) => refusal.code(),
            Self::BaseLost { .. } => ErrorCode::BaseLost,
            Self::FullRequired { .. } => ErrorCode::FullRequired,
            Self::SnapshotLost { .. } => ErrorCode::SnapshotLost,
            Self::PostHooksSkipped { .. } | Self::OfVm { .. } => self.cause().code(),
            Self::NotRemoved { .. } => ErrorCode::NotRemoved,
            Self::NotAdopted { .. } => ErrorCode::NotAdopted,
            Self::HookFailed { .. } => ErrorCode::HookFailed,
            Self::NotQuiesced(_) => ErrorCode::NotQuiesced,
            Self::CloneTimeout { .. } => ErrorCode::CloneTimeout,
            Self::ManagerUnavailable(_) => ErrorCode::ManagerUnavailable,
            Self::Throttled | Self::TooManyFailures { .. } => ErrorCode::Throttled,
            Self::NoSpace { .. } | Self::NoRoomForCopy(_) => ErrorCode::InsufficientSpace,
            Self::ReadOnly { .. } => ErrorCode::ReadOnly,
            Self::Io { .. } => ErrorCode::IoError,
            Self::VmBusy { .. } => ErrorCode::VmBusy,
            Self::BaseUnstable { .. } => ErrorCode::BaseUnsettled,
            Self::ContentCheckRunning { .. } => ErrorCode::SnapshotBeingChecked,
            Self::RepositoryUnavailable { .. } | Self::Unavailable(_) => ErrorCode::RepositoryUnavailable,
            Self::AgentDb(_) => ErrorCode::OvsAgentDbUnreadable,
            Self::Store(_) => ErrorCode::DatabaseUnavailable,
            Self::Rebuilding { .. } => ErrorCode::DatabaseRebuilding,
            Self::Cancelled | Self::Internal(_) => ErrorCode::Internal,
        }
    }
}

impl Refusal {
    fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownDisk { .. } => ErrorCode::UnknownDisk,
            Self::AmbiguousDisk { .. } => ErrorCode::AmbiguousDisk,
            Self::UnfitDisk { .. } => ErrorCode::UnfitDisk,
            Self::NoDiskLeft => ErrorCode::NoDiskLeft,
            Self::TooManySnapshots { .. } => ErrorCode::TooManySnapshots,
            Self::TooManyTickets { .. } => ErrorCode::TooManyTickets,
            Self::TooManyExtents { .. } => ErrorCode::TooManyExtents,
            Self::LowSpace { .. } => ErrorCode::InsufficientSpace,
            Self::QueueFull(_) | Self::TooManyCopies { .. } | Self::QueueTimeout { .. } | Self::GroupTimeout { .. } => {
                ErrorCode::Throttled
            }
            Self::KeyReused => ErrorCode::IdempotencyKeyReused,
            Self::KeySnapshotGone(_) => ErrorCode::IdempotencyKeySpent,
        }
    }
}
