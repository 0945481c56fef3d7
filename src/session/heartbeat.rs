//! When a side of a session must be told that the other lives, and when it counts as dead.

use std::time::{Duration, Instant};

/// One side's clockwork. RabbitMQ sends a heartbeat when it said nothing for half the interval, and gives a peer up
/// when nothing came for two to three intervals; any byte counts.
#[derive(Debug)]
pub(super) struct Heartbeat {
    interval: Duration,
    heard: Instant,
    spoken: Instant,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Send,
    Dead,
}

impl Heartbeat {
    /// `seconds` as in connection.tune-ok; 0 is no heartbeat at all.
    pub(super) fn new(seconds: u16, now: Instant) -> Option<Self> {
        (seconds > 0).then(|| Self { interval: Duration::from_secs(seconds.into()), heard: now, spoken: now })
    }

    /// Bytes came, or none were asked for.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Bytes were sent.
    pub(super) fn spoken(&mut self, now: Instant) {
        self.spoken = now;
    }

    /// What is due now.
    pub(super) fn due(&self, now: Instant) -> Due {
        if now >= self.heard + self.interval * 5 / 2 {
            Due::Dead
        } else if now >= self.spoken + self.interval / 2 {
            Due::Send
        } else {
            Due::Nothing
        }
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Instant {
        (self.heard + self.interval * 5 / 2).min(self.spoken + self.interval / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_after_half_an_interval_and_gives_up_between_two_and_three() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut heartbeat = Heartbeat::new(10, start).unwrap();
        assert_eq!(heartbeat.due(after(4)), Due::Nothing);
        assert_eq!(heartbeat.next(), after(5));
        assert_eq!(heartbeat.due(after(5)), Due::Send);
        heartbeat.spoken(after(5));
        assert_eq!(heartbeat.due(after(9)), Due::Nothing);
        heartbeat.spoken(after(24));
        assert_eq!(heartbeat.due(after(20)), Due::Nothing);
        assert_eq!(heartbeat.due(after(25)), Due::Dead);
        heartbeat.heard(after(24));
        assert_eq!(heartbeat.due(after(25)), Due::Nothing);
        assert!(Heartbeat::new(0, start).is_none());
    }
}
