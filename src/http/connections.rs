//! Which connections are open, and which of them goes where there are too many.
//!
//! A connection that has carried a good token is known; all others are strangers. An address may have only so many
//! strangers, and all strangers together leave places for those that are known. A newcomer is never kept waiting for
//! strangers: the one that has been idle longest goes, of the address that has most of them. So many silent
//! connections of one address harm only that address, and not even its own next connection.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::connection::Connection;
use crate::app::reads::Recipient;
use crate::config;

/// Connections at a time.
const MOST: usize = 512;

/// Those of them that are for connections with a good token.
const RESERVED: usize = 128;

/// How often the log says that connections had to go.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// All open connections.
#[derive(Debug)]
pub(super) struct Connections {
    config: config::Connections,
    open: Mutex<Open>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    by_number: BTreeMap<u64, Arc<Connection>>,
    next: u64,
    /// How many were ended for others since the log said so.
    ended: u64,
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
        self.connections.freed.notify_one();
    }
}

/// Why there is no place.
#[derive(Debug, PartialEq, Eq)]
enum Full {
    /// All of its address are at work.
    Address,
    /// All are at work.
    All,
}

impl Connections {
    pub(super) fn new(config: config::Connections) -> Arc<Self> {
        Arc::new(Self { config, open: Mutex::default(), freed: Notify::new() })
    }

    /// A place for a connection from `address`, for which another may have to go; it waits while all are at work.
    /// Nothing where its address has too many that are.
    pub(super) async fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        loop {
            match self.try_admit(address) {
                Ok(guest) => return Some(guest),
                Err(Full::Address) => return None,
                Err(Full::All) => self.freed.notified().await,
            }
        }
    }

    fn try_admit(self: &Arc<Self>, address: IpAddr) -> Result<Guest, Full> {
        let origin = origin(address);
        let mut open = self.open();
        let mut strangers = HashMap::<IpAddr, usize>::new();
        for connection in open.by_number.values().filter(|connection| !connection.is_known()) {
            *strangers.entry(connection.origin).or_default() += 1;
        }
        let is_proxy = self.config.trusted_proxies.iter().any(|proxy| proxy.contains(&address.to_canonical()));
        if !is_proxy && strangers.get(&origin).is_some_and(|count| *count >= self.config.per_address) {
            let of_it = |one: &Connection| (!one.is_known() && one.origin == origin).then_some(0);
            end_one(&mut open, of_it).map_err(|()| Full::Address)?;
        } else if strangers.values().sum::<usize>() >= MOST - RESERVED {
            let count = |one: &Connection| strangers.get(&one.origin).copied().filter(|_| !one.is_proxy);
            let of_many = |one: &Connection| (!one.is_known()).then(|| count(one).unwrap_or_default());
            end_one(&mut open, of_many).map_err(|()| Full::All)?;
        } else if open.by_number.len() >= MOST {
            // Of those that are known only where there are no strangers.
            end_one(&mut open, |one| Some(usize::from(!one.is_known()))).map_err(|()| Full::All)?;
        }
        let number = open.next;
        open.next += 1;
        let connection = Arc::new(Connection::new(origin, is_proxy, self.config.keepalive));
        open.by_number.insert(number, Arc::clone(&connection));
        Ok(Guest { number, connection, connections: Arc::clone(self) })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the connection that has been idle longest, of those with the most `weight`; one without any stays.
fn end_one(open: &mut Open, weight: impl Fn(&Connection) -> Option<usize>) -> Result<(), ()> {
    let candidates = open.by_number.iter().filter(|(_, one)| one.may_go());
    let weighed = candidates.filter_map(|(number, one)| Some((weight(one)?, one.idle(), *number)));
    let (.., number) = weighed.max_by_key(|(weight, idle, _)| (*weight, *idle)).ok_or(())?;
    let connection = open.by_number.remove(&number).ok_or(())?;
    connection.end();
    tracing::debug!(address = %connection.origin, "a connection is ended to make room for another");
    open.ended += 1;
    if open.told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
        let (ended, open_now) = (open.ended, open.by_number.len() + 1);
        tracing::warn!(
            ended, open = open_now, last_address = %connection.origin,
            "there are too many connections; those that were idle longest are ended"
        );
        (open.ended, open.told) = (0, Some(Instant::now()));
    }
    Ok(())
}

