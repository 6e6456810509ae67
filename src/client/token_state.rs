//! The tokens that are known of the hosts of a service.

use secrecy::SecretString;

use super::credentials::{Credentials, TokenCache, Tokens};
use super::error::Refusal;
use super::pool::Host;

/// The tokens of all hosts.
pub(super) struct TokenState {
    pub hosts: Vec<OfHost>,
    /// A host refused the password. It is not sent again, because accounts may be locked after some attempts.
    pub refusal: Option<Refusal>,
}

#[derive(Default)]
pub(super) struct OfHost {
    /// Those that the host itself gave.
    pub own: Option<Tokens>,
    /// It does not accept the tokens of others: they have other secrets.
    pub refuses_others: bool,
}

impl TokenState {
    pub fn new(hosts: &[Host], credentials: &Credentials) -> Self {
        let own = |host: &Host| match credentials {
            Credentials::Token(token) => Some(Tokens { token: token.clone(), refresh: None }),
            Credentials::Password(_) | Credentials::Cached => host.token_cache.as_ref().and_then(TokenCache::load),
            Credentials::Peer => None,
        };
        let hosts = hosts.iter().map(|host| OfHost { own: own(host), refuses_others: false });
        Self { hosts: hosts.collect(), refusal: None }
    }

    /// The token that a host would get now. The hosts of a pool accept each other's.
    pub fn usable(&self, host: usize) -> Option<&SecretString> {
        let OfHost { own, refuses_others } = &self.hosts[host];
        let others = self.hosts.iter().filter(|_| !refuses_others).filter_map(|other| other.own.as_ref());
        own.iter().chain(others).next().map(|tokens| &tokens.token)
    }
}
