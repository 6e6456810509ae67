//! Audit lines: who did what, from which address, with what outcome.
//!
//! If the config names an audit file, the lines go there as JSON. Otherwise they are in the log, regardless of
//! `RUST_LOG`. Reads of disks consist of thousands of requests, so `trail` summarizes them first.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use serde::Serialize;

use super::chain::Head;
use crate::app::Error;
use crate::auth::{AuditKey, ClientAddress, Requester, Session};
use crate::model::Role;

/// The target of audit lines in the log.
pub const TARGET: &str = "audit";

/// Where lines go instead of the log. It must not block.
pub trait Sink: Send + Sync {
    /// Proves the further lines with `key`. It is called before the first line.
    fn prove_with(&self, key: AuditKey);

    /// Takes a line of JSON with its newline.
    fn write(&self, line: &[u8]);

    /// The newest line that was written.
    fn head(&self) -> Option<Head>;
}

static SINK: OnceLock<Box<dyn Sink>> = OnceLock::new();

/// Sends all further lines to `sink` instead of the log. Only the first call has an effect.
pub fn send_to(sink: impl Sink + 'static) {
    let _ = SINK.set(Box::new(sink));
}

/// The newest line of the audit file. `None` if there is no file, or nothing in it yet.
pub(crate) fn head() -> Option<Head> {
    SINK.get().and_then(|sink| sink.head())
}

/// Logs the newest line of the audit file: the file alone does not show whether newer lines were removed.
pub fn log_head(head: &Head) {
    tracing::info!(seq = head.seq, hash = %head.hash, "newest line of the audit file");
}

/// Records the start of the service, before all other lines.
pub(crate) fn start(key: AuditKey) {
    if let Some(sink) = SINK.get() {
        sink.prove_with(key);
    }
    service_did("start");
}

/// Records that the signing key was replaced. This line and the further ones are proven with the new key.
pub(crate) fn replace_key(key: AuditKey) {
    if let Some(sink) = SINK.get() {
        sink.prove_with(key);
    }
    service_did("replace-key");
}

/// Records the end of the service, after all other lines.
pub(crate) fn stop() {
    service_did("stop");
}

fn service_did(action: &'static str) {
    let what = concat!("version ", env!("CARGO_PKG_VERSION"));
    Actor::service("service").did(action, what, &Ok::<(), Error>(()));
}

/// The user or part of the service that does something.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Actor {
    user: Option<Arc<str>>,
    /// Empty for actions of the service itself.
    requester: Requester,
    /// The least role that permits the action. Empty without a role.
    role: Option<Role>,
}

impl From<&Session> for Actor {
    fn from(session: &Session) -> Self {
        let role = Some(session.permission().least_role());
        Self { user: Some(session.subject().into()), requester: session.requester().clone(), role }
    }
}

impl Actor {
    /// A part of the service.
    pub(crate) fn service(part: &str) -> Self {
        Self { user: Some(part.into()), requester: Requester::default(), role: None }
    }

    /// An unauthenticated client.
    pub(crate) fn unauthenticated(requester: Requester) -> Self {
        Self { user: None, requester, role: None }
    }

    pub(crate) fn user(&self) -> &str {
        self.user.as_deref().unwrap_or("-")
    }

    /// The actor, authenticated as `user`.
    pub(crate) fn named(self, user: &str) -> Self {
        Self { user: Some(user.into()), ..self }
    }

    /// The actor without its request. An unauthenticated client has only the origin of its address.
    pub(crate) fn without_request(&self) -> Self {
        let of = &self.requester;
        let requester = if self.is_unauthenticated() { of.origin() } else { of.without_request() };
        Self { user: self.user.clone(), requester, role: self.role }
    }

    pub(crate) fn is_unauthenticated(&self) -> bool {
        self.user.is_none()
    }

    /// The id of the ticket that the requests are made with.
    pub(crate) fn ticket(&self) -> Option<&str> {
        self.requester.ticket.as_deref()
    }

    pub(crate) fn address(&self) -> Option<ClientAddress> {
        self.requester.address
    }

