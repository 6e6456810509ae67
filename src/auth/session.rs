//! The user of a request.

use super::requester::Requester;

/// An authenticated request. Only a valid token, or an operator's process on the Unix socket, yields one.
#[derive(Clone, Debug)]
pub struct Session {
    identity: Identity,
    requester: Requester,
}

/// A user, as an authenticator knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name.
    pub subject: String,
    pub roles: Vec<Role>,
}

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything. The manager knows no other role, so every user has this one.
    Administrator,
}

impl Identity {
    pub(super) fn administrator(subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), roles: vec![Role::Administrator] }
    }
}

impl Session {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity, requester: Requester::default() }
    }

    pub fn subject(&self) -> &str {
        &self.identity.subject
    }

    pub fn roles(&self) -> &[Role] {
        &self.identity.roles
    }

    /// Where the request comes from. Empty if the session does not belong to one.
    pub fn requester(&self) -> &Requester {
        &self.requester
    }

    /// The session of a request.
    #[must_use]
    pub fn with_request(self, requester: Requester) -> Self {
        Self { requester, ..self }
    }
}
