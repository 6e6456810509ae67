//! Around every request: its id, its line in the log, and the JSON body of an error.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use super::Peer;
use super::failure::ErrorBody;
use super::forwarded::ForwardedFor;
use super::json::{JSON, Json};
use super::paths::{DISK, TICKET_DISK};
use super::request_id::{REQUEST_ID, RequestId, logged_path};
use crate::api::{self, ErrorCode};
use crate::app::App;

/// Answers a request through `next`.
pub(super) async fn answer(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id: Arc<str> = uuid::Uuid::new_v4().to_string().into();
    request.extensions_mut().insert(RequestId(Arc::clone(&id)));
    let method = request.method().clone();
    let path = logged_path(request.uri());
    let peer = request.extensions().get::<Peer>().map(Peer::to_string).unwrap_or_default();
    let client = request.extensions().get::<ForwardedFor>().map(|ForwardedFor(client)| *client);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let span = tracing::info_span!("request", %id);
    async {
        let mut response = next.run(request).await;
        let status = response.status();
        let route = route.as_ref().map_or("none", |route| route.as_str().trim_end_matches('/'));
        app.metrics.request(known_method(&method), route, status.as_u16(), started.elapsed());
        // A response with a JSON body, such as that of /readyz, explains itself.
        let is_json = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == JSON);
        let mut code = "-";
        if (status.is_client_error() || status.is_server_error()) && !is_json {
            let (explained, error_code) = explain(response, &id);
            (response, code) = (explained, error_code.as_str());
        }
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::try_from(&*id) {
            headers.insert(REQUEST_ID, value);
        }
        // Proxies and browsers must not store tokens and guests' data, or treat them as a page. The files in the program
        // may be stored.
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let bytes = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()).unwrap_or("-");
        let status = status.as_u16();
        let ms = started.elapsed().as_secs_f64() * 1e3;
        let forwarded_for = client.map(tracing::field::display);
        let ms = tracing::field::display(format!("{ms:.1}"));
        // A backup consists of thousands of range requests, for which the audit trail has one line.
        if status == 206 || ([DISK, TICKET_DISK].contains(&route) && [304, 416].contains(&status)) {
            tracing::debug!(%method, ?path, %peer, forwarded_for, status, code, %bytes, ms, "answered");
        } else {
            tracing::info!(%method, ?path, %peer, forwarded_for, status, code, %bytes, ms, "answered");
        }
        response
    }
    .instrument(span)
    .await
}

/// The label for metrics: clients can send any method.
fn known_method(method: &Method) -> &str {
    match *method {
        Method::GET | Method::HEAD | Method::POST | Method::DELETE => method.as_str(),
        _ => "other",
    }
}

/// Adds the JSON body to an error, and returns its code. Status and headers stay.
fn explain(mut response: Response, request_id: &str) -> (Response, ErrorCode) {
    let status = response.status();
    let ErrorBody { code, details, hidden_cause } =
        response.extensions_mut().remove().unwrap_or_else(|| ErrorBody::of_status(status));
    if status.is_server_error() {
        tracing::error!(code = code.as_str(), details, cause = hidden_cause.unwrap_or_default(), "failed");
    } else {
        tracing::info!(code = code.as_str(), ?details, "refused");
    }
    // Clients of the original exporter look for this text.
    let error = match status {
        StatusCode::UNAUTHORIZED => "Authentication failed",
        status => status.canonical_reason().unwrap_or("Error"),
    };
    let body = api::Error { error: error.to_owned(), details, code, request_id: request_id.to_owned() };
    let mut explained = (status, Json(body)).into_response();
    for (name, value) in response.headers() {
        if !explained.headers().contains_key(name) && name != CONTENT_LENGTH {
            explained.headers_mut().append(name, value.clone());
        }
    }
    (explained, code)
}
