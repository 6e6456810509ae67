//! `snapshots delete` and `snapshots purge`.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::list::table_of;
use crate::api::Snapshot;
use crate::cli::client::exit::{self, UsageError};
use crate::cli::operator::args::{DeletionArgs, SnapshotDeleteArgs, SnapshotPurgeArgs};
use crate::cli::operator::names::{VmName, find_snapshot, find_vm, snapshots_of};
use crate::cli::operator::service::Service;
use crate::cli::terminal::{self, Lines};
use crate::client::Client;

pub fn delete(args: &SnapshotDeleteArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let client = Service::find(&args.deletion.target, config)?.client;
    let vm = find_vm(&client, &args.vm)?;
    let listed = snapshots_of(&client, &vm)?;
    let mut ids = Vec::new();
    for given in &args.snapshots {
        let id = find_snapshot(&listed, &vm, given)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    delete_all(&client, &vm, &listed, &ids, &args.deletion)
}

/// Deletes each listed snapshot by itself: the request that deletes all would also delete one that was created since.
pub fn purge(args: &SnapshotPurgeArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let client = Service::find(&args.deletion.target, config)?.client;
    let vm = find_vm(&client, &args.vm)?;
    let listed = snapshots_of(&client, &vm)?;
    let ids: Vec<String> = listed.iter().map(|snapshot| snapshot.id.clone()).collect();
    if ids.is_empty() && !args.deletion.json {
        terminal::notice(format_args!("{} has no snapshots", vm.shown));
        return Ok(ExitCode::SUCCESS);
    }
    delete_all(&client, &vm, &listed, &ids, &args.deletion)
}

fn delete_all(
    client: &Client,
    vm: &VmName,
    listed: &[Snapshot],
    ids: &[String],
    args: &DeletionArgs,
) -> anyhow::Result<ExitCode> {
    if !ids.is_empty() {
        announce(vm, listed, ids);
    }
    let count = if ids.len() == 1 { "this snapshot".to_owned() } else { format!("these {} snapshots", ids.len()) };
    if !args.yes && !ids.is_empty() {
        if !terminal::is_interactive() {
            let problem = format!("nothing is deleted: there is no terminal to ask; give --yes to delete {count}");
            return Err(UsageError(problem).into());
        }
        if !terminal::confirm(format_args!("Delete {count}?"))? {
            terminal::notice("nothing is deleted");
            return Ok(ExitCode::from(exit::FAILED));
        }
    }
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    for id in ids {
        match client.delete_existing(&vm.id, id) {
            Ok(()) => deleted.push(id),
            Err(error) => {
                terminal::notice(format_args!("{id}: not deleted: {error}"));
                errors.push(error.into());
            }
        }
    }
    if args.json {
        terminal::print_json(&json!({"vm_id": vm.id, "deleted": deleted}), false)?;
    } else {
        let mut lines = Lines::default();
        deleted.iter().for_each(|id| lines.add(format_args!("deleted {id}")));
        lines.print()?;
    }
    Ok(exit::of_several(0, &errors))
}

/// Says what will be deleted, on standard error: standard output has what was deleted.
fn announce(vm: &VmName, listed: &[Snapshot], ids: &[String]) {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for id in ids {
        match listed.iter().find(|snapshot| snapshot.id == *id) {
            Some(snapshot) => known.push((String::new(), snapshot)),
            None => unknown.push(id),
        }
    }
    terminal::notice(format_args!("to delete, of {}:", vm.shown));
    if !known.is_empty() {
        let width = terminal::size().map(|(columns, _)| columns);
        table_of(&known).lines_within(width).as_str().lines().for_each(terminal::notice);
    }
    for id in unknown {
        terminal::notice(format_args!("{id}  is not in the list of its snapshots"));
    }
    if listed.last().is_some_and(|newest| ids.contains(&newest.id)) {
        terminal::notice("the newest is among them: without it, the next backup may have to be a full one");
    }
}
