//! Places for connections that nobody knows yet: so many in all, a share for one address, and whoever has said least
//! leaves for a newcomer. So who holds places by saying nothing holds them for as long as nobody wants them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// How many places there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// In all.
    pub(crate) all: usize,
    /// For one address, of IPv6 for one network.
    pub(crate) each: usize,
}

/// The places. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(Arc<Mutex<Guests>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    number: u64,
    heard: Arc<AtomicU64>,
    places: Places,
}

/// Resolves when the place is wanted for another, and never once it was given back.
pub(crate) type Leave = oneshot::Receiver<()>;

impl Places {
    /// A place, for which somebody else may have to leave.
    pub(crate) fn enter(&self, peer: IpAddr, limits: Capacity) -> (Place, Leave) {
        let mut guests = self.guests();
        let network = network(peer);
        if let Some(number) = guests.whose_turn(network, limits) {
            let guest = guests.by_number.remove(&number);
            // Who has gone by itself doesn't hear it.
            let _ = guest.map(|guest| guest.leave.send(()));
        }
        guests.sit(self, network)
    }

    /// A place that nobody has to leave for, if there is one.
    pub(crate) fn take_free(&self, peer: IpAddr, limits: Capacity) -> Option<Place> {
        let mut guests = self.guests();
        let network = network(peer);
        guests.whose_turn(network, limits).is_none().then(|| guests.sit(self, network).0)
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Counts what was heard from whoever is there.
    pub(crate) fn heard(&self, bytes: usize) {
        self.heard.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.guests().by_number.remove(&self.number);
    }
}

#[derive(Debug, Default)]
struct Guests {
    by_number: BTreeMap<u64, Guest>,
    last_number: u64,
}

#[derive(Debug)]
struct Guest {
    network: IpAddr,
    heard: Arc<AtomicU64>,
    leave: oneshot::Sender<()>,
}

impl Guests {
    /// Who has to leave so that one more of `network` may come: of those who have said least, the oldest.
    fn whose_turn(&self, network: IpAddr, limits: Capacity) -> Option<u64> {
        let of_network = || self.by_number.iter().filter(|(_, guest)| guest.network == network);
        let said_least = |(number, guest): &(&u64, &Guest)| (guest.heard.load(Ordering::Relaxed), **number);
        let leaves = if of_network().count() >= limits.each {
            of_network().min_by_key(said_least)
        } else if self.by_number.len() >= limits.all {
            self.by_number.iter().min_by_key(said_least)
        } else {
            None
        };
        leaves.map(|(number, _)| *number)
    }

    fn sit(&mut self, places: &Places, network: IpAddr) -> (Place, Leave) {
        self.last_number += 1;
        let (number, heard) = (self.last_number, Arc::<AtomicU64>::default());
        let (leave, left) = oneshot::channel();
        self.by_number.insert(number, Guest { network, heard: Arc::clone(&heard), leave });
        (Place { number, heard, places: places.clone() }, left)
    }
}

/// Whoever has one IPv6 address has all of its network.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// Returns when `leave` says so: not when its place was given back.
pub(crate) async fn told_to(leave: &mut Leave) {
    if leave.await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Capacity = Capacity { all: 4, each: 2 };

    fn peer(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn is_out(leave: &mut Leave) -> bool {
        leave.try_recv().is_ok()
    }

    #[test]
    fn who_said_least_leaves_and_of_those_the_oldest() {
        let places = Places::default();
        let mut guests: Vec<_> = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
            .into_iter()
            .map(|from| places.enter(peer(from), LIMITS))
            .collect();
        guests[0].0.heard(9);
        guests[1].0.heard(8);
        let mut newcomers: Vec<_> = (0..3).map(|host| places.enter(peer(&format!("10.0.1.{host}")), LIMITS)).collect();
        let out: Vec<bool> = guests.iter_mut().map(|(_, leave)| is_out(leave)).collect();
        assert_eq!(out, [false, false, true, true]);
        assert!(is_out(&mut newcomers[0].1), "the third newcomer finds nobody older who said as little");
        assert!(!is_out(&mut newcomers[1].1) && !is_out(&mut newcomers[2].1));
    }

    #[test]
    fn an_address_past_its_share_costs_only_itself() {
        let places = Places::default();
        let (_other, mut others) = places.enter(peer("10.0.0.1"), LIMITS);
        let (first, mut firsts) = places.enter(peer("2001:db8::1"), LIMITS);
        first.heard(1000);
        let mut last: Option<(Place, Leave)> = None;
        for host in 2..100 {
            let next = places.enter(peer(&format!("2001:db8::{host}")), LIMITS);
            assert!(last.is_none_or(|(_, mut leave)| is_out(&mut leave)), "one network");
            last = Some(next);
        }
        assert!(!is_out(&mut others) && !is_out(&mut firsts));
        assert_eq!(places.guests().by_number.len(), 3);
    }

    #[test]
    fn a_place_is_free_again_when_it_was_given_back() {
        let places = Places::default();
        let peer = peer("::ffff:10.0.0.1");
        let (one, mut leave) = places.enter(peer, LIMITS);
        let two = places.take_free(peer, LIMITS).expect("the second of two");
        assert!(places.take_free("10.0.0.1".parse().unwrap(), LIMITS).is_none(), "an address in another form");
        drop(two);
        assert!(places.take_free(peer, LIMITS).is_some());
        drop(one);
        assert!(leave.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        assert!(places.guests().by_number.is_empty());
    }
}
