//! The handlers: take apart, call the journey, put together.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::connection::Connection;
use super::create_body::CreateBody;
use super::digest::ChecksumQuery;
use super::disk_response::{self, Client};
use super::extract::{Authenticated, BODY_LIMIT, DiskPath, JsonBody, Origin, SmallBody, SnapshotPath, VmPath};
use super::failure::Failure;
use super::json::Json;
use super::json_stream;
use super::query::{
    AcceptsText, AdoptQuery, ChunksQuery, NewSnapshotQuery, ResponseFormat, SnapshotQuery, SnapshotsQuery, WantsPage,
};
use super::rate_limit::ConnectionLimits;
use super::status_page::{StatusParameters, render};
use crate::api;
use crate::app::compare::comparison::Cancellation;
use crate::app::snapshots::document::MapOptions;
use crate::app::{App, Error};
use crate::auth::{Credentials, Session};
use crate::metrics;
use crate::repository::checksum::Algorithm;

type AppState = State<Arc<App>>;

/// Does `journey`. Whoever drops this future, such as a connection that ends, ends its work too.
async fn cancel_on_drop<T>(stop: &Cancellation, journey: impl Future<Output = T>) -> T {
    let guard = stop.cancel.clone().drop_guard();
    let done = journey.await;
    guard.disarm();
    done
}

/// Writes down that maps of `what` were asked for, if they were.
fn audit_maps<T>(app: &App, session: &Session, what: String, view: MapOptions, outcome: &Result<T, Error>) {
    match view.compare_to {
        Some(base) => app.audit_read(session, "compare", format_args!("{what} since {base}"), outcome),
        None if view.chunks || view.summary => app.audit_read(session, "chunks", what, outcome),
        None => {}
    }
}

pub(super) async fn login(
    State(app): AppState,
    Origin { address, request_id }: Origin,
    Extension(connection): Extension<Arc<Connection>>,
    JsonBody(body): JsonBody<api::Login>,
) -> Result<Json<api::Token>, Failure> {
    let credentials = Credentials { username: body.username, password: body.password };
    let token = app.login(credentials, address, request_id, || connection.log_in()).await?;
    connection.set_authenticated();
    Ok(Json(api::Token { token }))
}

pub(super) async fn capabilities(State(app): AppState, _session: Authenticated) -> Json<api::Capabilities> {
    Json(api::Capabilities {
        version: env!("CARGO_PKG_VERSION"),
        features: &[
            "adopt",
            "chunk-pages",
            "chunk-stream",
            "refine",
            "repositories",
            "summary",
            "compare",
            "zero-chunks",
            "squash",
            "omit-chunks",
            "range",
            "multirange",
            "conditional-requests",
            "hooks",
            "choose-disks",
            "expiry",
            "leases",
            "idempotency-key",
            "status",
            "checksum",
            "repr-digest",
            "content-digest",
        ],
        checksum_algorithms: Algorithm::ALL.map(Algorithm::name).to_vec(),
        limits: api::Limits {
            ranges_per_request: super::byte_range::MAX_RANGES,
            request_body_bytes: BODY_LIMIT,
            token_seconds: app.token_lifetime().as_secs(),
        },
    })
}

pub(super) async fn repositories(
    State(app): AppState,
    Authenticated(session): Authenticated,
) -> Result<Json<Vec<api::Repository>>, Failure> {
    Ok(Json(app.list_repositories(&session).await?))
}

pub(super) async fn adopt(
    State(app): AppState,
    Authenticated(session): Authenticated,
    AdoptQuery(what): AdoptQuery,
    _body: SmallBody,
) -> Result<Json<api::Adoption>, Failure> {
    Ok(Json(app.adopt(&session, what).await?))
}

pub(super) async fn vms(State(app): AppState, Authenticated(session): Authenticated) -> Result<Response, Failure> {
    json_stream::document(app.list_vms(&session).await?, Cancellation::default()).await
}

pub(super) async fn vm(
    State(app): AppState,
    Authenticated(session): Authenticated,
    VmPath(vm): VmPath,
) -> Result<Json<api::Vm>, Failure> {
    Ok(Json(app.vm(&session, vm).await?))
}

pub(super) async fn snapshots(
    State(app): AppState,
    Authenticated(session): Authenticated,
    VmPath(vm): VmPath,
    SnapshotsQuery(view): SnapshotsQuery,
) -> Result<Response, Failure> {
    let (stop, what) = (Cancellation::default(), vm.to_string());
    let documents = app.snapshots(&session, vm, view, stop.clone()).await;
    audit_maps(&app, &session, what, view, &documents);
    json_stream::document(documents?, stop).await
}

pub(super) async fn create_snapshot(
    State(app): AppState,
    Authenticated(session): Authenticated,
    VmPath(vm): VmPath,
    NewSnapshotQuery(view): NewSnapshotQuery,
    CreateBody(request): CreateBody,
) -> Result<Response, Failure> {
    let snapshot = app.create_snapshot(&session, vm, request).await?;
    let stop = Cancellation::default();
    let journey = app.describe_new(&session, snapshot, view, stop.clone());
    json_stream::document(cancel_on_drop(&stop, journey).await?, stop).await
}