/// Whose connections those of `address` are: a host with IPv6 may have as many addresses as it likes below its /64.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
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
        let guests: Vec<Guest> = (0..3).map(|_| all.try_admit(address(1)).unwrap()).collect();
        for (guest, seconds) in guests.iter().zip([5, 20, 10]) {
            idle(guest, seconds);
        }
        let other = all.try_admit(address(2)).unwrap();
        let newcomer = all.try_admit(address(1)).unwrap();
        assert_eq!(guests.iter().map(is_open).collect::<Vec<_>>(), [true, false, true]);
        assert!(is_open(&other) && is_open(&newcomer));
        // Those with a good token do not count, and one that waits for the manager does not go.
        guests[2].connection.is_good();
        guests[2].connection.has_answered();
        let log_in = guests[0].connection.log_in();
        let _more = all.try_admit(address(1)).unwrap();
        assert!(guests.iter().zip([true, false, true]).all(|(guest, open)| is_open(guest) == open));
        idle(&newcomer, 1);
        let _last = all.try_admit(address(1)).unwrap();
        assert!(!is_open(&newcomer) && is_open(&guests[0]));
        drop(log_in);
        // A proxy may have more.
        for proxy in ["10.0.0.9", "::ffff:10.0.0.9", "10.0.3.77", "fd00::1"] {
            let guests: Vec<Guest> = (0..9).map(|_| all.try_admit(proxy.parse().unwrap()).unwrap()).collect();
            assert!(guests.iter().all(is_open), "{proxy}");
        }
        // One host with IPv6 is one, whatever it calls itself.
        let of_one: Vec<Guest> =
            (0..4).map(|n| all.try_admit(format!("2001:db8::{n}").parse().unwrap()).unwrap()).collect();
        let elsewhere = all.try_admit("2001:db8:0:1::1".parse().unwrap()).unwrap();
        assert_eq!((of_one.iter().filter(|guest| is_open(guest)).count(), is_open(&elsewhere)), (3, true));
    }

    #[test]
    fn strangers_leave_places_for_those_that_are_known() {
        let all = connections(&["10.9.9.9/32"]);
        let early = all.try_admit(address(0)).unwrap();
        idle(&early, 1000);
        // Many clients behind a proxy are not taken for one.
        let behind_a_proxy: Vec<Guest> = (0..9).map(|_| all.try_admit([10, 9, 9, 9].into()).unwrap()).collect();
        let strangers: Vec<Guest> = (10..MOST - RESERVED).map(|n| all.try_admit(address(n)).unwrap()).collect();
        assert!(is_open(&early) && strangers.iter().all(is_open));
        let _second_of_one = all.try_admit(address(17)).unwrap();
        assert!(!is_open(&early), "the longest idle of all goes");
        // Now one address has two: it pays first, whoever is idle longer.
        idle(&strangers[100], 1000);
        let newcomer = all.try_admit(address(1000)).unwrap();
        assert!(is_open(&strangers[100]) && is_open(&newcomer) && behind_a_proxy.iter().all(is_open));
        assert_eq!(strangers.iter().filter(|guest| !is_open(guest)).count(), 1);

        // Known ones take all places, and strangers go for them; then those of them that are at nothing.
        let known: Vec<Guest> = (0..MOST)
            .map(|n| {
                let guest = all.try_admit(address(2000 + n)).unwrap();
                guest.connection.is_good();
                guest.connection.has_answered();
                guest
            })
            .collect();
        assert!(known.iter().all(is_open) && !strangers.iter().any(is_open));
        let answering: Vec<_> = known.iter().skip(1).map(|guest| guest.connection.exchange.begin()).collect();
        let last = all.try_admit(address(1)).unwrap();
        assert!(!is_open(&known[0]));
        let log_in = last.connection.log_in();
        assert_eq!(all.try_admit(address(1)).err(), Some(Full::All));
        assert!(known.iter().skip(1).all(is_open));
        drop((answering, log_in));
    }
}
