//! The address of a service.

use std::fmt;
use std::path::PathBuf;

const DEFAULT_PORT: u16 = 5544;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `https://host:port`, perhaps with a path, without a slash at the end.
    Https(String),
    /// The socket of the service on this host.
    Unix(PathBuf),
}

impl Address {
    /// Parses `https://host[:port][/path]`. The default port is the service's, not that of HTTPS.
    ///
    /// # Errors
    /// The text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid =
            |why: &str| format!("{text:?} is not the address of a service: {why}; expected https://host:5544");
        let uri: http::Uri = text.parse().map_err(|error| invalid(&format!("{error}")))?;
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") => return Err(invalid("the service does not accept plain HTTP")),
            _ => return Err(invalid("https:// is missing")),
        }
        let authority = uri.authority().ok_or_else(|| invalid("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("a user name does not belong here; see --user"));
        }
        // A URL may have more in its place, such as the semicolon of a list.
        let is_of_host = |c: char| c.is_alphanumeric() || "-._~:[]%".contains(c);
        if !authority.as_str().chars().all(is_of_host) {
            return Err(invalid("its host is not one"));
        }
        if uri.query().is_some() {
            return Err(invalid("it has a query"));
        }
        let port = authority.port_u16().unwrap_or(DEFAULT_PORT);
        let path = uri.path().trim_end_matches('/');
        let path = path.strip_suffix("/api/v1").unwrap_or(path);
        Ok(Self::Https(format!("https://{}:{port}{path}", authority.host())))
    }

    /// Parses the addresses of the hosts of one pool, which commas separate.
    ///
    /// # Errors
    /// The text for the user.
    pub fn parse_pool(text: &str) -> Result<Vec<Self>, String> {
        let mut addresses = Vec::new();
        for entry in text.split(',').map(str::trim) {
            if entry.is_empty() && text.contains(',') {
                return Err(format!("{text:?} has an empty entry; separate addresses of one pool by one comma each"));
            }
            let address = Self::parse(entry)?;
            if addresses.contains(&address) {
                return Err(format!("{text:?} names {address} twice"));
            }
            addresses.push(address);
        }
        Ok(addresses)
    }

    /// The start of each URL.
    pub(super) fn base(&self) -> &str {
        match self {
            Self::Https(base) => base,
            Self::Unix(_) => "http://localhost",
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https(base) => f.write_str(base),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_normalized_and_others_refused() {
        for (text, expected) in [
            ("https://host", "https://host:5544"),
            ("https://host:1/", "https://host:1"),
            ("https://10.0.0.1:5544/api/v1/", "https://10.0.0.1:5544"),
            ("https://[::1]:7", "https://[::1]:7"),
            ("https://proxy/exporter/", "https://proxy:5544/exporter"),
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), expected);
        }
        for text in ["host", "host:5544", "http://host", "https://", "https://u:p@host", "https://host/?a=b", ""] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains("expected https://host:5544"), "{error}");
        }
    }

    #[test]
    fn the_addresses_of_a_pool_are_different() {
        let shown = |text| Address::parse_pool(text).map(|all| all.iter().map(Address::to_string).collect::<Vec<_>>());
        assert_eq!(shown("https://a").unwrap(), ["https://a:5544"]);
        assert_eq!(shown("https://b:1/, https://[::1],https://a").unwrap().len(), 3);
        for (text, expected) in [
            ("https://a,", "has an empty entry"),
            (",", "has an empty entry"),
            ("", "is not the address of a service"),
            ("https://a,https://a:5544/", "names https://a:5544 twice"),
            ("https://a,b", "https:// is missing"),
            ("https://a https://b", "is not the address of a service"),
            ("https://a;https://b", "is not the address of a service"),
        ] {
            let error = shown(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
