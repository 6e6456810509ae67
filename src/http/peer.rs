//! The client of a connection.

use std::fmt;
use std::net::SocketAddr;

use crate::auth::ClientAddress;

/// The client of a connection, in the extensions of its requests.
#[derive(Clone, Copy, Debug)]
pub enum Peer {
    Remote(SocketAddr),
    /// A process on the Unix socket. If it is an operator's, its [`Session`](crate::auth::Session) is in the extensions
    /// too.
    Local {
        uid: u32,
        pid: Option<i32>,
    },
}

impl Peer {
    pub fn address(&self) -> ClientAddress {
        match *self {
            Self::Remote(address) => ClientAddress::Ip(address.ip()),
            Self::Local { uid, pid } => ClientAddress::Local { uid, pid },
        }
    }
}

/// For the log: with the port of a remote client.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(address) => write!(f, "{address}"),
            Self::Local { .. } => write!(f, "{}", self.address()),
        }
    }
}
