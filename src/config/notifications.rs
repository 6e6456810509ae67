//! `[notifications]`: which webhooks get which events.

use std::collections::HashSet;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::manager::Trust;
use super::policy::{MinFreeSpace, parse_min_free_space};
use super::secret::mask;
use super::validator::{Validator, optional};
use crate::model::{EventKind, EventPattern};

#[derive(Clone, Debug, PartialEq)]
pub struct Notifications {
    /// With less free space, a repository is reported.
    pub low_space: MinFreeSpace,
    /// The most events that wait for one webhook.
    pub max_queued: u64,
    /// An event that could not be delivered for this time is dropped.
    pub retry_for: Duration,
    pub webhooks: Vec<Webhook>,
}

/// A server that gets events.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// In logs, metrics and the status. Unique.
    pub name: String,
    /// It may contain a token of the receiver: never printed.
    pub url: SecretString,
    /// Scheme, host and port of the URL.
    pub origin: String,
    /// The keys of the signatures: the current one, then the former one.
    pub keys: Vec<SecretSlice<u8>>,
    /// Nothing selects all events.
    pub events: Vec<EventPattern>,
    pub trust: Trust,
    /// For one attempt.
    pub timeout: Duration,
}

impl PartialEq for Webhook {
    fn eq(&self, other: &Self) -> bool {
        let Self { name, url, origin: _, keys, events, trust, timeout } = self;
        let texts = |keys: &[SecretSlice<u8>]| keys.iter().map(|key| key.expose_secret().to_vec()).collect::<Vec<_>>();
        url.expose_secret() == other.url.expose_secret()
            && texts(keys) == texts(&other.keys)
            && (name, events, trust, timeout) == (&other.name, &other.events, &other.trust, &other.timeout)
    }
}

