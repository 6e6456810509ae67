//! The handlers of the service itself. Handlers parse requests, call operations, and build responses; their comments and
//! attributes are the text of the OpenAPI document (`super::openapi`).

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::accept::{AcceptsText, WantsPage};
use super::extract::{Authenticated, SmallBody};
use super::failure::Failure;
use super::json::Json;
use super::json_stream;
use super::limits;
use super::openapi::parameters;
use super::paths::METRICS;
use super::query::AdoptQuery;
use super::status_page::{StatusParameters, render};
use crate::api::{self, formats};
use crate::app::{App, Error};
use crate::metrics;
use crate::model::Permission;
use crate::repository::checksum::Algorithm;

type AppState = State<Arc<App>>;

/// What the service can do, and its limits.
#[utoipa::path(
    get, path = "/api/v1/capabilities", tag = "Service", operation_id = "getCapabilities",
    responses(
        (status = 200, description = "The version, the features and the limits.", body = api::Capabilities),
    ),
)]
pub(super) async fn capabilities(
    State(app): AppState,
    Authenticated(session): Authenticated,
) -> Json<api::Capabilities> {
    let permissions = Permission::ALL.into_iter().filter(|permission| session.grants().has(*permission));
    Json(api::Capabilities {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: [
            "adopt",
            "chunk-pages",
            "chunk-stream",
            "refine",
            "repositories",
            "summary",
            "compare",
            "if-full",
            "zero-chunks",
            "squash",
            "omit-chunks",
            "range",
            "multirange",
            "conditional-requests",
            "hooks",
            "quiesce",
            "choose-disks",
            "several-vms",
            "expiry",
            "leases",
            "idempotency-key",
            "labels",
            "definition",
            "status",
            "checksum",
            "repr-digest",
            "content-digest",
            "content-digest-multipart",
            "compare-reverse",
            "unix-socket",
            "database-copy",
            "tickets",
            "basic-token",
            "refresh-token",
            "logout",
        ]
        .map(str::to_owned)
        .to_vec(),
        checksum_algorithms: Algorithm::ALL.map(|algorithm| algorithm.name().to_owned()).to_vec(),
        user: session.subject().to_owned(),
        permissions: permissions.map(|permission| permission.as_str().to_owned()).collect(),
        limits: limits::of(&app),
    })
}

/// Lists the repositories.
///
/// They are those of `repositories.paths` in the config, and those of ovs-agent's database, which is read again when it has
/// changed. A repository that cannot be used is listed with the reason.
#[utoipa::path(
    get, path = "/api/v1/repositories", tag = "Inventory", operation_id = "listRepositories",
    responses(
        (status = 200, description = "The repositories.", body = Vec<api::Repository>),
        (status = 503, description = "ovs_agent_db_unreadable"),
    ),
)]
pub(super) async fn repositories(
    State(app): AppState,
    Authenticated(session): Authenticated,
) -> Result<Json<Vec<api::Repository>>, Failure> {
    Ok(Json(app.inventory.list_repositories(&session).await?))
}

/// Adopts snapshots that the database does not know.
///
/// Examines each folder below `CoriolisSnapshots` that the database does not know. Such folders were made by the original or
/// another exporter, or this service has lost its database. A folder without a manifest is assigned to the one VM of the
/// inventory that has disks with its files' names in that repository. The service changes no folder that it skips.
#[utoipa::path(
    post, path = "/api/v1/adopt", tag = "Service", operation_id = "adopt",
    params(parameters::Adoption),
    responses(
        (status = 200, description = "The adopted snapshots, and the skipped folders with the reasons.", body = api::Adoption),
        (status = 408, description = "body_too_slow"),
        (status = 413, description = "body_too_large"),
        (status = 503, description = "repository_unavailable read_only ovs_agent_db_unreadable"),
    ),
)]
pub(super) async fn adopt(
    State(app): AppState,
    Authenticated(session): Authenticated,
    AdoptQuery(options): AdoptQuery,
    _body: SmallBody,
) -> Result<Json<api::Adoption>, Failure> {
    Ok(Json(app.operator.adopter.adopt(&session, options).await?))
}

