//! Bodies of the routes of log-ins.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// Body of `POST /auth/login`.
#[derive(Serialize, Deserialize)]
pub struct Login {
    pub username: String,
    #[serde(serialize_with = "expose")]
    pub password: SecretString,
    /// Whether the client wants a refresh token. Older services ignore it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub refresh: bool,
}

/// Body of `POST /auth/refresh`.
#[derive(Serialize, Deserialize)]
pub struct Refresh {
    #[serde(serialize_with = "expose")]
    pub refresh_token: SecretString,
}

/// Response to a log-in and to a refresh. It cannot be printed by mistake.
#[derive(Serialize, Deserialize)]
pub struct Token {
    /// The JWT for `Authorization: Bearer`.
    pub token: String,
    /// How long it is valid, seconds, if it has a refresh token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
    /// For the next token. It can be used once.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose_some")]
    pub refresh_token: Option<SecretString>,
}

/// Body of `POST /auth/revoke`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// Whose tokens are revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether those of all users are.
    #[serde(default)]
    pub all: bool,
    /// Only those that were issued before this time: RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_before: Option<String>,
}

/// Response to that.
#[derive(Debug, Serialize, Deserialize)]
pub struct Revoked {
    /// `null`: all users.
    pub user: Option<String>,
    /// Tokens that were issued until then are revoked: RFC 3339, UTC.
    pub issued_until: String,
    /// Log-ins with a refresh token that have ended.
    pub log_ins: usize,
    /// Running and waiting downloads that have ended.
    pub downloads: usize,
}

/// The log-ins, as `GET /status` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
