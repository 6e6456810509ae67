//! The client behind a trusted proxy: the header `X-Forwarded-For`.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;

/// The entries of the header that are read, from the right. Chains of proxies are much shorter.
const MAX_ENTRIES: usize = 32;

const HEADER: &str = "x-forwarded-for";

/// The client of a request that came through a trusted proxy, in the extensions of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ForwardedFor(pub IpAddr);

impl ForwardedFor {
    /// The client of a request from a trusted proxy: the last entry that is no trusted proxy itself. Each proxy appends
    /// the address that it sees, so only the client itself could have written what is to the left of that. `None` if
    /// there is no such entry, or if a malformed one follows it.
    pub(super) fn of(headers: &HeaderMap, is_trusted: impl Fn(IpAddr) -> bool) -> Option<Self> {
        let values = headers.get_all(HEADER).iter().collect::<Vec<_>>();
        let entries = values.iter().rev().flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
        for entry in entries.take(MAX_ENTRIES) {
            let address = parse(entry)?;
            if !is_trusted(address) {
                return Some(Self(address));
            }
        }
        None
    }
}

/// An address, in brackets or not, with a port or not.
fn parse(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::from);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(with_port).or_else(bare).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn client(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let is_trusted = |address: IpAddr| matches!(address, IpAddr::V4(address) if address.octets()[0] == 10);
        ForwardedFor::of(&headers, is_trusted).map(|ForwardedFor(client)| client.to_string())
    }

    #[test]
    fn the_last_untrusted_entry_is_the_client() {
        for (values, expected) in [
            (&["192.0.2.1"][..], "192.0.2.1"),
            (&["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
            (&["6.6.6.6, 192.0.2.1,10.0.0.7"], "192.0.2.1"),
            // Several fields are one list.
            (&["6.6.6.6", "192.0.2.1", "10.0.0.7, 10.0.0.8"], "192.0.2.1"),
            (&["nonsense, 192.0.2.1 , 10.0.0.7"], "192.0.2.1"),
            (&["2001:db8::7"], "2001:db8::7"),
            (&["[2001:db8::7]"], "2001:db8::7"),
            (&["[2001:db8::7]:4711"], "2001:db8::7"),
            (&["192.0.2.1:4711"], "192.0.2.1"),
            (&["::ffff:192.0.2.1, ::ffff:10.0.0.1"], "192.0.2.1"),
        ] {
            assert_eq!(client(values).as_deref(), Some(expected), "{values:?}");
        }
    }

    #[test]
    fn malformed_and_endless_lists_name_no_client() {
        let long = format!("192.0.2.1{}", ", 10.0.0.1".repeat(MAX_ENTRIES));
        for values in [
            &[][..],
            &[""],
            &["10.0.0.1"],
            &["192.0.2.1, nonsense"],
            &["192.0.2.1,"],
            &["192.0.2.1", "unknown"],
            &["192.0.2.1 198.51.100.1"],
            &["192.0.2.256"],
            &["[192.0.2.1]"],
            &["2001:db8::7%eth0"],
            &["\u{fc}"],
            &[&long],
        ] {
            assert_eq!(client(values), None, "{values:?}");
        }
    }
}
