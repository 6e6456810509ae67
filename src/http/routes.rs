//! The routes, in one table.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{self, MethodRouter};
use axum::{Router, http::StatusCode};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use super::authorization::Access;
use super::documentation::{self, Documentation};
use super::failure::Failure;
use super::openapi::{self, Route};
use super::paths::{CHUNKS, DISK, DOCS, DOCS_FILE, METRICS, OPENAPI, TICKET_CHUNKS, TICKET_DISK};
use super::{
    disk_handlers, handlers, notification_handlers, request_middleware, session_handlers, snapshot_handlers, ticket, ui,
};
use crate::api::TicketOp;
use crate::app::{App, Error};
use crate::config::{MetricsRoute, Pages};
use crate::model::Permission;

type Methods = MethodRouter<Arc<App>>;

/// A handler, with the name of its method.
type Method = (&'static str, Methods);

fn get<H: Handler<T, Arc<App>>, T: 'static>(handler: H) -> Method {
    ("GET", routing::get(handler))
}

fn post<H: Handler<T, Arc<App>>, T: 'static>(handler: H) -> Method {
    ("POST", routing::post(handler))
}

fn delete<H: Handler<T, Arc<App>>, T: 'static>(handler: H) -> Method {
    ("DELETE", routing::delete(handler))
}

/// The routes with their methods, and who may use each. A part of a request may need more than its route: chunks in the
/// document of a snapshot, and deleting the snapshot of another user.
fn table(metrics: MetricsRoute, has_docs: bool) -> Vec<(&'static str, Access, Method)> {
    let read = Access::Needs(Permission::Read);
    let view = Access::Needs(Permission::View);
    let create = Access::Needs(Permission::Create);
    let delete_own = Access::Needs(Permission::DeleteOwn);
    let mut table = vec![
        ("/api/v1/auth/login", Access::Open, post(session_handlers::login)),
        ("/api/v1/auth/refresh", Access::Open, post(session_handlers::refresh)),
        ("/api/v1/auth/logout", Access::NeedsToken, post(session_handlers::logout)),
        ("/api/v1/auth/certificate", Access::Open, get(session_handlers::certificate)),
        ("/api/v1/auth/revoke", Access::NeedsForAll(Permission::Administer), post(session_handlers::revoke)),
        ("/api/v1/capabilities", view, get(handlers::capabilities)),
        ("/api/v1/adopt", Access::NeedsForAll(Permission::Administer), post(handlers::adopt)),
        ("/api/v1/database", Access::NeedsForAll(Permission::Administer), get(handlers::database)),
        ("/api/v1/notifications/test", Access::NeedsForAll(Permission::Administer), post(notification_handlers::test)),
        ("/api/v1/repositories", view, get(handlers::repositories)),
        ("/api/v1/status", view, get(handlers::status)),
        ("/api/v1/snapshots", create, post(snapshot_handlers::create_snapshots)),
        ("/api/v1/vms", view, get(snapshot_handlers::vms)),
        ("/api/v1/vms/{vm}", view, get(snapshot_handlers::vm)),
        ("/api/v1/vms/{vm}/snapshots", view, get(snapshot_handlers::snapshots)),
        ("/api/v1/vms/{vm}/snapshots", create, post(snapshot_handlers::create_snapshot)),
        ("/api/v1/vms/{vm}/snapshots", delete_own, delete(snapshot_handlers::delete_all_snapshots)),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}", view, get(snapshot_handlers::snapshot)),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}", delete_own, delete(snapshot_handlers::delete_snapshot)),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}/lease", read, post(snapshot_handlers::take_lease)),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}/lease", read, delete(snapshot_handlers::end_lease)),
        (DISK, read, get(disk_handlers::disk)),
        (CHUNKS, read, get(disk_handlers::chunks)),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}/checksum", read, get(disk_handlers::checksum)),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}/tickets", read, get(ticket::list)),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}/tickets", read, post(ticket::create)),
        ("/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}/tickets/{ticket}", read, delete(ticket::end)),
        (TICKET_DISK, Access::Ticket(TicketOp::Read), get(disk_handlers::disk)),
        (TICKET_CHUNKS, Access::Ticket(TicketOp::Map), get(disk_handlers::chunks)),
        ("/healthz", Access::Open, get(handlers::healthz)),
        ("/readyz", Access::Open, get(handlers::readyz)),
    ];
    match metrics {
        MetricsRoute::Off => {}
        MetricsRoute::Open => table.push((METRICS, Access::Open, get(handlers::metrics))),
        MetricsRoute::NeedsToken => {
            table.push((METRICS, Access::NeedsForAll(Permission::Metrics), get(handlers::metrics)));
        }
    }
    if has_docs {
        table.extend([
            (OPENAPI, Access::Open, get(documentation::document)),
            (DOCS, Access::Open, get(documentation::page)),
            (DOCS_FILE, Access::Open, get(documentation::file)),
        ]);
    }
    table
}

/// Whether a request finds snapshots that another exporter has just made. Downloads are too many for that: their clients
/// have seen the snapshot here before.
fn shows_snapshots(path: &str) -> bool {
    path.starts_with("/api/v1/vms") && path != DISK
}

