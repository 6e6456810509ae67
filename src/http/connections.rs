//! Which connections are open, and which of them goes where there are too many.
//!
//! A connection that has carried a good token is known; all others are strangers. An address may have only so many
//! strangers, and all strangers together leave places for those that are known. A newcomer never waits: the stranger
//! that has been idle longest is ended for it, of the address that has most of them. So many silent connections of one
//! address harm only that address, and not even its own next connection. A stranger is not ended while the manager is
//! asked about its log-in. There are few of these (`auth::manager`); where no other is left, the newcomer takes one of
//! the places for known connections. It is closed only where all places are taken by connections at work.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;
use crate::app::admission::ExportClient;
use crate::app::audit::host_of;
use crate::config;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 512;

/// Those of them that are for connections with a good token.
const RESERVED: usize = 128;

/// How often the log says that connections had to go.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// All open connections.
#[derive(Debug)]
pub(super) struct Connections {
    config: config::Connections,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    by_number: BTreeMap<u64, Arc<Connection>>,
    next: u64,
    /// How many were ended for others, and how many were not admitted, since the log said so.
    ended: u64,
    refused: u64,
    /// When it did.
    told: Option<Instant>,
}

/// A connection's place, free again when this is dropped.
pub(super) struct Guest {
    number: u64,
    pub(super) connection: Arc<Connection>,
    connections: Arc<Connections>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.connections.open().by_number.remove(&self.number);
    }
}

impl Connections {
    pub(super) fn new(config: config::Connections) -> Arc<Self> {
        Arc::new(Self { config, open: Mutex::default() })
    }

    /// A place for a connection from `address`, for which another may be ended; nothing where all are taken by
    /// connections at work. It never waits: the accept loop would wait with it.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let origin = host_of(address);
        let mut open = self.open();
        let is_proxy = self.config.trusted_proxies.iter().any(|proxy| proxy.contains(&address.to_canonical()));
        if !make_room(&mut open, (!is_proxy).then_some(self.config.per_address), origin) {
            open.refused += 1;
            open.tell(origin);
            return None;
        }
        let number = open.next;
        open.next += 1;
        let connection = Arc::new(Connection::new(origin, is_proxy, self.config.keepalive));
        open.by_number.insert(number, Arc::clone(&connection));
        Some(Guest { number, connection, connections: Arc::clone(self) })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Says now and then in the log how many connections had to go, the last of which was of `origin`.
    fn tell(&mut self, origin: IpAddr) {
        if self.told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            tracing::warn!(
                ended = self.ended, refused = self.refused, open = self.by_number.len(), last_address = %origin,
                "there are too many connections; those that were idle longest are ended"
            );
            (self.ended, self.refused, self.told) = (0, 0, Some(Instant::now()));
        }
    }
}

/// Whether there is room for a connection from `origin`, whose strangers are limited to `limit`; one is ended where
/// that is necessary.
fn make_room(open: &mut Open, limit: Option<usize>, origin: IpAddr) -> bool {
    let mut strangers = HashMap::<IpAddr, usize>::new();
    for connection in open.by_number.values().filter(|connection| !connection.is_known()) {
        *strangers.entry(connection.origin).or_default() += 1;
    }
    let of_it = strangers.get(&origin).copied().unwrap_or_default();
    let is_its = |one: &Connection| (!one.is_known() && one.origin == origin).then_some(0);
    if limit.is_some_and(|limit| of_it >= limit) && end_one(open, is_its) {
        return true;
    }
    let count = |one: &Connection| match strangers.get(&one.origin) {
        // A proxy's connections are of many clients.
        Some(count) if !one.is_proxy => *count,
        _ => 1,
    };
    let is_of_many = |one: &Connection| (!one.is_known()).then(|| count(one));
    if strangers.values().sum::<usize>() >= MAX_CONNECTIONS - RESERVED && end_one(open, is_of_many) {
        return true;
    }
    // One that is known goes only where there are no strangers.
    open.by_number.len() < MAX_CONNECTIONS || end_one(open, |one| Some(usize::from(!one.is_known())))
}

