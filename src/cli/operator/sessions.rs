//! `sessions revoke`: ends log-ins.

use std::path::Path;
use std::process::ExitCode;

use super::args::{RevokeArgs, SessionsCommand};
use super::service::Service;
use crate::api;
use crate::cli::client::exit::UsageError;
use crate::cli::client::table;
use crate::cli::terminal::{self, Lines};

pub fn run(command: &SessionsCommand, config: &Path) -> anyhow::Result<ExitCode> {
    match command {
        SessionsCommand::Revoke(args) => revoke(args, config),
    }
}

fn revoke(args: &RevokeArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let client = Service::find(&args.target, config)?.client;
    if client.is_of_pool() {
        let problem =
            "a revocation counts only at the service that gets it: name one address, and run this for each host";
        return Err(UsageError(problem.to_owned()).into());
    }
    let RevokeArgs { of, all, issued_before, .. } = args.clone();
    let revoked = client.revoke(&api::Revoke { user: of, all, issued_before })?;
    if args.json {
        terminal::print_json(&revoked, false)?;
        return Ok(ExitCode::SUCCESS);
    }
    let api::Revoked { user, issued_until, log_ins, downloads } = revoked;
    let whose = user.map_or_else(|| "all users".to_owned(), |user| format!("the user {user:?}"));
    let mut lines = Lines::default();
    let time = table::local_text(&issued_until);
    lines.add(format_args!("revoked the tokens of {whose} that were issued until {time}"));
    lines.add(format_args!("{log_ins} log-ins with a refresh token and {downloads} downloads have ended"));
    lines.print()?;
    Ok(ExitCode::SUCCESS)
}
