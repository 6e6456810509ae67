//! What a service manager is told: sd_notify(3), to the datagram socket that `NOTIFY_SOCKET` names.
//!
//! Own lines, since the crate sd-notify (0.5) knows no abstract sockets, which older systemd uses,
//! and waits without end for a manager that does not read.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The service listens, or has read its certificate anew.
pub fn ready() {
    tell("READY=1");
}

/// The certificate is being read anew; [`ready`] follows.
pub fn reloading() {
    // systemd 253 tells by the time which reload is meant, microseconds.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
}

/// Running answers finish, and nothing else is taken.
pub fn stopping() {
    tell("STOPPING=1");
}

/// Says so, where anybody wants to know. That it cannot be said is no reason not to serve.
fn tell(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(?socket, %error, "the service manager cannot be told {state:?}");
    }
}

/// `@` stands for the zero that an abstract address starts with.
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