impl Webhook {
    pub fn wants(&self, kind: EventKind) -> bool {
        self.events.is_empty() || self.events.iter().any(|pattern| pattern.matches(kind))
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    /// A percentage, a number of bytes, or text with a unit.
    low_space: toml::Value,
    max_queued: u64,
    retry_for: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    webhooks: Vec<WebhookKeys>,
}

impl Default for Keys {
    fn default() -> Self {
        Self { low_space: "10%".into(), max_queued: 10_000, retry_for: "72h".to_owned(), webhooks: Vec::new() }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct WebhookKeys {
    name: String,
    #[serde(serialize_with = "mask")]
    url: SecretString,
    #[serde(serialize_with = "mask")]
    secret: SecretString,
    #[serde(serialize_with = "mask")]
    former_secret: SecretString,
    events: Vec<String>,
    ca_certificate: String,
    insecure_skip_verify: bool,
    timeout: String,
}

impl Default for WebhookKeys {
    fn default() -> Self {
        Self {
            name: String::new(),
            url: SecretString::default(),
            secret: SecretString::default(),
            former_secret: SecretString::default(),
            events: Vec::new(),
            ca_certificate: String::new(),
            insecure_skip_verify: false,
            timeout: "15s".to_owned(),
        }
    }
}

const MAX_WEBHOOKS: usize = 16;

/// One event may be under way, and another one wait.
const MIN_QUEUED: u64 = 2;

const MAX_QUEUED: u64 = 100_000;

const MAX_NAME: usize = 64;

/// A hung receiver uses a connection for this time, and then again after a pause.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

const MAX_RETRY_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the secrets of Standard Webhooks begin with.
const SECRET_PREFIX: &str = "whsec_";

/// How long its keys are, in bytes.
const KEY_LENGTH: std::ops::RangeInclusive<usize> = 24..=64;

impl Validator {
    pub(super) fn notifications(&mut self, keys: &Keys) -> Notifications {
        let low_space = parse_min_free_space(&keys.low_space).unwrap_or_else(|| {
            let expected = "expected 10%, 50GiB or 0";
            self.problem("notifications.low_space", format_args!("invalid value {}; {expected}", keys.low_space));
            MinFreeSpace::Bytes(0)
        });
        if !(MIN_QUEUED..=MAX_QUEUED).contains(&keys.max_queued) {
            let expected = format_args!("invalid number {}; expected {MIN_QUEUED} to {MAX_QUEUED}", keys.max_queued);
            self.problem("notifications.max_queued", expected);
        }
        let retry_for = self.duration("notifications.retry_for", &keys.retry_for);
        if retry_for > MAX_RETRY_FOR {
            self.problem("notifications.retry_for", "is longer than 30 days; older events help no receiver");
        }
        if keys.webhooks.len() > MAX_WEBHOOKS {
            let remedy = "let one receiver pass the events on";
            self.problem("notifications.webhooks", format_args!("has more than {MAX_WEBHOOKS} entries; {remedy}"));
        }
        let mut names = HashSet::new();
        let webhooks = keys.webhooks.iter().enumerate().map(|(index, webhook)| {
            if !webhook.name.is_empty() && !names.insert(webhook.name.as_str()) {
                let problem = format_args!("{:?} is also the name of another webhook; names are unique", webhook.name);
                self.problem(&format!("notifications.webhooks.{}.name", index + 1), problem);
            }
            self.webhook(index, webhook)
        });
        let webhooks = webhooks.collect();
        Notifications { low_space, max_queued: keys.max_queued, retry_for, webhooks }
    }

    /// The webhooks are counted from 1.
    fn webhook(&mut self, index: usize, keys: &WebhookKeys) -> Webhook {
        let at = |key: &str| format!("notifications.webhooks.{}{key}", index + 1);
        let is_name_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if keys.name.is_empty() || keys.name.len() > MAX_NAME || !keys.name.chars().all(is_name_char) {
            let expected = format_args!("expected 1 to {MAX_NAME} letters, digits, '-', '_' or '.', such as alerts");
            self.problem(&at(".name"), format_args!("invalid name {:?}; {expected}", keys.name));
        }
        if keys.insecure_skip_verify && !keys.ca_certificate.is_empty() {
            self.problem(&at(""), "has both ca_certificate and insecure_skip_verify; keep one");
        }
        let trust = match optional(&keys.ca_certificate) {
            _ if keys.insecure_skip_verify => Trust::InsecureSkipVerify,
            Some(path) => Trust::CaFile(path.into()),
            None => Trust::System,
        };
        let origin = origin(keys.url.expose_secret(), &trust).unwrap_or_else(|problem| {
            // The URL is not shown: it may contain a token.
            self.problem(&at(".url"), format_args!("{problem}; expected https://alerts.example/path"));
            String::new()
        });
        let mut signing_keys = Vec::new();
        for (key, secret) in [(".secret", &keys.secret), (".former_secret", &keys.former_secret)] {
            if key == ".former_secret" && secret.expose_secret().is_empty() {
                continue;
            }
            match signing_key(secret) {
                Ok(found) => signing_keys.push(found),
                Err(problem) => {
                    let remedy = "make one with: echo \"whsec_$(openssl rand -base64 32)\"";
                    self.problem(&at(key), format_args!("{problem}; {remedy}"));
                }
            }
        }
        let mut events = Vec::new();
        for text in &keys.events {
            match text.parse() {
                Ok(pattern) => events.push(pattern),
                Err(problem) => self.problem(&at(".events"), format_args!("{text:?} {problem}")),
            }
        }
        let timeout = self.duration(&at(".timeout"), &keys.timeout);
        if timeout > MAX_TIMEOUT {
            self.problem(&at(".timeout"), "is longer than a minute; let the receiver answer first and work later");
        }
        let (name, url) = (keys.name.clone(), keys.url.clone());
        Webhook { name, url, origin, keys: signing_keys, events, trust, timeout }
    }
}

/// Checks the URL of a webhook; returns its scheme, host and port. Events name VMs and users, so it has to be HTTPS,
/// unless they stay on the host or certificates are not verified anyway.
fn origin(text: &str, trust: &Trust) -> Result<String, &'static str> {
    // With the parser of the HTTP client, so that both see the same server.
    let url = Url::parse(text).map_err(|_| "is not a URL")?;
    let is_local = match url.host().ok_or("is not a URL")? {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    };
    match url.scheme() {
        "https" => {}
        "http" if is_local || *trust == Trust::InsecureSkipVerify => {}
        "http" => return Err("would send the events in the clear"),
        _ => return Err("is not a URL"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("contains a user name");
    }
    if url.fragment().is_some() {
        return Err("has a fragment, which is not sent");
    }
    Ok(url.origin().ascii_serialization())
}

fn signing_key(secret: &SecretString) -> Result<SecretSlice<u8>, &'static str> {
    let secret = secret.expose_secret();
    if secret.is_empty() {
        return Err("is empty");
    }
    let encoded = secret.strip_prefix(SECRET_PREFIX).ok_or("does not begin with whsec_")?;
    let key = BASE64_STANDARD.decode(encoded).map_err(|_| "is not base64 after whsec_")?;
    if !KEY_LENGTH.contains(&key.len()) {
        return Err("has not 24 to 64 bytes after base64 is decoded");
    }
    Ok(key.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    const REST: &str =
        "ovm_endpoint = \"https://manager.example\"\n[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n";
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn webhooks_are_read_from_the_config() {
        let text = format!(
            "{REST}[notifications]\nlow_space = \"5GiB\"\nretry_for = \"1h\"\n\
             [[notifications.webhooks]]\nname = \"alerts\"\nurl = \"https://alerts.example:8443/t/hush?hush=1\"\n\
             secret = {SECRET:?}\nformer_secret = {SECRET:?}\nevents = [\"snapshot.*\", \"space.low\"]\n\
             ca_certificate = \"/ca.pem\"\n\
             [[notifications.webhooks]]\nname = \"local\"\nurl = \"http://[::1]:80\"\nsecret = {SECRET:?}\n"
        );
        let config = parse(&text).unwrap();
        assert!(!format!("{config:?}").contains("hush"), "the URL is shown");
        let notifications = config.notifications;
        assert_eq!(
            (notifications.low_space, notifications.max_queued, notifications.retry_for),
            (MinFreeSpace::Bytes(5 << 30), 10_000, Duration::from_secs(3600))
        );
        let [alerts, local] = &notifications.webhooks[..] else { panic!("{notifications:?}") };
        assert_eq!((alerts.name.as_str(), alerts.origin.as_str()), ("alerts", "https://alerts.example:8443"));
        assert_eq!((alerts.keys.len(), alerts.keys[0].expose_secret().len(), local.keys.len()), (2, 24, 1));
        assert_eq!((&alerts.trust, alerts.timeout), (&Trust::CaFile("/ca.pem".into()), Duration::from_secs(15)));
        let wanted = |webhook: &Webhook| EventKind::ALL.into_iter().filter(|kind| webhook.wants(*kind)).count();
        assert_eq!((wanted(alerts), wanted(local)), (4, EventKind::ALL.len()));
        assert!(parse(REST).unwrap().notifications.webhooks.is_empty());
    }

    #[test]
    fn wrong_keys_are_named_without_secrets() {
        let (name, url, secret) = ("name = \"a\"", "url = \"https://a.example\"", format!("secret = {SECRET:?}"));
        let webhook = |lines: &[&str]| format!("[[notifications.webhooks]]\n{}\n", lines.join("\n"));
        let with = |line: &str| webhook(&[name, url, &secret, line]);
        for (text, expected) in [
            (
                "[notifications]\nlow_space = \"little\"\n".to_owned(),
                "notifications.low_space: invalid value \"little\"; ",
            ),
            ("[notifications]\nmax_queued = 0\n".to_owned(), "notifications.max_queued: invalid number 0; "),
            ("[notifications]\nretry_for = \"721h\"\n".to_owned(), "notifications.retry_for: is longer than 30 days; "),
            (with("").repeat(2), "notifications.webhooks.2.name: \"a\" is also the name of another webhook; "),
            (with("").repeat(17), "notifications.webhooks: has more than 16 entries; "),
            (webhook(&[url, &secret]), "notifications.webhooks.1.name: invalid name \"\"; "),
            (webhook(&["name = \"a b\"", url, &secret]), "notifications.webhooks.1.name: invalid name \"a b\"; "),
            (webhook(&[name, &secret]), "notifications.webhooks.1.url: is not a URL; "),
            (webhook(&[name, "url = \"hush\"", &secret]), "notifications.webhooks.1.url: is not a URL; "),
            (webhook(&[name, "url = \"https://hush:99999\"", &secret]), "notifications.webhooks.1.url: is not a URL; "),
            (webhook(&[name, "url = \"https://256.1.1.1/hush\"", &secret]), "webhooks.1.url: is not a URL; "),
            (webhook(&[name, "url = \"http://hush.example\"", &secret]), "url: would send the events in the clear; "),
            (webhook(&[name, "url = \"https://me:hush@a\"", &secret]), "url: contains a user name; "),
            (webhook(&[name, url]), "notifications.webhooks.1.secret: is empty; make one with: echo"),
            (webhook(&[name, url, "secret = \"hush\""]), ".secret: does not begin with whsec_; "),
            (webhook(&[name, url, "secret = \"whsec_hush!\""]), ".secret: is not base64 after whsec_; "),
            (webhook(&[name, url, "secret = \"whsec_aHVzaA==\""]), ".secret: has not 24 to 64 bytes"),
            (with("former_secret = \"hush\""), "notifications.webhooks.1.former_secret: does not begin with whsec_; "),
            (with("events = [\"snapshots.*\"]"), "notifications.webhooks.1.events: \"snapshots.*\" selects no event; "),
            (with("timeout = \"2m\""), "notifications.webhooks.1.timeout: is longer than a minute; "),
            (
                with("ca_certificate = \"x\"\ninsecure_skip_verify = true"),
                "notifications.webhooks.1: has both ca_certificate and insecure_skip_verify; ",
            ),
            (
                with("uri = \"hush\""),
                "notifications.webhooks.1.uri: unknown field `uri`, expected one of `name`, `url`",
            ),
        ] {
            let message = parse(&format!("{REST}{text}")).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
            assert!(!message.contains("hush") && !message.contains("aHVzaA"), "{message:?}");
        }
    }
}
