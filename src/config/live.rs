//! What a running service takes from a config that it loads again, and which keys it cannot change.

use secrecy::{ExposeSecret, SecretString};

use super::{Compare, Config, Connections, Export, Login, Notifications, Policy, file};
use crate::model::AccessRules;

/// The values that a reload replaces in the running service. All other keys need a restart.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    pub access: AccessRules,
    pub policy: Policy,
    pub export: Export,
    pub compare: Compare,
    pub login: Login,
    pub connections: Connections,
    pub notifications: Notifications,
    pub signing: Signing,
}

/// `jwt.secret` and `jwt.secret_overlap`.
#[derive(Clone, Debug)]
pub struct Signing {
    pub secret: Option<SecretString>,
    pub overlap: std::time::Duration,
}

impl PartialEq for Signing {
    fn eq(&self, other: &Self) -> bool {
        let text = |secret: &Option<SecretString>| secret.as_ref().map(|secret| secret.expose_secret().to_owned());
        self.overlap == other.overlap && text(&self.secret) == text(&other.secret)
    }
}

/// The keys of [`Live`], and the sections of which it has every key. A test compares them with the type.
const LIVE: &[&str] = &[
    "access",
    "policy",
    "export",
    "compare",
    "login",
    "notifications",
    "api.max_connections_per_address",
    "api.trusted_proxies",
    "api.forwarded_for_from",
    "api.keepalive_timeout",
    "jwt.secret",
    "jwt.secret_overlap",
];

