//! Tickets: their routes, and requests with them.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::header::{HOST, REFERRER_POLICY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Peer;
use super::connection::Connection;
use super::create_body::object;
use super::extract::{Authenticated, DiskPath, SmallBody, disk_and, requester};
use super::failure::Failure;
use super::json::Json;
use super::openapi::parameters;
use super::request_id::logged_path;
use crate::api::{self, TicketOp};
use crate::app::{App, Error};
use crate::auth::TicketSecret;
use crate::model::path_segment;

/// Checks the ticket of a request. For the handlers, it is then one of the ticket's user for the ticket's disk.
#[derive(Clone)]
pub(super) struct TicketGuard {
    pub app: Arc<App>,
    pub op: TicketOp,
}

pub(super) async fn authorize(State(guard): State<TicketGuard>, request: Request, next: Next) -> Response {
    let mut response = match admitted(&guard, request).await {
        Ok(request) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    // A page that a browser opens from here must not learn the URL.
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

async fn admitted(TicketGuard { app, op }: &TicketGuard, request: Request) -> Result<Request, Failure> {
    let (mut parts, body) = request.into_parts();
    let path = Path::<(String, String)>::from_request_parts(&mut parts, &()).await;
    let Path((secret, disk)) = path.map_err(|_| Failure::NoRoute)?;
    let mut requester = requester(&parts);
    let ticket = match app.tickets.open(&secret, disk, *op).await {
        Ok(ticket) => ticket,
        Err(error) => {
            app.trail.unauthenticated(requester, &logged_path(&parts.uri), &error);
            return Err(error.into());
        }
    };
    if let Some(connection) = parts.extensions.get::<Arc<Connection>>() {
        connection.set_authenticated();
    }
    requester.ticket = Some(ticket.id.into());
    let (vm, snapshot, disk) = ticket.target;
    parts.extensions.insert(DiskPath(vm, snapshot, disk));
    parts.extensions.insert(Authenticated(ticket.session.with_request(requester)));
    Ok(Request::from_parts(parts, body))
}

/// The body of a request for a ticket, which is optional and parsed as JSON regardless of Content-Type.
pub(super) struct TicketBody(api::CreateTicket);

impl<S: Send + Sync> FromRequest<S> for TicketBody {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let SmallBody(bytes) = SmallBody::from_request(request, state).await?;
        let keys = "it may be empty, or an object with ttl, such as \"1h\", and ops, such as [\"read\", \"map\"]";
        Ok(Self(match bytes.trim_ascii() {
            b"" | b"null" => api::CreateTicket::default(),
            bytes => object(bytes, keys)?,
        }))
    }
}

/// Makes a URL that reads the disk without a token.
///
/// Anyone who has the URL can read the disk until the ticket expires. Its secret is shown only in this answer. A request with
/// a ticket is one of the ticket's user, with the rights that the user has at that time. A ticket does not keep the
/// snapshot: take a lease for a long download. The body is optional.
#[utoipa::path(
    post, path = "/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}/tickets", tag = "Tickets", operation_id = "createTicket",
    params(parameters::Vm, parameters::Snapshot, parameters::Disk),
    request_body = Option<api::CreateTicket>,
    responses(
        (status = 200, description = "The ticket with its URL.", body = api::NewTicket),
        (status = 404, description = "not_found"),
        (status = 409, description = "other_vm snapshot_lost too_many_tickets"),
        (status = 503, description = "snapshot_being_checked repository_unavailable database_rebuilding"),
    ),
)]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Authenticated(session): Authenticated,
    DiskPath(vm, snapshot, disk): DiskPath,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    TicketBody(body): TicketBody,
) -> Result<Json<api::NewTicket>, Failure> {
    let name = disk.to_string();
    let (ticket, secret) = app.tickets.create(&session, (vm, snapshot, disk), body).await?;
    let path = path_of(&secret, &name);
    let is_local = peer.is_none_or(|Extension(peer)| matches!(peer, Peer::Local { .. }));
    let host = host(&headers).filter(|_| !is_local);
    let url = host.map(|host| format!("https://{host}{path}"));
    Ok(Json(api::NewTicket { ticket, path, url }))
}

/// Lists the user's valid tickets of the disk, oldest first; those of all users for an admin. They have no secrets.
#[utoipa::path(
    get, path = "/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}/tickets", tag = "Tickets", operation_id = "listTickets",
    params(parameters::Vm, parameters::Snapshot, parameters::Disk),
    responses(
        (status = 200, description = "The tickets.", body = Vec<api::Ticket>),
        (status = 404, description = "not_found"),
        (status = 409, description = "other_vm snapshot_lost"),
        (status = 503, description = "snapshot_being_checked repository_unavailable database_rebuilding"),
    ),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Authenticated(session): Authenticated,
    DiskPath(vm, snapshot, disk): DiskPath,
) -> Result<Json<Vec<api::Ticket>>, Failure> {
    Ok(Json(app.tickets.list(&session, (vm, snapshot, disk)).await?))
}

/// A ticket of a disk.
pub(super) struct TicketPath(DiskPath, String);

impl<S: Send + Sync> FromRequestParts<S> for TicketPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, _: &S) -> Result<Self, Failure> {
        let (disk, ticket) = disk_and(parts).await?;
        Ok(Self(disk, ticket))
    }
}

/// Ends a ticket, and cuts off its downloads.
#[utoipa::path(
    delete, path = "/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}/tickets/{ticket}", tag = "Tickets", operation_id = "endTicket",
    params(parameters::Vm, parameters::Snapshot, parameters::Disk, parameters::Ticket),
    responses(
        (status = 200, description = "The ticket has ended."),
        (status = 404, description = "not_found"),
        (status = 409, description = "other_vm snapshot_lost"),
        (status = 503, description = "snapshot_being_checked repository_unavailable database_rebuilding"),
    ),
)]
pub(super) async fn end(
    State(app): State<Arc<App>>,
    Authenticated(session): Authenticated,
    TicketPath(DiskPath(vm, snapshot, disk), ticket): TicketPath,
) -> Result<StatusCode, Failure> {
    app.tickets.end(&session, (vm, snapshot, disk), ticket).await?;
    Ok(StatusCode::OK)
}

/// The host and port that the client has used.
fn host(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(HOST)?.to_str().ok()?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    (!host.is_empty() && host.chars().all(is_plain)).then_some(host)
}

/// The path ends with the name of the disk, so that tools name their file like it and see its extension.
fn path_of(secret: &TicketSecret, disk: &str) -> String {
    format!("/t/{}/{}", secret.expose(), path_segment(disk))
}

/// Refuses a comparison: a ticket is for one disk, and the base is another one.
pub(super) fn refuse_comparison(base: Option<impl Sized>, ticket: Option<&str>) -> Result<(), Failure> {
    if base.is_some() && ticket.is_some() {
        return Err(Error::BadRequest("compareTo: is not possible with a ticket; send a token".to_owned()).into());
    }
    Ok(())
}
