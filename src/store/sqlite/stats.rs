//! What the store counts about itself, for the metrics.

use crate::tx::id::Timestamp;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Counters and gauges, each right by itself; two of them read together may be a group apart.
#[derive(Debug, Default)]
pub struct Stats {
    /// Transactions that became durable as committed.
    pub commits: AtomicU64,
    /// SQL transactions that answered somebody. `group_requests / groups` is how many share a sync.
    pub groups: AtomicU64,
    /// Calls answered by them.
    pub group_requests: AtomicU64,
    /// Nanoseconds that they took in all, from the first statement to the end of the sync.
    pub group_nanos: AtomicU64,
    /// Nanoseconds of the last.
    pub group_nanos_last: AtomicU64,
    /// SQL transactions that failed, and chores that did.
    pub errors: AtomicU64,
    /// Whether the last SQL transaction failed. While it did, one is tried every second, asked for or not, so that this
    /// tells when the disk is well again.
    pub failing: AtomicBool,
    /// Calls waiting for the writer.
    pub queued: AtomicU64,
    /// Bytes in use in the file: pages that are not free. The log beside it is not counted.
    pub used_bytes: AtomicU64,
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
}

impl Stats {
    pub(super) fn group(&self, requests: usize, took: Duration) {
        let nanos = took.as_nanos().try_into().unwrap_or(u64::MAX);
        add(&self.groups, 1);
        add(&self.group_requests, requests as u64);
        add(&self.group_nanos, nanos);
        set(&self.group_nanos_last, nanos);
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
