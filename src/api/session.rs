//! Bodies of the routes of log-ins.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::formats;

/// The credentials of a user.
#[derive(Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"username": "admin", "password": "secret", "refresh": true}))]
pub struct Login {
    /// The name of the user at the manager.
    pub username: String,
    /// The user's password at the manager.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub password: SecretString,
    /// Whether the client wants a refresh token. Services before 0.3.0 ignore it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub refresh: bool,
}

/// A refresh token to use up.
#[derive(Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"refresh_token": "Vx0mQ3nLrT9dZ1aYb8cKf2eHg5iJk7oPq4sUt6wXyA0BvCzDxEuFwGsHrIqJpKoL"}))]
pub struct Refresh {
    /// The refresh token of the last answer.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{64}$")]
    pub refresh_token: SecretString,
}

/// The token of a log-in.
// It cannot be printed by mistake.
#[derive(Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "token": "eyJhbGciOiJFZERTQSJ9.e30.c2lnbmF0dXJl",
    "expires_in": 3600,
    "refresh_token": "Vx0mQ3nLrT9dZ1aYb8cKf2eHg5iJk7oPq4sUt6wXyA0BvCzDxEuFwGsHrIqJpKoL"
}))]
pub struct Token {
    /// The JWT for `Authorization: Bearer`.
    pub token: String,
    /// How long it is valid, seconds; only with a refresh token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
    /// For `POST /auth/refresh`, once: 64 characters.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose_some")]
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{64}$")]
    pub refresh_token: Option<SecretString>,
}

/// The user of a client certificate.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"user": "cert:ann"}))]
pub struct CertificateUser {
    /// `cert:` with a name of the certificate. `null`: a request without a token gets 401.
    #[schema(required)]
    pub user: Option<String>,
}

/// Whose tokens to revoke: those of `user`, or `all`.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"user": "ann"}))]
pub struct Revoke {
    /// Whose tokens are revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether those of all users are revoked.
    #[serde(default)]
    pub all: bool,
    /// Only those that were issued before this time, which is in the past: RFC 3339. Log-ins with a refresh token that
    /// began before it end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub issued_before: Option<String>,
}

/// What was revoked.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"user": "ann", "issued_until": "2026-11-27T09:14:03.127Z", "log_ins": 2, "downloads": 0}))]
pub struct Revoked {
    /// `null`: all users.
    #[schema(required)]
    pub user: Option<String>,
    /// Tokens that were issued until then are revoked.
    #[schema(value_type = formats::Time)]
    pub issued_until: String,
    /// Log-ins with a refresh token that have ended.
    pub log_ins: usize,
    /// Running and waiting downloads of the user that were cut off. A client with a newer token continues with a range.
    pub downloads: usize,
}

/// The log-ins, as `GET /status` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionStatus {
    /// Log-ins with a refresh token.
    pub renewable: usize,
    /// Log-ins and users with revoked tokens.
    pub revocations: usize,
    /// Log-ins that were answered with 429 since the start.
    pub throttled_log_ins: u64,
}

/// Serializes a secret for clients.
fn expose<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

fn expose_some<S: Serializer>(secret: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(ExposeSecret::expose_secret).serialize(serializer)
}

/// For members that are written only if they are true.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}
