//! `adopt`: makes the running service take over snapshots that it does not know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use anyhow::Context;

use super::terminal::Lines;
use crate::api;
use crate::auth::{self, Tokens};
use crate::config::{Api, Config, Trust};
use crate::tls;

/// The user of the request. Anyone who can read the key can make tokens.
const USER: &str = "operator";

/// For the token and for the whole answer: disks are flushed before they are adopted.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// Sends the request to the service that runs with `config`.
///
/// # Errors
/// The service does not run, or refuses.
pub async fn ask(config: &Config, dry_run: bool, manifests: bool) -> anyhow::Result<api::Adoption> {
    let url = format!("https://{}/api/v1/adopt?dryRun={dry_run}&manifests={manifests}", address(&config.api));
    let key = auth::key::find(config)?.with_context(|| {
        let path = auth::key::path(&config.db_file);
        format!("{} does not exist: the service makes it at its first start; is it running?", path.display())
    })?;
    let token = Tokens::new(&key, TIMEOUT).issue(USER, SystemTime::now())?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client_config(&Trust::CaFile(config.api.certificate.clone()))?)
        .timeout(TIMEOUT)
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
    serde_json::from_slice(&body).context("cannot parse the service's answer; does it have this version?")
}

/// The address of the service from its own host.
fn address(api: &Api) -> SocketAddr {
    let host = match api.bind {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::from((host, api.port))
}

/// The report for the terminal.
pub fn report(adoption: &api::Adoption) -> Lines {
    let done = if adoption.dry_run { "would be adopted" } else { "adopted" };
    let mut lines = Lines::default();
    for snapshot in &adoption.adopted {
        lines.add(format_args!("{done}  {}  of VM {}, made {}", snapshot.id, snapshot.vm_id, snapshot.created_at));
    }
    // A running service before 0.2.0 uses only the former name.
    let skipped = if adoption.skipped.is_empty() { &adoption.skipped_legacy } else { &adoption.skipped };
    for folder in skipped {
        lines.add(format_args!("skipped  {}: {}", folder.path, folder.reason));
    }
    lines.add(format_args!("{} {done}, {} skipped", adoption.adopted.len(), skipped.len()));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_folders_are_listed_by_their_new_and_their_former_name() {
        let folder = r#"{"path": "/r/1", "reason": "another VM"}"#;
        for members in [format!(r#""skipped": [{folder}], "left": [{folder}]"#), format!(r#""left": [{folder}]"#)] {
            let adoption = format!(r#"{{"dry_run": true, "adopted": [], {members}}}"#);
            let report = report(&serde_json::from_str(&adoption).unwrap());
            assert_eq!(report.as_str(), "skipped  /r/1: another VM\n0 would be adopted, 1 skipped\n");
        }
    }
}
