//! The Unix socket for operators: `api.socket`.
//!
//! Who may connect depends on the owner, the group and the mode of its file. The service asks the kernel for the peer
//! of each connection too, so that a changed mode opens no door.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use crate::auth::{LocalPeer, Operators};
use crate::config::{self, Fault};
use crate::sys::file_lock::LockFile;
use crate::sys::socket::peer_groups;
use crate::sys::trusted_path::{self, Unusable};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Of the folder, if the service creates it. Members of the group must reach the socket.
const FOLDER_MODE: u32 = 0o711;

/// The listening socket.
#[derive(Debug)]
pub struct OperatorSocket {
    /// Dropped before the listener: as long as that listens, no other service replaces the file.
    _file: SocketFile,
    listener: UnixListener,
    operators: Operators,
}

/// The file of the socket, which is removed when this is dropped.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("there is no group {0:?} on this host")]
    NoGroup(String),
    #[error("the folder of the socket cannot be used: {0}")]
    Folder(io::Error),
    #[error("other users could replace the socket: {0}")]
    Untrusted(String),
    #[error("is in use by another process")]
    InUse,
    #[error("is a file of another kind, which the service does not remove")]
    Occupied,
    #[error("cannot give the socket to this group: {0}")]
    Group(io::Error),
    #[error("cannot create the socket: {0}")]
    Io(#[from] io::Error),
}

/// What a start would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The service can create the socket.
    Free,
    /// The service can replace the socket of a service that was killed.
    Stale,
    /// A process listens.
    InUse,
}

impl Problem {
    fn is_of_folder(&self) -> bool {
        matches!(self, Self::Folder(_) | Self::Untrusted(_))
    }

    fn fault(&self, config: &config::Socket) -> Fault {
        let shown = config.path.display();
        let (path_key, group_key) = ("api.socket", "api.socket_group");
        let at = |remedy: &str| Fault::new(path_key, format!("{shown}: {self}"), remedy);
        match self {
            Self::NoGroup(_) => {
                Fault::new(group_key, self.to_string(), "create it (groupadd), or name an existing one")
            }
            Self::Folder(_) => {
                at("create the folder, name a path in another one, or set \"\" for no socket").transient()
            }
            Self::Untrusted(_) => at("name a path in a folder that only root can write, such as one in /run"),
            Self::InUse => at("each service needs its own path; stop the other one, or name another path").transient(),
            Self::Occupied => at("move the file away, or name another path"),
            Self::Group(_) => {
                let remedy = "let the service run with the group (SupplementaryGroups= in its systemd unit)";
                Fault::new(group_key, format!("{shown}: {self}"), remedy)
            }
            Self::Io(_) => at("check the folder and its file system").transient(),
        }
    }
}

/// Opens the socket of the config, if it has one. Without a usable folder for the default path there is none.
///
/// # Errors
/// The path is in use or unsafe, or the group is unknown.
pub fn open(config: Option<&config::Socket>) -> Result<Option<OperatorSocket>, Fault> {
    let Some(config) = config else { return Ok(None) };
    match OperatorSocket::open(config) {
        Ok(socket) => {
            tracing::info!(path = %config.path.display(), group = config.group.as_deref(), "serving operators");
            Ok(Some(socket))
        }
        // Backups matter more than a socket that was not asked for.
        Err(problem) if config.is_default() && (problem.is_of_folder() || matches!(problem, Problem::InUse)) => {
            let path = config.path.display();
            tracing::warn!(%path, %problem, "no Unix socket for operators; create its folder, or set api.socket");
            Ok(None)
        }
        Err(problem) => Err(problem.fault(config)),
    }
}

/// What [`open`] would find at the path, without changing anything. `Ok(None)`: it cannot use the folder of the default
/// path.
///
/// # Errors
/// Those of [`open`], except that a socket in use is not an error.
pub fn inspect(config: &config::Socket) -> Result<Option<State>, Fault> {
    match find(config) {
        Ok(state) => Ok(Some(state)),
        Err(problem) if problem.is_of_folder() && config.is_default() => Ok(None),
        Err(problem) => Err(problem.fault(config)),
    }
}

/// The fault if another process listens at the path.
pub fn in_use(config: &config::Socket) -> Fault {
    Problem::InUse.fault(config)
}

fn find(config: &config::Socket) -> Result<State, Problem> {
    operators(config)?;
    let folder = folder_of(&config.path);
    match checked_folder(folder) {
        // The service would create it.
        Err(Problem::Folder(error)) if error.kind() == io::ErrorKind::NotFound => {
            writable(&checked_folder(folder_of(folder))?).map(|()| State::Free)
        }
        folder => {
            let folder = folder?;
            writable(&folder)?;
            state_of(&in_folder(&folder, config))
        }
    }
}