fn is_live(key: &str) -> bool {
    LIVE.iter().any(|live| key.strip_prefix(live).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

impl Config {
    /// What a reload replaces.
    pub fn live(&self) -> Live {
        Live {
            access: self.access.clone(),
            policy: self.policy,
            export: self.export,
            compare: self.compare,
            login: self.login,
            connections: self.api.connections.clone(),
            notifications: self.notifications.clone(),
            signing: Signing { secret: self.jwt.secret.clone(), overlap: self.jwt.secret_overlap },
        }
    }

    /// The keys of this config that differ from those of `running`, and that only a restart changes.
    pub fn needs_restart(&self, running: &Self) -> Vec<String> {
        let mut keys = all_keys();
        keys.retain(|key| !is_live(key) && value(&self.keys, key) != value(&running.keys, key));
        keys
    }
}

/// All keys of the file, such as `api.tls.key`. A section whose keys are names of VMs is one key.
fn all_keys() -> Vec<String> {
    fn add(table: &toml::Table, section: &str, keys: &mut Vec<String>) {
        for (key, value) in table {
            match value.as_table() {
                Some(below) if !below.is_empty() => add(below, &format!("{section}{key}."), keys),
                _ => keys.push(format!("{section}{key}")),
            }
        }
    }
    let mut keys = Vec::new();
    add(&toml::Table::try_from(file::File::default()).unwrap_or_default(), "", &mut keys);
    keys
}

fn value<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    match key.split_once('.') {
        Some((section, rest)) => value(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_with_faults;

    /// A value of each key that is not its default.
    const OTHERS: &str = r#"
        db_file = "/x.db"
        db_rebuild = true
        ovm_endpoint = "https://other:7002"
        log_file = "/x.log"
        [log]
        max_size = 1
        max_files = 1
        [audit]
        file = "/x.json"
        max_size = 1
        max_files = 1
        [jwt]
        secret = "0123456789abcdef0123456789abcdef"
        secret_overlap = "1h"
        time_to_live = "1h"
        access_time_to_live = "1m"
        long_tokens = false
        recheck_after = "1m"
        [login]
        failures_per_address = 1
        failures_per_account = 1
        [api]
        bind = "127.0.0.1"
        port = 1
        max_connections_per_address = 1
        trusted_proxies = ["10.0.0.5"]
        forwarded_for_from = ["10.0.0.5"]
        ui = false
        docs = false
        keepalive_timeout = "1s"
        socket = "/x.sock"
        socket_group = "x"
        [api.tls]
        certificate = "/x.pem"
        key = "/x.key"
        allow_insecure_permissions = true
        ca_certificate = "/ca.pem"
        client_auth = "required"
        client_crl = "/x.crl"
        [access]
        default_role = "none"
        [manager]
        ca_certificate = "/ca.pem"
        fingerprint = "x"
        insecure_skip_verify = true
        timeout = "1s"
        path = "/x"
        [compare]
        refine = 0
        refine_limit = 1
        [repositories]
        ovs_agent_db = "/x"
        paths = ["/x"]
        shared = true
        [policy]
        snapshot_concurrency = 1
        export_concurrency = 1
        export_wait = "1s"
        max_snapshots_per_vm = 1
        min_free_space = 1
        max_extents = 1
        default_ttl = "1h"
        superseded_grace = "2h"
        max_ticket_ttl = "1h"
        [export]
        max_rate = "1MiB"
        max_rate_per_connection = "1MiB"
        min_rate = 1
        io_class = "normal"
        [hooks]
        directory = "/x"
        timeout = "2m"
        on_failure = "continue"
        post_on_failure = true
        post_order = "same"
        [hooks.sync]
        secret = "x"
        port = 1
        timeout = "2m"
        on_failure = "abort"
        post_on_failure = false
        ca_certificate = "/ca.pem"
        insecure_skip_verify = true
        retries = 1
        retry_delay = "2m"
        hosts = ["x"]
        urls = { x = "https://x" }
        [notifications]
        low_space = "5GiB"
        max_queued = 1
        retry_for = "1h"
        [metrics]
        enabled = true
        require_token = true
        [confinement]
        mode = "off"
    "#;

    fn config(table: &toml::Table) -> Config {
        parse_with_faults(&table.to_string()).0
    }

    /// The defaults with the value of one key from [`OTHERS`].
    fn with(others: &toml::Table, key: &str) -> Config {
        let other = value(others, key).unwrap_or_else(|| panic!("{key}: add another value than its default to OTHERS"));
        let table =
            key.rsplit('.').fold(other.clone(), |below, part| toml::Table::from_iter([(part.into(), below)]).into());
        config(table.as_table().unwrap())
    }

    #[test]
    fn each_key_is_either_loaded_again_or_reported_as_needing_a_restart() {
        let others: toml::Table = OTHERS.parse().unwrap();
        let running = config(&toml::Table::new());
        let keys = all_keys();
        assert!(keys.len() > 70, "{keys:?}");
        for key in &keys {
            let changed = with(&others, key);
            let (is_loaded, reported) = (changed.live() != running.live(), changed.needs_restart(&running));
            assert_eq!(is_loaded, is_live(key), "{key}: is it a part of Live?");
            assert_eq!(reported.is_empty(), is_loaded, "{key}");
            assert!(is_loaded || reported == [key.as_str()], "{key}: {reported:?}");
        }
        // Every entry is the name of a key or of a section.
        for live in LIVE {
            assert!(keys.iter().any(|key| is_live(key) && key.starts_with(live)), "{live}");
        }
        let all = config(&others).needs_restart(&running);
        assert_eq!(all, keys.into_iter().filter(|key| !is_live(key)).collect::<Vec<_>>());
    }

    #[test]
    fn rules_are_loaded_again() {
        let rules =
            |users: &str| parse_with_faults(&format!("[[access.rules]]\nusers = [{users:?}]\nrole = \"reader\"\n")).0;
        assert_eq!(rules("ann").needs_restart(&rules("ben")), Vec::<String>::new());
        assert_ne!(rules("ann").live(), rules("ben").live());
        assert_eq!(rules("ann").live(), rules("ann").live());
    }

    #[test]
    fn webhooks_are_loaded_again_and_their_secrets_are_not_kept_with_the_keys() {
        let webhook = |url: &str, secret: &str| {
            let lines = format!("name = \"a\"\nurl = \"{url}\"\nsecret = \"whsec_{secret}\"\n");
            parse_with_faults(&format!("[[notifications.webhooks]]\n{lines}")).0
        };
        let (url, secret) = ("https://a.example/hush", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let running = webhook(url, secret);
        assert_eq!(running.live(), webhook(url, secret).live());
        for other in [webhook("https://a.example/other", secret), webhook(url, "AfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")] {
            assert_ne!(running.live(), other.live());
            assert_eq!(other.needs_restart(&running), Vec::<String>::new());
        }
        let shown = running.keys.to_string();
        assert!(shown.contains("webhooks") && !shown.contains("MfKQ") && !shown.contains("hush"), "{shown}");
    }

    #[test]
    fn secrets_are_not_kept_with_the_keys() {
        let text = "[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n[hooks.sync]\nsecret = \"hush-hush\"\n";
        let (one, same) = (parse_with_faults(text).0, parse_with_faults(text).0);
        let shown = one.keys.to_string();
        assert!(!shown.contains("0123456789") && !shown.contains("hush"), "{shown}");
        assert_eq!(one.needs_restart(&same), Vec::<String>::new());
        let other = parse_with_faults(&text.replace("hush-hush", "hush-hash")).0;
        assert_eq!(one.needs_restart(&other), ["hooks.sync.secret"]);
    }
}
