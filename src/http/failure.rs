//! Maps the application's errors to HTTP statuses and codes. [`super::refusal`] does so for malformed requests.

use axum::http::header::{CONTENT_RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::byte_range;
use crate::api::ErrorCode;
use crate::app::Error;
use crate::app::error::Refusal;

const NO_ROUTE: &str = "there is no such route; those of the API start with /api/v1";

/// Why a request is refused.
#[derive(Debug)]
pub(super) enum Failure {
    App(Error),
    NoRoute,
    BodyTooLarge {
        limit: usize,
    },
    BodyTooSlow,
    /// By `If-Match` or `If-Unmodified-Since`.
    PreconditionFailed,
    RangeNotSatisfiable {
        size: u64,
    },
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::App(error.into())
    }
}

/// The content of an error's body, which the middleware writes.
#[derive(Clone, Debug)]
pub(super) struct ErrorBody {
    /// A stable word for programs.
    pub code: ErrorCode,
    /// For the client.
    pub details: String,
    /// Only for the log.
    pub hidden_cause: Option<String>,
}

impl ErrorBody {
    /// For an error that is not a [`Failure`].
    pub(super) fn of_status(status: StatusCode) -> Self {
        let (code, details) = match status {
            StatusCode::METHOD_NOT_ALLOWED => {
                (ErrorCode::MethodNotAllowed, "this route has other methods; see the header Allow")
            }
            StatusCode::NOT_FOUND => (ErrorCode::NotFound, NO_ROUTE),
            status if status.is_client_error() => (ErrorCode::BadRequest, "the request is malformed"),
            _ => (ErrorCode::Internal, "an internal error; the log of the service has the details"),
        };
        Self { code, details: details.to_owned(), hidden_cause: None }
    }
}

impl Failure {
    fn status(&self) -> (StatusCode, ErrorCode) {
        match self {
            Self::App(error) => app_status(error),
            Self::NoRoute => (StatusCode::NOT_FOUND, ErrorCode::NotFound),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::BodyTooLarge),
            Self::BodyTooSlow => (StatusCode::REQUEST_TIMEOUT, ErrorCode::BodyTooSlow),
            Self::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, ErrorCode::PreconditionFailed),
            Self::RangeNotSatisfiable { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::RangeNotSatisfiable),
        }
    }

    fn details(&self) -> String {
        match self {
            Self::App(error) => error.to_string(),
            Self::NoRoute => NO_ROUTE.to_owned(),
            Self::BodyTooLarge { limit } => format!("the body is larger than {limit} bytes"),
            Self::BodyTooSlow => "the body was sent too slowly".to_owned(),
            Self::PreconditionFailed => "the disk does not match the conditions of the request".to_owned(),
            Self::RangeNotSatisfiable { size } => {
                format!("no range in the Range header is within a disk of {size} bytes; expected bytes=<first>-<last>")
            }
        }
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::App(error) => app_header(error.cause()),
            Self::RangeNotSatisfiable { size } => {
                let value = HeaderValue::try_from(byte_range::unsatisfied_content_range(*size));
                value.ok().map(|value| (CONTENT_RANGE, value))
            }
            _ => None,
        }
    }
}

fn app_header(error: &Error) -> Option<(HeaderName, HeaderValue)> {
    let retry_after = |seconds: &'static str| Some((RETRY_AFTER, HeaderValue::from_static(seconds)));
    match error {
        Error::NoSession(_) | Error::UnknownCertificate(_) => {
            Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))
        }
        Error::Throttled => retry_after("1"),
        Error::TooManyFailures { retry_after, .. } => Some((RETRY_AFTER, HeaderValue::from(*retry_after))),
        Error::Refused(
            Refusal::QueueFull(_)
            | Refusal::TooManyCopies { .. }
            | Refusal::QueueTimeout { .. }
            | Refusal::GroupTimeout { .. },
        )
        | Error::RepositoryUnavailable { .. }
        | Error::ContentCheckRunning { .. }
        | Error::Unavailable(_) => retry_after("10"),
        Error::VmBusy { .. } => retry_after("30"),
        Error::BaseUnstable { .. } | Error::Rebuilding { .. } => retry_after("60"),
        _ => None,
    }
}

