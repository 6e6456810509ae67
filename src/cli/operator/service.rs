//! The service that a command asks, and why it cannot be asked.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::bail;
use nix::unistd::{Gid, Group};

use super::args::TargetArgs;
use crate::cli::client::connect::{connect, connect_local};
use crate::cli::client::profile::Profiles;
use crate::client::{Cancel, Client, ClientError};
use crate::config::{self, Config, ConfigError, Socket};

/// A service, and a connection to it.
pub struct Service {
    pub client: Client,
    local: Option<LocalSocket>,
}

/// The socket of the service on this host.
struct LocalSocket {
    path: PathBuf,
    /// Why it is the default path.
    note: Option<String>,
    /// How to ask another service, if the command can do that.
    elsewhere: &'static str,
}

impl Service {
    /// The service that the arguments name; without them the one that runs with the config on this host.
    ///
    /// # Errors
    /// The service has no socket, does not run, or may not be used by this user.
    pub fn find(args: &TargetArgs, config: &Path) -> anyhow::Result<Self> {
        let service = Self::named(args, config)?;
        service.check()?;
        Ok(service)
    }

    /// As [`Self::find`], but does not check that the service runs.
    pub fn named(args: &TargetArgs, config: &Path) -> anyhow::Result<Self> {
        let cancel = Cancel::default();
        if let Some(name) = &args.server {
            let server = connect(name, &args.connection, &Profiles::load()?, &cancel)?;
            return Ok(Self { client: server.client()?, local: None });
        }
        let mut service = Self::on_this_host(args.socket.as_deref(), config, &cancel)?;
        if let Some(local) = service.local.as_mut().filter(|_| args.socket.is_none()) {
            local.elsewhere = "; the service of another host is asked with --server https://host:5544";
        }
        Ok(service)
    }

    /// The service that listens at `socket`; without it the one that runs with the config.
    ///
    /// # Errors
    /// The service has no socket.
    pub fn on_this_host(socket: Option<&Path>, config: &Path, cancel: &Cancel) -> anyhow::Result<Self> {
        let local = match socket {
            Some(path) => LocalSocket { path: path.to_owned(), note: None, elsewhere: "" },
            None => LocalSocket::of_config(config)?,
        };
        let client = connect_local(local.path.clone(), cancel).client()?;
        Ok(Self { client, local: Some(local) })
    }

    /// Finds out whether the socket can be connected to. The system's errors do not say what to do.
    ///
    /// # Errors
    /// The reason, and the remedy.
    pub fn check(&self) -> Result<(), ClientError> {
        self.local.as_ref().map_or(Ok(()), LocalSocket::check)
    }
}

/// The config of the service on this host. `Err`: this user cannot read it.
pub fn readable_config(path: &Path) -> Result<Result<Config, io::Error>, ConfigError> {
    match File::open(path) {
        // A service can also run with a config elsewhere. Then the default path is as good a guess.
        Err(error) if error.kind() == io::ErrorKind::NotFound && path == Path::new(config::DEFAULT_PATH) => {
            return Ok(Err(error));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(Err(error)),
        _ => {}
    }
    // The service runs with the config as it was at its start, so other wrong keys do not matter here.
    let (config, faults) = config::load_with_faults(path)?;
    if config.api.socket.is_none() && !faults.is_empty() {
        return Err(ConfigError::new(faults.join("\n")));
    }
    Ok(Ok(config))
}

impl LocalSocket {
    fn of_config(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        match readable_config(path)? {
            Ok(config) => match config.api.socket {
                Some(Socket { path, .. }) => Ok(Self { path, note: None, elsewhere: "" }),
                None => bail!(
                    "api.socket is \"\" in {shown}, so the service has no Unix socket; set it and restart the service, \
                     or use its port with --server"
                ),
            },
            Err(error) => {
                let note = format!(
                    "; this is the default path, because {shown} cannot be read ({error}): name another \
                     one with --socket"
                );
                Ok(Self { path: Socket::DEFAULT_PATH.into(), note: Some(note), elsewhere: "" })
            }
        }
    }

    fn check(&self) -> Result<(), ClientError> {
        let Err(error) = UnixStream::connect(&self.path) else { return Ok(()) };
        let (path, note, elsewhere) = (self.path.display(), self.note.as_deref().unwrap_or_default(), self.elsewhere);
        Err(match error.kind() {
            io::ErrorKind::NotFound => {
                let why = "is the service running? Its log says whether it has this socket";
                ClientError::Connection(format!("there is no socket {path}: {why}{note}{elsewhere}"))
            }
            io::ErrorKind::ConnectionRefused => ClientError::Connection(format!(
                "no process listens at {path}: the service is not running, or has just been stopped{note}{elsewhere}"
            )),
            io::ErrorKind::PermissionDenied => {
                ClientError::Setup(format!("this user may not use {path}: {}{note}", allowed(&self.path)))
            }
            _ => ClientError::Connection(format!("cannot connect to {path}: {error}{note}")),
        })
    }
}

/// Who may connect to the socket.
fn allowed(path: &Path) -> String {
    let group_mode = 0o060;
    let Ok(found) = fs::metadata(path) else {
        return "its folder is closed to other users; run the command as root".to_owned();
    };
    if found.mode() & group_mode == 0 {
        let remedy = "run the command as root, or set api.socket_group and restart the service";
        return format!("only root and the service's user may; {remedy}");
    }
    let group = Group::from_gid(Gid::from_raw(found.gid())).ok().flatten();
    let group = group.map_or_else(|| found.gid().to_string(), |group| group.name);
    format!("only root and the members of the group {group} may; a user is added with usermod -aG {group} USER")
}
