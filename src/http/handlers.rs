//! The handlers: they parse requests, call operations, and build responses.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::accept::{AcceptsText, WantsPage};
use super::connection::Connection;
use super::create_body::{CreateBody, GroupBody};
use super::digest::ChecksumQuery;
use super::disk_response::{self, Client};
use super::extract::{Authenticated, DiskPath, JsonBody, SmallBody, SnapshotPath, VmPath};
use super::failure::Failure;
use super::json::Json;
use super::json_stream;
use super::limits;
use super::query::{
    AdoptQuery, ChunksQuery, EverySnapshot, NewSnapshotQuery, ResponseFormat, SnapshotQuery, SnapshotsQuery,
};
use super::snapshot_document;
use super::status_page::{StatusParameters, render};
use super::ticket::refuse_comparison;
use crate::api;
use crate::app::cancellation::Cancellation;
use crate::app::compare::MapOptions;
use crate::app::export::ConnectionLimits;
use crate::app::{App, Error};
use crate::auth::Session;
use crate::metrics;
use crate::model::Permission;
use crate::repository::checksum::Algorithm;

type AppState = State<Arc<App>>;

/// Runs `operation`. Dropping this future, as a disconnect does, cancels its work.
async fn cancel_on_drop<T>(cancellation: &Cancellation, operation: impl Future<Output = T>) -> T {
    let guard = cancellation.on_drop();
    let done = operation.await;
    guard.disarm();
    done
}

/// Records a request for a document of `what`, if it has maps or is refused.
fn audit_maps<T>(app: &App, session: &Session, what: String, options: MapOptions, outcome: &Result<T, Error>) {
    // The route may need less, because it also answers without maps.
    let session = &session.needing(options.permission());
    match options.compare_to {
        Some(base) => {
            let direction = if options.reverse { "back to" } else { "since" };
            app.trail.read(session, "compare", format_args!("{what} {direction} {base}"), outcome);
        }
        None if options.maps() => app.trail.read(session, "chunks", what, outcome),
        None => app.trail.view(session, what, outcome),
    }
}

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

pub(super) async fn repositories(
    State(app): AppState,
    Authenticated(session): Authenticated,
) -> Result<Json<Vec<api::Repository>>, Failure> {
    Ok(Json(app.inventory.list_repositories(&session).await?))
}

pub(super) async fn adopt(
    State(app): AppState,
    Authenticated(session): Authenticated,
    AdoptQuery(options): AdoptQuery,
    _body: SmallBody,
) -> Result<Json<api::Adoption>, Failure> {
    Ok(Json(app.operator.adopter.adopt(&session, options).await?))
}

pub(super) async fn database(State(app): AppState, Authenticated(session): Authenticated) -> Result<Response, Failure> {
    let copy = app.operator.database.copy(&session).await?;
    json_stream::bytes(copy).await
}

pub(super) async fn vms(State(app): AppState, Authenticated(session): Authenticated) -> Result<Response, Failure> {
    let vms = app.inventory.list_vms(&session).await?;
    json_stream::document(Cancellation::default(), |writer| writer.array(vms.map(Ok))).await
}

pub(super) async fn vm(
    State(app): AppState,
    Authenticated(session): Authenticated,
    VmPath(vm): VmPath,
) -> Result<Json<api::Vm>, Failure> {
    let what = vm.to_string();
    let vm = app.inventory.vm(&session, vm).await;
    app.trail.view(&session, what, &vm);
    Ok(Json(vm?))
}

pub(super) async fn snapshots(
    State(app): AppState,
    Authenticated(session): Authenticated,
    VmPath(vm): VmPath,
    SnapshotsQuery(labels, options): SnapshotsQuery,
) -> Result<Response, Failure> {
    let (cancellation, what) = (Cancellation::default(), vm.to_string());
    let documents = app.documents.all(&session, vm, labels, options, cancellation.clone()).await;
    audit_maps(&app, &session, what, options.map, &documents);
    let documents = documents?;
    json_stream::document(cancellation, |writer| snapshot_document::write_all(writer, documents)).await
}

pub(super) async fn create_snapshot(
    State(app): AppState,
    Authenticated(session): Authenticated,
    VmPath(vm): VmPath,
    NewSnapshotQuery(options): NewSnapshotQuery,
    CreateBody(request): CreateBody,
) -> Result<Response, Failure> {
    let created = app.snapshots.create(&session, vec![vm], request).await?;
    let cancellation = Cancellation::default();
    let operation = app.documents.new_ones(&session, created, options, cancellation.clone());
    let document = cancel_on_drop(&cancellation, operation).await?.pop();
    let document = document.ok_or_else(|| Error::Internal("no snapshot was created".to_owned()))?;
    json_stream::document(cancellation, |writer| snapshot_document::write(writer, document)).await
}

pub(super) async fn create_snapshots(
    State(app): AppState,
    Authenticated(session): Authenticated,
    NewSnapshotQuery(options): NewSnapshotQuery,
    GroupBody(vms, request): GroupBody,
) -> Result<Response, Failure> {
    let created = app.snapshots.create(&session, vms, request).await?;
    let cancellation = Cancellation::default();
    let operation = app.documents.new_ones(&session, created, options, cancellation.clone());
    let documents = cancel_on_drop(&cancellation, operation).await?.into_iter();
    json_stream::document(cancellation, |writer| snapshot_document::write_all(writer, documents)).await
}

