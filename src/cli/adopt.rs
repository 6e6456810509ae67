//! `adopt`: makes the running service take over snapshots that it does not know.

use std::time::Duration;

use anyhow::Context;

use super::terminal::Lines;
use crate::api;
use crate::config::{Config, Trust};
use crate::store::{self, StoreError};
use crate::tls;

/// For the whole answer: disks are flushed before they are adopted.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// Sends the request to the service that runs with `config`, over its Unix socket.
///
/// # Errors
/// The service does not run, has no socket, or refuses.
pub async fn ask(config: &Config, dry_run: bool, manifests: bool) -> anyhow::Result<api::Adoption> {
    let socket = config.api.socket.as_ref().context(
        "api.socket is \"\", so the service has no Unix socket; set it and restart the service, or send POST \
         /api/v1/adopt with a token",
    )?;
    // Another service may listen there. It would adopt the snapshots into its own database.
    if !matches!(store::inspect(&config.db_file), Err(StoreError::InUse)) {
        anyhow::bail!("no process uses {}, the database of the service; is it running?", config.db_file.display());
    }
    let client = reqwest::Client::builder()
        // There is no TLS on the socket, but the client cannot be built without a config for it.
        .tls_backend_preconfigured(tls::client_config(&Trust::InsecureSkipVerify)?)
        .unix_socket(socket.path.as_path())
        .timeout(TIMEOUT)
        .no_proxy()
        .build()?;
    let url = format!("http://localhost/api/v1/adopt?dryRun={dry_run}&manifests={manifests}");
    let answer = client.post(url).send().await.with_context(|| {
        format!("the service does not answer at {}; its log says whether it has this socket", socket.path.display())
    })?;
    let status = answer.status();
    let body = answer.bytes().await?;
    if !status.is_success() {
        anyhow::bail!("the service answers {status}: {}", String::from_utf8_lossy(&body));
    }
    serde_json::from_slice(&body).context("cannot parse the service's answer; does it have this version?")
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
