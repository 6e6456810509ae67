//! The user of a request.

use std::sync::Arc;

use super::requester::Requester;
use crate::model::{AccessRules, Grants, Permission, User};
use crate::tls::ClientCertificate;

/// The names of local users start with this, so that a user of the manager with the same name is another user.
const LOCAL: &str = "unix:";

/// The names of certificates start with this.
const CERTIFICATE: &str = "cert:";

/// Whether this is the name of a local user or of a certificate. The manager's users must not have such names.
pub fn is_reserved_name(user: &str) -> bool {
    [LOCAL, CERTIFICATE].iter().any(|start| user.starts_with(start))
}

/// An authenticated request, and the permission that it needs. Only a valid token, a certificate that a rule names, a
/// ticket, or an operator's process on the Unix socket, yields one.
#[derive(Clone, Debug)]
pub struct Session {
    identity: Arc<Identity>,
    grants: Grants,
    /// What the request does. `app::inventory::access` checks it for each VM.
    permission: Permission,
    requester: Requester,
    proof: Option<Proof>,
}

/// The token or the ticket of a session, as revocations name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// When it was made, milliseconds since 1970.
    pub made_ms: u64,
    /// The id of the log-in of a token.
    pub log_in: Option<u128>,
}

/// A user, as an authenticator knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name. See [`is_reserved_name`].
    pub subject: String,
    /// The groups that the authenticator knows. The manager knows none.
    pub groups: Vec<String>,
    pub source: Source,
}

/// How a user has proven who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// With a token.
    LogIn,
    /// With a certificate, and without a token.
    Certificate(Arc<ClientCertificate>),
    /// As the user of a process on the Unix socket.
    Socket,
}

impl Identity {
    pub(super) fn of_user(subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), groups: Vec::new(), source: Source::LogIn }
    }

    fn of_certificate(certificate: Arc<ClientCertificate>) -> Self {
        let subject = format!("{CERTIFICATE}{}", certificate.name());
        Self { subject, groups: Vec::new(), source: Source::Certificate(certificate) }
    }

    fn of_operator(subject: String) -> Self {
        Self { subject, groups: Vec::new(), source: Source::Socket }
    }

    /// What `rules` permit the user now. They may change while a token is valid, so this is asked for each request.
    fn grants(&self, rules: &AccessRules) -> Grants {
        let Self { subject, groups, source } = self;
        match source {
            Source::LogIn => rules.grants_of(&User { name: subject, groups }),
            Source::Certificate(certificate) => rules.grants_of_certificate(certificate.names()),
            Source::Socket => Grants::admin(),
        }
    }
}

impl Session {
    pub(super) fn new(identity: Arc<Identity>, rules: &AccessRules) -> Self {
        let grants = identity.grants(rules);
        // Until the route says what the request needs.
        Self { identity, grants, permission: Permission::Administer, requester: Requester::default(), proof: None }
    }

    /// The session of the local operator with this name.
    pub(super) fn of_operator(name: &str) -> Self {
        Self::new(Arc::new(Identity::of_operator(format!("{LOCAL}{name}"))), &AccessRules::default())
    }

    /// The session of a client with a verified certificate. `None` if no rule names it.
    pub fn of_certificate(certificate: Arc<ClientCertificate>, rules: &AccessRules) -> Option<Self> {
        let session = Self::new(Arc::new(Identity::of_certificate(certificate)), rules);
        (!session.grants.is_empty()).then_some(session)
    }

    /// The session of the user of a ticket, who had proven who they are in this way. `None` if a certificate has lost all
    /// its rules.
    pub fn of_ticket(subject: String, source: Source, rules: &AccessRules) -> Option<Self> {
        match source {
            Source::LogIn => Some(Self::new(Arc::new(Identity::of_user(subject)), rules)),
            Source::Certificate(certificate) => Self::of_certificate(certificate, rules),
            Source::Socket => Some(Self::new(Arc::new(Identity::of_operator(subject)), rules)),
        }
    }

    /// How the user has proven who they are.
    pub fn source(&self) -> &Source {
        &self.identity.source
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
        Self { grants: self.identity.grants(rules), ..self.clone() }
    }

    /// Where the request comes from. Empty if the session does not belong to one.
    pub fn requester(&self) -> &Requester {
        &self.requester
    }

    /// What the user has shown. `None`: a certificate, or a process on the Unix socket.
    pub fn proof(&self) -> Option<Proof> {
        self.proof
    }

    #[must_use]
    pub fn with_proof(self, proof: Proof) -> Self {
        Self { proof: Some(proof), ..self }
    }

    /// The session of a request.
    #[must_use]
    pub fn with_request(self, requester: Requester) -> Self {
        Self { requester, ..self }
    }
}
