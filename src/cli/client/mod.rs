//! The commands of the client.

pub(super) mod args;
mod ask;
mod backup;
mod cat;
pub(super) mod connect;
pub(super) mod exit;
pub(super) mod new_snapshot;
mod points;
pub(super) mod profile;
mod progress;
mod prune;
mod restore;
mod session;
pub(super) mod signals;
pub(super) mod table;
mod verify;

use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub use args::ClientCommand;
pub use exit::status as exit_status;

/// # Errors
/// [`exit_status`] says how the process should end.
pub fn run(command: &ClientCommand) -> anyhow::Result<ExitCode> {
    // Each image of a chain of restore points has a descriptor.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    match command {
        ClientCommand::Backup(args) => backup::run(args),
        ClientCommand::Points(args) => points::run(args),
        ClientCommand::Restore(args) => restore::run(args),
        ClientCommand::Verify(args) => verify::run(args),
        ClientCommand::Prune(args) => prune::run(args),
        ClientCommand::Cat(args) => cat::run(args),
        ClientCommand::Login(args) => session::log_in(args),
        ClientCommand::Logout(args) => session::log_out(args),
    }
}
