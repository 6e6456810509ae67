//! Servers in the guests, which quiesce their disks before a snapshot and resume after it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::redirect::Policy;
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use tower::Service;
use tower::layer::layer_fn;

use super::event::SyncTarget;
use crate::config::{self, Trust, sync_url};
use crate::dns::HostNames;
use crate::model::{HookOutcome, VmId};
use crate::tls;

/// The tag of a VM that has such a server.
const TAG: &str = "xo:notify-on-snapshot";

/// For the connection to a guest, which may be off.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const MAX_ANSWER: usize = 64 << 10;

#[derive(Clone, Copy)]
pub(super) enum Request {
    /// Quiesce the disks.
    Sync,
    /// Resume.
    PostSync,
}

pub(super) struct Answer {
    pub outcome: HookOutcome,
    pub detail: String,
}

/// Whether a TLS connection was established. Before that no part of a request is sent, so the guest cannot have done
/// anything.
#[derive(Clone, Debug, Default)]
pub(super) struct Reached(Arc<AtomicBool>);

impl Reached {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connector that records when a connection is established.
#[derive(Clone)]
struct RecordingConnector<S> {
    connector: S,
    reached: Reached,
}

impl<R, S: Service<R>> Service<R> for RecordingConnector<S>
where
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (connecting, reached) = (self.connector.call(request), self.reached.clone());
        Box::pin(async move {
            let connection = connecting.await?;
            reached.0.store(true, Ordering::Relaxed);
            Ok(connection)
        })
    }
}

/// The client of all servers.
pub(super) struct Client {
    timeout: Duration,
    tls: ClientConfig,
    bearer: SecretString,
    names: HostNames,
}

impl Client {
    pub(super) fn new(config: &config::Sync) -> io::Result<Self> {
        let bearer = SecretString::from(STANDARD.encode(config.secret.expose_secret()));
        let (tls, names) = (tls::client_config(&config.trust)?, HostNames::read());
        let client = Self { timeout: config.timeout, tls, bearer, names };
        client.http(&Reached::default()).map_err(|error| io::Error::other(tls::with_causes(&error)))?;
        Ok(client)
    }

    /// A client for one request. It only works in the runtime in which it is created.
    fn http(&self, reached: &Reached) -> reqwest::Result<reqwest::Client> {
        let reached = reached.clone();
        reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .dns_resolver(self.names.clone())
            .connect_timeout(CONNECT_TIMEOUT.min(self.timeout))
            .connector_layer(layer_fn(move |connector| RecordingConnector { connector, reached: reached.clone() }))
            .timeout(self.timeout)
            // A redirection could carry the secret to another server.
            .redirect(Policy::none())
            .no_proxy()
            .build()
    }

    /// Sends `request` to the server at `url`, and waits for its whole answer. `reached` shows at any time whether the
    /// guest may have done something.
    pub(super) async fn ask(&self, url: &str, request: Request, reached: &Reached) -> Answer {
        let path = match request {
            Request::Sync => "sync",
            Request::PostSync => "post-sync",
        };
        let answer = async {
            let request = self.http(reached)?.get(format!("{url}/{path}"));
            read(request.bearer_auth(self.bearer.expose_secret())).await
        };
        answer.await.unwrap_or_else(|error| {
            let is_late = error.is_timeout() && reached.get();
            let outcome = if is_late { HookOutcome::Timeout } else { HookOutcome::Failed };
            Answer { outcome, detail: describe(&error.without_url(), reached.get()) }
        })
    }
}

async fn read(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let mut answer = request.send().await?;
    let status = answer.status();
    let mut length = 0;
    while let Some(piece) = answer.chunk().await? {
        length += piece.len();
        if length > MAX_ANSWER {
            let detail =
                format!("answers {status} with more than {MAX_ANSWER} bytes; check that the URL is a sync server's");
            return Ok(Answer { outcome: HookOutcome::Failed, detail });
        }
    }
    let outcome = if status.is_success() { HookOutcome::Ok } else { HookOutcome::Failed };
    let detail = if status.is_redirection() {
        format!("answers {status}; redirects are not followed, because they would get the secret")
    } else {
        format!("answers {status}")
    };
    Ok(Answer { outcome, detail })
}

fn describe(error: &reqwest::Error, reached: bool) -> String {
    let text = tls::with_causes(error);
    let remedy = if tls::is_invalid_certificate(error) {
        " (name its authority, or the certificate itself, with hooks.sync.ca_certificate)"
    } else if !reached {
        " (check that the VM and its sync server are running)"
    } else {
        ""
    };
    text + remedy
}

/// Where the sync server of `vm` is, if it has one: at the URL in the config, otherwise where the tag in one of
/// `labels` says. `address` is the guest's, if it is known.
pub(super) fn target(config: &config::Sync, vm: &VmId, labels: &[&str], address: Option<&str>) -> Option<SyncTarget> {
    if let Some(url) = config.urls.get(vm) {
        return Some(SyncTarget::Url(url.clone()));
    }
    let tag = labels.iter().find_map(|label| tag_in(label))?;
    let target = match (tag, address) {
        ("", None) => Err(format!(
            "the tag {TAG} has no URL, and the VM's definition has no address; name a URL in hooks.sync.urls"
        )),
        ("", Some(address)) => check_url(&host_url(address, config.port), &config.trust),
        (url, _) => check_url(url, &config.trust).and_then(|url| check_host(config, url)),
    };
    Some(target.map_or_else(SyncTarget::Unknown, SyncTarget::Url))
}

