//! Tickets: URLs that tools can read a disk with, without a header.

use serde::{Deserialize, Serialize};

/// What a ticket permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TicketOp {
    /// Download the disk.
    Read,
    /// List its chunks.
    Map,
}

/// Body of `POST …/tickets`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CreateTicket {
    /// How long the ticket is valid, such as `2h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Default: only `read`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<Vec<TicketOp>>,
}

/// A ticket, without its secret.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ticket {
    pub id: String,
    /// Its user.
    pub user: String,
    pub ops: Vec<TicketOp>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub expires_at: String,
}

/// Response to `POST …/tickets`: the ticket, and the only place where its secret is shown. It cannot be printed
/// by mistake.
#[derive(Serialize, Deserialize)]
pub struct NewTicket {
    #[serde(flatten)]
    pub ticket: Ticket,
    /// The path of the disk, with the secret.
    pub path: String,
    /// The path at the address that the request was sent to. `null` on the Unix socket.
    pub url: Option<String>,
}
