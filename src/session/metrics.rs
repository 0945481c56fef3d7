//! What sessions count.

use crate::histogram::{Histogram, LATENCIES};
use crate::metrics::Registry;
use crate::tx::outcome::Outcome;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

/// Counted by all sessions together.
#[derive(Clone, Debug)]
pub struct SessionMetrics {
    /// Client connections now.
    pub(crate) connections: Gauge,
    /// Those of them that wait for a node of RabbitMQ.
    pub(crate) waiting: Gauge,
    /// Client connections accepted so far, refused ones included.
    pub(super) accepted: Counter,
    refused: [Counter; Refused::ALL.len()],
    /// Times that a client was read no more until there was room in memory.
    pub(super) memory_waits: Counter,
    /// Bytes from clients.
    pub(crate) received_bytes: Counter,
    /// Bytes to clients.
    pub(crate) sent_bytes: Counter,
    /// In the order of [`Outcome::ALL`].
    pub(crate) transactions: [Counter; Outcome::ALL.len()],
    /// Transactions that have messages and no decision.
    pub(super) open: Gauge,
    /// How long the oldest of them is open.
    pub(crate) oldest_open_age_seconds: Gauge,
    /// From `tx.commit` to `tx.commit-ok`.
    pub(crate) commit_seconds: Histogram,
    /// Messages published in a transaction.
    pub(super) staged: Counter,
}

/// Why a client connection was refused or given up before it was open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refused {
    /// `listen.max_connections`.
    Limit,
    /// `listen.max_handshakes`: it had said least when its place was wanted.
    Handshakes,
    /// A user of `listen.loopback_users` from elsewhere, or a login that can't be followed.
    LoopbackUser,
    /// `listen.handshake_timeout`.
    Timeout,
    /// The TLS handshake failed.
    Tls,
    /// Bytes that are not AMQP 0-9-1.
    Protocol,
    /// No upstream URL could be reached.
    Upstream,
    /// The proxy is about to end.
    Draining,
}

impl Refused {
    /// Every one, in the order in which they stand above.
    const ALL: [Self; 8] = [
        Self::Limit,
        Self::Handshakes,
        Self::LoopbackUser,
        Self::Timeout,
        Self::Tls,
        Self::Protocol,
        Self::Upstream,
        Self::Draining,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Handshakes => "handshakes",
            Self::LoopbackUser => "loopback_user",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::Upstream => "upstream",
            Self::Draining => "draining",
        }
    }
}

impl SessionMetrics {
    /// At zero.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            connections: registry.add("connections", "Client connections now"),
            waiting: registry
                .add("connections_waiting", "Client connections that wait for a node of RabbitMQ to answer"),
            accepted: registry.add("connections_accepted", "Client connections accepted, refused ones included"),
            refused: registry.add_each(
                "connections_refused",
                "Client connections refused or given up before they were open",
                "reason",
                Refused::ALL.map(Refused::as_str),
            ),
            memory_waits: registry
                .add("memory_waits", "Times that a client which held much was read no more until there was room"),
            received_bytes: registry.add("received_bytes", "Bytes from clients"),
            sent_bytes: registry.add("sent_bytes", "Bytes to clients"),
            transactions: registry.add_each(
                "transactions",
                "Transactions that ended, by outcome",
                "outcome",
                Outcome::ALL.map(Outcome::as_str),
            ),
            open: registry.add("transactions_open", "Transactions that have messages and no decision"),
            oldest_open_age_seconds: registry
                .add("transactions_open_oldest_age_seconds", "How long the oldest of them is open; 0 if there is none"),
            commit_seconds: registry.add_histogram("commit_seconds", "From tx.commit to tx.commit-ok", LATENCIES),
            staged: registry.add("messages_staged", "Messages published in a transaction"),
        }
    }

    /// A connection was refused.
    pub(super) fn refused(&self, why: Refused) {
        self.refused[why as usize].inc();
    }

    /// A transaction ended.
    pub(super) fn ended(&self, outcome: Outcome) {
        self.transactions[outcome as usize].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_and_each_outcome_has_its_counter() {
        let mut registry = Registry::default();
        let metrics = SessionMetrics::new(&mut registry);
        for why in Refused::ALL {
            metrics.refused(why);
            let line = format!("halfway_connections_refused_total{{reason=\"{}\"}} 1\n", why.as_str());
            assert!(registry.encode().contains(&line), "{line}");
        }
        for outcome in Outcome::ALL {
            metrics.ended(outcome);
            let line = format!("halfway_transactions_total{{outcome=\"{}\"}} 1\n", outcome.as_str());
            assert!(registry.encode().contains(&line), "{line}");
        }
        metrics.commit_seconds.observe(std::time::Duration::from_millis(2));
        let text = registry.encode();
        for line in [
            "halfway_commit_seconds_bucket{le=\"0.0005\"} 0",
            "halfway_commit_seconds_bucket{le=\"0.0025\"} 1",
            "halfway_commit_seconds_bucket{le=\"+Inf\"} 1",
            "halfway_commit_seconds_count 1",
            "halfway_commit_seconds_sum 0.002",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