fn operators(config: &config::Socket) -> Result<Operators, Problem> {
    let Some(name) = &config.group else { return Ok(Operators::default()) };
    Operators::with_group(name)?.ok_or_else(|| Problem::NoGroup(name.clone()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// The path of the socket in its resolved folder.
fn in_folder(folder: &Path, config: &config::Socket) -> PathBuf {
    folder.join(config.path.file_name().unwrap_or_default())
}

fn resolved(folder: &Path) -> Result<PathBuf, Problem> {
    trusted_path::resolve(folder).map_err(|unusable| match unusable {
        Unusable::Unreadable(error) => Problem::Folder(error),
        Unusable::Untrusted(problem) => Problem::Untrusted(problem),
    })
}

/// The folder without links, if only root and the service can change its content.
fn checked_folder(folder: &Path) -> Result<PathBuf, Problem> {
    let folder = resolved(folder)?;
    let found = fs::metadata(&folder).map_err(Problem::Folder)?;
    if !found.is_dir() {
        return Err(Problem::Folder(io::ErrorKind::NotADirectory.into()));
    }
    let trusted = trusted_path::trust(found.uid(), found.mode());
    trusted.map_err(|problem| Problem::Untrusted(format!("{} {problem}", folder.display())))?;
    Ok(folder)
}

/// Creates the folder, if only that is missing. Its parent is checked first: in a folder that others can write, they could
/// replace it before its mode is set.
fn create_folder(folder: &Path) -> Result<(), Problem> {
    let Some(name) = folder.file_name().filter(|_| !folder.exists()) else { return Ok(()) };
    let folder = checked_folder(folder_of(folder))?.join(name);
    match DirBuilder::new().mode(FOLDER_MODE).create(&folder) {
        // Whatever the umask is.
        Ok(()) => fs::set_permissions(&folder, Permissions::from_mode(FOLDER_MODE)).map_err(Problem::Folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Problem::Folder(error)),
    }
}

/// Creates the folder of the default path, if only that is missing. Later the service may create nothing beside it.
pub fn prepare(config: Option<&config::Socket>) {
    if let Some(config) = config {
        // [`open`] reports what is wrong.
        let _ = create_folder(folder_of(&config.path));
    }
}

fn writable(folder: &Path) -> Result<(), Problem> {
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| Problem::Folder(errno.into()))
}

/// What is at the path.
fn state_of(path: &Path) -> Result<State, Problem> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::Free),
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(Problem::Occupied),
        Err(error) => return Err(error.into()),
    }
    // It does not wait, even if that service accepts no connection.
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(State::Stale),
        Err(error) if error.raw_os_error() == Some(Errno::EPROTOTYPE as i32) => Err(Problem::Occupied),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error.into()),
        Ok(()) | Err(_) => Ok(State::InUse),
    }
}

/// Any user who can open the folder can lock it, so the lock is not waited for without an end.
fn lock_soon(folder: &LockFile) -> io::Result<()> {
    const ATTEMPTS: u32 = 50;
    for _ in 0..ATTEMPTS {
        if folder.try_lock()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "is locked by another process"))
}

impl OperatorSocket {
    fn open(config: &config::Socket) -> Result<Self, Problem> {
        let operators = operators(config)?;
        let folder = folder_of(&config.path);
        create_folder(folder)?;
        let folder = checked_folder(folder)?;
        // While another service that starts replaces the same path.
        let lock = LockFile::new(File::open(&folder).map_err(Problem::Folder)?);
        lock_soon(&lock).map_err(Problem::Folder)?;
        let path = in_folder(&folder, config);
        match state_of(&path)? {
            State::InUse => return Err(Problem::InUse),
            State::Stale => fs::remove_file(&path)?,
            State::Free => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.bind(&SockAddr::unix(&path)?).map_err(|error| match error.kind() {
            // The folder cannot be written.
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Problem::Folder(error),
            _ => Problem::Io(error),
        })?;
        let found = fs::symlink_metadata(&path)?;
        let file = SocketFile { path, identity: (found.dev(), found.ino()) };
        // Connections are refused until `listen`.
        let mut mode = 0o600;
        if let Some(group) = operators.group() {
            chown(&file.path, None, Some(group)).map_err(Problem::Group)?;
            mode = 0o660;
        }
        fs::set_permissions(&file.path, Permissions::from_mode(mode))?;
        socket.listen(BACKLOG)?;
        let listener = UnixListener::from_std(OwnedFd::from(socket).into())?;
        Ok(Self { _file: file, listener, operators })
    }

    /// The next connection, and its peer.
    pub(super) async fn accept(&self) -> io::Result<(UnixStream, LocalPeer)> {
        let (stream, _) = self.listener.accept().await?;
        let peer = stream.peer_cred()?;
        let peer =
            LocalPeer { uid: peer.uid(), gid: peer.gid(), pid: peer.pid(), groups: peer_groups(stream.as_fd()).ok() };
        Ok((stream, peer))
    }

    pub(super) fn operators(&self) -> Operators {
        self.operators
    }
}
