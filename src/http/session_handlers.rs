//! The handlers of log-ins, and of their ends.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use secrecy::ExposeSecret;

use super::connection::Connection;
use super::extract::{Authenticated, BearerToken, JsonBody, Origin};
use super::failure::Failure;
use super::json::Json;
use crate::api;
use crate::app::App;
use crate::app::session::LogInRequest;
use crate::auth::{ClientAddress, Credentials, Requester};

type AppState = State<Arc<App>>;

pub(super) async fn login(
    State(app): AppState,
    Origin(requester): Origin,
    Extension(connection): Extension<Arc<Connection>>,
    JsonBody(body): JsonBody<api::Login>,
) -> Result<Json<api::Token>, Failure> {
    let credentials = Credentials { username: body.username, password: body.password };
    let origin = throttled_as(&requester, &connection);
    let request = LogInRequest { credentials, requester, origin, is_renewable: body.refresh };
    let token = app.sessions.log_in(request, || connection.log_in()).await?;
    connection.set_authenticated();
    Ok(Json(token))
}

/// The client that a trusted proxy names; otherwise the other end of the connection, unless that is such a proxy.
fn throttled_as(requester: &Requester, connection: &Connection) -> Option<ClientAddress> {
    match requester.forwarded_for {
        Some(client) => Some(ClientAddress::Ip(client)),
        None => requester.address.filter(|_| !connection.is_proxy && !connection.names_clients),
    }
}

pub(super) async fn refresh(
    State(app): AppState,
    Origin(requester): Origin,
    Extension(connection): Extension<Arc<Connection>>,
    JsonBody(body): JsonBody<api::Refresh>,
) -> Result<Json<api::Token>, Failure> {
    let token = app.sessions.renew(body.refresh_token, requester).await?;
    connection.set_authenticated();
    Ok(Json(token))
}

pub(super) async fn logout(
    State(app): AppState,
    Authenticated(session): Authenticated,
    BearerToken(token): BearerToken,
) -> Result<StatusCode, Failure> {
    app.sessions.log_out(&session, token.expose_secret()).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn revoke(
    State(app): AppState,
    Authenticated(session): Authenticated,
    JsonBody(body): JsonBody<api::Revoke>,
) -> Result<Json<api::Revoked>, Failure> {
    Ok(Json(app.sessions.revoke(&session, body).await?))
}
