//! `adopt`: makes the running service take over snapshots that it does not know.

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::value::RawValue;

use super::args::AdoptArgs;
use super::service::{Service, readable_config};
use crate::api;
use crate::cli::client::table;
use crate::cli::terminal::{self, Lines};
use crate::store::{self, StoreError};

pub fn run(args: &AdoptArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let service = Service::named(&args.target, config)?;
    if args.target.server.is_none() && args.target.socket.is_none() {
        check_database(config)?;
    }
    service.check()?;
    let path = format!("/adopt?dryRun={}&manifests={}", args.dry_run, args.manifests);
    let adoption: Box<RawValue> = service.client.post(&path)?;
    if args.json {
        terminal::print_json(&*adoption, false)?;
    } else {
        report(&serde_json::from_str(adoption.get())?).print()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Another service may listen at the socket of the config. It would adopt the snapshots into its own database.
fn check_database(config: &Path) -> anyhow::Result<()> {
    match readable_config(config)? {
        Ok(config) if !matches!(store::inspect(&config.db_file), Err(StoreError::InUse)) => {
            bail!("no process uses {}, the database of the service; is it running?", config.db_file.display())
        }
        _ => Ok(()),
    }
}

/// The report for the terminal.
fn report(adoption: &api::Adoption) -> Lines {
    let done = if adoption.dry_run { "would be adopted" } else { "adopted" };
    let mut lines = Lines::default();
    for snapshot in &adoption.adopted {
        let time = table::local_text(&snapshot.created_at);
        lines.add(format_args!("{done}  {}  of VM {}, made {time}", snapshot.id, snapshot.vm_id));
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
