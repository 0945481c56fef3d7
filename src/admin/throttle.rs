//! Wrong tokens are taken slowly: who guesses gets a few attempts, then one a second.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::places::network;

/// Wrong tokens that a peer may show at once.
const BURST: u32 = 10;
/// After which it may show one more.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// Peers that are remembered. Those that come on top share one allowance.
const PEERS_MAX: usize = 1024;

/// How many wrong tokens came lately, and from where.
#[derive(Default)]
pub(super) struct Throttle {
    peers: Mutex<HashMap<IpAddr, Debt>>,
}

/// When a peer's attempts will have been forgotten: each adds [`EVERY`].
type Debt = Instant;

impl Throttle {
    /// Lets `look` judge what the peer shows, if it may show something now. `None`: it may not, and nothing was looked
    /// at. If a right token passed even then, what does not pass would be known to be wrong, at any speed. A neighbour who
    /// guesses can so shut out others behind the same address, but not their sessions.
    pub(super) fn attempt<T>(&self, peer: IpAddr, now: Instant, look: impl FnOnce() -> Option<T>) -> Option<Option<T>> {
        // Held over the look, so that attempts at one moment don't count as one.
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = network(peer);
        let known = peers.contains_key(&peer);
        if !known && peers.len() >= PEERS_MAX {
            peers.retain(|_, debt| *debt > now);
        }
        let peer = if known || peers.len() < PEERS_MAX { peer } else { Ipv6Addr::UNSPECIFIED.into() };
        let debt = peers.get(&peer).copied().filter(|debt| *debt > now).unwrap_or(now);
        if debt.duration_since(now) > EVERY * (BURST - 1) {
            return None;
        }
        let found = look();
        if found.is_none() {
            peers.insert(peer, debt + EVERY);
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(throttle: &Throttle, peer: IpAddr, now: Instant) -> bool {
        throttle.attempt(peer, now, || None::<()>).is_some()
    }

    #[test]
    fn who_guesses_waits_and_nobody_else_does() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let peer = |text: &str| text.parse::<IpAddr>().expect("an address");
        for _ in 0..BURST {
            assert!(wrong(&throttle, peer("10.0.0.1"), now));
        }
        assert!(!wrong(&throttle, peer("10.0.0.1"), now));
        assert_eq!(throttle.attempt(peer("::ffff:10.0.0.1"), now, || Some(())), None, "not even a right one is seen");
        assert_eq!(throttle.attempt(peer("10.0.0.2"), now, || Some(())), Some(Some(())));
        assert!(wrong(&throttle, peer("10.0.0.1"), now + EVERY));
        assert!(!wrong(&throttle, peer("10.0.0.1"), now + EVERY));
        let later = now + EVERY * (BURST + 1);
        for _ in 0..BURST {
            assert!(wrong(&throttle, peer("10.0.0.1"), later), "all is forgotten after a while");
        }
        for _ in 0..100 {
            assert_eq!(throttle.attempt(peer("10.0.0.3"), now, || Some(())), Some(Some(())), "right ones cost nothing");
        }
        for host in 0..BURST {
            assert!(wrong(&throttle, peer(&format!("2001:db8::{host}")), now));
        }
        assert!(!wrong(&throttle, peer("2001:db8::abcd"), now), "one network");
    }

    #[test]
    fn many_peers_share_what_is_left() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let peer = |number: u32| IpAddr::from(number.to_be_bytes());
        for number in 0..PEERS_MAX as u32 {
            assert!(wrong(&throttle, peer(number), now));
        }
        let allowed = (0..1000).filter(|number| wrong(&throttle, peer(5000 + number), now)).count();
        assert_eq!(allowed, BURST as usize);
        assert!(throttle.peers.lock().unwrap().len() <= PEERS_MAX + 1);
        assert!(wrong(&throttle, peer(9999), now + EVERY), "those that are forgotten make room");
    }
}
