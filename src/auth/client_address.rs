//! Where a client connects from.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Serialize, Serializer};

/// The address of a client, for the log, the audit, the status, and the limits of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientAddress {
    Ip(IpAddr),
    /// A process of this host, on the Unix socket.
    Local {
        uid: u32,
        /// Empty for all processes of the user, and if the kernel does not tell it.
        pid: Option<i32>,
    },
}

impl ClientAddress {
    /// What the limits and summaries of unauthenticated clients count as one: of IPv6 a /64, because a host can use all
    /// addresses of that; of this host a user, who can start many processes.
    #[must_use]
    pub fn origin(self) -> Self {
        match self {
            Self::Ip(address) => Self::Ip(match address.to_canonical() {
                IpAddr::V4(address) => address.into(),
                IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            }),
            Self::Local { uid, .. } => Self::Local { uid, pid: None },
        }
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Local { uid, pid: Some(pid) } => write!(f, "unix:uid={uid},pid={pid}"),
            Self::Local { uid, pid: None } => write!(f, "unix:uid={uid}"),
        }
    }
}

impl Serialize for ClientAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