fn app_status(error: &Error) -> (StatusCode, ErrorCode) {
    match error {
        Error::BadRequest(_) => (StatusCode::BAD_REQUEST, ErrorCode::BadRequest),
        Error::BadCredentials | Error::NoSession(_) | Error::UnknownCertificate(_) | Error::BadRefreshToken => {
            (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized)
        }
        Error::NotAnOperator { .. } | Error::CrossSite | Error::Forbidden { .. } | Error::NotInTicket(_) => {
            (StatusCode::FORBIDDEN, ErrorCode::Forbidden)
        }
        Error::NotFound(_) | Error::SnapshotGone | Error::NoVm => (StatusCode::NOT_FOUND, ErrorCode::NotFound),
        Error::OtherVm(_) => (StatusCode::CONFLICT, ErrorCode::OtherVm),
        Error::NotOlder(_) => (StatusCode::BAD_REQUEST, ErrorCode::BaseNotOlder),
        Error::NotSnapshottable(_) => (StatusCode::BAD_REQUEST, ErrorCode::NotSnapshottable),
        Error::Refused(refusal) => refusal_status(refusal),
        Error::BaseLost { .. } => (StatusCode::CONFLICT, ErrorCode::BaseLost),
        Error::FullRequired { .. } => (StatusCode::CONFLICT, ErrorCode::FullRequired),
        Error::SnapshotLost { .. } => (StatusCode::CONFLICT, ErrorCode::SnapshotLost),
        Error::PostHooksSkipped { .. } | Error::OfVm { .. } => app_status(error.cause()),
        Error::NotRemoved { .. } => (StatusCode::CONFLICT, ErrorCode::NotRemoved),
        Error::NotAdopted { .. } => (StatusCode::CONFLICT, ErrorCode::NotAdopted),
        Error::HookFailed { .. } => (StatusCode::BAD_GATEWAY, ErrorCode::HookFailed),
        Error::NotQuiesced(_) => (StatusCode::CONFLICT, ErrorCode::NotQuiesced),
        Error::CloneTimeout { .. } => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::CloneTimeout),
        Error::ManagerUnavailable(_) => (StatusCode::BAD_GATEWAY, ErrorCode::ManagerUnavailable),
        Error::Throttled | Error::TooManyFailures { .. } => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::Throttled),
        Error::NoSpace { .. } | Error::NoRoomForCopy(_) => {
            (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::InsufficientSpace)
        }
        Error::ReadOnly { .. } => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::ReadOnly),
        Error::Io { .. } => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::IoError),
        Error::VmBusy { .. } => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::VmBusy),
        Error::BaseUnstable { .. } => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::BaseUnsettled),
        Error::ContentCheckRunning { .. } => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::SnapshotBeingChecked),
        Error::RepositoryUnavailable { .. } | Error::Unavailable(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::RepositoryUnavailable)
        }
        Error::AgentDb(_) => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::OvsAgentDbUnreadable),
        Error::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::DatabaseUnavailable),
        Error::Rebuilding { .. } => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::DatabaseRebuilding),
        Error::Cancelled | Error::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal),
    }
}

fn refusal_status(refusal: &Refusal) -> (StatusCode, ErrorCode) {
    match refusal {
        Refusal::UnknownDisk { .. } => (StatusCode::BAD_REQUEST, ErrorCode::UnknownDisk),
        Refusal::AmbiguousDisk { .. } => (StatusCode::BAD_REQUEST, ErrorCode::AmbiguousDisk),
        Refusal::UnfitDisk { .. } => (StatusCode::BAD_REQUEST, ErrorCode::UnfitDisk),
        Refusal::NoDiskLeft => (StatusCode::BAD_REQUEST, ErrorCode::NoDiskLeft),
        Refusal::TooManySnapshots { .. } => (StatusCode::CONFLICT, ErrorCode::TooManySnapshots),
        Refusal::TooManyTickets { .. } => (StatusCode::CONFLICT, ErrorCode::TooManyTickets),
        Refusal::TooManyExtents { .. } => (StatusCode::CONFLICT, ErrorCode::TooManyExtents),
        Refusal::LowSpace { .. } => (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::InsufficientSpace),
        Refusal::QueueFull(_)
        | Refusal::TooManyCopies { .. }
        | Refusal::QueueTimeout { .. }
        | Refusal::GroupTimeout { .. } => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::Throttled),
        Refusal::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::IdempotencyKeyReused),
        Refusal::KeySnapshotGone(_) => (StatusCode::GONE, ErrorCode::IdempotencyKeySpent),
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, code) = self.status();
        let hidden_cause = match &self {
            Self::App(error) => error.hidden_cause(),
            _ => None,
        };
        let mut response = status.into_response();
        response.headers_mut().extend(self.header());
        response.extensions_mut().insert(ErrorBody { code, details: self.details(), hidden_cause });
        response
    }
}
