//! What is counted of the store, and whether there is room: told by the writer, the janitor and the beat.

use crate::store::shares::Shares;
use crate::store::stats::{Stats, Tally, add_signed, set};
use crate::store::{Limits, Room};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A store that was full takes messages again below this many hundredths of its limit.
const ROOM_AGAIN_PERCENT: u64 = 95;

/// See the module.
pub(super) struct Accounts {
    pub(super) stats: Arc<Stats>,
    shares: Mutex<Shares>,
    bytes_max: AtomicU64,
    away: AtomicBool,
    room: watch::Sender<Room>,
}

impl Accounts {
    pub(super) fn new(stats: Arc<Stats>, shares: Shares, bytes_max: Option<u64>, room: watch::Sender<Room>) -> Self {
        let (bytes_max, away) = (AtomicU64::new(bytes_max.unwrap_or(u64::MAX)), AtomicBool::new(false));
        Self { stats, shares: Mutex::new(shares), bytes_max, away, room }
    }

    /// What a SQL transaction that is durable changed.
    pub(super) fn count(&self, tally: &Tally) {
        add_signed(&self.stats.open_named, tally.open);
        add_signed(&self.stats.in_doubt, tally.in_doubt);
        add_signed(&self.stats.dead_letters, tally.letters);
        add_signed(&self.stats.backlog, tally.backlog);
        self.stats.decided(tally);
        if !tally.shares.is_empty() {
            add_signed(&self.stats.used_bytes, tally.shares.iter().map(|(_, bytes)| bytes).sum());
            self.shares().change(&tally.shares);
            self.look();
        }
    }

    /// Works by these from now on.
    pub(super) fn change_limits(&self, limits: Limits) {
        self.bytes_max.store(limits.max_size, Ordering::Relaxed);
        self.shares().change_limits(limits);
        self.look();
    }

    /// Whether PostgreSQL can't be reached, and that for longer than a moment.
    pub(super) fn set_away(&self, away: bool) {
        if self.away.swap(away, Ordering::Relaxed) != away {
            tracing::warn!(away, "the store's database can't be reached, or can again");
            self.look();
        }
    }

    fn look(&self) {
        let used = self.stats.used_bytes.load(Ordering::Relaxed);
        let (max, away) = (self.bytes_max.load(Ordering::Relaxed), self.away.load(Ordering::Relaxed));
        self.room.send_if_modified(|room| {
            let full = if *room == Room::Full { used > max / 100 * ROOM_AGAIN_PERCENT } else { used >= max };
            let is = match (away, full) {
                (true, _) => Room::Away,
                (false, true) => Room::Full,
                (false, false) => Room::Free,
            };
            if is != *room && (is == Room::Full || *room == Room::Full) {
                tracing::warn!(used, max, full, "the store's size limit");
            }
            std::mem::replace(room, is) != is
        });
    }

    /// What was there when the process began.
    pub(super) fn begin(&self, shares: &[(Arc<str>, i64)]) {
        set(&self.stats.used_bytes, 0);
        self.count(&Tally { shares: shares.to_vec(), ..Tally::default() });
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
