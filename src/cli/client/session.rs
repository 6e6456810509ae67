//! `login` and `logout`.

use std::process::ExitCode;

use super::args::LoginArgs;
use super::connect::{connect, connect_cached, token_cache};
use super::exit::UsageError;
use super::profile::{Profile, Profiles};
use crate::cli::terminal;
use crate::client::{Address, Cancel, ClientError};
use crate::model::printable;

pub fn log_in(args: &LoginArgs) -> anyhow::Result<ExitCode> {
    let profiles = Profiles::load()?;
    let (address, _, user) = target(args, &profiles)?;
    forget(&address, user.as_deref())?;
    let server = connect(&args.service, &args.server, &profiles, &Cancel::default())?;
    server.client()?.log_in_now()?;
    terminal::notice(format_args!("logged in at {}", server.address()));
    Ok(ExitCode::SUCCESS)
}

pub fn log_out(args: &LoginArgs) -> anyhow::Result<ExitCode> {
    let (address, profile, user) = target(args, &Profiles::load()?)?;
    let server = connect_cached(address.clone(), &args.server, &profile, user.as_deref());
    let asked = server.and_then(|server| Ok(server.map(|server| server.client()?.log_out()).transpose()?));
    let had_token = forget(&address, user.as_deref())?;
    match asked {
        // The token was expired, or the service is an older one.
        Err(error) if !matches!(error.downcast_ref().and_then(ClientError::status), Some(401 | 404)) => {
            let problem = format!("the token was removed here, but may still be valid at the service: {error:#}");
            terminal::notice(format_args!("{}", printable(&problem)));
        }
        _ => terminal::notice(if had_token { "logged out" } else { "there was no token" }),
    }
    Ok(ExitCode::SUCCESS)
}

/// The service that the arguments mean, its profile, and the user.
fn target(args: &LoginArgs, profiles: &Profiles) -> anyhow::Result<(Address, Profile, Option<String>)> {
    let profile = profiles.named(&args.service).or_else(|| profiles.of_url(&args.service));
    let url =
        if args.service.contains("://") { Some(args.service.as_str()) } else { profile.map(|it| it.url.as_str()) };
    let problem = || UsageError(format!("{:?} is neither the address of a service nor a profile", args.service));
    let address = Address::parse(url.ok_or_else(problem)?).map_err(UsageError)?;
    let user = args.server.user.clone().or_else(|| profile?.user.clone());
    Ok((address, profile.cloned().unwrap_or_default(), user))
}

/// Removes the cached tokens. Returns whether there were any.
fn forget(address: &Address, user: Option<&str>) -> anyhow::Result<bool> {
    let cache = token_cache(address, user);
    Ok(cache.map(|cache| cache.remove()).transpose()?.unwrap_or(false))
}
