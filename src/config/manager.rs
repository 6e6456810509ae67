//! `ovm_endpoint` and `[manager]`: the manager, which knows the users.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::secret::without_user;
use super::validator::{Validator, optional};

#[derive(Debug)]
pub struct Manager {
    /// `ovm_endpoint` without a trailing slash. `None`: ovs-agent knows the address.
    pub endpoint: Option<String>,
    /// The path of the request that checks a password.
    pub path: String,
    pub trust: Trust,
    /// Time for one complete response.
    pub timeout: Duration,
}

/// How the certificate of a server is verified when the service is the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// By the host's own list of authorities.
    System,
    /// `ca_certificate`: by an authority in this file, or by being a certificate in it.
    CaFile(PathBuf),
    /// `fingerprint`: by having this SHA-256, or one of several.
    Fingerprint(Vec<[u8; 32]>),
    InsecureSkipVerify,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    ca_certificate: String,
    fingerprint: String,
    insecure_skip_verify: bool,
    timeout: String,
    path: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            ca_certificate: String::new(),
            fingerprint: String::new(),
            insecure_skip_verify: false,
            timeout: "30s".to_owned(),
            path: "/ovm/core/wsapi/rest/Repository/id".to_owned(),
        }
    }
}

impl Validator {
    /// `endpoint` is required unless `has_agent`: ovs-agent knows the address of its manager.
    pub(super) fn manager(&mut self, keys: &Keys, endpoint: &str, has_agent: bool) -> Manager {
        let endpoint = endpoint.trim_end_matches('/');
        let url = format!("{endpoint}{}", keys.path);
        let uri = url.parse::<http::Uri>().ok();
        if uri.as_ref().and_then(http::Uri::authority).is_some_and(|authority| authority.as_str().contains('@')) {
            self.problem("ovm_endpoint", "contains a user name; users log in with their own: name only the host");
        }
        match uri.as_ref().and_then(http::Uri::scheme_str) {
            _ if endpoint.is_empty() => {
                if !has_agent {
                    self.problem("ovm_endpoint", "is empty; name the manager, such as https://manager.example:7002");
                }
            }
            Some("https") => {}
            Some("http") if keys.insecure_skip_verify => {}
            Some("http") => self.problem("ovm_endpoint", "would send passwords in the clear; use https://"),
            _ => {
                let expected = "expected https://manager.example:7002";
                self.problem("ovm_endpoint", format_args!("invalid URL {:?}; {expected}", without_user(endpoint)));
            }
        }
        if !keys.path.starts_with('/') {
            self.problem("manager.path", format_args!("invalid path {:?}; expected a leading slash", keys.path));
        }
        Manager {
            endpoint: optional(endpoint).map(str::to_owned),
            path: keys.path.clone(),
            trust: self.trust(keys),
            timeout: self.duration("manager.timeout", &keys.timeout),
        }
    }

    fn trust(&mut self, keys: &Keys) -> Trust {
        let named = [!keys.ca_certificate.is_empty(), !keys.fingerprint.is_empty(), keys.insecure_skip_verify];
        if named.iter().filter(|named| **named).count() > 1 {
            self.problem(
                "manager",
                "has more than one of ca_certificate, fingerprint and insecure_skip_verify; keep one",
            );
        }
        if keys.insecure_skip_verify {
            Trust::InsecureSkipVerify
        } else if let Some(fingerprint) = optional(&keys.fingerprint) {
            let parsed = parse_fingerprint(fingerprint).unwrap_or_else(|| {
                self.problem(
                    "manager.fingerprint",
                    "invalid fingerprint; expected sha256: and 64 hexadecimal digits, as printed by: openssl s_client \
                     -connect HOST:7002 </dev/null | openssl x509 -noout -fingerprint -sha256",
                );
                [0; 32]
            });
            Trust::Fingerprint(vec![parsed])
        } else {
            optional(&keys.ca_certificate).map_or(Trust::System, |path| Trust::CaFile(path.into()))
        }
    }
}

/// Parses 64 hexadecimal digits, optionally with `sha256:` before them and colons between bytes.
pub fn parse_fingerprint(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text).replace(':', "");
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_accepted_as_openssl_prints_them() {
        let digits = "AB".repeat(32);
        let colons = vec!["ab"; 32].join(":");
        for text in [digits.clone(), format!("sha256:{digits}"), format!("sha256:{colons}")] {
            assert_eq!(parse_fingerprint(&text), Some([0xab; 32]), "{text}");
        }
        assert_eq!(parse_fingerprint(&"é".repeat(32)), None);
    }
}