    /// Records the outcome of `action` on `what`.
    pub(crate) fn did<T>(&self, action: &'static str, what: impl Display, outcome: &Result<T, Error>) {
        let what = what.to_string();
        AuditLine::new(self, action, &what, &Outcome::of(outcome)).write();
    }
}

/// The outcome of an action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outcome {
    /// `done`, `refused`, `failed`; for downloads also `cut` and `under way`.
    pub name: &'static str,
    pub reason: Option<String>,
    /// The role that the user lacks.
    pub missing_role: Option<Role>,
}

impl Outcome {
    pub(crate) const DONE: Self = Self { name: "done", reason: None, missing_role: None };

    pub(crate) fn cut(reason: Option<String>) -> Self {
        Self { name: "cut", reason, missing_role: None }
    }

    pub(crate) fn of<T>(outcome: &Result<T, Error>) -> Self {
        match outcome {
            Ok(_) => Self::DONE,
            Err(error) => Self::of_error(error),
        }
    }

    /// Whether the action was refused, or failed.
    pub(crate) fn is_error(&self) -> bool {
        ["refused", "failed"].contains(&self.name)
    }

    pub(crate) fn of_error(error: &Error) -> Self {
        let name = if error.is_refusal() { "refused" } else { "failed" };
        Self { name, reason: Some(error.to_string()), missing_role: error.missing_role() }
    }
}

/// How much an audit line stands for.
#[derive(Default, Serialize)]
pub(crate) struct Amounts {
    /// Bytes of the disk that were sent.
    pub bytes: Option<u64>,
    /// Requested ranges of the disk.
    pub ranges: Option<u64>,
    /// The number of requests, if the line can summarize several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
}

/// One audit line.
#[derive(Serialize)]
pub(crate) struct AuditLine<'a> {
    /// RFC 3339, UTC.
    time: String,
    who: Option<&'a str>,
    /// A keyed hash of the account's name, if a log-in failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<&'a str>,
    /// The number of accounts, if failed log-ins to several accounts are summarized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accounts: Option<usize>,
    address: Option<ClientAddress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forwarded_for: Option<IpAddr>,
    /// The id of the ticket that was used, made or ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ticket: Option<&'a str>,
    action: &'static str,
    what: &'a str,
    /// The least role that permits the action. If that was refused, the user may lack it.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    outcome: &'static str,
    reason: Option<&'a str>,
    #[serde(flatten)]
    pub amounts: Amounts,
    /// The id of the last request.
    request_id: Option<&'a str>,
}

impl<'a> AuditLine<'a> {
    pub(crate) fn new(actor: &'a Actor, action: &'static str, what: &'a str, outcome: &'a Outcome) -> Self {
        Self {
            time: format!("{:.3}", jiff::Timestamp::now()),
            who: actor.user.as_deref(),
            account: None,
            accounts: None,
            address: actor.requester.address,
            forwarded_for: actor.requester.forwarded_for,
            ticket: actor.ticket(),
            action,
            what,
            role: outcome.missing_role.or(actor.role).map(Role::as_str),
            outcome: outcome.name,
            reason: outcome.reason.as_deref(),
            amounts: Amounts::default(),
            request_id: actor.requester.request_id.as_deref(),
        }
    }

    pub(crate) fn write(&self) {
        if let Some(sink) = SINK.get() {
            match serde_json::to_vec(self) {
                Ok(mut line) => {
                    line.push(b'\n');
                    sink.write(&line);
                }
                Err(error) => tracing::error!(%error, "cannot write an audit line as JSON"),
            }
            return;
        }
        let Self { account, accounts, ticket, action, what, role, outcome, .. } = self;
        let Amounts { bytes, ranges, requests } = self.amounts;
        let user = self.who.unwrap_or("-");
        let address = self.address.map_or_else(|| "-".to_owned(), |address| address.to_string());
        let forwarded_for = self.forwarded_for.map(tracing::field::display);
        // Quoted, so that line breaks in the text do not start a new line.
        let reason = self.reason.map(tracing::field::debug);
        tracing::info!(
            target: TARGET, action, ?user, %address, forwarded_for, ticket, ?what, role, outcome, reason, account, accounts, bytes,
            ranges, requests, "audit"
        );
    }
}
