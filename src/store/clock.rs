//! Two kinds of time: what the wall clock shows, and what passes.
//!
//! People read the wall clock, so events carry its times. But it is set now and then, forward and back, and then what
//! waits for one of its times waits too long, or not long enough. So what a store waits for, checks that come due and names
//! that may be forgotten, stands in a count of its own, which goes on by as much as passes.

use crate::tx::id::Timestamp;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The wall clock.
pub fn system_clock() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since_epoch.as_millis().try_into().unwrap_or(i64::MAX))
}

/// What a store tells the time by.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// What people's clocks show. May be set, forward and back.
    pub wall: fn() -> Timestamp,
    /// The milliseconds that have passed since some moment of this process. Never set.
    pub passed: fn() -> i64,
}

impl Default for Clock {
    /// The system's.
    fn default() -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self { wall: system_clock, passed: || milliseconds(START.elapsed()) }
    }
}

/// A moment in a store's count: milliseconds, and near the wall clock's while that is never set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) i64);

impl Moment {
    pub(super) fn after(self, pause: Duration) -> Self {
        // Rounded up: nothing comes before its time.
        let whole = i64::try_from(pause.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(whole))
    }

    /// How long after `earlier` it is; nothing if it is not.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0).max(0).unsigned_abs())
    }
}

/// What the wall clock may differ from the count without having been set.
pub(super) const SLACK: Duration = Duration::from_secs(1);

/// A store's count, and the wall clock beside it.
#[derive(Debug, Clone)]
pub(super) struct Time {
    clock: Clock,
    /// The count when nothing had passed.
    zero: i64,
    /// By how much the wall clock is ahead of the count, as of the last time that it was seen to be set: two readings
    /// differ by a millisecond, and a time that is shown twice has to be the same.
    ahead: Arc<AtomicI64>,
}

impl Time {
    /// A count that begins as the wall clock's.
    pub(super) fn new(clock: Clock) -> Self {
        Self::from_zero(clock, (clock.wall)().0.saturating_sub((clock.passed)()))
    }

    /// Goes on with a count that stood at `count` when the wall clock showed `wall`. How long nobody counted only the wall
    /// clock can tell; one that was set back meanwhile tells nothing.
    pub(super) fn go_on(clock: Clock, Reading { count, wall }: Reading) -> Self {
        let away = (clock.wall)().0.saturating_sub(wall.0).max(0);
        Self::from_zero(clock, count.0.saturating_add(away).saturating_sub((clock.passed)()))
    }

    fn from_zero(clock: Clock, zero: i64) -> Self {
        let time = Self { clock, zero, ahead: Arc::default() };
        time.ahead.store(time.read().ahead(), Ordering::Relaxed);
        time
    }

    pub(super) fn now(&self) -> Moment {
        Moment(self.zero.saturating_add((self.clock.passed)()))
    }

    pub(super) fn read(&self) -> Reading {
        Reading { count: self.now(), wall: (self.clock.wall)() }
    }

    /// What the wall clock will show at a moment, if it is not set before.
    pub(super) fn shown(&self, at: Moment) -> Timestamp {
        let (now, seen) = (self.read().ahead(), self.ahead.load(Ordering::Relaxed));
        let is_set = Duration::from_millis(now.abs_diff(seen)) > SLACK;
        if is_set {
            self.ahead.store(now, Ordering::Relaxed);
        }
        Timestamp(at.0.saturating_add(if is_set { now } else { seen }))
    }
}

/// Both at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) count: Moment,
    pub(super) wall: Timestamp,
}

impl Reading {
    fn ahead(&self) -> i64 {
        self.wall.0.saturating_sub(self.count.0)
    }

    /// By how much the wall clock was set, forward or back, since `earlier`.
    pub(super) fn set_since(&self, earlier: &Self) -> Duration {
        Duration::from_millis(self.ahead().abs_diff(earlier.ahead()))
    }

    pub(super) fn passed_since(&self, earlier: &Self) -> Duration {
        self.count.since(earlier.count)
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    static WALL: AtomicI64 = AtomicI64::new(1_000_000);
    static PASSED: AtomicI64 = AtomicI64::new(5);

    fn clock() -> Clock {
        Clock { wall: || Timestamp(WALL.load(Ordering::Relaxed)), passed: || PASSED.load(Ordering::Relaxed) }
    }

    #[test]
    fn the_count_follows_what_passes_and_nothing_else() {
        let pass = |milliseconds| {
            WALL.fetch_add(milliseconds, Ordering::Relaxed);
            PASSED.fetch_add(milliseconds, Ordering::Relaxed);
        };
        let time = Time::new(clock());
        let begun = time.read();
        assert_eq!(begun, Reading { count: Moment(1_000_000), wall: Timestamp(1_000_000) });
        let due = time.now().after(Duration::from_micros(99_001));
        assert_eq!((due, time.shown(due)), (Moment(1_000_100), Timestamp(1_000_100)));
        for set in [-500_000, 2_000_000] {
            let before = time.read();
            WALL.fetch_add(set, Ordering::Relaxed);
            assert_eq!(time.now(), before.count);
            assert_eq!(time.shown(due).0 - before.wall.0, set + due.0 - before.count.0);
            assert_eq!(time.read().set_since(&before), Duration::from_millis(set.unsigned_abs()));
            pass(10);
            assert_eq!(time.now().0, before.count.0 + 10);
            assert_eq!(time.read().passed_since(&before), Duration::from_millis(10));
            let shown = time.shown(due);
            WALL.fetch_add(1, Ordering::Relaxed);
            assert_eq!(time.shown(due), shown, "two clocks are never read at one moment");
            WALL.fetch_sub(1, Ordering::Relaxed);
        }
        // The next process counts from anywhere, and the wall clock tells how long nobody counted.
        let last = time.read();
        PASSED.store(0, Ordering::Relaxed);
        for (away, counted) in [(7, 7), (-700_000, 0)] {
            WALL.store(last.wall.0 + away, Ordering::Relaxed);
            assert_eq!(Time::go_on(clock(), last).now().0, last.count.0 + counted);
        }
    }
}
