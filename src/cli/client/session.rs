//! `login` and `logout`.

use std::process::ExitCode;

use super::args::LoginArgs;
use super::connect::{connect, connect_cached, find, token_cache};
use super::exit;
use super::profile::{Profile, Profiles};
use crate::cli::terminal;
use crate::client::{Address, Cancel, ClientError};
use crate::model::printable;

pub fn log_in(args: &LoginArgs) -> anyhow::Result<ExitCode> {
    let profiles = Profiles::load()?;
    let (hosts, profile) = find(&args.service, &profiles)?;
    let user = user(args, &profile);
    for host in &hosts {
        forget(host, user.as_deref())?;
    }
    let client = connect(&args.service, &args.server, &profiles, &Cancel::default())?.client()?;
    let (mut done, mut errors) = (0, Vec::new());
    // Each host has log-ins of its own, even if it accepts the tokens of others.
    for (number, host) in hosts.iter().enumerate() {
        match client.log_in_now(number) {
            Ok(()) => {
                terminal::notice(format_args!("logged in at {host}"));
                done += 1;
            }
            Err(error) if hosts.len() == 1 => return Err(error.into()),
            Err(error) => {
                terminal::notice(&error);
                errors.push(error.into());
            }
        }
    }
    Ok(exit::of_several(done, &errors))
}

pub fn log_out(args: &LoginArgs) -> anyhow::Result<ExitCode> {
    let (hosts, profile) = find(&args.service, &Profiles::load()?)?;
    let user = user(args, &profile);
    let (mut had_token, mut has_ended) = (false, true);
    for host in &hosts {
        let server = connect_cached(host.clone(), &args.server, &profile, user.as_deref());
        let asked = server.and_then(|server| Ok(server.map(|server| server.client()?.log_out()).transpose()?));
        had_token |= forget(host, user.as_deref())?;
        match asked {
            // The token was expired, or the service is an older one.
            Err(error) if !matches!(error.downcast_ref().and_then(ClientError::status), Some(401 | 404)) => {
                let problem = format!("the token was removed here, but may still be valid at {host}: {error:#}");
                terminal::notice(format_args!("{}", printable(&problem)));
                has_ended = false;
            }
            _ => {}
        }
    }
    if has_ended {
        terminal::notice(if had_token { "logged out" } else { "there was no token" });
    }
    Ok(ExitCode::SUCCESS)
}

fn user(args: &LoginArgs, profile: &Profile) -> Option<String> {
    args.server.user.clone().or_else(|| profile.user.clone())
}

/// Removes the cached tokens. Returns whether there were any.
fn forget(address: &Address, user: Option<&str>) -> anyhow::Result<bool> {
    let cache = token_cache(address, user);
    Ok(cache.map(|cache| cache.remove()).transpose()?.unwrap_or(false))
}
