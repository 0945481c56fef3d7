//! What is told of the store.

use super::{Room, Stats};
use crate::histogram::{AGES, Histogram, LATENCIES};
use crate::metrics::{Registry, gauge_of, show};
use crate::tx::decision::Actor;
use crate::tx::id::Timestamp;
use crate::tx::state::State;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use std::sync::atomic::{AtomicU64, Ordering};

/// What its [`Stats`] say.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    /// In the order of [`Actor::SOURCES`].
    decisions: [Counter; Actor::SOURCES.len()],
    pub(crate) unfinished: Unfinished,
    in_doubt_oldest_age_seconds: Gauge,
    in_doubt_seconds: Histogram,
    backlog_transactions: Gauge,
    backlog_oldest_age_seconds: Gauge,
    /// Messages kept because RabbitMQ can't take them.
    pub(crate) dead_letters: Gauge,
    commit_seconds: Histogram,
    group_calls: Counter,
    waiting_calls: Gauge,
    /// Bytes in use in the store.
    pub(crate) used_bytes: Gauge,
    heavy_users: Gauge,
    limit_bytes: Gauge,
    full: Gauge,
    failing: Gauge,
    errors: Counter,
}

/// Transactions that are not finished, by their state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unfinished {
    pub(crate) open: Gauge,
    pub(crate) in_doubt: Gauge,
    pub(crate) committed: Gauge,
}

impl StoreMetrics {
    /// At zero.
    pub fn new(registry: &mut Registry) -> Self {
        let states = [State::Open, State::InDoubt, State::Committed].map(State::as_str);
        let help = "Unfinished transactions in the store, by state";
        let [open, in_doubt, committed] = registry.add_each("transactions_in_store", help, "state", states);
        Self {
            decisions: registry.add_each(
                "decisions",
                "Decisions about named transactions, by source",
                "source",
                Actor::SOURCES,
            ),
            unfinished: Unfinished { open, in_doubt, committed },
            in_doubt_oldest_age_seconds: registry.add(
                "in_doubt_oldest_age_seconds",
                "How long the oldest transaction in doubt is so; 0 if there is none",
            ),
            in_doubt_seconds: registry.add_histogram(
                "in_doubt_seconds",
                "How long transactions were in doubt that were decided",
                AGES,
            ),
            backlog_transactions: registry
                .add("backlog_transactions", "Committed transactions that are not delivered yet"),
            backlog_oldest_age_seconds: registry
                .add("backlog_oldest_age_seconds", "How long the oldest of them is committed; 0 if there is none"),
            dead_letters: registry.add("dead_letters", "Messages kept, as RabbitMQ can't take them"),
            commit_seconds: registry.add_histogram(
                "store_commit_seconds",
                "One commit of the store, each of a whole group of calls",
                LATENCIES,
            ),
            group_calls: registry.add("store_group_calls", "Calls that these commits answered"),
            waiting_calls: registry.add("store_waiting_calls", "Calls that wait for the store"),
            used_bytes: registry.add("store_used_bytes", "Bytes in use in the store"),
            heavy_users: registry
                .add("store_heavy_users", "Users who have more in the store than store.max_size_per_user"),
            limit_bytes: registry.add("store_limit_bytes", "Bytes in use past which it is full"),
            full: registry
                .add("store_full", "1 while the store is past its limit, and publishers of transactions wait"),
            failing: registry.add("store_failing", "1 while the store can't write"),
            errors: registry.add("store_errors", "Commits and chores of the store that failed"),
        }
    }

    /// `store.max_size`.
    pub(crate) fn limit(&self, bytes: u64) {
        self.limit_bytes.set(gauge_of(bytes));
    }

    /// As it is `now`.
    pub(crate) fn show(&self, stats: &Stats, room: Room, now: Timestamp) {
        self.commit_seconds.show(&stats.groups);
        self.in_doubt_seconds.show(&stats.doubts);
        for (counter, count) in self.decisions.iter().zip(&stats.decisions) {
            show(counter, read(count));
        }
        show(&self.group_calls, read(&stats.group_requests));
        show(&self.errors, read(&stats.errors));
        self.waiting_calls.set(gauge(&stats.queued));
        self.used_bytes.set(gauge(&stats.used_bytes));
        self.heavy_users.set(gauge(&stats.heavy_users));
        self.full.set((room == Room::Full).into());
        self.failing.set(stats.failing.load(Ordering::Relaxed).into());
        self.backlog_transactions.set(gauge(&stats.backlog));
        self.dead_letters.set(gauge(&stats.dead_letters));
        self.unfinished.open.set(gauge(&stats.open_named));
        self.unfinished.in_doubt.set(gauge(&stats.in_doubt));
        self.unfinished.committed.set(gauge(&stats.backlog));
        self.in_doubt_oldest_age_seconds.set(age_seconds(gauge(&stats.oldest_in_doubt), now));
        let oldest_committed = if read(&stats.backlog) == 0 { 0 } else { gauge(&stats.oldest_committed) };
        self.backlog_oldest_age_seconds.set(age_seconds(oldest_committed, now));
    }
}

/// From `since`, in milliseconds since 1970, until `now`. 0 means that there is nothing to be old, and a clock that was set
/// back makes nothing younger than new.
fn age_seconds(since: i64, now: Timestamp) -> i64 {
    if since == 0 { 0 } else { (now.0 - since).max(0) / 1000 }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn gauge(counter: &AtomicU64) -> i64 {
    gauge_of(read(counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_whole_seconds_and_never_negative() {
        assert_eq!(age_seconds(0, Timestamp(5_000)), 0);
        assert_eq!(age_seconds(1_000, Timestamp(4_999)), 3);
        assert_eq!(age_seconds(9_000, Timestamp(5_000)), 0);
    }

    #[test]
    fn each_count_is_shown_under_its_name() {
        let mut registry = Registry::default();
        let metrics = StoreMetrics::new(&mut registry);
        let stats = Stats::default();
        for (count, place) in [&stats.open_named, &stats.in_doubt, &stats.backlog].into_iter().zip(1..) {
            count.store(place, Ordering::Relaxed);
        }
        for (count, place) in stats.decisions.iter().zip(1..) {
            count.store(place, Ordering::Relaxed);
        }
        stats.oldest_committed.store(1_000, Ordering::Relaxed);
        metrics.show(&stats, Room::Full, Timestamp(5_000));
        let text = registry.encode();
        for line in [
            "halfway_transactions_in_store{state=\"open\"} 1".to_owned(),
            "halfway_transactions_in_store{state=\"in_doubt\"} 2".to_owned(),
            "halfway_transactions_in_store{state=\"committed\"} 3".to_owned(),
            format!("halfway_decisions_total{{source=\"{}\"}} 2", Actor::SOURCES[1]),
            "halfway_backlog_transactions 3".to_owned(),
            "halfway_backlog_oldest_age_seconds 4".to_owned(),
            "halfway_in_doubt_oldest_age_seconds 0".to_owned(),
            "halfway_store_full 1".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
