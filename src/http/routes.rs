//! The routes, in one table.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use axum::{Router, http::StatusCode};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use super::failure::Failure;
use super::paths::{DISK, METRICS};
use super::{handlers, request_middleware};
use crate::app::{App, Error};

/// The API of `app`, optionally with `GET /metrics`. Every route accepts a trailing slash.
pub fn router(app: Arc<App>, with_metrics: bool) -> Router {
    let snapshots = get(handlers::snapshots).post(handlers::create_snapshot).delete(handlers::delete_all_snapshots);
    let snapshot = get(handlers::snapshot).delete(handlers::delete_snapshot);
    let table: [(&str, MethodRouter<Arc<App>>); 18] = [
        ("/api/v1/auth/login", post(handlers::login)),
        ("/api/v1/capabilities", get(handlers::capabilities)),
        ("/api/v1/adopt", post(handlers::adopt)),
        ("/api/v1/database", get(handlers::database)),
        ("/api/v1/repositories", get(handlers::repositories)),
        ("/api/v1/status", get(handlers::status)),
        ("/api/v1/snapshots", post(handlers::create_snapshots)),
        ("/api/v1/vms", get(handlers::vms)),
        ("/api/v1/vms/{vm}", get(handlers::vm)),
        ("/api/v1/vms/{vm}/snapshots", snapshots),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}", snapshot),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}/lease", post(handlers::take_lease).delete(handlers::end_lease)),
        (DISK, get(handlers::disk)),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}/chunks", get(handlers::chunks)),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}/checksum", get(handlers::checksum)),
        ("/healthz", get(handlers::healthz)),
        ("/readyz", get(handlers::readyz)),
        (METRICS, get(handlers::metrics)),
    ];
    let mut router = Router::new();
    for (path, methods) in table.into_iter().filter(|(path, _)| with_metrics || *path != METRICS) {
        let methods = if path == DISK { methods } else { methods.layer(from_fn_with_state(Handle::current(), run_in)) };
        router = router.route(path, methods.clone()).route(&format!("{path}/"), methods);
    }
    router
        .fallback(handlers::no_route)
        // A panic in a handler fails one request. The log has its message.
        .layer(CatchPanicLayer::custom(|_| http_status(StatusCode::INTERNAL_SERVER_ERROR)))
        .layer(from_fn_with_state(Arc::clone(&app), request_middleware::answer))
        .with_state(app)
}

/// Handles the request in `runtime`, because tasks that the handler spawns may outlive the connection.
async fn run_in(State(runtime): State<Handle>, request: Request, next: Next) -> Result<Response, Failure> {
    let answer = runtime.spawn(next.run(request).in_current_span());
    // Disconnecting cancels the answer.
    Ok(AbortOnDropHandle::new(answer).await.map_err(|error| Error::Internal(error.to_string()))?)
}

fn http_status(status: StatusCode) -> axum::response::Response {
    let mut response = axum::response::Response::new(axum::body::Body::empty());
    *response.status_mut() = status;
    response
}