async fn look_first(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    app.snapshots.look_for_others().await;
    next.run(request).await
}

/// The OpenAPI document of all routes, whatever the config.
fn document() -> serde_json::Result<serde_json::Value> {
    let table = table(MetricsRoute::NeedsToken, true);
    let routes: Vec<Route> = table.iter().map(|(path, access, (method, _))| (*path, *method, *access)).collect();
    openapi::document(&routes)
}

/// The API of `app`, optionally with `GET /metrics`, its documentation and the page at `/ui`. Every route accepts a trailing slash.
pub fn router(app: Arc<App>, metrics: MetricsRoute, pages: Pages) -> Router {
    let mut routes: BTreeMap<_, Methods> = BTreeMap::new();
    for (path, access, (_, methods)) in table(metrics, pages.docs) {
        let methods = if shows_snapshots(path) {
            methods.route_layer(from_fn_with_state(Arc::clone(&app), look_first))
        } else {
            methods
        };
        let guarded = access.guard(&app, methods);
        let others = routes.remove(path).unwrap_or_default();
        routes.insert(path, others.merge(guarded));
    }
    let mut router = Router::new();
    for (path, methods) in routes {
        let methods = if [DISK, TICKET_DISK].contains(&path) {
            methods
        } else {
            methods.layer(from_fn_with_state(Handle::current(), run_in))
        };
        router = router.route(path, methods.clone()).route(&format!("{path}/"), methods);
    }
    if pages.docs {
        match document().and_then(|document| Documentation::new(&document)) {
            Ok(documentation) => router = router.layer(Extension(Arc::new(documentation))),
            Err(error) => tracing::error!(%error, "cannot write the OpenAPI document"),
        }
    }
    if pages.ui {
        router = router.merge(ui::routes());
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::Role;

    /// The routes for tickets are outside the base path.
    const TICKETS: &str = "/t/";

    /// The rows of the table in docs/api.md: method, path, and the roles with "yes".
    fn documented() -> Vec<(String, String, BTreeSet<&'static str>)> {
        let document = include_str!("../../docs/api.md");
        let section = document.split("\n## Roles\n").nth(1).unwrap().split("\n## ").next().unwrap();
        let mut rows = section.lines().filter(|line| line.starts_with("| "));
        let roles: Vec<Role> =
            rows.next().unwrap().split('|').skip(2).filter_map(|cell| cell.trim().parse().ok()).collect();
        assert_eq!(roles.iter().map(|role| role.as_str()).collect::<BTreeSet<_>>().len(), Role::ALL.len());
        let row = |line: &str| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let (method, path) = cells[1].trim_matches('`').split_once(' ').unwrap();
            let path = path.split('?').next().unwrap();
            let is_outside = ["/healthz", "/readyz", METRICS].contains(&path) || path.starts_with(TICKETS);
            let path = if is_outside { path.to_owned() } else { ["/api/v1", path].concat() };
            let permitted = cells[2..].iter().zip(&roles).filter(|(cell, _)| **cell == "yes");
            (method.to_owned(), path, permitted.map(|(_, role)| role.as_str()).collect())
        };
        rows.map(row).collect()
    }

    #[test]
    fn the_documented_roles_are_those_of_the_routes() {
        let documented = documented();
        let table = table(MetricsRoute::NeedsToken, true);
        for (path, access, (method, _)) in &table {
            let permitted = |role: &Role| match access {
                Access::Open | Access::NeedsToken => true,
                Access::Ticket(_) => role.permits(Permission::Read),
                Access::Needs(permission) | Access::NeedsForAll(permission) => role.permits(*permission),
            };
            let expected: BTreeSet<_> =
                Role::ALL.iter().filter(|role| permitted(role)).map(|role| role.as_str()).collect();
            // Some parameters need more, so the route needs what the least of its rows needs.
            let rows = documented.iter().filter(|(of, at, _)| of == method && at == path);
            let found: BTreeSet<_> = rows.flat_map(|(_, _, roles)| roles.iter().copied()).collect();
            assert_eq!(found, expected, "{method} {path} in docs/api.md");
        }
        for (method, path, _) in &documented {
            assert!(table.iter().any(|(at, _, (of, _))| at == path && of == method), "no route {method} {path}");
        }
    }

    /// Set this variable to write the document instead of comparing it.
    const WRITE: &str = "WRITE_OPENAPI";

    #[test]
    fn the_openapi_document_is_the_one_in_docs() {
        let document = serde_json::to_string_pretty(&document().unwrap()).unwrap() + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(path, &document).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == document, "docs/openapi.json is not the document of the code: run make openapi");
    }

    #[test]
    fn the_openapi_document_has_each_route() {
        let document = document().unwrap();
        let mut documented = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            // HEAD belongs to GET.
            let methods = methods.as_object().unwrap().keys().filter(|method| *method != "head");
            documented.extend(methods.map(|method| (method.to_ascii_uppercase(), path.clone())));
        }
        let routes = table(MetricsRoute::NeedsToken, true);
        let routes: BTreeSet<_> =
            routes.iter().map(|(path, _, (method, _))| ((*method).to_owned(), (*path).to_owned())).collect();
        assert_eq!(documented, routes);
    }
}
