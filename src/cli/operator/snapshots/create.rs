//! `snapshots create`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::value::RawValue;

use crate::api::Snapshot;
use crate::backup::Features;
use crate::cli::client::{new_snapshot, table};
use crate::cli::operator::args::SnapshotCreateArgs;
use crate::cli::operator::names::find_vm;
use crate::cli::operator::service::Service;
use crate::cli::terminal::{self, Lines};
use crate::client::NewSnapshot;

pub fn run(args: &SnapshotCreateArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let request = NewSnapshot {
        disks: args.disks.clone(),
        exclude_disks: args.exclude_disks.clone(),
        ttl: args.ttl.clone(),
        labels: new_snapshot::labels(&args.labels)?,
        description: args.description.clone(),
        quiesce: args.quiesce.map(new_snapshot::quiesce),
    };
    let client = Service::find(&args.target, config)?.client;
    let vm = find_vm(&client, &args.vm)?;
    let features = Features::of(client.capabilities()?.as_ref());
    let request = new_snapshot::supported(&request, &features)?;
    let key = features.idempotency.then(|| uuid::Uuid::new_v4().to_string());
    let document: Box<RawValue> = client.create(&vm.id, &request, key.as_deref()).with_context(|| vm.shown.clone())?;
    if args.json {
        terminal::print_json(&*document, false)?;
        return Ok(ExitCode::SUCCESS);
    }
    let snapshot: Snapshot = serde_json::from_str(document.get())?;
    let size = table::bytes(snapshot.disks.iter().map(|disk| disk.size).sum());
    let disks: Vec<&str> = snapshot.disks.iter().map(|disk| disk.name.as_str()).collect();
    let mut lines = Lines::default();
    lines.add(format_args!("created {} of {}", snapshot.id, vm.shown));
    lines.add(format_args!("{}, {size}: {}", snapshot.consistency, disks.join(", ")));
    if let Some(expiry) = &snapshot.retention.expires_at {
        lines.add(format_args!("expires {}", table::local_text(expiry)));
    }
    lines.print()?;
    Ok(ExitCode::SUCCESS)
}
