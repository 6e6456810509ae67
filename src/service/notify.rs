//! Notifies the service manager: sd_notify(3) on the socket that `NOTIFY_SOCKET` names.
//!
//! The crate sd-notify (0.5) does not support abstract sockets, which older systemd uses, and may block forever.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The service manager. Its socket is opened before the service confines itself: then it can open none.
pub struct Notifier {
    socket: Option<UnixDatagram>,
    /// If it gets no keep-alive for this time, it takes the service for hung.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Without a socket, or if it cannot be opened, which is logged, the service manager is notified of nothing.
    pub fn open() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self { socket: None, watchdog: None };
        };
        let opened = connect(&name).inspect_err(|error| {
            tracing::warn!(socket = ?name, %error, "cannot notify the service manager of starts and stops");
        });
        let text = |name| env::var(name).ok();
        Self { socket: opened.ok(), watchdog: watchdog(text("WATCHDOG_USEC"), text("WATCHDOG_PID"), process::id()) }
    }

    /// Whether there is a service manager.
    pub fn is_heard(&self) -> bool {
        self.socket.is_some()
    }

    /// The time within which the service manager wants a keep-alive.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.is_heard())
    }

    /// The service listens, or has reloaded. `status` is one line.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// How the service is now, in one line.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}"));
    }

    /// The service works.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The service reloads; [`Self::ready`] follows.
    pub fn reloading(&self) {
        // systemd 253 identifies the reload by this time in microseconds.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// The service stops.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping: waiting for running requests");
    }

    fn send(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(state.as_bytes()) {
            tracing::warn!(%error, "cannot notify the service manager of {state:?}");
        }
    }
}

/// sd_watchdog_enabled(3): the variables count for the process that they name.
fn watchdog(microseconds: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    let is_meant = pid.is_none_or(|pid| pid.parse() == Ok(own));
    let limit = Duration::from_micros(microseconds?.parse().ok()?);
    (is_meant && !limit.is_zero()).then_some(limit)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_alives_are_wanted_if_the_variables_are_for_this_process() {
        let of = |time: &str, pid: Option<&str>| watchdog(Some(time.to_owned()), pid.map(str::to_owned), 77);
        let second = Some(Duration::from_secs(1));
        assert_eq!((of("1000000", None), of("1000000", Some("77"))), (second, second));
        for (time, pid) in [("1000000", Some("78")), ("1000000", Some("")), ("0", None), ("soon", None)] {
            assert_eq!(of(time, pid), None, "{time} {pid:?}");
        }
        assert_eq!(watchdog(None, None, 77), None);
    }
}
