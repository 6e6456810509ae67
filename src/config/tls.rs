//! `[api.tls]`: the service's certificate, and those of its clients.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::validator::{Validator, optional};

/// `client_auth`: which certificates clients may or must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// Whether a client without a certificate is refused.
    pub is_required: bool,
    /// The authorities of the certificates, in PEM.
    pub authorities: PathBuf,
    /// The revocation lists of the authorities. Empty: none is checked.
    pub revocations: Vec<PathBuf>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) allow_insecure_permissions: bool,
    ca_certificate: String,
    /// A mode or, as with the original exporter, whether it is "required".
    client_auth: toml::Value,
    /// A path or a list of paths.
    client_crl: toml::Value,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            certificate: "/etc/coriolis-ovm-exporter/srv-pub.pem".to_owned(),
            key: "/etc/coriolis-ovm-exporter/srv-key.pem".to_owned(),
            allow_insecure_permissions: false,
            ca_certificate: String::new(),
            client_auth: "off".into(),
            client_crl: "".into(),
        }
    }
}

/// The paths in a text or in a list of texts, without empty ones.
fn paths(value: &toml::Value) -> Option<Vec<PathBuf>> {
    let texts = match value {
        toml::Value::String(text) => vec![text.as_str()],
        toml::Value::Array(list) => list.iter().map(toml::Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    Some(texts.into_iter().filter_map(optional).map(PathBuf::from).collect())
}

impl Validator {
    pub(super) fn client_auth(&mut self, keys: &Keys) -> Option<ClientAuth> {
        let is_required = match (&keys.client_auth, keys.client_auth.as_str()) {
            (toml::Value::Boolean(false), _) | (_, Some("off")) => None,
            (toml::Value::Boolean(true), _) | (_, Some("required")) => Some(true),
            (_, Some("optional")) => Some(false),
            _ => {
                let expected = "expected \"off\", \"optional\" or \"required\"";
                self.problem("api.tls.client_auth", format_args!("invalid value {}; {expected}", keys.client_auth));
                None
            }
        };
        let revocations = paths(&keys.client_crl).unwrap_or_else(|| {
            let expected = "expected a path, or a list of paths";
            self.problem("api.tls.client_crl", format_args!("invalid value {}; {expected}", keys.client_crl));
            Vec::new()
        });
        let Some(is_required) = is_required else {
            if !revocations.is_empty() {
                let problem = "is set, but client_auth is off; set client_auth to \"optional\" or \"required\"";
                self.problem("api.tls.client_crl", problem);
            }
            return None;
        };
        let authorities = optional(&keys.ca_certificate).map(PathBuf::from).unwrap_or_else(|| {
            let problem = "is required with client_auth; name the CA of the clients' certificates";
            self.problem("api.tls.ca_certificate", problem);
            PathBuf::new()
        });
        Some(ClientAuth { is_required, authorities, revocations })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validated(auth: impl Into<toml::Value>, crl: impl Into<toml::Value>) -> (Option<ClientAuth>, Vec<String>) {
        let (client_auth, client_crl) = (auth.into(), crl.into());
        let keys = Keys { client_auth, client_crl, ca_certificate: "ca.pem".to_owned(), ..Keys::default() };
        let mut validator = Validator::default();
        (validator.client_auth(&keys), validator.problems)
    }

    #[test]
    fn the_original_values_and_the_modes_are_read() {
        let of = |is_required, revocations: &[&str]| {
            let revocations = revocations.iter().map(PathBuf::from).collect();
            Some(ClientAuth { is_required, authorities: "ca.pem".into(), revocations })
        };
        for (auth, crl, expected) in [
            (toml::Value::from(false), toml::Value::from(""), None),
            ("off".into(), "".into(), None),
            (true.into(), "".into(), of(true, &[])),
            ("required".into(), "a.crl".into(), of(true, &["a.crl"])),
            ("optional".into(), vec!["a.crl", "", "b.crl"].into(), of(false, &["a.crl", "b.crl"])),
        ] {
            assert_eq!(validated(auth, crl), (expected, Vec::new()));
        }
        assert_eq!(Validator::default().client_auth(&Keys::default()), None);
    }

    #[test]
    fn wrong_values_are_named_with_a_remedy() {
        for (auth, crl, expected) in [
            (
                toml::Value::from("on"),
                toml::Value::from(""),
                "api.tls.client_auth: invalid value \"on\"; expected \"off\"",
            ),
            (1.into(), "".into(), "api.tls.client_auth: invalid value 1; expected"),
            ("required".into(), 5.into(), "api.tls.client_crl: invalid value 5; expected a path, or"),
            ("required".into(), vec![true].into(), "api.tls.client_crl: invalid value [true]; expected a path"),
            ("off".into(), "a.crl".into(), "api.tls.client_crl: is set, but client_auth is off; set client_auth"),
        ] {
            let (_, problems) = validated(auth, crl);
            assert!(problems.len() == 1 && problems[0].starts_with(expected), "{problems:?}");
        }
    }
}
