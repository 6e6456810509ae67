//! Limits the number of open connections.
//!
//! A connection is known for a while after it has sent a valid token. Unknown connections are limited per address and
//! in total, so that slots remain for known ones. A new connection never waits. If there are too many unknown
//! connections, the service closes the one that has been idle longest, from the address that has the most. It does not
//! close a connection whose log-in waits for the manager: there are few of these (`app::admission`).
//! If only these are left, the new connection takes a slot for known ones. It is refused only if no open connection
//! may be closed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;

use super::connection::Connection;
use super::forwarded::ForwardedFor;
use crate::app::admission::ExportClient;
use crate::app::changeable::Changeable;
use crate::auth::ClientAddress;
use crate::config;

pub const MAX_CONNECTIONS: usize = 512;

/// Places for known connections.
const RESERVED: usize = 128;

/// How often closed connections are logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Connections {
    config: Changeable<config::Connections>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    by_number: BTreeMap<u64, Arc<Connection>>,
    next: u64,
    /// Connections that were closed for others, and refused ones, since the last log line.
    ended: u64,
    refused: u64,
    /// The time of the last log line.
    logged: Option<Instant>,
}

/// The place of a connection, which is freed when this is dropped.
pub(super) struct Place {
    number: u64,
    pub(super) connection: Arc<Connection>,
    pub(super) connections: Arc<Connections>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().by_number.remove(&self.number);
    }
}

impl Connections {
    pub(super) fn new(config: Changeable<config::Connections>) -> Arc<Self> {
        Arc::new(Self { config, open: Mutex::default() })
    }

    /// A place for a connection from `address`, for which another may be closed. `None` if all places have working
    /// connections. It never waits, because the accept loop would wait too.
    pub(super) fn admit(self: &Arc<Self>, address: ClientAddress) -> Option<Place> {
        let (origin, config) = (address.origin(), self.config.get());
        let mut open = self.open();
        let is_proxy = matches!(address, ClientAddress::Ip(ip) if config.is_proxy(ip));
        if !make_room(&mut open, (!is_proxy).then_some(config.per_address), origin) {
            open.refused += 1;
            open.log(origin);
            return None;
        }
        let number = open.next;
        open.next += 1;
        let mut connection = Connection::new(origin, is_proxy, config.keepalive);
        connection.names_clients = matches!(address, ClientAddress::Ip(ip) if config.names_clients(ip));
        let connection = Arc::new(connection);
        open.by_number.insert(number, Arc::clone(&connection));
        Some(Place { number, connection, connections: Arc::clone(self) })
    }

    /// The client that the other end of the connection names in a request, if it may.
    pub(super) fn forwarded_for(&self, connection: &Connection, headers: &HeaderMap) -> Option<ForwardedFor> {
        let config = self.config.get();
        let is_trusted = |address| config.names_clients(address);
        connection.names_clients.then(|| ForwardedFor::of(headers, is_trusted)).flatten()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Logs at intervals how many connections were closed or refused; the last one is from `origin`.
    fn log(&mut self, origin: ClientAddress) {
        if self.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            tracing::warn!(
                ended = self.ended, refused = self.refused, open = self.by_number.len(), last_address = %origin,
                "too many connections: closing those that were idle longest"
            );
            (self.ended, self.refused, self.logged) = (0, 0, Some(Instant::now()));
        }
    }
}

/// Whether there is a place for a connection from `origin`, which may have `limit` unknown ones. Closes one if
/// necessary.
fn make_room(open: &mut Open, limit: Option<usize>, origin: ClientAddress) -> bool {
    let mut unknown = HashMap::<ClientAddress, usize>::new();
    for connection in open.by_number.values().filter(|connection| !connection.is_known()) {
        *unknown.entry(connection.origin).or_default() += 1;
    }
    let of_it = unknown.get(&origin).copied().unwrap_or_default();
    let is_its = |one: &Connection| (!one.is_known() && one.origin == origin).then_some(0);
    if limit.is_some_and(|limit| of_it >= limit) && close_one(open, is_its) {
        return true;
    }
    let count = |one: &Connection| match unknown.get(&one.origin) {
        // Many clients share the address of a proxy.
        Some(count) if !one.is_proxy => *count,
        _ => 1,
    };
    let is_of_many = |one: &Connection| (!one.is_known()).then(|| count(one));
    if unknown.values().sum::<usize>() >= MAX_CONNECTIONS - RESERVED && close_one(open, is_of_many) {
        return true;
    }
    // A known one is closed only if there are no unknown ones.
    open.by_number.len() < MAX_CONNECTIONS || close_one(open, |one| Some(usize::from(!one.is_known())))
}