pub(super) async fn delete_all_snapshots(
    State(app): AppState,
    Authenticated(session): Authenticated,
    VmPath(vm): VmPath,
) -> Result<StatusCode, Failure> {
    app.delete_all_snapshots(&session, vm).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn snapshot(
    State(app): AppState,
    Authenticated(session): Authenticated,
    SnapshotPath(vm, snapshot): SnapshotPath,
    SnapshotQuery(view): SnapshotQuery,
) -> Result<Response, Failure> {
    let (stop, what) = (Cancellation::default(), format!("{vm}/{snapshot}"));
    let journey = app.snapshot(&session, vm, snapshot, view, stop.clone());
    let document = cancel_on_drop(&stop, journey).await;
    audit_maps(&app, &session, what, view, &document);
    json_stream::document(document?, stop).await
}

pub(super) async fn delete_snapshot(
    State(app): AppState,
    Authenticated(session): Authenticated,
    SnapshotPath(vm, snapshot): SnapshotPath,
) -> Result<StatusCode, Failure> {
    app.delete_snapshot(&session, vm, snapshot).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn take_lease(
    State(app): AppState,
    Authenticated(session): Authenticated,
    SnapshotPath(vm, snapshot): SnapshotPath,
    JsonBody(body): JsonBody<api::TakeLease>,
) -> Result<Json<api::Lease>, Failure> {
    Ok(Json(app.take_lease(&session, vm, snapshot, body).await?))
}

pub(super) async fn give_lease_back(
    State(app): AppState,
    Authenticated(session): Authenticated,
    SnapshotPath(vm, snapshot): SnapshotPath,
) -> Result<StatusCode, Failure> {
    app.give_lease_back(&session, vm, snapshot).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn status(
    State(app): AppState,
    Authenticated(session): Authenticated,
    StatusParameters(query): StatusParameters,
    AcceptsText(text): AcceptsText,
) -> Result<Response, Failure> {
    let status = app.status(&session, query).await?;
    Ok(if text { render(&status).into_response() } else { Json(status).into_response() })
}

pub(super) async fn disk(
    State(app): AppState,
    Authenticated(session): Authenticated,
    DiskPath(vm, snapshot, disk): DiskPath,
    Extension(limits): Extension<ConnectionLimits>,
    Extension(connection): Extension<Arc<Connection>>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let disk = app.open_disk(&session, vm, snapshot, disk).await?;
    let client = Client { session, limits, connection };
    disk_response::respond(&app, &client, &method, &headers, disk).await
}

pub(super) async fn metrics(State(app): AppState) -> impl IntoResponse {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], app.metrics().text())
}

pub(super) async fn chunks(
    State(app): AppState,
    Authenticated(session): Authenticated,
    DiskPath(vm, snapshot, disk): DiskPath,
    ChunksQuery(wanted, form): ChunksQuery,
) -> Result<Response, Failure> {
    let (stop, what) = (Cancellation::default(), format!("{vm}/{snapshot}/{disk}"));
    let place = (vm, snapshot, disk);
    match form {
        ResponseFormat::Page => {
            let journey = app.chunk_page(&session, place, wanted, stop.clone());
            let page = cancel_on_drop(&stop, journey).await;
            audit_maps(&app, &session, what, wanted.view, &page);
            Ok(Json(page?).into_response())
        }
        ResponseFormat::Lines => {
            let found = app.chunks(&session, place, wanted, stop.clone()).await;
            audit_maps(&app, &session, what, wanted.view, &found);
            let lines = found?.first(wanted.at_most).map(api::WireChunk);
            json_stream::lines(lines, stop).await
        }
    }
}

pub(super) async fn checksum(
    State(app): AppState,
    Authenticated(session): Authenticated,
    DiskPath(vm, snapshot, disk): DiskPath,
    ChecksumQuery(wanted): ChecksumQuery,
) -> Result<Response, Failure> {
    let (stop, what) = (Cancellation::default(), format!("{vm}/{snapshot}/{disk}"));
    let journey = app.checksum(&session, (vm, snapshot, disk), wanted, stop.clone());
    let checksum = cancel_on_drop(&stop, journey).await;
    app.audit_read(&session, "checksum", what, &checksum);
    json_stream::document(checksum?, stop).await
}

/// What a person sees who opens the service in a browser.
const WELCOME: &str = "This is coriolis-ovm-exporter: snapshots of VM disks for backup products, as a REST service.\n\
    Its API is below /api/v1; docs/api.md in its source describes it. Start with POST /api/v1/auth/login.\n\
    Whether it can serve is at /readyz.\n";

/// Answers what no route does.
pub(super) async fn no_route(method: Method, uri: Uri, WantsPage(page): WantsPage) -> Response {
    if page && uri.path() == "/" && [Method::GET, Method::HEAD].contains(&method) {
        return WELCOME.into_response();
    }
    Failure::NoRoute.into_response()
}

pub(super) async fn healthz() -> Json<api::Health> {
    Json(api::Health { status: api::Status::Ok, problems: Vec::new() })
}

pub(super) async fn readyz(State(app): AppState) -> Result<Response, Failure> {
    let health = app.readiness().await?;
    let status = match health.status {
        api::Status::Ok => StatusCode::OK,
        api::Status::Error => StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok((status, Json(health)).into_response())
}
