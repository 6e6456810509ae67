//! The handlers of log-ins, and of their ends.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use secrecy::ExposeSecret;

use super::connection::Connection;
use super::cross_site::is_cross_site;
use super::extract::{Authenticated, BearerToken, JsonBody, Origin};
use super::failure::Failure;
use super::json::Json;
use crate::api;
use crate::app::session::LogInRequest;
use crate::app::{App, Error};
use crate::auth::{ClientAddress, Credentials, Requester};
use crate::tls::ClientCertificate;

type AppState = State<Arc<App>>;

/// Logs in.
///
/// The manager checks the password. The body is read as JSON whatever its Content-Type. A log-in lasts
/// `jwt.time_to_live` (7 days by default). Without `refresh` there is one token for the whole time. With it, the token is
/// valid for `jwt.access_time_to_live` (an hour), and the refresh token gives the next one.
#[utoipa::path(
    post, path = "/api/v1/auth/login", tag = "Log-ins", operation_id = "logIn",
    request_body = api::Login,
    responses(
        (status = 200, description = "The token.", body = api::Token),
        (status = 401, description = "unauthorized"),
        (status = 502, description = "manager_unavailable"),
    ),
)]
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

/// Renews a log-in: uses the refresh token up, and returns the next one.
///
/// Renewals do not extend the log-in. The former token stays valid until it expires. If a refresh token is used a second
/// time, two parties have it: the service then revokes the log-in with all its tokens, and answers 401.
#[utoipa::path(
    post, path = "/api/v1/auth/refresh", tag = "Log-ins", operation_id = "refresh",
    request_body = api::Refresh,
    responses(
        (status = 200, description = "The next tokens.", body = api::Token),
        (status = 401, description = "unauthorized"),
        (status = 502, description = "manager_unavailable"),
    ),
)]
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

/// Ends the log-in of the token.
///
/// This token, the refresh token, and all other tokens of the log-in are revoked. When the answer arrives, this is on stable
/// storage. On the Unix socket there is no token to log out.
#[utoipa::path(
    post, path = "/api/v1/auth/logout", tag = "Log-ins", operation_id = "logOut",
    responses(
        (status = 200, description = "The log-in has ended."),
    ),
)]
pub(super) async fn logout(
    State(app): AppState,
    Authenticated(session): Authenticated,
    BearerToken(token): BearerToken,
) -> Result<StatusCode, Failure> {
    app.sessions.log_out(&session, token.expose_secret()).await?;
    Ok(StatusCode::OK)
}

/// Shows whom the client's certificate names.
///
/// So a page asks whether its user has to log in. The answer is about the certificate of the connection, also if the request
/// has a token. `user` is `null` without a certificate, and with one that no rule names.
#[utoipa::path(
    get, path = "/api/v1/auth/certificate", tag = "Log-ins", operation_id = "getCertificateUser",
    responses(
        (status = 200, description = "The user, if there is one.", body = api::CertificateUser),
        (status = 403, description = "forbidden"),
    ),
)]
pub(super) async fn certificate(
    State(app): AppState,
    certificate: Option<Extension<Arc<ClientCertificate>>>,
    headers: HeaderMap,
) -> Result<Json<api::CertificateUser>, Failure> {
    if certificate.is_some() && is_cross_site(&headers) {
        return Err(Error::CrossSite.into());
    }
    let session = certificate.and_then(|Extension(certificate)| app.sessions.of_certificate(&certificate).ok());
    Ok(Json(api::CertificateUser { user: session.map(|session| session.subject().to_owned()) }))
}

/// Revokes the tokens of a user, or of all users.
///
/// Name `user`, or set `all`. The name is compared without upper and lower case and spaces at its ends. Downloads of the user
/// are cut off; other requests that run are finished. The user can log in again at once, unless the manager refuses that.
/// Tokens of the original exporter and of versions before 0.3.0 count as issued before each time.
#[utoipa::path(
    post, path = "/api/v1/auth/revoke", tag = "Log-ins", operation_id = "revoke",
    request_body = api::Revoke,
    responses(
        (status = 200, description = "What was revoked.", body = api::Revoked),
    ),
)]
pub(super) async fn revoke(
    State(app): AppState,
    Authenticated(session): Authenticated,
    JsonBody(body): JsonBody<api::Revoke>,
) -> Result<Json<api::Revoked>, Failure> {
    Ok(Json(app.sessions.revoke(&session, body).await?))
}
