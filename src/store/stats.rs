//! What the store counts about itself, for the metrics.

use crate::histogram::{AGES, Histogram, LATENCIES};
use crate::tx::decision::Actor;
use crate::tx::id::Timestamp;
use crate::tx::state::State;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counters and gauges, each right by itself; two of them read together may be a group apart.
#[derive(Debug)]
pub struct Stats {
    /// Transactions that became durable as committed.
    pub commits: AtomicU64,
    /// SQL transactions that answered somebody, from the first statement to the end of the sync.
    pub groups: Histogram,
    /// Calls answered by them: so many share a sync, divided by their number.
    pub group_requests: AtomicU64,
    /// SQL transactions that failed, and chores that did.
    pub errors: AtomicU64,
    /// Whether the last SQL transaction failed. While it did, one is tried every second, asked for or not, so that this
    /// tells when the disk is well again.
    pub failing: AtomicBool,
    /// When the last one that failed did, and why.
    failed: Mutex<Option<(Instant, String)>>,
    /// Calls waiting for the writer.
    pub queued: AtomicU64,
    /// Bytes in use in the file: pages that are not free. The log beside it is not counted.
    pub used_bytes: AtomicU64,
    /// Users who have more in it than their share.
    pub heavy_users: AtomicU64,
    /// Transactions committed and not known to be delivered.
    pub backlog: AtomicU64,
    /// Dead letters that wait for a person.
    pub dead_letters: AtomicU64,
    /// Named transactions that are open.
    pub open_named: AtomicU64,
    /// Transactions in doubt.
    pub in_doubt: AtomicU64,
    /// Since when the oldest of them is: milliseconds since 1970-01-01 UTC; 0: there is none.
    pub oldest_in_doubt: AtomicU64,
    /// Since when the oldest undelivered transaction is committed, as of the last look: the same.
    pub oldest_committed: AtomicU64,
    /// First decisions about named transactions that became durable, by [`Actor::kind`].
    pub decisions: [AtomicU64; Actor::SOURCES.len()],
    /// How long transactions were in doubt that were decided.
    pub doubts: Histogram,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            commits: AtomicU64::default(),
            groups: Histogram::new(LATENCIES),
            group_requests: AtomicU64::default(),
            errors: AtomicU64::default(),
            failing: AtomicBool::default(),
            failed: Mutex::default(),
            queued: AtomicU64::default(),
            used_bytes: AtomicU64::default(),
            heavy_users: AtomicU64::default(),
            backlog: AtomicU64::default(),
            dead_letters: AtomicU64::default(),
            open_named: AtomicU64::default(),
            in_doubt: AtomicU64::default(),
            oldest_in_doubt: AtomicU64::default(),
            oldest_committed: AtomicU64::default(),
            decisions: Default::default(),
            doubts: Histogram::new(AGES),
        }
    }
}

impl Stats {
    /// When an SQL transaction failed last, and why; none: all went well since the start.
    pub fn failed(&self) -> Option<(Instant, String)> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on it can't write. Returns whether it could not before either.
    pub(crate) fn fails(&self, why: impl ToString) -> bool {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), why.to_string()));
        self.failing.swap(true, Ordering::Relaxed)
    }

    pub(super) fn group(&self, requests: usize, took: Duration) {
        self.groups.observe(took);
        add(&self.group_requests, requests as u64);
    }

    /// Decisions that are durable.
    pub(super) fn decided(&self, tally: &Tally) {
        for (counter, count) in self.decisions.iter().zip(tally.decisions) {
            // Nearly all are zero, and a zero needs no turn at the memory.
            if count > 0 {
                add(counter, count);
            }
        }
        tally.doubts.iter().for_each(|age| self.doubts.observe(*age));
    }
}

/// How the counts change that the metrics show, once the SQL transaction is durable.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Named and open.
    pub(super) open: i64,
    /// In doubt.
    pub(super) in_doubt: i64,
    /// Whether the oldest in doubt may be another.
    pub(super) doubts_changed: bool,
    /// Dead letters that wait for a person.
    pub(super) letters: i64,
    /// Committed and not known to be delivered, beside those that are handed on or forgotten.
    pub(super) backlog: i64,
    /// What users have in the store.
    pub(super) shares: Vec<(Arc<str>, i64)>,
    /// Whether packs have to be deleted.
    pub(super) garbage: bool,
    /// First decisions about named transactions, by [`Actor::kind`].
    pub(super) decisions: [u64; Actor::SOURCES.len()],
    /// How long those were in doubt that were decided.
    pub(super) doubts: Vec<Duration>,
}

impl Tally {
    fn state(&mut self, state: State, by: i64) {
        match state {
            State::Open => self.open += by,
            State::InDoubt => {
                self.in_doubt += by;
                self.doubts_changed = true;
            }
            _ => {}
        }
    }

    /// A named transaction went from one state, or from nothing, to another.
    pub(super) fn moved(&mut self, from: Option<State>, to: State) {
        if let Some(from) = from {
            self.state(from, -1);
        }
        self.state(to, 1);
    }
}

pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

pub(super) fn add_signed(gauge: &AtomicU64, by: i64) {
    // Two's complement: adding what stands for -1 takes 1 away.
    gauge.fetch_add(by as u64, Ordering::Relaxed);
}

/// As a gauge holds a time.
pub(super) fn milliseconds(at: Option<Timestamp>) -> u64 {
    at.map_or(0, |at| at.0.try_into().unwrap_or_default())
}

pub(super) fn subtract(gauge: &AtomicU64, by: u64) {
    gauge.fetch_sub(by, Ordering::Relaxed);
}

pub(super) fn set(gauge: &AtomicU64, to: u64) {
    gauge.store(to, Ordering::Relaxed);
}
