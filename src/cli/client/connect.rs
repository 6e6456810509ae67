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
    Address, Cancel, ClientError, Credentials, Password, Server, ServerOptions, TokenCache, read_private,
};
use crate::config::{self, Trust};

/// Whether `target` names a service.
pub fn is_service(target: &str, profiles: &Profiles) -> bool {
    target.contains("://") || profiles.named(target).is_some()
}

/// A service that `name` means: an address, or the name of a profile.
///
/// # Errors
/// The arguments contradict each other, or there are no credentials.
pub fn connect(name: &str, args: &ServerArgs, profiles: &Profiles, cancel: &Cancel) -> anyhow::Result<Server> {
    let profile = profiles.named(name).or_else(|| profiles.of_url(name)).cloned().unwrap_or_default();
    let url = if name.contains("://") { name } else { &profile.url };
    if url.is_empty() {
        let problem = format!("{name:?} is neither the address of a service (https://host:5544) nor a profile");
        return Err(UsageError(problem).into());
    }
    let address = Address::parse(url).map_err(UsageError)?;
    let user = args.user.clone().or_else(|| profile.user.clone());
    let cache = token_cache(&address, user.as_deref());
    let patience = config::parse_duration(&args.patience)
        .ok_or_else(|| UsageError(format!("--patience {:?}: expected 2m, 1h30m or 90s", args.patience)))?;
    let options = ServerOptions {
        trust: trust(args, &profile)?,
        credentials: credentials(args, &profile, &address, user, cache.as_ref())?,
        address,
        token_cache: cache,
        patience,
        on_wait: say_waiting,
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
    let cache = token_cache(&address, user).filter(|cache| cache.load().is_some());
    let Some(cache) = cache else { return Ok(None) };
    Ok(Some(Server::new(ServerOptions {
        trust: trust(args, profile)?,
        credentials: Credentials::Cached,
        address,
        token_cache: Some(cache),
        patience: Duration::ZERO,
        on_wait: say_waiting,
        cancel: Cancel::default(),
    })))
}

/// Says at once why nothing happens, and for how long.
fn say_waiting(service: &Address, error: &ClientError, patience: Duration) {
    let patience = jiff::SignedDuration::try_from(patience).unwrap_or(jiff::SignedDuration::MAX);
    terminal::notice(format_args!("{service}: {error}; trying again for up to {patience:#} (--patience)"));
}

/// The service on this host, by its socket.
pub fn connect_local(path: PathBuf, cancel: &Cancel) -> Server {
    Server::new(ServerOptions {
        address: Address::Unix(path),
        trust: Trust::System,
        credentials: Credentials::Peer,
        token_cache: None,
        patience: Duration::ZERO,
        on_wait: say_waiting,
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
            let problem =
                || UsageError(format!("{text:?} is no SHA-256 of a certificate: expected 64 hexadecimal digits"));
            Ok(Trust::Fingerprint(config::parse_fingerprint(text).ok_or_else(problem)?))
        }
        (None, None) => Ok(Trust::System),
    }
}

fn credentials(
    args: &ServerArgs,
    profile: &Profile,
    address: &Address,
    user: Option<String>,
    cache: Option<&TokenCache>,
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
            if cache.and_then(TokenCache::load).is_some() {
                return Ok(Credentials::Cached);
            }
            ask(address, user)
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
