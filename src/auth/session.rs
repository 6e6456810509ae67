//! The user of a request.

use std::sync::Arc;

use super::client_address::ClientAddress;

/// An authenticated request. Only a valid token, or an operator's process on the Unix socket, yields one.
#[derive(Clone, Debug)]
pub struct Session {
    identity: Identity,
    address: Option<ClientAddress>,
    request_id: Option<Arc<str>>,
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
        Self { identity, address: None, request_id: None }
    }

    pub fn subject(&self) -> &str {
        &self.identity.subject
    }

    pub fn roles(&self) -> &[Role] {
        &self.identity.roles
    }

    /// The client's address, if the session belongs to a request.
    pub fn address(&self) -> Option<ClientAddress> {
        self.address
    }

    pub fn request_id(&self) -> Option<&Arc<str>> {
        self.request_id.as_ref()
    }

    /// The session of a request with this id from `address`.
    #[must_use]
    pub fn with_request(self, address: Option<ClientAddress>, request_id: Option<Arc<str>>) -> Self {
        Self { address, request_id, ..self }
    }
}
