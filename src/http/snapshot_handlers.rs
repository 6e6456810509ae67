//! The handlers of VMs and snapshots.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::create_body::{CreateBody, GroupBody};
use super::extract::{Authenticated, JsonBody, SnapshotPath, VmPath};
use super::failure::Failure;
use super::json::Json;
use super::json_stream;
use super::openapi::parameters;
use super::query::{EverySnapshot, NewSnapshotQuery, SnapshotQuery, SnapshotsQuery};
use super::snapshot_document;
use crate::api;
use crate::app::cancellation::Cancellation;
use crate::app::compare::MapOptions;
use crate::app::{App, Error};
use crate::auth::Session;

type AppState = State<Arc<App>>;

/// Runs `operation`. Dropping this future, as a disconnect does, cancels its work.
pub(super) async fn cancel_on_drop<T>(cancellation: &Cancellation, operation: impl Future<Output = T>) -> T {
    let guard = cancellation.on_drop();
    let done = operation.await;
    guard.disarm();
    done
}

/// Records a request for a document of `what`, if it has maps or is refused.
pub(super) fn audit_maps<T>(
    app: &App,
    session: &Session,
    what: String,
    options: MapOptions,
    outcome: &Result<T, Error>,
) {
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

/// Lists the VMs.
///
/// The VMs of an unavailable repository stay in the list as they were last read, with `status: "error"` and the `reason`. If
/// they were never read, the list has one entry for the repository, with `unavailable_repository`. If no VM is known at all,
/// the answer is 503.
#[utoipa::path(
    get, path = "/api/v1/vms", tag = "Inventory", operation_id = "listVms",
    responses(
        (status = 200, description = "The VMs.", body = Vec<api::Vm>),
        (status = 503, description = "repository_unavailable ovs_agent_db_unreadable"),
    ),
)]
pub(super) async fn vms(State(app): AppState, Authenticated(session): Authenticated) -> Result<Response, Failure> {
    let vms = app.inventory.list_vms(&session).await?;
    json_stream::document(Cancellation::default(), |writer| writer.array(vms.map(Ok))).await
}

/// Shows one VM.
///
/// It is 404 for a VM that is no longer in the inventory; the routes below it keep working for its remaining snapshots. It
/// is 503 while a repository that may define the VM cannot be read.
#[utoipa::path(
    get, path = "/api/v1/vms/{vm}", tag = "Inventory", operation_id = "getVm",
    params(parameters::Vm),
    responses(
        (status = 200, description = "The VM.", body = api::Vm),
        (status = 404, description = "not_found"),
        (status = 503, description = "repository_unavailable ovs_agent_db_unreadable"),
    ),
)]
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

/// Lists the snapshots of a VM, oldest first.
///
/// With `chunks=false` alone the role `viewer` is enough; chunks and sums need `reader`.
#[utoipa::path(
    get, path = "/api/v1/vms/{vm}/snapshots", tag = "Snapshots", operation_id = "listSnapshots",
    params(parameters::Vm, parameters::Map, parameters::Document, parameters::Label),
    responses(
        (status = 200, description = "The snapshots.", body = Vec<api::Snapshot>),
        (status = 404, description = "not_found"),
        (status = 409, description = "snapshot_lost"),
        (status = 503, description = "repository_unavailable snapshot_being_checked database_rebuilding"),
    ),
)]
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

/// Creates a snapshot.
///
/// The body may be empty, `null`, or a JSON object, whatever its Content-Type. Unknown keys are an error; a key with the value
/// `null` counts as missing. The service creates one snapshot at a time per VM, and `snapshot_concurrency` at a time per
/// host; the others wait. Disconnecting while the request waits cancels it; once the creation has started, it completes.
#[utoipa::path(
    post, path = "/api/v1/vms/{vm}/snapshots", tag = "Snapshots", operation_id = "createSnapshot",
    params(parameters::Vm, parameters::Map, parameters::Document, parameters::IdempotencyKey),
    request_body = Option<api::CreateSnapshot>,
    responses(
        (status = 200, description = "The new snapshot.", body = api::Snapshot),
        (status = 400, description = "not_snapshottable unknown_disk ambiguous_disk unfit_disk no_disk_left"),
        (status = 404, description = "not_found"),
        (status = 409, description = "not_quiesced too_many_snapshots too_many_extents"),
        (status = 410, description = "idempotency_key_spent"),
        (status = 422, description = "idempotency_key_reused"),
        (status = 502, description = "hook_failed"),
        (status = 503, description = "vm_busy clone_timeout repository_unavailable read_only database_rebuilding"),
        (status = 507, description = "insufficient_space"),
    ),
)]
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

/// Creates a snapshot of each VM, all of one moment.
///
/// Either all snapshots are created or none. All have the same `created_at`. The service locks all VMs, calls their `pre`
/// hooks at the same time, clones all disks at once, and calls the `post` hooks at the same time. An error has the status
/// and code that it has for one VM; `details` begins with the VM's name, if it is that of one VM.
#[utoipa::path(
    post, path = "/api/v1/snapshots", tag = "Snapshots", operation_id = "createSnapshots",
    params(parameters::Map, parameters::Document, parameters::IdempotencyKey),
    request_body = api::CreateSnapshots,
    responses(
        (status = 200, description = "The snapshots, in the order of `vms`.", body = Vec<api::Snapshot>),
        (status = 400, description = "not_snapshottable no_disk_left"),
        (status = 404, description = "not_found"),
        (status = 409, description = "not_quiesced too_many_snapshots too_many_extents"),
        (status = 410, description = "idempotency_key_spent"),
        (status = 422, description = "idempotency_key_reused"),
        (status = 502, description = "hook_failed"),
        (status = 503, description = "vm_busy clone_timeout repository_unavailable read_only database_rebuilding"),
        (status = 507, description = "insufficient_space"),
    ),
)]
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

