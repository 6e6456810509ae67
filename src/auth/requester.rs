//! Where a request comes from.

use std::net::IpAddr;
use std::sync::Arc;

use super::client_address::ClientAddress;

/// What is known about the sender of a request before its token is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requester {
    /// The other end of the connection. `None` for the service itself.
    pub address: Option<ClientAddress>,
    /// The client that a trusted proxy names, if `address` is that proxy.
    pub forwarded_for: Option<IpAddr>,
    pub request_id: Option<Arc<str>>,
    /// The id of the ticket of the request, or that it is about.
    pub ticket: Option<Arc<str>>,
}

impl Requester {
    /// The same for all requests of the client.
    #[must_use]
    pub fn without_request(&self) -> Self {
        Self { request_id: None, ..self.clone() }
    }

    /// What the summaries of unauthenticated clients count as one ([`ClientAddress::origin`]).
    #[must_use]
    pub fn origin(&self) -> Self {
        let forwarded_for = self.forwarded_for.map(|address| match ClientAddress::Ip(address).origin() {
            ClientAddress::Ip(origin) => origin,
            ClientAddress::Local { .. } => address,
        });
        Self { address: self.address.map(ClientAddress::origin), forwarded_for, request_id: None, ticket: None }
    }
}