/// Characters of an invalid URL that are shown.
const URL_LIMIT: usize = 200;

fn check_url(url: &str, trust: &Trust) -> Result<String, String> {
    let shown = || url.chars().take(URL_LIMIT).collect::<String>();
    sync_url(url, trust).map_err(|problem| format!("the tag's URL {:?} {problem}", shown()))
}

/// Refuses the URL of a tag to which the secret must not be sent.
fn check_host(config: &config::Sync, url: String) -> Result<String, String> {
    let uri = url.parse::<http::Uri>().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    if config.may_be_named(host) {
        return Ok(url);
    }
    Err(format!(
        "the tag's URL names the host {host}, which is not trusted with the secret; name it in hooks.sync.hosts, or the \
         VM's URL in hooks.sync.urls"
    ))
}

fn host_url(address: &str, port: u16) -> String {
    if address.contains(':') { format!("https://[{address}]:{port}") } else { format!("https://{address}:{port}") }
}

/// The URL of the tag in `label`; empty if the tag has none.
fn tag_in(label: &str) -> Option<&str> {
    let words = label.split(|c: char| c.is_whitespace() || matches!(c, ',' | ';'));
    words.filter_map(|word| word.strip_prefix(TAG)).find_map(|rest| match rest.strip_prefix('=') {
        Some(url) => Some(url),
        None => rest.is_empty().then_some(""),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: &str = "0004fb00000600000000000000000001";

    fn config() -> config::Sync {
        with("hosts = [\"*\"]")
    }

    fn with(lines: &str) -> config::Sync {
        let text = "[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n[hooks.sync]\nsecret = \"hush\"\nLINES\n\
                    urls.0004fb00000600000000000000000002 = \"https://named:1\"\n";
        config::parse(&text.replace("LINES", lines)).unwrap().hooks.sync.unwrap()
    }

    #[test]
    fn a_tag_or_the_config_names_the_server() {
        let (config, vm, named) = (config(), VM.parse().unwrap(), "0004fb00000600000000000000000002".parse().unwrap());
        let url = |labels: &[&str], address| match target(&config, &vm, labels, address) {
            None => "none".to_owned(),
            Some(SyncTarget::Url(url)) => url,
            Some(SyncTarget::Unknown(reason)) => format!("unknown: {reason}"),
        };
        for label in ["", "xo:notify-on-snapshots", "notify-on-snapshot", "axo:notify-on-snapshot", "xo:synced"] {
            assert_eq!(url(&[label, label], Some("10.0.0.5")), "none", "{label:?}");
        }
        for label in ["xo:notify-on-snapshot", "web, xo:notify-on-snapshot;db", "a\nxo:notify-on-snapshot\nb"] {
            assert_eq!(url(&[label, ""], Some("10.0.0.5")), "https://10.0.0.5:1727", "{label:?}");
            assert_eq!(url(&["", label], Some("fd00::5")), "https://[fd00::5]:1727", "{label:?}");
            assert!(url(&[label, ""], None).contains("unknown: the tag"), "{label:?}");
        }
        let tagged = |rest: &str| url(&[&format!("xo:notify-on-snapshot={rest}")], Some("10.0.0.5"));
        assert_eq!(tagged("https://guest:99/x/"), "https://guest:99/x");
        assert_eq!(tagged(""), "https://10.0.0.5:1727");
        assert!(tagged("http://guest").contains("in the clear"));
        assert!(tagged("guest").contains("is not a URL"));
        // The config overrides the tag.
        let target = target(&config, &named, &["xo:notify-on-snapshot=https://other"], None);
        assert_eq!(target, Some(SyncTarget::Url("https://named:1".to_owned())));
    }

    #[test]
    fn the_sync_secret_is_sent_only_to_trusted_hosts() {
        let vm = VM.parse().unwrap();
        let is_sent = |lines: &str, url: &str| {
            let tag = format!("xo:notify-on-snapshot={url}");
            match target(&with(lines), &vm, &[&tag], None).unwrap() {
                SyncTarget::Url(_) => true,
                SyncTarget::Unknown(reason) => {
                    assert!(reason.contains("hooks.sync.hosts"), "{reason}");
                    false
                }
            }
        };
        // Public authorities sign certificates for anybody.
        assert!(!is_sent("", "https://attacker.example"));
        assert!(!is_sent("insecure_skip_verify = true", "https://attacker.example"));
        assert!(is_sent("ca_certificate = \"/guests.pem\"", "https://guest.example"));
        let some =
            "ca_certificate = \"/x\"\nhosts = [\"DB.example\", \".guests.example\", \"10.0.0.5\", \"fd00:0::5\"]";
        for good in ["db.example:1", "a.GUESTS.example", "a.b.guests.example:2/x", "10.0.0.5", "[fd00::5]:1727"] {
            assert!(is_sent(some, &format!("https://{good}")), "{good}");
        }
        for bad in
            ["guests.example", "xguests.example", "a.guests.example.attacker.example", "db.example.x", "10.0.0.50"]
        {
            assert!(!is_sent(some, &format!("https://{bad}")), "{bad}");
        }
        assert!(is_sent("hosts = [\"*\"]", "https://anybody"));
        // The VM's own address needs no list.
        let address = target(&with(""), &vm, &["xo:notify-on-snapshot"], Some("10.0.0.5"));
        assert_eq!(address, Some(SyncTarget::Url("https://10.0.0.5:1727".to_owned())));
    }
}
