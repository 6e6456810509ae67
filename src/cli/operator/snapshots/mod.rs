//! `snapshots`: the snapshots of VMs.

mod create;
mod delete;
mod diff;
mod list;
mod show;
mod strip;
mod ticket;

use std::path::Path;
use std::process::ExitCode;

use super::args::SnapshotsCommand;

pub fn run(command: &SnapshotsCommand, config: &Path) -> anyhow::Result<ExitCode> {
    match command {
        SnapshotsCommand::List(args) => list::run(args, config),
        SnapshotsCommand::Show(args) => show::run(args, config),
        SnapshotsCommand::Create(args) => create::run(args, config),
        SnapshotsCommand::Delete(args) => delete::delete(args, config),
        SnapshotsCommand::Purge(args) => delete::purge(args, config),
        SnapshotsCommand::Diff(args) => diff::run(args, config),
        SnapshotsCommand::Ticket(args) => ticket::run(args, config),
    }
}