/// Closes the connection that has been idle longest among those with the highest `weight`, and returns whether there
/// was one. A connection without a weight stays.
fn close_one(open: &mut Open, weight: impl Fn(&Connection) -> Option<usize>) -> bool {
    let candidates = open.by_number.iter().filter(|(_, one)| one.is_evictable());
    let weighed = candidates.filter_map(|(number, one)| Some((weight(one)?, one.idle(), *number)));
    let Some((.., number)) = weighed.max_by_key(|(weight, idle, _)| (*weight, *idle)) else { return false };
    let Some(connection) = open.by_number.remove(&number) else { return false };
    connection.disconnect();
    tracing::debug!(address = %connection.origin, "closing a connection for another");
    open.ended += 1;
    open.log(connection.origin);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(proxies: &[&str]) -> Arc<Connections> {
        let trusted_proxies = proxies.iter().map(|proxy| proxy.parse().unwrap()).collect();
        Connections::new(Changeable::new(config::Connections {
            per_address: 3,
            trusted_proxies,
            ..config::Connections::default()
        }))
    }

    fn ip(text: &str) -> ClientAddress {
        ClientAddress::Ip(text.parse().unwrap())
    }

    fn address(n: usize) -> ClientAddress {
        ClientAddress::Ip([10, 0, (n >> 8) as u8, n as u8].into())
    }

    /// Makes it idle for a number of seconds.
    fn idle(place: &Place, seconds: u64) {
        let mut times = place.connection.times();
        times.progress = times.progress.checked_sub(Duration::from_secs(seconds)).unwrap();
    }

    fn is_open(place: &Place) -> bool {
        !place.connection.is_closing()
    }

    #[test]
    fn the_longest_idle_unknown_connection_of_an_address_is_closed() {
        let all = connections(&["10.0.0.9/32", "10.0.3.0/24", "fd00::/8"]);
        let places: Vec<Place> = (0..3).map(|_| all.admit(address(1)).unwrap()).collect();
        for (place, seconds) in places.iter().zip([5, 20, 10]) {
            idle(place, seconds);
        }
        let other = all.admit(address(2)).unwrap();
        let newcomer = all.admit(address(1)).unwrap();
        assert_eq!(places.iter().map(is_open).collect::<Vec<_>>(), [true, false, true]);
        assert!(is_open(&other) && is_open(&newcomer));
        // Known ones do not count, and one that waits for the manager stays.
        places[2].connection.set_authenticated();
        places[2].connection.has_answered();
        let log_in = places[0].connection.log_in();
        let _more = all.admit(address(1)).unwrap();
        assert!(places.iter().zip([true, false, true]).all(|(place, open)| is_open(place) == open));
        idle(&newcomer, 1);
        let _last = all.admit(address(1)).unwrap();
        assert!(!is_open(&newcomer) && is_open(&places[0]));
        drop(log_in);
        // A proxy may have more.
        for proxy in ["10.0.0.9", "::ffff:10.0.0.9", "10.0.3.77", "fd00::1"] {
            let places: Vec<Place> = (0..9).map(|_| all.admit(ip(proxy)).unwrap()).collect();
            assert!(places.iter().all(is_open), "{proxy}");
        }
        // All IPv6 addresses of a host count as one.
        let of_one: Vec<Place> = (0..4).map(|n| all.admit(ip(&format!("2001:db8::{n}"))).unwrap()).collect();
        let elsewhere = all.admit(ip("2001:db8:0:1::1")).unwrap();
        assert_eq!((of_one.iter().filter(|place| is_open(place)).count(), is_open(&elsewhere)), (3, true));
    }

    #[test]
    fn connections_through_a_proxy_do_not_displace_direct_ones() {
        let all = connections(&["10.9.9.9/32"]);
        let direct: Vec<Place> = (0..9).map(|n| all.admit(address(n)).unwrap()).collect();
        let mut crowd = Vec::new();
        for n in 0..MAX_CONNECTIONS {
            crowd.push(all.admit(ip("10.9.9.9")).unwrap());
            idle(crowd.last().unwrap(), 1 + MAX_CONNECTIONS as u64 - n as u64);
        }
        assert!(direct.iter().all(is_open));
        let open = crowd.iter().map(is_open).collect::<Vec<_>>();
        let ended = MAX_CONNECTIONS + direct.len() - (MAX_CONNECTIONS - RESERVED);
        assert!(open[..ended].iter().all(|open| !open) && open[ended..].iter().all(|open| *open));
    }

    #[test]
    fn waiting_log_ins_do_not_shut_others_out() {
        let all = connections(&[]);
        let asking: Vec<Place> = (0..3).map(|_| all.admit(address(1)).unwrap()).collect();
        let log_ins: Vec<_> = asking.iter().map(|place| place.connection.log_in()).collect();
        // All of the address are protected. Its next connection is admitted, and then closed for the one after it.
        let next = all.admit(address(1)).unwrap();
        let after = all.admit(address(1)).unwrap();
        assert!(asking.iter().all(is_open) && !is_open(&next) && is_open(&after));
        // If all unknown ones are protected, new ones take the places for known connections, up to the last.
        let others: Vec<_> = (0..MAX_CONNECTIONS - RESERVED)
            .map(|n| {
                let place = all.admit(address(2000 + n)).unwrap();
                (place.connection.log_in(), place)
            })
            .collect();
        let known: Vec<_> = (0..RESERVED - asking.len())
            .map(|_| {
                let place = all.admit(address(1)).unwrap();
                place.connection.set_authenticated();
                (place.connection.exchange.begin(), place)
            })
            .collect();
        assert!(all.admit(address(1)).is_none());
        assert!(known.iter().all(|(_, place)| is_open(place)) && others.iter().all(|(_, place)| is_open(place)));
        drop(log_ins);
        assert!(all.admit(address(1)).is_some());
    }

    #[test]
    fn there_are_always_places_for_known_connections() {
        let all = connections(&["10.9.9.9/32"]);
        let early = all.admit(address(0)).unwrap();
        idle(&early, 1000);
        // Clients behind a proxy do not count as one.
        let behind_a_proxy: Vec<Place> = (0..9).map(|_| all.admit(ip("10.9.9.9")).unwrap()).collect();
        let unknown: Vec<Place> = (10..MAX_CONNECTIONS - RESERVED).map(|n| all.admit(address(n)).unwrap()).collect();
        assert!(is_open(&early) && unknown.iter().all(is_open));
        let _second_of_one = all.admit(address(17)).unwrap();
        assert!(!is_open(&early), "the longest idle one is closed");
        // One address has two now: one of these is closed first, even if others are idle longer.
        idle(&unknown[100], 500);
        let newcomer = all.admit(address(1000)).unwrap();
        assert!(is_open(&unknown[100]) && is_open(&newcomer) && behind_a_proxy.iter().all(is_open));
        assert_eq!(unknown.iter().filter(|place| !is_open(place)).count(), 1);

        // Known ones displace all unknown ones, and then idle known ones.
        let known: Vec<Place> = (0..MAX_CONNECTIONS)
            .map(|n| {
                let place = all.admit(address(2000 + n)).unwrap();
                place.connection.set_authenticated();
                place.connection.has_answered();
                place
            })
            .collect();
        assert!(known.iter().all(is_open) && !unknown.iter().any(is_open));
        let answering: Vec<_> = known.iter().skip(1).map(|place| place.connection.exchange.begin()).collect();
        let last = all.admit(address(1)).unwrap();
        assert!(!is_open(&known[0]));
        let log_in = last.connection.log_in();
        assert!(all.admit(address(1)).is_none());
        assert!(known.iter().skip(1).all(is_open));
        drop((answering, log_in));
    }
}
