//! Servers in the guests: asked to put their disks in order before a snapshot, and told its end.

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
use crate::model::{HookOutcome, VmId};
use crate::tls;

/// The tag by which a VM asks for it.
const TAG: &str = "xo:notify-on-snapshot";

/// How long a guest may take to accept the connection. One that is off takes none at all.
const CONNECT: Duration = Duration::from_secs(10);

/// Bytes of an answer that are read.
const ANSWER: usize = 64 << 10;

/// What a guest is asked.
#[derive(Clone, Copy)]
pub(super) enum Request {
    /// To put its disks in order, and to keep them so.
    Sync,
    /// To go on.
    PostSync,
}

/// How a request ended.
pub(super) struct Answer {
    pub outcome: HookOutcome,
    pub detail: String,
}

/// Whether a connection was made, TLS included. Before that nothing of a request is sent, so the guest cannot
/// have done anything.
#[derive(Clone, Debug, Default)]
pub(super) struct Reached(Arc<AtomicBool>);

impl Reached {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Notes on the way through the connector of a client that it has made a connection.
#[derive(Clone)]
struct Noting<S> {
    connector: S,
    reached: Reached,
}

impl<R, S: Service<R>> Service<R> for Noting<S>
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

/// What all the servers are asked with.
pub(super) struct Client {
    timeout: Duration,
    tls: ClientConfig,
    bearer: SecretString,
}

impl Client {
    pub(super) fn new(config: &config::Sync) -> io::Result<Self> {
        let bearer = SecretString::from(STANDARD.encode(config.secret.expose_secret()));
        let client = Self { timeout: config.timeout, tls: tls::client_config(&config.trust)?, bearer };
        client.http(&Reached::default()).map_err(|error| io::Error::other(tls::with_causes(&error)))?;
        Ok(client)
    }

    /// A client for one request: it works in the runtime that it is made in, and no other.
    fn http(&self, reached: &Reached) -> reqwest::Result<reqwest::Client> {
        let reached = reached.clone();
        reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .connect_timeout(CONNECT.min(self.timeout))
            .connector_layer(layer_fn(move |connector| Noting { connector, reached: reached.clone() }))
            .timeout(self.timeout)
            // A redirection could carry the secret to anybody.
            .redirect(Policy::none())
            .no_proxy()
            .build()
    }

    /// Sends `request` to the server at `url`, and waits for its whole answer. `reached` tells, also while this
    /// is waited for, whether the guest may have done something.
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
            Answer { outcome, detail: described(&error.without_url(), reached.get()) }
        })
    }
}

async fn read(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let mut answer = request.send().await?;
    let status = answer.status();
    let mut length = 0;
    while let Some(piece) = answer.chunk().await? {
        length += piece.len();
        if length > ANSWER {
            let detail = format!("answers {status} with more than {ANSWER} bytes: is that a sync server?");
            return Ok(Answer { outcome: HookOutcome::Failed, detail });
        }
    }
    let outcome = if status.is_success() { HookOutcome::Ok } else { HookOutcome::Failed };
    let detail = if status.is_redirection() {
        format!("answers {status}, which is not followed: the secret would go along")
    } else {
        format!("answers {status}")
    };
    Ok(Answer { outcome, detail })
}

fn described(error: &reqwest::Error, reached: bool) -> String {
    let text = tls::with_causes(error);
    let remedy = if matches!(tls::rustls_error(error), Some(rustls::Error::InvalidCertificate(_))) {
        " (name its authority, or itself, with hooks.sync.ca_certificate)"
    } else if !reached {
        " (does the VM run, and its sync server?)"
    } else {
        ""
    };
    text + remedy
}

/// Where the sync server of `vm` is, if it is to be asked: at the URL that the config names, or else
/// as the tag in one of its `labels` says. `address` is the guest's, where that is known.
pub(super) fn target(config: &config::Sync, vm: &VmId, labels: &[&str], address: Option<&str>) -> Option<SyncTarget> {
    if let Some(url) = config.urls.get(vm) {
        return Some(SyncTarget::Url(url.clone()));
    }
    let tag = labels.iter().find_map(|label| tag_in(label))?;
    let target = match (tag, address) {
        ("", None) => Err(format!(
            "the tag {TAG} names no URL, and the VM's definition no address; name a URL in hooks.sync.urls"
        )),
        ("", Some(address)) => checked(&host_url(address, config.port), &config.trust),
        (url, _) => checked(url, &config.trust).and_then(|url| named(config, url)),
    };
    Some(target.map_or_else(SyncTarget::Unknown, SyncTarget::Url))
}

/// Characters of a wrong URL that are told.
const REPLY_LIMIT: usize = 200;

fn checked(url: &str, trust: &Trust) -> Result<String, String> {
    let told = || url.chars().take(REPLY_LIMIT).collect::<String>();
    sync_url(url, trust).map_err(|problem| format!("the tag's URL {:?} {problem}", told()))
}

/// The URL of a tag, where the secret may go there.
fn named(config: &config::Sync, url: String) -> Result<String, String> {
    let uri = url.parse::<http::Uri>().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    if config.may_be_named(host) {
        return Ok(url);
    }
    Err(format!(
        "the tag's URL leads to {host}, to which the secret does not go; name it in hooks.sync.hosts, or the VM's URL in \
         hooks.sync.urls"
    ))
}

fn host_url(address: &str, port: u16) -> String {
    if address.contains(':') { format!("https://[{address}]:{port}") } else { format!("https://{address}:{port}") }
}

/// What the tag in `label` names: a URL, or nothing.
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
    fn a_vm_asks_for_it_by_a_tag_or_is_named_in_the_config() {
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
        // The config goes before the tag.
        let target = target(&config, &named, &["xo:notify-on-snapshot=https://other"], None);
        assert_eq!(target, Some(SyncTarget::Url("https://named:1".to_owned())));
    }

    #[test]
    fn a_tag_leads_the_secret_to_no_host_that_nobody_vouches_for() {
        let vm = VM.parse().unwrap();
        let goes = |lines: &str, url: &str| {
            let tag = format!("xo:notify-on-snapshot={url}");
            match target(&with(lines), &vm, &[&tag], None).unwrap() {
                SyncTarget::Url(_) => true,
                SyncTarget::Unknown(reason) => {
                    assert!(reason.contains("hooks.sync.hosts"), "{reason}");
                    false
                }
            }
        };
        // Any authority of the host, or nobody at all, vouches for anybody's server.
        assert!(!goes("", "https://attacker.example"));
        assert!(!goes("insecure_skip_verify = true", "https://attacker.example"));
        assert!(goes("ca_certificate = \"/guests.pem\"", "https://guest.example"));
        let some =
            "ca_certificate = \"/x\"\nhosts = [\"DB.example\", \".guests.example\", \"10.0.0.5\", \"fd00:0::5\"]";
        for good in ["db.example:1", "a.GUESTS.example", "a.b.guests.example:2/x", "10.0.0.5", "[fd00::5]:1727"] {
            assert!(goes(some, &format!("https://{good}")), "{good}");
        }
        for bad in
            ["guests.example", "xguests.example", "a.guests.example.attacker.example", "db.example.x", "10.0.0.50"]
        {
            assert!(!goes(some, &format!("https://{bad}")), "{bad}");
        }
        assert!(goes("hosts = [\"*\"]", "https://anybody"));
        // The VM's own address, and what the config names, need no list.
        let address = target(&with(""), &vm, &["xo:notify-on-snapshot"], Some("10.0.0.5"));
        assert_eq!(address, Some(SyncTarget::Url("https://10.0.0.5:1727".to_owned())));
    }
}
