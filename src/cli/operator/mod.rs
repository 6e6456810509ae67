//! The commands for operators: what the service has and does, on this host over its Unix socket, or elsewhere.

mod adopt;
mod args;
mod backup_db;
mod health;
mod names;
mod notifications;
mod repositories;
mod service;
mod sessions;
mod snapshots;
mod status;
mod vms;
mod watch;
mod webhooks;

use std::io;
use std::path::Path;
use std::process::ExitCode;

pub use args::OperatorCommand;

/// Runs a command. `config` is the config file of the service on this host.
///
/// # Errors
/// `client::exit_status` says how the process should end.
pub fn run(command: &OperatorCommand, config: &Path) -> anyhow::Result<ExitCode> {
    let result = match command {
        OperatorCommand::Vms(args) => vms::run(args, config),
        OperatorCommand::Snapshots(command) => snapshots::run(command, config),
        OperatorCommand::Sessions(command) => sessions::run(command, config),
        OperatorCommand::Notifications(command) => notifications::run(command, config),
        OperatorCommand::Repositories(args) => repositories::run(args, config),
        OperatorCommand::Status(args) => match args.watch {
            Some(interval) => watch::run(args, interval, config),
            None => status::run(args, config),
        },
        OperatorCommand::Health(args) => health::run(args, config),
        OperatorCommand::Adopt(args) => adopt::run(args, config),
        OperatorCommand::BackupDb(args) => backup_db::run(args, config),
    };
    match result {
        // The reader has enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|it| it.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(ExitCode::SUCCESS)
        }
        result => result,
    }
}
