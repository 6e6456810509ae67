//! Who did what, from which address, with what outcome: one line each.
//!
//! The lines go to a sink of their own, as JSON, where the config names one. Else they are in the log, whatever
//! `RUST_LOG` says of the rest. Reads of disks, which are thousands of requests, are summed up first, in
//! `audit_trail`.

use std::fmt::Display;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

use serde::Serialize;

use crate::app::Error;
use crate::auth::Session;

/// What the lines are known by in the log's filter.
pub const TARGET: &str = "audit";

/// Takes a line of JSON, with its newline. It must not wait.
type Sink = Box<dyn Fn(&[u8]) + Send + Sync>;

static SINK: OnceLock<Sink> = OnceLock::new();

/// Sends all lines to `sink` from now on, and none to the log. The first sink stays.
pub fn send_to(sink: impl Fn(&[u8]) + Send + Sync + 'static) {
    let _ = SINK.set(Box::new(sink));
}

/// Who does something.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Actor {
    user: Option<Arc<str>>,
    /// Nothing for what the service does by itself.
    address: Option<IpAddr>,
    request_id: Option<Arc<str>>,
}

impl From<&Session> for Actor {
    fn from(session: &Session) -> Self {
        let request_id = session.request_id().cloned();
        Self { user: Some(session.subject().into()), address: session.address(), request_id }
    }
}

impl Actor {
    /// The service itself, in a part of it.
    pub(crate) fn service(part: &str) -> Self {
        Self { user: Some(part.into()), address: None, request_id: None }
    }

    /// Somebody who has not said who it is, or not truly.
    pub(crate) fn stranger(address: Option<IpAddr>, request_id: Option<Arc<str>>) -> Self {
        Self { user: None, address, request_id }
    }

    pub(crate) fn user(&self) -> &str {
        self.user.as_deref().unwrap_or("-")
    }

    /// The same, who has proven to be `user`.
    pub(crate) fn named(self, user: &str) -> Self {
        Self { user: Some(user.into()), ..self }
    }

    /// The same of all requests together: who, and from where. Somebody unknown with IPv6 may have all addresses of a
    /// /64.
    pub(crate) fn without_request(&self) -> Self {
        let address = if self.is_stranger() { self.address.map(host_of) } else { self.address };
        Self { user: self.user.clone(), address, request_id: None }
    }

    /// Whether it is not known who it is.
    pub(crate) fn is_stranger(&self) -> bool {
        self.user.is_none()
    }

    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Writes down how `action` ended, which was about `what`.
    pub(crate) fn did<T>(&self, action: &'static str, what: impl Display, outcome: &Result<T, Error>) {
        let what = what.to_string();
        AuditLine::new(self, action, &what, &Outcome::of(outcome)).write();
    }
}

/// What stands for the host with this address: one with IPv6 may have as many addresses as it likes below its /64.
pub fn host_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// How something ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outcome {
    /// `done`, `refused`, `failed`, and for bodies of disks `cut` and `under way`.
    pub name: &'static str,
    pub reason: Option<String>,
}

impl Outcome {
    pub(crate) const DONE: Self = Self { name: "done", reason: None };

    pub(crate) fn of<T>(outcome: &Result<T, Error>) -> Self {
        match outcome {
            Ok(_) => Self::DONE,
            Err(error) => {
                let name = if error.is_refusal() { "refused" } else { "failed" };
                Self { name, reason: Some(error.to_string()) }
            }
        }
    }
}

/// One line.
#[derive(Serialize)]
pub(crate) struct AuditLine<'a> {
    /// RFC 3339, UTC.
    time: String,
    who: Option<&'a str>,
    /// A keyed hash of the account's name, where a log-in failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<&'a str>,
    /// Of failed log-ins to several accounts: how many accounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accounts: Option<usize>,
    address: Option<IpAddr>,
    action: &'static str,
    what: &'a str,
    outcome: &'static str,
    reason: Option<&'a str>,
    /// Of disks, that were sent.
    pub bytes: Option<u64>,
    /// Of disks, that were asked for.
    pub ranges: Option<u64>,
    /// Requests that this line is about, where it may be several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Of the last one.
    request_id: Option<&'a str>,
}

impl<'a> AuditLine<'a> {
    pub(crate) fn new(actor: &'a Actor, action: &'static str, what: &'a str, outcome: &'a Outcome) -> Self {
        Self {
            time: format!("{:.3}", jiff::Timestamp::now()),
            who: actor.user.as_deref(),
            account: None,
            accounts: None,
            address: actor.address,
            action,
            what,
            outcome: outcome.name,
            reason: outcome.reason.as_deref(),
            bytes: None,
            ranges: None,
            requests: None,
            request_id: actor.request_id.as_deref(),
        }
    }

    pub(crate) fn write(&self) {
        if let Some(sink) = SINK.get() {
            match serde_json::to_vec(self) {
                Ok(mut line) => {
                    line.push(b'\n');
                    sink(&line);
                }
                Err(error) => tracing::error!(%error, "an audit line cannot be written as JSON"),
            }
            return;
        }
        let Self { account, accounts, action, what, outcome, bytes, ranges, requests, .. } = self;
        let user = self.who.unwrap_or("-");
        let address = self.address.map_or_else(|| "-".to_owned(), |address| address.to_string());
        // Quoted, so that a text of several lines is one.
        let reason = self.reason.map(tracing::field::debug);
        tracing::info!(
            target: TARGET, action, ?user, %address, ?what, outcome, reason, account, accounts, bytes, ranges, requests,
            "audit"
        );
    }
}