pub(super) async fn delete_all_snapshots(
    State(app): AppState,
    Authenticated(session): Authenticated,
    VmPath(vm): VmPath,
    _every: EverySnapshot,
) -> Result<StatusCode, Failure> {
    app.snapshots.delete_all(&session, vm).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn snapshot(
    State(app): AppState,
    Authenticated(session): Authenticated,
    SnapshotPath(vm, snapshot): SnapshotPath,
    SnapshotQuery(options): SnapshotQuery,
) -> Result<Response, Failure> {
    let (cancellation, what) = (Cancellation::default(), format!("{vm}/{snapshot}"));
    let operation = app.documents.one(&session, vm, snapshot, options, cancellation.clone());
    let document = cancel_on_drop(&cancellation, operation).await;
    audit_maps(&app, &session, what, options.map, &document);
    let document = document?;
    json_stream::document(cancellation, |writer| snapshot_document::write(writer, document)).await
}

pub(super) async fn delete_snapshot(
    State(app): AppState,
    Authenticated(session): Authenticated,
    SnapshotPath(vm, snapshot): SnapshotPath,
) -> Result<StatusCode, Failure> {
    app.snapshots.delete(&session, vm, snapshot).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn take_lease(
    State(app): AppState,
    Authenticated(session): Authenticated,
    SnapshotPath(vm, snapshot): SnapshotPath,
    JsonBody(body): JsonBody<api::TakeLease>,
) -> Result<Json<api::Lease>, Failure> {
    Ok(Json(app.retention.take_lease(&session, vm, snapshot, body).await?))
}

pub(super) async fn end_lease(
    State(app): AppState,
    Authenticated(session): Authenticated,
    SnapshotPath(vm, snapshot): SnapshotPath,
) -> Result<StatusCode, Failure> {
    app.retention.end_lease(&session, vm, snapshot).await?;
    Ok(StatusCode::OK)
}

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

pub(super) async fn disk(
    State(app): AppState,
    Authenticated(session): Authenticated,
    DiskPath(vm, snapshot, disk): DiskPath,
    Extension(limits): Extension<ConnectionLimits>,
    Extension(connection): Extension<Arc<Connection>>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let what = format!("{vm}/{snapshot}/{disk}");
    let disk = app.files.open_disk(&session, vm, snapshot, disk).await;
    if disk.is_err() {
        app.trail.read(&session, "export", what, &disk);
    }
    let disk = disk?;
    let client = Client { session, limits, connection };
    disk_response::respond(&app, &client, &method, &headers, disk).await
}

pub(super) async fn metrics(State(app): AppState) -> impl IntoResponse {
    app.operator.ops.measure_queues();
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], app.metrics.text())
}

pub(super) async fn chunks(
    State(app): AppState,
    Authenticated(session): Authenticated,
    DiskPath(vm, snapshot, disk): DiskPath,
    ChunksQuery(query, format): ChunksQuery,
) -> Result<Response, Failure> {
    refuse_comparison(query.options.compare_to, session.requester().ticket.as_deref())?;
    let (cancellation, what) = (Cancellation::default(), format!("{vm}/{snapshot}/{disk}"));
    let disk = (vm, snapshot, disk);
    match format {
        ResponseFormat::Page => {
            let operation = app.comparisons.chunk_page(&session, disk, query, cancellation.clone());
            let page = cancel_on_drop(&cancellation, operation).await;
            audit_maps(&app, &session, what, query.options, &page);
            Ok(Json(snapshot_document::chunk_page(page?, query.options)).into_response())
        }
        ResponseFormat::Lines => {
            let found = app.comparisons.chunks(&session, disk, query, cancellation.clone()).await;
            audit_maps(&app, &session, what, query.options, &found);
            let lines = found?.first(query.limit).map(|chunk| chunk.map(api::Chunk::from));
            json_stream::lines(lines, cancellation).await
        }
    }
}

pub(super) async fn checksum(
    State(app): AppState,
    Authenticated(session): Authenticated,
    DiskPath(vm, snapshot, disk): DiskPath,
    ChecksumQuery(request): ChecksumQuery,
) -> Result<Response, Failure> {
    let (cancellation, what) = (Cancellation::default(), format!("{vm}/{snapshot}/{disk}"));
    let operation = app.checksums.checksum(&session, (vm, snapshot, disk), request, cancellation.clone());
    let checksum = cancel_on_drop(&cancellation, operation).await;
    app.trail.read(&session, "checksum", what, &checksum);
    let checksum = checksum?;
    json_stream::document(cancellation, |writer| snapshot_document::write_checksum(writer, checksum)).await
}

/// The page for browsers.
const WELCOME: &str = "This is coriolis-ovm-exporter: snapshots of VM disks for backup products, as a REST service.\n\
    The page for people is at /ui, unless the config has api.ui = false.\n\
    Its API is at /api/v1; docs/api.md in its source describes it. Start with POST /api/v1/auth/login.\n\
    GET /readyz reports whether the service is ready.\n";

/// Responds to requests without a route.
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
    let health = app.operator.ops.readiness().await?;
    let status = match health.status {
        api::Status::Ok => StatusCode::OK,
        api::Status::Error => StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok((status, Json(health)).into_response())
}
