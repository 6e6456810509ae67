//! Connects to a service as the command line, the environment and the profiles say.

use std::env;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::SecretString;

use super::args::ServerArgs;
use super::exit::UsageError;
use super::profile::{self, Profile, Profiles};
use crate::cli::terminal;
use crate::client::{
    Address, Cancel, Credentials, Host, Notice, Password, Server, ServerOptions, TokenCache, read_private,
};
use crate::config::{self, Trust};

/// Whether `target` names a service.
pub fn is_service(target: &str, profiles: &Profiles) -> bool {
    let is_profile = |name: &str| profiles.named(name).is_some();
    target.contains("://") || is_profile(target) || target.split(',').all(is_profile)
}

/// What `name` means: the addresses of a service, and its profile.
///
/// # Errors
/// It is neither an address, nor several of one pool, nor the name of a profile.
pub fn find(name: &str, profiles: &Profiles) -> Result<(Vec<Address>, Profile), UsageError> {
    let named = profiles.named(name);
    let url = named.map_or(name, |profile| &profile.url);
    if !url.contains("://") && !url.contains(',') {
        let problem = format!("{name:?} is neither the address of a service (https://host:5544) nor a profile");
        return Err(UsageError(problem));
    }
    let hosts = Address::parse_pool(url).map_err(UsageError)?;
    let profile = named.or_else(|| profiles.of_hosts(&hosts)).cloned().unwrap_or_default();
    Ok((hosts, profile))
}

/// A service that `name` means: an address, several of one pool, or the name of a profile.
///
/// # Errors
/// The arguments contradict each other, or there are no credentials.
pub fn connect(name: &str, args: &ServerArgs, profiles: &Profiles, cancel: &Cancel) -> anyhow::Result<Server> {
    let (addresses, profile) = find(name, profiles)?;
    let user = args.user.clone().or_else(|| profile.user.clone());
    let of_pool = addresses.into_iter().map(|address| host(address, user.as_deref()));
    let hosts: Vec<Host> = of_pool.collect();
    let patience = config::parse_duration(&args.patience)
        .ok_or_else(|| UsageError(format!("--patience {:?}: expected 2m, 1h30m or 90s", args.patience)))?;
    let options = ServerOptions {
        trust: trust(args, &profile)?,
        credentials: credentials(args, &profile, &hosts, user)?,
        hosts,
        patience,
        on_notice: say,
        cancel: cancel.clone(),
    };
    Ok(Server::new(options))
}

/// A service that has to be asked with the cached token. `None` if there is none.
///
/// # Errors
/// As [`connect`].
pub fn connect_cached(
    address: Address,
    args: &ServerArgs,
    profile: &Profile,
    user: Option<&str>,
) -> anyhow::Result<Option<Server>> {
    let host = host(address, user);
    if !has_token(&host) {
        return Ok(None);
    }
    Ok(Some(Server::new(ServerOptions {
        trust: trust(args, profile)?,
        credentials: Credentials::Cached,
        hosts: vec![host],
        patience: Duration::ZERO,
        on_notice: say,
        cancel: Cancel::default(),
    })))
}

/// Says at once why nothing happens, or why it happens at another host.
fn say(notice: &Notice<'_>) {
    match notice {
        Notice::Waits { service, error, patience } => {
            let patience = jiff::SignedDuration::try_from(*patience).unwrap_or(jiff::SignedDuration::MAX);
            terminal::notice(format_args!("{service}: {error}; trying again for up to {patience:#} (--patience)"));
        }
        Notice::GoesOn { error, with } => terminal::notice(format_args!("{error}; going on with {with}")),
        Notice::NotOfPool { host, has, what } => terminal::notice(format_args!(
            "{host} does not have {what} that {has} has, so it is not of the same pool and is not asked again; leave it out"
        )),
    }
}

fn host(address: Address, user: Option<&str>) -> Host {
    let token_cache = token_cache(&address, user);
    Host { address, token_cache }
}

fn has_token(host: &Host) -> bool {
    host.token_cache.as_ref().and_then(TokenCache::load).is_some()
}

/// The service on this host, by its socket.
pub fn connect_local(path: PathBuf, cancel: &Cancel) -> Server {
    Server::new(ServerOptions {
        hosts: vec![Host { address: Address::Unix(path), token_cache: None }],
        trust: Trust::System,
        credentials: Credentials::Peer,
        patience: Duration::ZERO,
        on_notice: say,
        cancel: cancel.clone(),
    })
}

pub fn token_cache(address: &Address, user: Option<&str>) -> Option<TokenCache> {
    profile::token_directory().map(|directory| TokenCache::new(&directory, address, user.unwrap_or_default()))
}

fn trust(args: &ServerArgs, profile: &Profile) -> anyhow::Result<Trust> {
    // What the command line says replaces the profile as a whole.
    let (ca, fingerprint) = match (&args.cacert, &args.fingerprint) {
        (None, None) => (&profile.ca_certificate, &profile.fingerprint),
        given => given,
    };
    match (ca, fingerprint) {
        (Some(_), Some(_)) => bail!(UsageError("a profile has ca_certificate and fingerprint; keep one".to_owned())),
        (Some(path), None) => Ok(Trust::CaFile(path.clone())),
        (None, Some(text)) => {
            let one = |text: &str| {
                let problem = format!("{text:?} is no SHA-256 of a certificate: expected 64 hexadecimal digits");
                config::parse_fingerprint(text).ok_or(UsageError(problem))
            };
            Ok(Trust::Fingerprint(text.split(',').map(str::trim).map(one).collect::<Result<_, _>>()?))
        }
        (None, None) => Ok(Trust::System),
    }
}

fn credentials(
    args: &ServerArgs,
    profile: &Profile,
    hosts: &[Host],
    user: Option<String>,
) -> anyhow::Result<Credentials> {
    if let Some(token) = variable("EXPORTER_TOKEN")? {
        return Ok(Credentials::Token(token));
    }
    let file = args.password_file.as_ref().or(profile.password_file.as_ref());
    let password = match (variable("EXPORTER_PASSWORD")?, file) {
        (Some(password), _) => Some(password),
        (None, Some(path)) => Some(read_private(path).with_context(|| path.display().to_string())?),
        (None, None) => None,
    };
    match (user, password) {
        (Some(user), Some(password)) => Ok(Credentials::Password(Password { user, password })),
        (user, None) => {
            if hosts.iter().any(has_token) {
                return Ok(Credentials::Cached);
            }
            ask(&hosts[0].address, user)
        }
        (None, Some(_)) => {
            Err(UsageError("the password has no user; give --user or EXPORTER_USERNAME".to_owned()).into())
        }
    }
}

/// Asks on the terminal.
fn ask(address: &Address, user: Option<String>) -> anyhow::Result<Credentials> {
    if !io::stdin().is_terminal() {
        let problem = "there are no credentials: set EXPORTER_USERNAME and EXPORTER_PASSWORD, or EXPORTER_TOKEN, or give \
                       --user and --password-file, or run the command login first";
        return Err(UsageError(problem.to_owned()).into());
    }
    let user = match user {
        Some(user) => user,
        None => terminal::ask(format_args!("User at {address}:"))?,
    };
    let password = rpassword::prompt_password(format!("Password of {user} at {address}: "))?.into();
    Ok(Credentials::Password(Password { user, password }))
}

fn variable(name: &str) -> anyhow::Result<Option<SecretString>> {
    match env::var(name) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(text.into())),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => bail!("{name} is not UTF-8"),
    }
}
