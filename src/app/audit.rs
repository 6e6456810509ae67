//! Who did what, from which address, with what outcome: one line of the log each.
//!
//! They are always in the log, whatever `RUST_LOG` says of the rest.

use std::fmt::Display;
use std::net::IpAddr;

use super::Error;
use crate::auth::Session;

/// What the lines are known by in the log's filter.
pub const TARGET: &str = "audit";

/// Who does something.
#[derive(Clone, Debug)]
pub(super) struct Actor {
    user: String,
    /// Nothing for what the service does by itself.
    address: Option<IpAddr>,
}

impl From<&Session> for Actor {
    fn from(session: &Session) -> Self {
        Self { user: session.user().to_owned(), address: session.address() }
    }
}

impl Actor {
    /// The service itself, in a part of it.
    pub(super) fn service(part: &str) -> Self {
        Self { user: part.to_owned(), address: None }
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// Writes down how `action` ended, which was about `what`.
    pub(super) fn did<T>(&self, action: &'static str, what: impl Display, outcome: &Result<T, Error>) {
        line(action, Some(&self.user), self.address, what, outcome);
    }
}

/// Writes down that a log-in ended. What a stranger types as a name may be a password: only a good one
/// is named.
pub(super) fn login<T>(user: &str, address: Option<IpAddr>, outcome: &Result<T, Error>) {
    line("log-in", outcome.is_ok().then_some(user), address, "", outcome);
}

/// Writes down that a body of a disk ended, and how much of it was sent.
pub(super) fn export(user: &str, address: Option<IpAddr>, what: impl Display, sent: u64, of: u64) {
    let (what, address) = (what.to_string(), shown(address));
    let outcome = if sent == of { "done" } else { "cut" };
    tracing::info!(target: TARGET, action = "export", ?user, %address, ?what, outcome, sent, of, "audit");
}

/// Writes down that a request came without a good token.
pub fn stranger(address: Option<IpAddr>, path: String) {
    line::<()>("request", None, address, path, &Err(crate::auth::BadToken.into()));
}

fn shown(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "-".to_owned(), |address| address.to_string())
}

fn line<T>(
    action: &'static str,
    user: Option<&str>,
    address: Option<IpAddr>,
    what: impl Display,
    outcome: &Result<T, Error>,
) {
    // Quoted, so that a name of several lines is one.
    let what = what.to_string();
    let (user, address) = (user.unwrap_or("-"), shown(address));
    match outcome {
        Ok(_) => tracing::info!(target: TARGET, action, ?user, %address, ?what, outcome = "done", "audit"),
        Err(error) => {
            let reason = error.to_string();
            let outcome = if error.is_refusal() { "refused" } else { "failed" };
            tracing::info!(target: TARGET, action, ?user, %address, ?what, outcome, ?reason, "audit");
        }
    }
}
