//! `login` and `logout`.

use std::process::ExitCode;

use super::args::LoginArgs;
use super::connect::{connect, token_cache};
use super::exit::UsageError;
use super::profile::Profiles;
use crate::cli::terminal;
use crate::client::{Address, Cancel};

pub fn log_in(args: &LoginArgs) -> anyhow::Result<ExitCode> {
    let profiles = Profiles::load()?;
    forget(args, &profiles)?;
    let server = connect(&args.service, &args.server, &profiles, &Cancel::default())?;
    server.client()?.log_in_now()?;
    terminal::notice(format_args!("logged in at {}", server.address()));
    Ok(ExitCode::SUCCESS)
}

pub fn log_out(args: &LoginArgs) -> anyhow::Result<ExitCode> {
    let had_token = forget(args, &Profiles::load()?)?;
    terminal::notice(if had_token { "logged out" } else { "there was no token" });
    Ok(ExitCode::SUCCESS)
}

/// Removes the cached token. Returns whether there was one.
fn forget(args: &LoginArgs, profiles: &Profiles) -> anyhow::Result<bool> {
    let profile = profiles.named(&args.service).or_else(|| profiles.of_url(&args.service));
    let url =
        if args.service.contains("://") { Some(args.service.as_str()) } else { profile.map(|it| it.url.as_str()) };
    let problem = || UsageError(format!("{:?} is neither the address of a service nor a profile", args.service));
    let address = Address::parse(url.ok_or_else(problem)?).map_err(UsageError)?;
    let user = args.server.user.as_deref().or_else(|| profile?.user.as_deref());
    let cache = token_cache(&address, user);
    Ok(cache.map(|cache| cache.remove()).transpose()?.unwrap_or(false))
}
