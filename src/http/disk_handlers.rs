//! The handlers of the disks of a snapshot.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, Method};
use axum::response::{IntoResponse, Response};

use super::connection::Connection;
use super::digest::ChecksumQuery;
use super::disk_response::{self, Client};
use super::extract::{Authenticated, DiskPath};
use super::failure::Failure;
use super::json::Json;
use super::json_stream;
use super::openapi::parameters;
use super::paths::{CHUNKS, DISK};
use super::query::{ChunksQuery, ResponseFormat};
use super::snapshot_document;
use super::snapshot_handlers::{audit_maps, cancel_on_drop};
use super::ticket::refuse_comparison;
use crate::api::{self, formats};
use crate::app::App;
use crate::app::cancellation::Cancellation;
use crate::app::export::ConnectionLimits;

type AppState = State<Arc<App>>;

/// The bytes of a disk.
///
/// The body is never compressed. If the service cannot finish it, it closes the connection before the Content-Length is
/// reached. It does the same to a client that is too slow while others wait. The number of concurrent downloads is limited
/// (`export_concurrency`); the others wait.
#[utoipa::path(
    method(get, head), path = DISK, tag = "Disks", operation_id = "getDisk",
    params(parameters::Vm, parameters::Snapshot, parameters::Disk, parameters::Range, parameters::Conditions),
    responses(
        (status = 200, description = "The disk.", body = inline(formats::Bytes), content_type = "application/octet-stream"),
        (status = 206, description = "The requested ranges.", content((inline(formats::Bytes) = "application/octet-stream"), (inline(formats::Bytes) = "multipart/byteranges"))),
        (status = 304, description = "The disk is the one that the client has."),
        (status = 404, description = "not_found"),
        (status = 409, description = "other_vm snapshot_lost"),
        (status = 412, description = "precondition_failed"),
        (status = 416, description = "range_not_satisfiable"),
        (status = 503, description = "snapshot_being_checked repository_unavailable database_rebuilding"),
    ),
)]
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

/// The chunks of a disk, in pages or as lines.
///
/// For disks with many extents. With `Accept: application/x-ndjson` the answer is one chunk per line, streamed as the
/// service finds them. If the connection ends with an error, it is incomplete: continue with `startingOffset` at the end of
/// the chunk in the last complete line.
#[utoipa::path(
    get, path = CHUNKS, tag = "Disks", operation_id = "getChunks",
    params(parameters::Vm, parameters::Snapshot, parameters::Disk, parameters::Comparison, parameters::Map, parameters::Page),
    responses(
        (status = 200, description = "The chunks.", content((api::ChunkPage = "application/json"), (String = "application/x-ndjson"))),
        (status = 400, description = "base_not_older"),
        (status = 404, description = "not_found"),
        (status = 409, description = "other_vm base_lost full_required snapshot_lost"),
        (status = 503, description = "base_unsettled snapshot_being_checked repository_unavailable database_rebuilding"),
    ),
)]
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

/// The checksum of a disk or a part of it.
///
/// Without `blocks=true` the service sends nothing until the checksum is done: for a large disk, use a long time-out, or
/// request one part after the other. Holes are not read. Disconnecting cancels the checksum.
#[utoipa::path(
    get, path = "/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}/checksum", tag = "Disks", operation_id = "getChecksum",
    params(parameters::Vm, parameters::Snapshot, parameters::Disk, parameters::Checksum),
    responses(
        (status = 200, description = "The checksum.", body = api::Checksum),
        (status = 404, description = "not_found"),
        (status = 409, description = "other_vm snapshot_lost"),
        (status = 503, description = "snapshot_being_checked repository_unavailable database_rebuilding"),
    ),
)]
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
