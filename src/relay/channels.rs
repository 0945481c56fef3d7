//! Which of the store's lanes goes over which channel. As many channels are used as RabbitMQ allows, and no more than there
//! are lanes: it says one limit at login, and another, that of the account, only by refusing a channel.
//!
//! A lane that holds something stays with those that it shares a channel with, so its order holds; what was together is
//! taken apart again only when nothing is held.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long it is believed that RabbitMQ refuses a further channel: an account's limit can change any time.
const BELIEVED: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub(super) struct Channels {
    /// From the store's lane to its channel, counted from 0.
    routes: BTreeMap<u16, u16>,
    count: u16,
    /// How many were open when RabbitMQ refused another, and when.
    refused: Option<(u16, Instant)>,
}

impl Default for Channels {
    fn default() -> Self {
        Self { routes: BTreeMap::new(), count: u16::MAX, refused: None }
    }
}

impl Channels {
    /// RabbitMQ offers so many on a new connection. What is not held can be put elsewhere.
    pub(super) fn connected(&mut self, offered: u16, nothing_held: bool, now: Instant) {
        self.refused = self.refused.filter(|(_, at)| now.saturating_duration_since(*at) < BELIEVED);
        let allowed = self.refused.map_or(offered, |(open, _)| open.min(offered));
        if nothing_held {
            self.routes.clear();
            self.count = allowed;
        } else if allowed < self.count {
            self.count = allowed;
            self.routes.values_mut().for_each(|channel| *channel %= allowed);
        }
    }

    /// RabbitMQ refused a channel while `open` were open; says whether fewer are left to try.
    pub(super) fn refused(&mut self, open: usize, now: Instant) -> bool {
        let open = u16::try_from(open).unwrap_or(u16::MAX).max(1);
        let fewer = open < self.count;
        self.refused = Some((open, now));
        fewer
    }

    /// The channel of a lane.
    pub(super) fn of(&mut self, lane: u16) -> u16 {
        *self.routes.entry(lane).or_insert(lane % self.count)
    }

    /// How many there may be.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// How many there are, if lanes have to share them; else 0.
    pub(super) fn shared(&self) -> u16 {
        if self.routes.keys().next_back().is_some_and(|last| *last >= self.count) { self.count } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lanes_share_what_is_allowed_and_have_their_own_again_when_nothing_is_held() {
        let (mut channels, now) = (Channels::default(), Instant::now());
        channels.connected(2047, true, now);
        assert_eq!([0, 3, 7].map(|lane| channels.of(lane)), [0, 3, 7]);
        assert_eq!(channels.shared(), 0);
        assert!(channels.refused(3, now));
        channels.connected(2047, false, now);
        assert_eq!([0, 3, 7, 5].map(|lane| channels.of(lane)), [0, 0, 1, 2]);
        assert_eq!((channels.count(), channels.shared()), (3, 3));
        channels.connected(2047, true, now + BELIEVED / 2);
        assert_eq!(channels.count(), 3);
        channels.connected(2047, false, now + BELIEVED);
        assert_eq!(channels.count(), 3, "what is held stays together");
        channels.connected(2047, true, now + BELIEVED);
        assert_eq!([0, 3, 7].map(|lane| channels.of(lane)), [0, 3, 7]);
        channels.connected(u16::MAX, true, now + BELIEVED);
        assert_eq!(channels.of(8), 8);
    }

    #[test]
    fn with_no_channel_at_all_one_is_tried() {
        let (mut channels, now) = (Channels::default(), Instant::now());
        assert!(channels.refused(0, now));
        channels.connected(2047, false, now);
        assert_eq!(channels.count(), 1);
        assert!(!channels.refused(0, now), "nothing is left to try");
    }

    proptest! {
        /// However often fewer are allowed: lanes that shared a channel still do, and none has a channel too high.
        #[test]
        fn what_is_together_stays_together(offers in proptest::collection::vec(1u16..12, 1..6), lanes in proptest::collection::vec(0u16..16, 1..16)) {
            let (mut channels, now) = (Channels::default(), Instant::now());
            let mut before: Vec<u16> = lanes.iter().map(|lane| channels.of(*lane)).collect();
            for offer in offers {
                channels.connected(offer, false, now);
                let after: Vec<u16> = lanes.iter().map(|lane| channels.of(*lane)).collect();
                prop_assert!(after.iter().all(|channel| *channel < channels.count()));
                for (old, new) in before.iter().zip(&after) {
                    prop_assert_eq!(*new, old % channels.count());
                }
                before = after;
            }
        }
    }
}
