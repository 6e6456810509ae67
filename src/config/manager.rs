//! `ovm_endpoint` and `[manager]`.

use std::path::PathBuf;
use std::time::Duration;

use super::{Check, file, optional};

/// `ovm_endpoint` and `[manager]`: who knows the users.
#[derive(Debug)]
pub struct Manager {
    /// `ovm_endpoint`, without a slash at its end; else ovs-agent knows it.
    pub endpoint: Option<String>,
    /// `manager.path`, what is asked there.
    pub path: String,
    /// How the manager proves who it is.
    pub trust: Trust,
    /// `manager.timeout`, for one whole answer.
    pub timeout: Duration,
}

/// How the certificate of a server that we ask is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Against the host's own list of authorities.
    System,
    /// Against the authorities in this file (`ca_certificate`), or as being one of the certificates in it.
    CaFile(PathBuf),
    /// As the one certificate with this SHA-256 (`manager.fingerprint`).
    Fingerprint([u8; 32]),
    /// Not at all (`insecure_skip_verify`).
    InsecureSkipVerify,
}

impl Check {
    pub(super) fn manager(&mut self, file: &file::File) -> Manager {
        let (endpoint, manager) = (file.ovm_endpoint.trim_end_matches('/'), &file.manager);
        let url = format!("{endpoint}{}", manager.path);
        let uri = url.parse::<http::Uri>().ok();
        if uri.as_ref().and_then(http::Uri::authority).is_some_and(|authority| authority.as_str().contains('@')) {
            self.problem("ovm_endpoint", "has a user in it; users log in with their own names: name the host alone");
        }
        match uri.as_ref().and_then(http::Uri::scheme_str) {
            _ if endpoint.is_empty() => {
                if file.repositories.ovs_agent_db.is_empty() {
                    self.problem("ovm_endpoint", "is empty; name the manager, as https://manager.example:7002");
                }
            }
            Some("https") => {}
            Some("http") if manager.insecure_skip_verify => {}
            Some("http") => self.problem("ovm_endpoint", "would send passwords in the clear; use https://"),
            _ => {
                let remedy = "is no address; write https://manager.example:7002";
                self.problem("ovm_endpoint", format_args!("{endpoint:?} {remedy}"));
            }
        }
        if !manager.path.starts_with('/') {
            self.problem("manager.path", format_args!("{:?} does not start with a slash", manager.path));
        }
        Manager {
            endpoint: optional(endpoint).map(str::to_owned),
            path: manager.path.clone(),
            trust: self.trust(manager),
            timeout: self.duration("manager.timeout", &manager.timeout),
        }
    }

    fn trust(&mut self, manager: &file::Manager) -> Trust {
        let named = [!manager.ca_certificate.is_empty(), !manager.fingerprint.is_empty(), manager.insecure_skip_verify];
        if named.iter().filter(|named| **named).count() > 1 {
            self.problem(
                "manager",
                "has more than one of ca_certificate, fingerprint and insecure_skip_verify; keep one",
            );
        }
        if manager.insecure_skip_verify {
            Trust::InsecureSkipVerify
        } else if let Some(fingerprint) = optional(&manager.fingerprint) {
            let parsed = parse_fingerprint(fingerprint).unwrap_or_else(|| {
                self.problem(
                    "manager.fingerprint",
                    "is not sha256: and 64 hexadecimal digits; get it with: openssl s_client -connect HOST:7002 \
                     </dev/null | openssl x509 -noout -fingerprint -sha256",
                );
                [0; 32]
            });
            Trust::Fingerprint(parsed)
        } else {
            optional(&manager.ca_certificate).map_or(Trust::System, |path| Trust::CaFile(path.into()))
        }
    }
}

/// `sha256:` (or nothing) and 64 hexadecimal digits, colons between bytes allowed.
pub(super) fn parse_fingerprint(text: &str) -> Option<[u8; 32]> {
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
