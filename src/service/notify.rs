//! Notifies the service manager: sd_notify(3) on the socket that `NOTIFY_SOCKET` names.
//!
//! The crate sd-notify (0.5) does not support abstract sockets, which older systemd uses, and may block forever.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The socket of the service manager. It is opened before the service confines itself: then it can open none.
pub struct Notifier(Option<UnixDatagram>);

impl Notifier {
    /// Without a socket, or if it cannot be opened, which is logged, the service manager is notified of nothing.
    pub fn open() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self(None) };
        let opened = connect(&name).inspect_err(|error| {
            tracing::warn!(socket = ?name, %error, "cannot notify the service manager of starts and stops");
        });
        Self(opened.ok())
    }

    /// The service listens, or has reloaded.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The service reloads; [`Self::ready`] follows.
    pub fn reloading(&self) {
        // systemd 253 identifies the reload by this time in microseconds.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// The service stops.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, state: &str) {
        let Some(socket) = &self.0 else { return };
        if let Err(error) = socket.send(state.as_bytes()) {
            tracing::warn!(%error, "cannot notify the service manager of {state:?}");
        }
    }
}

/// A leading `@` stands for the zero byte of an abstract address.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(Duration::from_secs(1)))?;
    socket.connect_addr(&address)?;
    Ok(socket)
}
