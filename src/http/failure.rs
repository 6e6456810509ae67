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
    fn code(&self) -> ErrorCode {
        match self {
            Self::App(error) => error.code(),
            Self::NoRoute => ErrorCode::NotFound,
            Self::BodyTooLarge { .. } => ErrorCode::BodyTooLarge,
            Self::BodyTooSlow => ErrorCode::BodyTooSlow,
            Self::PreconditionFailed => ErrorCode::PreconditionFailed,
            Self::RangeNotSatisfiable { .. } => ErrorCode::RangeNotSatisfiable,
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

/// The HTTP status of errors with this code.
fn status_of(code: ErrorCode) -> StatusCode {
    StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let code = self.code();
        let status = status_of(code);
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
