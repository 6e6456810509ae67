//! `adopt`: asks the running service to take over snapshots that it does not know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use anyhow::Context;

use super::terminal::Lines;
use crate::api;
use crate::auth::{self, Tokens};
use crate::config::{Api, Config, Trust};
use crate::tls;

/// Who the service is told is asking: whoever can read the config can make tokens.
const USER: &str = "operator";

/// For the token, and for the whole answer: disks are written out before they are taken over.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Asks the service that runs with `config`.
///
/// # Errors
/// Where it does not run, or refuses; in words for an operator.
pub async fn ask(config: &Config, dry_run: bool, manifests: bool) -> anyhow::Result<api::Adoption> {
    let url = format!("https://{}/api/v1/adopt?dryRun={dry_run}&manifests={manifests}", address(&config.api));
    let key = auth::key::find(config)?.with_context(|| {
        let path = auth::key::path(&config.db_file);
        format!("{} is not there: the service makes it when it starts first; is it running?", path.display())
    })?;
    let token = Tokens::new(&key, PATIENCE).issue(USER, SystemTime::now())?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client_config(&Trust::CaFile(config.api.certificate.clone()))?)
        .timeout(PATIENCE)
        .no_proxy()
        .build()?;
    let answer = client.post(&url).bearer_auth(token).send().await;
    let answer = answer.with_context(|| match config.api.client_ca {
        None => format!("the service does not answer at {url}; is it running?"),
        Some(_) => format!(
            "the service does not answer at {url}: as it asks for certificates (api.tls.client_auth), use curl with \
             --cert and --key, and a token"
        ),
    })?;
    let status = answer.status();
    let body = answer.bytes().await?;
    if !status.is_success() {
        anyhow::bail!("the service answers {status}: {}", String::from_utf8_lossy(&body));
    }
    serde_json::from_slice(&body).context("the service's answer cannot be understood; is it of this version?")
}

/// Where the service is reached from its own host.
fn address(api: &Api) -> SocketAddr {
    let host = match api.bind {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::from((host, api.port))
}

/// What was done, for people.
pub fn report(adoption: &api::Adoption) -> Lines {
    let done = if adoption.dry_run { "would be adopted" } else { "adopted" };
    let mut lines = Lines::default();
    for snapshot in &adoption.adopted {
        lines.add(format_args!("{done}  {}  of VM {}, made {}", snapshot.id, snapshot.vm_id, snapshot.created_at));
    }
    for folder in &adoption.skipped {
        lines.add(format_args!("left  {}: {}", folder.path, folder.reason));
    }
    lines.add(format_args!("{} {done}, {} left as they are", adoption.adopted.len(), adoption.skipped.len()));
    lines
}
