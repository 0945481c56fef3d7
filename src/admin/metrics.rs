//! What the HTTP port counts of itself, and the counters of others that it shows.

use crate::check_back::CheckMetrics;
use crate::histogram::Histogram;
use crate::metrics::Registry;
use crate::store::Unfinished;
use crate::tx::outcome::Outcome;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

/// Of the port itself.
#[derive(Clone, Debug)]
pub(crate) struct AdminMetrics {
    requests: [Counter; CLASSES.len()],
    /// Connections that left for others, and requests that found no place.
    pub(super) turned_away: Counter,
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl AdminMetrics {
    /// At zero.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        Self {
            requests: registry.add_each(
                "admin_requests",
                "Answers of the admin port, by the class of their status",
                "class",
                CLASSES,
            ),
            turned_away: registry.add(
                "admin_turned_away",
                "Connections to the admin port that had to leave for others, and requests that found no place",
            ),
        }
    }

    /// An answer was given.
    pub(super) fn answered(&self, status: u16) {
        self.requests[usize::from(status / 100).clamp(1, CLASSES.len()) - 1].inc();
    }
}

/// What the other parts count and the dashboard shows: clones of their handles, because the port knows none of them.
#[derive(Clone, Debug)]
pub(crate) struct Instruments {
    /// Transactions that ended, in the order of [`Outcome::ALL`].
    pub(crate) outcomes: [Counter; Outcome::ALL.len()],
    /// From `tx.commit` to `tx.commit-ok`.
    pub(crate) commit_seconds: Histogram,
    /// Messages that RabbitMQ confirmed.
    pub(crate) forwarded: Counter,
    /// Bytes from clients.
    pub(crate) received_bytes: Counter,
    /// Bytes to clients.
    pub(crate) sent_bytes: Counter,
    /// Client connections now.
    pub(crate) connections: Gauge,
    /// Unfinished transactions in the store.
    pub(crate) unfinished: Unfinished,
    /// Messages kept because RabbitMQ can't take them.
    pub(crate) dead_letters: Gauge,
    /// Bytes in use in the store.
    pub(crate) store_used_bytes: Gauge,
    /// Of the checkers.
    pub(crate) checks: CheckMetrics,
}

#[cfg(test)]
mod tests {
    use super::super::Numbers;
    use super::*;
    use crate::histogram::LATENCIES;

    impl Default for Instruments {
        fn default() -> Self {
            Self {
                outcomes: Default::default(),
                commit_seconds: Histogram::new(LATENCIES),
                forwarded: Counter::default(),
                received_bytes: Counter::default(),
                sent_bytes: Counter::default(),
                connections: Gauge::default(),
                unfinished: Unfinished::default(),
                dead_letters: Gauge::default(),
                store_used_bytes: Gauge::default(),
                checks: CheckMetrics::new(&mut Registry::default()),
            }
        }
    }

    /// Of a port that has nobody beside it.
    impl Default for Numbers {
        fn default() -> Self {
            let mut registry = Registry::default();
            Self { own: AdminMetrics::new(&mut registry), instruments: Instruments::default(), registry }
        }
    }

    #[test]
    fn answers_are_counted_by_their_class() {
        let mut registry = Registry::default();
        let metrics = AdminMetrics::new(&mut registry);
        [200, 204, 404, 999, 0].into_iter().for_each(|status| metrics.answered(status));
        assert_eq!(metrics.requests.each_ref().map(Counter::get), [1, 2, 0, 1, 1]);
        assert!(registry.encode().contains("halfway_admin_requests_total{class=\"4xx\"} 1\n"));
    }
}