/// Ends the connection that has been idle longest, of those with the most `weight`; one without any stays. Whether
/// there was one to end.
fn end_one(open: &mut Open, weight: impl Fn(&Connection) -> Option<usize>) -> bool {
    let candidates = open.by_number.iter().filter(|(_, one)| one.may_go());
    let weighed = candidates.filter_map(|(number, one)| Some((weight(one)?, one.idle(), *number)));
    let Some((.., number)) = weighed.max_by_key(|(weight, idle, _)| (*weight, *idle)) else { return false };
    let Some(connection) = open.by_number.remove(&number) else { return false };
    connection.disconnect();
    tracing::debug!(address = %connection.origin, "a connection is ended to make room for another");
    open.ended += 1;
    open.tell(connection.origin);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(proxies: &[&str]) -> Arc<Connections> {
        let trusted_proxies = proxies.iter().map(|proxy| proxy.parse().unwrap()).collect();
        Connections::new(config::Connections { per_address: 3, trusted_proxies, ..config::Connections::default() })
    }

    fn address(n: usize) -> IpAddr {
        IpAddr::from([10, 0, (n >> 8) as u8, n as u8])
    }

    /// Makes it idle for so many seconds.
    fn idle(guest: &Guest, seconds: u64) {
        let mut times = guest.connection.times();
        times.step = times.step.checked_sub(Duration::from_secs(seconds)).unwrap();
    }

    fn is_open(guest: &Guest) -> bool {
        !guest.connection.is_told_to_end()
    }

    #[test]
    fn an_address_has_few_strangers_and_the_longest_idle_one_goes() {
        let all = connections(&["10.0.0.9/32", "10.0.3.0/24", "fd00::/8"]);
        let guests: Vec<Guest> = (0..3).map(|_| all.admit(address(1)).unwrap()).collect();
        for (guest, seconds) in guests.iter().zip([5, 20, 10]) {
            idle(guest, seconds);
        }
        let other = all.admit(address(2)).unwrap();
        let newcomer = all.admit(address(1)).unwrap();
        assert_eq!(guests.iter().map(is_open).collect::<Vec<_>>(), [true, false, true]);
        assert!(is_open(&other) && is_open(&newcomer));
        // Those with a good token do not count, and one that waits for the manager does not go.
        guests[2].connection.is_good();
        guests[2].connection.has_answered();
        let log_in = guests[0].connection.log_in();
        let _more = all.admit(address(1)).unwrap();
        assert!(guests.iter().zip([true, false, true]).all(|(guest, open)| is_open(guest) == open));
        idle(&newcomer, 1);
        let _last = all.admit(address(1)).unwrap();
        assert!(!is_open(&newcomer) && is_open(&guests[0]));
        drop(log_in);
        // A proxy may have more.
        for proxy in ["10.0.0.9", "::ffff:10.0.0.9", "10.0.3.77", "fd00::1"] {
            let guests: Vec<Guest> = (0..9).map(|_| all.admit(proxy.parse().unwrap()).unwrap()).collect();
            assert!(guests.iter().all(is_open), "{proxy}");
        }
        // One host with IPv6 is one, whatever it calls itself.
        let of_one: Vec<Guest> =
            (0..4).map(|n| all.admit(format!("2001:db8::{n}").parse().unwrap()).unwrap()).collect();
        let elsewhere = all.admit("2001:db8:0:1::1".parse().unwrap()).unwrap();
        assert_eq!((of_one.iter().filter(|guest| is_open(guest)).count(), is_open(&elsewhere)), (3, true));
    }

    #[test]
    fn a_crowd_behind_a_proxy_does_not_make_direct_clients_pay() {
        let all = connections(&["10.9.9.9/32"]);
        let direct: Vec<Guest> = (0..9).map(|n| all.admit(address(n)).unwrap()).collect();
        let mut crowd = Vec::new();
        for n in 0..MAX_CONNECTIONS {
            crowd.push(all.admit([10, 9, 9, 9].into()).unwrap());
            idle(crowd.last().unwrap(), 1 + MAX_CONNECTIONS as u64 - n as u64);
        }
        assert!(direct.iter().all(is_open));
        let open = crowd.iter().map(is_open).collect::<Vec<_>>();
        let ended = MAX_CONNECTIONS + direct.len() - (MAX_CONNECTIONS - RESERVED);
        assert!(open[..ended].iter().all(|open| !open) && open[ended..].iter().all(|open| *open));
    }

    #[test]
    fn log_ins_at_the_manager_shut_nobody_out() {
        let all = connections(&[]);
        let asking: Vec<Guest> = (0..3).map(|_| all.admit(address(1)).unwrap()).collect();
        let log_ins: Vec<_> = asking.iter().map(|guest| guest.connection.log_in()).collect();
        // All of the address are protected. Its next connection is admitted, and then ended for the one after it.
        let next = all.admit(address(1)).unwrap();
        let after = all.admit(address(1)).unwrap();
        assert!(asking.iter().all(is_open) && !is_open(&next) && is_open(&after));
        // Where all strangers are protected, newcomers take the places for known connections, up to the last one.
        let others: Vec<_> = (0..MAX_CONNECTIONS - RESERVED)
            .map(|n| {
                let guest = all.admit(address(2000 + n)).unwrap();
                (guest.connection.log_in(), guest)
            })
            .collect();
        let known: Vec<_> = (0..RESERVED - asking.len())
            .map(|_| {
                let guest = all.admit(address(1)).unwrap();
                guest.connection.is_good();
                (guest.connection.exchange.begin(), guest)
            })
            .collect();
        assert!(all.admit(address(1)).is_none());
        assert!(known.iter().all(|(_, guest)| is_open(guest)) && others.iter().all(|(_, guest)| is_open(guest)));
        drop(log_ins);
        assert!(all.admit(address(1)).is_some());
    }

    #[test]
    fn strangers_leave_places_for_those_that_are_known() {
        let all = connections(&["10.9.9.9/32"]);
        let early = all.admit(address(0)).unwrap();
        idle(&early, 1000);
        // Many clients behind a proxy are not taken for one.
        let behind_a_proxy: Vec<Guest> = (0..9).map(|_| all.admit([10, 9, 9, 9].into()).unwrap()).collect();
        let strangers: Vec<Guest> = (10..MAX_CONNECTIONS - RESERVED).map(|n| all.admit(address(n)).unwrap()).collect();
        assert!(is_open(&early) && strangers.iter().all(is_open));
        let _second_of_one = all.admit(address(17)).unwrap();
        assert!(!is_open(&early), "the longest idle of all goes");
        // Now one address has two: it pays first, whoever is idle longer.
        idle(&strangers[100], 500);
        let newcomer = all.admit(address(1000)).unwrap();
        assert!(is_open(&strangers[100]) && is_open(&newcomer) && behind_a_proxy.iter().all(is_open));
        assert_eq!(strangers.iter().filter(|guest| !is_open(guest)).count(), 1);

        // Known ones take all places, and strangers go for them; then those of them that are at nothing.
        let known: Vec<Guest> = (0..MAX_CONNECTIONS)
            .map(|n| {
                let guest = all.admit(address(2000 + n)).unwrap();
                guest.connection.is_good();
                guest.connection.has_answered();
                guest
            })
            .collect();
        assert!(known.iter().all(is_open) && !strangers.iter().any(is_open));
        let answering: Vec<_> = known.iter().skip(1).map(|guest| guest.connection.exchange.begin()).collect();
        let last = all.admit(address(1)).unwrap();
        assert!(!is_open(&known[0]));
        let log_in = last.connection.log_in();
        assert!(all.admit(address(1)).is_none());
        assert!(known.iter().skip(1).all(is_open));
        drop((answering, log_in));
    }
}
