//! The user of a request.

use std::sync::Arc;

use super::requester::Requester;
use crate::model::{AccessRules, Grants, Permission, User};

/// The names of local users start with this, so that a user of the manager with the same name is another user.
const LOCAL: &str = "unix:";

/// Whether this is the name of a local user. No other user may have such a name.
pub fn is_local_name(user: &str) -> bool {
    user.starts_with(LOCAL)
}

/// An authenticated request, and the permission that it needs. Only a valid token, or an operator's process on the Unix
/// socket, yields one.
#[derive(Clone, Debug)]
pub struct Session {
    identity: Arc<Identity>,
    grants: Grants,
    /// What the request does. `app::inventory::access` checks it for each VM.
    permission: Permission,
    requester: Requester,
}

/// A user, as an authenticator knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name.
    pub subject: String,
    /// The groups that the authenticator knows. The manager knows none.
    pub groups: Vec<String>,
    /// The name in the client's certificate, if that is known.
    pub certificate: Option<String>,
}

impl Identity {
    pub(super) fn of_user(subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), groups: Vec::new(), certificate: None }
    }

    /// What `rules` permit the user now. They may change while a token is valid, so this is asked for each request.
    fn grants(&self, rules: &AccessRules) -> Grants {
        let Self { subject, groups, certificate } = self;
        rules.grants_of(&User { name: subject, groups, certificate: certificate.as_deref() })
    }
}

impl Session {
    pub(super) fn new(identity: Arc<Identity>, rules: &AccessRules) -> Self {
        let grants = identity.grants(rules);
        Self::with_grants(identity, grants)
    }

    /// The session of the local operator with this name.
    pub(super) fn of_operator(name: &str) -> Self {
        Self::with_grants(Arc::new(Identity::of_user(format!("{LOCAL}{name}"))), Grants::admin())
    }

    fn with_grants(identity: Arc<Identity>, grants: Grants) -> Self {
        // Until the route says what the request needs.
        Self { identity, grants, permission: Permission::Administer, requester: Requester::default() }
    }

    pub fn subject(&self) -> &str {
        &self.identity.subject
    }

    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// The permission that the request needs.
    pub fn permission(&self) -> Permission {
        self.permission
    }

    /// The session of a request, or of a part of it, that needs this permission.
    #[must_use]
    pub fn needing(&self, permission: Permission) -> Self {
        Self { permission, ..self.clone() }
    }

    /// The session under other rules. They do not apply to local operators.
    #[must_use]
    pub fn under(&self, rules: &AccessRules) -> Self {
        let is_local = is_local_name(self.subject());
        let grants = if is_local { self.grants.clone() } else { self.identity.grants(rules) };
        Self { grants, ..self.clone() }
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
