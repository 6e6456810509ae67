//! Who may use a route. Each route of the table says so; one that does not is not compiled.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::MethodRouter;

use super::extract::{Authenticated, authenticate};
use super::failure::Failure;
use super::request_id::logged_path;
use super::ticket::{self, TicketGuard};
use crate::api::TicketOp;
use crate::app::{App, Error};
use crate::model::Permission;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// No token is needed.
    Open,
    /// A valid token is needed, whatever its user may do.
    NeedsToken,
    /// The user needs the permission for the request's VM. The services check this, because only they find the VM
    /// (`app::inventory::access`); here, the user must have it for some VM.
    Needs(Permission),
    /// The user needs the permission for all VMs.
    NeedsForAll(Permission),
    /// The path has a ticket, whose user needs the permission to read the disk.
    Ticket(TicketOp),
}

impl Access {
    /// Adds the checks to the methods of a route.
    pub(super) fn guard(self, app: &Arc<App>, methods: MethodRouter<Arc<App>>) -> MethodRouter<Arc<App>> {
        let (permission, is_for_all) = match self {
            Self::Open => return methods,
            Self::NeedsToken => (None, false),
            Self::Needs(permission) => (Some(permission), false),
            Self::NeedsForAll(permission) => (Some(permission), true),
            Self::Ticket(op) => {
                let guard = TicketGuard { app: Arc::clone(app), op };
                return methods.route_layer(from_fn_with_state(guard, ticket::authorize));
            }
        };
        let guard = Guard { app: Arc::clone(app), permission, is_for_all };
        methods.route_layer(from_fn_with_state(guard, authorize))
    }
}

#[derive(Clone)]
struct Guard {
    app: Arc<App>,
    permission: Option<Permission>,
    is_for_all: bool,
}

async fn authorize(State(guard): State<Guard>, request: Request, next: Next) -> Result<Response, Failure> {
    let Guard { app, permission, is_for_all } = guard;
    let (mut parts, body) = request.into_parts();
    let session = authenticate(&app, &parts).await?;
    let Some(permission) = permission else {
        parts.extensions.insert(Authenticated(session));
        return Ok(next.run(Request::from_parts(parts, body)).await);
    };
    let session = session.needing(permission);
    let (grants, what) = (session.grants(), if is_for_all { "for all VMs" } else { "for this request" });
    let is_permitted = if is_for_all { grants.has_for_all(permission) } else { grants.has(permission) };
    if !is_permitted {
        let error = Error::forbidden(permission, what);
        app.trail.forbidden(&session, &logged_path(&parts.uri), &error);
        return Err(error.into());
    }
    parts.extensions.insert(Authenticated(session));
    Ok(next.run(Request::from_parts(parts, body)).await)
}
