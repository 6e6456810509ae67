//! Tickets: URLs that tools can read a disk with, without a header.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::formats;

/// What a ticket permits: `read` the bytes of the disk, or list its chunks (`map`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TicketOp {
    /// Download the disk.
    Read,
    /// List its chunks.
    Map,
}

/// A request for a ticket.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(example = json!({"ttl": "1h", "ops": ["read", "map"]}))]
pub struct CreateTicket {
    /// How long the ticket is valid, such as `2h`: from one second to `policy.max_ticket_ttl`. Default: an hour, or that
    /// if it is shorter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<formats::Duration>)]
    pub ttl: Option<String>,
    /// What the ticket permits. Default: only `read`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<Vec<TicketOp>>,
}

/// A ticket, without its secret.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "5d1c0b7a9e3f2486",
    "user": "admin",
    "ops": ["read"],
    "created_at": "2026-11-27T09:14:03.127Z",
    "expires_at": "2026-11-27T10:14:03.127Z"
}))]
pub struct Ticket {
    /// Its id, which is also in the log and the audit. It does not permit anything.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    pub id: String,
    /// Its user.
    pub user: String,
    /// What it permits.
    pub ops: Vec<TicketOp>,
    /// When it was made.
    #[schema(value_type = formats::Time)]
    pub created_at: String,
    /// When it expires.
    #[schema(value_type = formats::Time)]
    pub expires_at: String,
}

/// A new ticket. Its secret is shown only here.
// It cannot be printed by mistake.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct NewTicket {
    #[serde(flatten)]
    pub ticket: Ticket,
    /// The path of the disk, with the secret.
    pub path: String,
    /// The path at the host of the request (the header `Host`). `null` on the Unix socket.
    #[schema(required)]
    pub url: Option<String>,
}
