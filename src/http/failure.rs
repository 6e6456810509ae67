//! Maps errors to HTTP. Statuses are chosen only here.

use axum::http::header::{CONTENT_RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::byte_range;
use crate::app::Error;
use crate::app::admission::policy::Refusal;

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
    pub code: &'static str,
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
                ("method_not_allowed", "this route has other methods; see the header Allow")
            }
            StatusCode::NOT_FOUND => ("not_found", NO_ROUTE),
            status if status.is_client_error() => ("bad_request", "the request is malformed"),
            _ => ("internal", "an internal error; the log of the service has the details"),
        };
        Self { code, details: details.to_owned(), hidden_cause: None }
    }
}

impl Failure {
    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::App(error) => app_status(error),
            Self::NoRoute => (StatusCode::NOT_FOUND, "not_found"),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyTooSlow => (StatusCode::REQUEST_TIMEOUT, "body_too_slow"),
            Self::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, "precondition_failed"),
            Self::RangeNotSatisfiable { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable"),
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
        Error::NoSession(_) => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        Error::Throttled => retry_after("1"),
        Error::Refused(Refusal::QueueFull(_) | Refusal::QueueTimeout { .. })
        | Error::RepositoryUnavailable { .. }
        | Error::ContentCheckRunning { .. }
        | Error::Unavailable(_) => retry_after("10"),
        Error::VmBusy { .. } => retry_after("30"),
        Error::BaseUnstable { .. } => retry_after("60"),
        _ => None,
    }
}

fn app_status(error: &Error) -> (StatusCode, &'static str) {
    match error {
        Error::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
        Error::BadCredentials | Error::NoSession(_) => (StatusCode::UNAUTHORIZED, "unauthorized"),
        Error::NotFound(_) | Error::NoVm => (StatusCode::NOT_FOUND, "not_found"),
        Error::OtherVm(_) => (StatusCode::CONFLICT, "other_vm"),
        Error::NotOlder(_) => (StatusCode::BAD_REQUEST, "base_not_older"),
        Error::NotSnapshottable(_) => (StatusCode::BAD_REQUEST, "not_snapshottable"),
        Error::Refused(refusal) => refusal_status(refusal),
        Error::BaseLost { .. } => (StatusCode::CONFLICT, "base_lost"),
        Error::SnapshotLost { .. } => (StatusCode::CONFLICT, "snapshot_lost"),
        Error::PostHooksSkipped { .. } => app_status(error.cause()),
        Error::NotRemoved { .. } => (StatusCode::CONFLICT, "not_removed"),
        Error::NotAdopted { .. } => (StatusCode::CONFLICT, "not_adopted"),
        Error::HookFailed { .. } => (StatusCode::BAD_GATEWAY, "hook_failed"),
        Error::CloneTimeout { .. } => (StatusCode::SERVICE_UNAVAILABLE, "clone_timeout"),
        Error::ManagerUnavailable(_) => (StatusCode::BAD_GATEWAY, "manager_unavailable"),
        Error::Throttled => (StatusCode::TOO_MANY_REQUESTS, "throttled"),
        Error::NoSpace { .. } => (StatusCode::INSUFFICIENT_STORAGE, "insufficient_space"),
        Error::ReadOnly { .. } => (StatusCode::SERVICE_UNAVAILABLE, "read_only"),
        Error::Io { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "io_error"),
        Error::VmBusy { .. } => (StatusCode::SERVICE_UNAVAILABLE, "vm_busy"),
        Error::BaseUnstable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "base_unsettled"),
        Error::ContentCheckRunning { .. } => (StatusCode::SERVICE_UNAVAILABLE, "snapshot_being_checked"),
        Error::RepositoryUnavailable { .. } | Error::Unavailable(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "repository_unavailable")
        }
        Error::AgentDb(_) => (StatusCode::SERVICE_UNAVAILABLE, "ovs_agent_db_unreadable"),
        Error::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "database_unavailable"),
        Error::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}

fn refusal_status(refusal: &Refusal) -> (StatusCode, &'static str) {
    match refusal {
        Refusal::UnknownDisk { .. } => (StatusCode::BAD_REQUEST, "unknown_disk"),
        Refusal::AmbiguousDisk { .. } => (StatusCode::BAD_REQUEST, "ambiguous_disk"),
        Refusal::UnfitDisk { .. } => (StatusCode::BAD_REQUEST, "unfit_disk"),
        Refusal::NoDiskLeft => (StatusCode::BAD_REQUEST, "no_disk_left"),
        Refusal::TooManySnapshots { .. } => (StatusCode::CONFLICT, "too_many_snapshots"),
        Refusal::TooManyExtents { .. } => (StatusCode::CONFLICT, "too_many_extents"),
        Refusal::LowSpace { .. } => (StatusCode::INSUFFICIENT_STORAGE, "insufficient_space"),
        Refusal::QueueFull(_) | Refusal::QueueTimeout { .. } => (StatusCode::TOO_MANY_REQUESTS, "throttled"),
        Refusal::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
        Refusal::KeySnapshotGone(_) => (StatusCode::GONE, "idempotency_key_spent"),
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
