//! The state of one connection that its stream, its service and other connections share.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::exchanges::Exchange;
use crate::app::admission::ExportClient;
use crate::app::session::KeptToken;
use crate::auth::ClientAddress;
use crate::sys::socket;

/// How long a valid token makes a connection known.
const KNOWN_FOR: Duration = Duration::from_secs(600);

/// How long an unknown connection may be idle: from the TLS handshake or the last answer to the end of the next head.
const UNKNOWN_IDLE: Duration = Duration::from_secs(30);

/// How long a client may not receive what is sent to it.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a stall is checked for.
const STALL_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Connection {
    /// What the limits count as one.
    pub(super) origin: ClientAddress,
    /// Whether many clients may share the address.
    pub(super) is_proxy: bool,
    /// Whether its header `X-Forwarded-For` counts.
    pub(super) names_clients: bool,
    pub(super) exchange: Arc<Exchange>,
    times: Mutex<Times>,
    /// Log-ins that wait for the manager.
    log_ins: AtomicUsize,
    keepalive: Duration,
    /// The last valid token.
    pub(super) token: Mutex<Option<KeptToken>>,
    /// The descriptor of the socket. It is not used after the connection is closed.
    socket: AtomicI32,
    /// Closes the connection at once.
    end: CancellationToken,
}

#[derive(Debug)]
pub(super) struct Times {
    /// The last progress: the handshake, a request, or an answer.
    pub progress: Instant,
    /// The end of the last answer to a valid token.
    pub valid_token: Option<Instant>,
    /// Whether the current request has a valid token.
    is_authenticated: bool,
}

impl Connection {
    pub(super) fn new(origin: ClientAddress, is_proxy: bool, keepalive: Duration) -> Self {
        Self {
            origin,
            is_proxy,
            names_clients: false,
            exchange: Arc::default(),
            times: Mutex::new(Times { progress: Instant::now(), valid_token: None, is_authenticated: false }),
            log_ins: AtomicUsize::new(0),
            keepalive,
            token: Mutex::default(),
            socket: AtomicI32::new(-1),
            end: CancellationToken::new(),
        }
    }

    pub(super) fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handshake has ended, or a request has arrived.
    pub(super) fn made_progress(&self) {
        self.times().progress = Instant::now();
    }

    /// The current request has a valid token, or is a successful log-in.
    pub(super) fn set_authenticated(&self) {
        self.times().is_authenticated = true;
    }

    /// The client needs no token: it is known from its first byte on.
    pub(super) fn set_known(&self) {
        self.times().valid_token = Some(Instant::now());
    }

    /// An answer has been sent completely.
    pub(super) fn has_answered(&self) {
        let (mut times, now) = (self.times(), Instant::now());
        times.progress = now;
        if std::mem::take(&mut times.is_authenticated) {
            times.valid_token = Some(now);
        }
    }

    /// Protects the connection from being closed for another until this is dropped. Only a log-in that holds one of the
    /// manager's slots may have it, so that few connections are protected.
    pub(super) fn log_in(self: &Arc<Self>) -> LogIn {
        self.log_ins.fetch_add(1, Ordering::Relaxed);
        LogIn(Arc::clone(self))
    }

    /// Whether it has sent a valid token recently.
    pub(super) fn is_known(&self) -> bool {
        let times = self.times();
        times.is_authenticated || times.valid_token.is_some_and(|last| last.elapsed() < KNOWN_FOR.max(self.keepalive))
    }

    /// The time since the last progress.
    pub(super) fn idle(&self) -> Duration {
        self.times().progress.elapsed()
    }

    /// Whether it may be closed for another.
    pub(super) fn is_evictable(&self) -> bool {
        let may = if self.is_known() { self.exchange.is_idle() } else { true };
        may && self.log_ins.load(Ordering::Relaxed) == 0
    }

    pub(super) fn set_socket(&self, socket: RawFd) {
        self.socket.store(socket, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn is_closing(&self) -> bool {
        self.end.is_cancelled()
    }

    /// Waits until it is closed for another, or for being slow.
    pub(super) async fn closing(&self) {
        self.end.cancelled().await;
    }

    /// Waits until the client has received nothing for a minute although there was something to send. A write that
    /// waits this long does not prove it: the kernel wakes a writer only when a third of its buffer is free.
    pub(super) async fn stalled(&self) {
        let (mut left, mut since) = (0, Instant::now());
        loop {
            tokio::time::sleep(if self.exchange.is_idle() { STALL_TIMEOUT / 2 } else { STALL_INTERVAL }).await;
            let now = self.unacknowledged();
            if now == 0 || now != left {
                (left, since) = (now, Instant::now());
            } else if since.elapsed() >= STALL_TIMEOUT {
                return;
            }
        }
    }

    /// Waits until it has been idle for too long.
    pub(super) async fn idle_timeout(&self) {
        loop {
            let limit = if self.is_known() { self.keepalive } else { UNKNOWN_IDLE.min(self.keepalive) };
            let left = if self.exchange.is_idle() { limit.saturating_sub(self.idle()) } else { limit };
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

impl ExportClient for Connection {
    fn unacknowledged(&self) -> u64 {
        socket::unacknowledged(self.socket.load(Ordering::Relaxed)).unwrap_or_default()
    }

    fn disconnect(&self) {
        self.end.cancel();
    }
}

/// A log-in that waits for the manager.
#[derive(Debug)]
pub(super) struct LogIn(Arc<Connection>);

impl Drop for LogIn {
    fn drop(&mut self) {
        self.0.log_ins.fetch_sub(1, Ordering::Relaxed);
        self.0.made_progress();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_token_makes_a_connection_known_for_a_while() {
        let connection = Connection::new(ClientAddress::Ip([10, 0, 0, 1].into()), false, Duration::from_secs(75));
        let answering = connection.exchange.begin();
        assert!(!connection.is_known() && connection.is_evictable());
        connection.set_authenticated();
        assert!(connection.is_known() && !connection.is_evictable());
        drop(answering);
        assert!(connection.exchange.flushed());
        connection.has_answered();
        assert!(connection.is_known() && connection.is_evictable());
        // The next request has no token.
        connection.has_answered();
        assert!(connection.is_known());
        let long_ago = Instant::now().checked_sub(KNOWN_FOR).unwrap();
        connection.times().valid_token = Some(long_ago);
        assert!(!connection.is_known());
    }
}
