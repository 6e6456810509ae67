//! One connection, as far as its stream, its service and all others have to know.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::exchanges::Exchange;
use crate::app::admission::ExportClient;
use crate::sys::socket;

/// How long a good token makes a connection known.
const KNOWN_FOR: Duration = Duration::from_secs(600);

/// How long a stranger may be idle: from the TLS handshake, or the last answer, to the end of the next head.
const STRANGERS_IDLE: Duration = Duration::from_secs(30);

/// How long a client may take nothing of what is sent to it.
const STALLED: Duration = Duration::from_secs(60);

/// How often it is looked whether it takes something.
const LOOK: Duration = Duration::from_secs(5);

/// An open connection, as far as others have to know.
#[derive(Debug)]
pub(super) struct Connection {
    /// Whose it is; one IPv6 host may have many addresses.
    pub(super) origin: IpAddr,
    /// Whether many clients may be behind that.
    pub(super) is_proxy: bool,
    pub(super) exchange: Arc<Exchange>,
    times: Mutex<Times>,
    /// Log-ins about which the manager is being asked.
    log_ins: AtomicUsize,
    keepalive: Duration,
    /// Its descriptor, while it is open; later it may be another's, of which nobody asks by then.
    socket: AtomicI32,
    /// Ends it at once.
    end: CancellationToken,
}

#[derive(Debug)]
pub(super) struct Times {
    /// Of the last step that it made.
    pub step: Instant,
    /// Of the last good token, or the end of its answer.
    pub good_token: Option<Instant>,
    /// Whether the request that is being answered has a good token.
    is_good: bool,
}

impl Connection {
    pub(super) fn new(origin: IpAddr, is_proxy: bool, keepalive: Duration) -> Self {
        Self {
            origin,
            is_proxy,
            exchange: Arc::default(),
            times: Mutex::new(Times { step: Instant::now(), good_token: None, is_good: false }),
            log_ins: AtomicUsize::new(0),
            keepalive,
            socket: AtomicI32::new(-1),
            end: CancellationToken::new(),
        }
    }

    pub(super) fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It got on: the handshake is over, or a request has come.
    pub(super) fn made_a_step(&self) {
        self.times().step = Instant::now();
    }

    /// Its request has a good token, or is a log-in that the manager took.
    pub(super) fn is_good(&self) {
        self.times().is_good = true;
    }

    /// An answer has gone, all of it.
    pub(super) fn has_answered(&self) {
        let (mut times, now) = (self.times(), Instant::now());
        times.step = now;
        if std::mem::take(&mut times.is_good) {
            times.good_token = Some(now);
        }
    }

    /// The manager is being asked about a log-in: until this is dropped, the connection is not ended for another. Only
    /// a log-in that holds one of the manager's turns may have this, so that few connections are protected.
    pub(super) fn log_in(self: &Arc<Self>) -> LogIn {
        self.log_ins.fetch_add(1, Ordering::Relaxed);
        LogIn(Arc::clone(self))
    }

    pub(super) fn is_known(&self) -> bool {
        let times = self.times();
        times.is_good || times.good_token.is_some_and(|last| last.elapsed() < KNOWN_FOR.max(self.keepalive))
    }

    /// How long it has made no step.
    pub(super) fn idle(&self) -> Duration {
        self.times().step.elapsed()
    }

    /// Whether it may be ended for another.
    pub(super) fn may_go(&self) -> bool {
        let may = if self.is_known() { self.exchange.is_idle() } else { true };
        may && self.log_ins.load(Ordering::Relaxed) == 0
    }

    /// It talks through this socket.
    pub(super) fn has_socket(&self, socket: RawFd) {
        self.socket.store(socket, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn is_told_to_end(&self) -> bool {
        self.end.is_cancelled()
    }

    /// Waits until it is ended for another.
    pub(super) async fn is_ended(&self) {
        self.end.cancelled().await;
    }

    /// Waits until there has been something for the client for a minute, and it has taken nothing. That a write has
    /// waited for so long does not say so: the kernel wakes a writer only when a third of its buffer is free.
    pub(super) async fn takes_nothing(&self) {
        let (mut left, mut since) = (0, Instant::now());
        loop {
            tokio::time::sleep(if self.exchange.is_idle() { STALLED / 2 } else { LOOK }).await;
            let now = self.unacknowledged();
            if now == 0 || now != left {
                (left, since) = (now, Instant::now());
            } else if since.elapsed() >= STALLED {
                return;
            }
        }
    }

    /// Waits until it has been idle for too long.
    pub(super) async fn idle_for_too_long(&self) {
        loop {
            let most = if self.is_known() { self.keepalive } else { STRANGERS_IDLE.min(self.keepalive) };
            let left = if self.exchange.is_idle() { most.saturating_sub(self.idle()) } else { most };
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

/// A log-in about which the manager is being asked.
#[derive(Debug)]
pub(super) struct LogIn(Arc<Connection>);

impl Drop for LogIn {
    fn drop(&mut self) {
        self.0.log_ins.fetch_sub(1, Ordering::Relaxed);
        self.0.made_a_step();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_stays_known_while_it_is_answered_and_for_a_while_after_that() {
        let connection = Connection::new([10, 0, 0, 1].into(), false, Duration::from_secs(75));
        let answering = connection.exchange.begin();
        assert!(!connection.is_known() && connection.may_go());
        connection.is_good();
        assert!(connection.is_known() && !connection.may_go());
        drop(answering);
        assert!(connection.exchange.flushed());
        connection.has_answered();
        assert!(connection.is_known() && connection.may_go());
        // The next request has none.
        connection.has_answered();
        assert!(connection.is_known());
        let long_ago = Instant::now().checked_sub(KNOWN_FOR).unwrap();
        connection.times().good_token = Some(long_ago);
        assert!(!connection.is_known());
    }
}
