//! The keys of the config file and their defaults. An empty text means "not given".

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

use super::{audit, export, policy};

/// The whole file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    pub(super) db_file: String,
    pub(super) ovm_endpoint: String,
    pub(super) log_file: String,
    pub(super) log: Log,
    pub(super) audit: audit::Keys,
    pub(super) jwt: Jwt,
    pub(super) api: Api,
    pub(super) manager: Manager,
    pub(super) repositories: Repositories,
    pub(super) compare: Compare,
    pub(super) policy: policy::Keys,
    pub(super) export: export::Keys,
    pub(super) hooks: Hooks,
    pub(super) metrics: Metrics,
}

impl Default for File {
    fn default() -> Self {
        Self {
            db_file: "/etc/coriolis-ovm-exporter/exporter.db".to_owned(),
            ovm_endpoint: String::new(),
            log_file: String::new(),
            log: Log::default(),
            audit: audit::Keys::default(),
            jwt: Jwt::default(),
            api: Api::default(),
            manager: Manager::default(),
            repositories: Repositories::default(),
            compare: Compare::default(),
            policy: policy::Keys::default(),
            export: export::Keys::default(),
            hooks: Hooks::default(),
            metrics: Metrics::default(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Compare {
    /// A number of bytes, or "auto".
    pub(super) refine: toml::Value,
    /// A number of bytes, or text with a unit.
    pub(super) refine_limit: toml::Value,
}

impl Default for Compare {
    fn default() -> Self {
        Self { refine: "auto".into(), refine_limit: "1GiB".into() }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    /// A number of bytes, or text with a unit.
    pub(super) max_size: toml::Value,
    pub(super) max_files: u32,
}

impl Default for Log {
    fn default() -> Self {
        Self { max_size: "10MiB".into(), max_files: 5 }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Jwt {
    #[serde(serialize_with = "expose")]
    pub(super) secret: SecretString,
    pub(super) time_to_live: String,
}

/// Only a test writes the defaults out, in which secrets are empty.
fn expose<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

impl Default for Jwt {
    fn default() -> Self {
        Self { secret: SecretString::default(), time_to_live: "168h".to_owned() }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Api {
    pub(super) bind: String,
    pub(super) port: u16,
    pub(super) max_connections_per_address: usize,
    pub(super) trusted_proxies: Vec<String>,
    pub(super) keepalive_timeout: String,
    pub(super) tls: Tls,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            bind: "0.0.0.0".to_owned(),
            port: 5544,
            max_connections_per_address: 64,
            trusted_proxies: Vec::new(),
            keepalive_timeout: "75s".to_owned(),
            tls: Tls::default(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tls {
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) ca_certificate: String,
    pub(super) client_auth: bool,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: "/etc/coriolis-ovm-exporter/srv-pub.pem".to_owned(),
            key: "/etc/coriolis-ovm-exporter/srv-key.pem".to_owned(),
            ca_certificate: String::new(),
            client_auth: false,
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Manager {
    pub(super) ca_certificate: String,
    pub(super) fingerprint: String,
    pub(super) insecure_skip_verify: bool,
    pub(super) timeout: String,
    pub(super) path: String,
}

impl Default for Manager {
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

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Repositories {
    pub(super) ovs_agent_db: String,
    pub(super) paths: Vec<String>,
}

impl Default for Repositories {
    fn default() -> Self {
        Self { ovs_agent_db: "/etc/ovs-agent/db".to_owned(), paths: Vec::new() }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Hooks {
    pub(super) directory: String,
    pub(super) timeout: String,
    pub(super) on_failure: String,
    pub(super) post_on_failure: bool,
    pub(super) post_order: String,
    pub(super) sync: HooksSync,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            directory: String::new(),
            timeout: "1m".to_owned(),
            on_failure: "abort".to_owned(),
            post_on_failure: false,
            post_order: "reverse".to_owned(),
            sync: HooksSync::default(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HooksSync {
    #[serde(serialize_with = "expose")]
    pub(super) secret: SecretString,
    pub(super) port: u16,
    pub(super) timeout: String,
    pub(super) on_failure: String,
    pub(super) post_on_failure: bool,
    pub(super) ca_certificate: String,
    pub(super) insecure_skip_verify: bool,
    pub(super) retries: u32,
    pub(super) retry_delay: String,
    pub(super) hosts: Vec<String>,
    pub(super) urls: BTreeMap<String, String>,
}

impl Default for HooksSync {
    fn default() -> Self {
        Self {
            secret: SecretString::default(),
            port: 1727,
            timeout: "1m".to_owned(),
            on_failure: "continue".to_owned(),
            post_on_failure: true,
            ca_certificate: String::new(),
            insecure_skip_verify: false,
            retries: 0,
            retry_delay: "1m".to_owned(),
            hosts: Vec::new(),
            urls: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub(super) enabled: bool,
}