/// Deletes all snapshots of a VM.
///
/// An operator may do this if the user has created all of them; otherwise none is deleted. The next backup is then a full
/// one.
#[utoipa::path(
    delete, path = "/api/v1/vms/{vm}/snapshots", tag = "Snapshots", operation_id = "deleteAllSnapshots",
    params(parameters::Vm),
    responses(
        (status = 200, description = "They are deleted."),
        (status = 404, description = "not_found"),
        (status = 409, description = "not_adopted not_removed"),
        (status = 502, description = "hook_failed"),
        (status = 503, description = "vm_busy repository_unavailable read_only database_rebuilding"),
    ),
)]
pub(super) async fn delete_all_snapshots(
    State(app): AppState,
    Authenticated(session): Authenticated,
    VmPath(vm): VmPath,
    _every: EverySnapshot,
) -> Result<StatusCode, Failure> {
    app.snapshots.delete_all(&session, vm).await?;
    Ok(StatusCode::OK)
}

/// Shows a snapshot, or what has changed since another one.
///
/// With `compareTo`, the base's bytes, cut or extended with zeros to `size` and patched with the chunks, are exactly the
/// snapshot's bytes. The answer is streamed while it is computed: an error after its first 256 KiB closes the connection,
/// and the JSON is incomplete. With `chunks=false` alone the role `viewer` is enough; chunks, sums and comparisons need
/// `reader`.
#[utoipa::path(
    get, path = "/api/v1/vms/{vm}/snapshots/{snapshot}", tag = "Snapshots", operation_id = "getSnapshot",
    params(parameters::Vm, parameters::Snapshot, parameters::Comparison, parameters::Map, parameters::Document),
    responses(
        (status = 200, description = "The snapshot.", body = api::Snapshot),
        (status = 400, description = "base_not_older"),
        (status = 404, description = "not_found"),
        (status = 409, description = "other_vm base_lost full_required snapshot_lost"),
        (status = 503, description = "base_unsettled snapshot_being_checked repository_unavailable database_rebuilding"),
    ),
)]
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

/// Deletes a snapshot.
///
/// It is 200 also if the snapshot is already deleted. A snapshot that is in a repository but not in the database is deleted
/// too, if its manifest names this VM. An operator may delete a snapshot that the user has created; the others need
/// `admin`.
#[utoipa::path(
    delete, path = "/api/v1/vms/{vm}/snapshots/{snapshot}", tag = "Snapshots", operation_id = "deleteSnapshot",
    params(parameters::Vm, parameters::Snapshot),
    responses(
        (status = 200, description = "It is deleted."),
        (status = 404, description = "not_found"),
        (status = 409, description = "other_vm not_adopted not_removed"),
        (status = 502, description = "hook_failed"),
        (status = 503, description = "vm_busy repository_unavailable read_only database_rebuilding"),
    ),
)]
pub(super) async fn delete_snapshot(
    State(app): AppState,
    Authenticated(session): Authenticated,
    SnapshotPath(vm, snapshot): SnapshotPath,
) -> Result<StatusCode, Failure> {
    app.snapshots.delete(&session, vm, snapshot).await?;
    Ok(StatusCode::OK)
}

/// Keeps the snapshot from expiring.
///
/// A lease lasts from one second to one week, counted from now. Each user has one lease per snapshot; a new one replaces it.
/// The longest lease of all users counts. A lease protects only against expiry: a `DELETE` of the snapshot still deletes
/// it.
#[utoipa::path(
    post, path = "/api/v1/vms/{vm}/snapshots/{snapshot}/lease", tag = "Snapshots", operation_id = "takeLease",
    params(parameters::Vm, parameters::Snapshot),
    request_body = api::TakeLease,
    responses(
        (status = 200, description = "The lease.", body = api::Lease),
        (status = 404, description = "not_found"),
        (status = 409, description = "other_vm"),
        (status = 503, description = "database_rebuilding repository_unavailable"),
    ),
)]
pub(super) async fn take_lease(
    State(app): AppState,
    Authenticated(session): Authenticated,
    SnapshotPath(vm, snapshot): SnapshotPath,
    JsonBody(body): JsonBody<api::TakeLease>,
) -> Result<Json<api::Lease>, Failure> {
    Ok(Json(app.retention.take_lease(&session, vm, snapshot, body).await?))
}

/// Ends the user's lease, if there is one.
#[utoipa::path(
    delete, path = "/api/v1/vms/{vm}/snapshots/{snapshot}/lease", tag = "Snapshots", operation_id = "endLease",
    params(parameters::Vm, parameters::Snapshot),
    responses(
        (status = 200, description = "There is no lease of the user."),
        (status = 404, description = "not_found"),
        (status = 409, description = "other_vm"),
        (status = 503, description = "database_rebuilding repository_unavailable"),
    ),
)]
pub(super) async fn end_lease(
    State(app): AppState,
    Authenticated(session): Authenticated,
    SnapshotPath(vm, snapshot): SnapshotPath,
) -> Result<StatusCode, Failure> {
    app.retention.end_lease(&session, vm, snapshot).await?;
    Ok(StatusCode::OK)
}