/// Copies the database.
///
/// The copy is that of one moment. It has every snapshot that was complete, and the deletions that had begun, but no
/// unfinished snapshots, tickets, log-ins, passwords or keys. It is checked before its first byte is sent. At most two
/// copies are made or sent at a time.
#[utoipa::path(
    get, path = "/api/v1/database", tag = "Service", operation_id = "copyDatabase",
    responses(
        (status = 200, description = "The database.", body = inline(formats::Bytes), content_type = "application/octet-stream"),
        (status = 507, description = "insufficient_space"),
    ),
)]
pub(super) async fn database(State(app): AppState, Authenticated(session): Authenticated) -> Result<Response, Failure> {
    let copy = app.operator.database.copy(&session).await?;
    json_stream::bytes(copy).await
}

/// Shows running work, queues, free space and health.
///
/// It leaves out work on VMs and snapshots that the user may not see. With `Accept: text/plain` it is a page of text.
#[utoipa::path(
    get, path = "/api/v1/status", tag = "Service", operation_id = "getStatus",
    params(parameters::Cost),
    responses(
        (status = 200, description = "The status.", content((api::ServiceStatus = "application/json"), (String = "text/plain; charset=utf-8"))),
        (status = 404, description = "not_found"),
        (status = 503, description = "repository_unavailable"),
    ),
)]
pub(super) async fn status(
    State(app): AppState,
    Authenticated(session): Authenticated,
    StatusParameters(query): StatusParameters,
    AcceptsText(text): AcceptsText,
) -> Result<Response, Failure> {
    let (has_costs, what) = (query.cost, query.vm.as_ref().map(ToString::to_string).unwrap_or_default());
    let status = app.operator.ops.status(&session, query).await;
    if has_costs {
        app.trail.read(&session.needing(Permission::Read), "cost", what, &status);
    } else {
        app.trail.view(&session, "", &status);
    }
    let status = status?;
    Ok(if text { render(&status).into_response() } else { Json(status).into_response() })
}

/// Metrics for Prometheus (OpenMetrics 1.0).
///
/// The route exists if the config has `metrics.enabled`. It needs a token with `metrics.require_token`.
#[utoipa::path(
    get, path = METRICS, tag = "Service", operation_id = "getMetrics",
    responses(
        (status = 200, description = "The metrics.", body = String, content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ),
)]
pub(super) async fn metrics(State(app): AppState) -> impl IntoResponse {
    app.operator.ops.measure_queues();
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], app.metrics.text())
}

/// The page for browsers.
const WELCOME: &str = "This is coriolis-ovm-exporter: snapshots of VM disks for backup products, as a REST service.\n\
    The page for people is at /ui, unless the config has api.ui = false.\n\
    Its API is at /api/v1; /api/v1/docs shows it, and docs/api.md in its source is the guide. Start with POST /api/v1/auth/login.\n\
    GET /readyz reports whether the service is ready.\n";

const NO_METRICS: &str = "the service has no metrics: metrics.enabled is false in its config";

/// Responds to requests without a route.
pub(super) async fn no_route(method: Method, uri: Uri, WantsPage(page): WantsPage) -> Response {
    if page && uri.path() == "/" && [Method::GET, Method::HEAD].contains(&method) {
        return WELCOME.into_response();
    }
    let is_metrics = uri.path().trim_end_matches('/') == METRICS;
    let failure = if is_metrics { Error::NotFound(NO_METRICS).into() } else { Failure::NoRoute };
    failure.into_response()
}

/// Whether the process runs.
#[utoipa::path(
    get, path = "/healthz", tag = "Service", operation_id = "getHealth",
    responses(
        (status = 200, description = "It runs.", body = api::Health),
    ),
)]
pub(super) async fn healthz() -> Json<api::Health> {
    Json(api::Health { status: api::Status::Ok, problems: Vec::new() })
}

/// Whether the service is ready to make snapshots and to serve them.
#[utoipa::path(
    get, path = "/readyz", tag = "Service", operation_id = "getReadiness",
    responses(
        (status = 200, description = "It is ready.", body = api::Health),
        (status = 503, description = "It is not ready; `problems` says why.", body = api::Health),
    ),
)]
pub(super) async fn readyz(State(app): AppState) -> Result<Response, Failure> {
    let health = app.operator.ops.readiness().await?;
    let status = match health.status {
        api::Status::Ok => StatusCode::OK,
        api::Status::Error => StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok((status, Json(health)).into_response())
}
