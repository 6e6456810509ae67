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

/// The service listens, or has reloaded.
pub fn ready() {
    send_state("READY=1");
}

/// The service reloads; [`ready`] follows.
pub fn reloading() {
    // systemd 253 identifies the reload by this time in microseconds.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    send_state(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
}

/// The service stops.
pub fn stopping() {
    send_state("STOPPING=1");
}

/// Does nothing without a socket. An error is only logged.
fn send_state(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(?socket, %error, "cannot notify the service manager of {state:?}");
    }
}

/// A leading `@` stands for the zero byte of an abstract address.
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_write_timeout(Some(Duration::from_secs(1)))?;
    sender.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}
