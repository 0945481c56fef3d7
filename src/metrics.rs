//! What the proxy counts: atomics, made once and shared by `Arc`. Every name begins with `halfway_`; times are seconds,
//! sizes bytes.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, EncodeMetric, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, TypedMetric, counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

use crate::histogram::{Histogram, LATENCIES};
use crate::tx::check_back::Answer;
use crate::tx::state::State;

/// Every metric. Increment the fields; [`Metrics::encode`] writes them for Prometheus.
pub struct Metrics {
    registry: Registry,

    /// Client connections now.
    pub connections: Gauge,
    /// Client connections accepted so far, refused ones included.
    pub connections_accepted: Counter,
    connections_refused: Family<RefusedLabel, Counter>,
    /// Bytes from clients.
    pub received_bytes: Counter,
    /// Bytes to clients.
    pub sent_bytes: Counter,

    transactions: Family<OutcomeLabel, Counter>,
    /// Transactions that have messages and no decision.
    pub transactions_open: Gauge,
    decisions: Family<SourceLabel, Counter>,
    in_store: Family<StateLabel, Gauge>,
    /// How long the oldest transaction in doubt is so, in seconds; 0 if there is none.
    pub in_doubt_oldest_age_seconds: Gauge,
    /// From `tx.commit` to `tx.commit-ok`.
    pub commit_seconds: Histogram,
    /// Messages published in a transaction.
    pub messages_staged: Counter,
    /// Messages that RabbitMQ confirmed.
    pub messages_forwarded: Counter,
    /// Mandatory messages that went back to their publisher.
    pub messages_returned: Counter,
    /// Messages that reached no queue, whatever became of them.
    pub unroutable_messages: Counter,

    /// Messages published by the relay and not yet confirmed.
    pub relay_in_flight: Gauge,
    /// Messages that RabbitMQ refused to confirm; they are sent again.
    pub relay_nacks: Counter,
    /// Connections of the relay that were lost.
    pub relay_reconnects: Counter,
    relay_connected: Family<VhostLabel, Gauge>,
    relay_blocked: Family<VhostLabel, Gauge>,
    relay_stalled: Family<VhostLabel, Gauge>,
    /// Committed transactions that are not delivered yet.
    pub backlog_transactions: Gauge,
    /// Messages kept because RabbitMQ can't take them.
    pub dead_letters: Gauge,

    checks: Family<CheckLabel, Counter>,
    checks_exhausted: Family<CheckerLabel, Counter>,
    checker_circuit_open: Family<CheckerLabel, Gauge>,

    /// Commits of the store, each of a whole group.
    pub store_commits: Counter,
    /// Calls that were answered by those commits.
    pub store_group_calls: Counter,
    /// One commit of the store, in seconds.
    pub store_commit_seconds: Counter<f64, AtomicU64>,
    /// Bytes in use in the store.
    pub store_used_bytes: Gauge,
    /// Commits of the store that failed.
    pub store_errors: Counter,
}

/// Why a client connection was refused or given up before it was open.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Refused {
    /// `listen.max_connections`.
    Limit,
    /// A user of `listen.loopback_users` from elsewhere, or an anonymous login.
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

/// How a transaction ended for its client.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// It is durable as committed.
    Committed,
    /// By `tx.rollback`, or because its channel or connection ended.
    RolledBack,
    /// RabbitMQ, or a limit, refused one of its messages.
    Refused,
    /// The store could not make it durable.
    Failed,
    /// Its channel or connection ended, and it is named: somebody who knows decides.
    InDoubt,
}

impl Outcome {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Committed, Self::RolledBack, Self::Refused, Self::Failed, Self::InDoubt];
}

/// What is counted of one checker.
#[derive(Clone, Debug)]
pub struct CheckerCounts {
    /// Checks by what came of them.
    pub checks: CheckResults,
    /// Transactions that it never knew about, and that wait for a person.
    pub exhausted: Counter,
    /// 1 while it is left alone because it does not answer.
    pub circuit_open: Gauge,
}

/// Counters of one checker's checks.
#[derive(Clone, Debug)]
pub struct CheckResults([Counter; CHECK_RESULTS.len()]);

impl CheckResults {
    /// Counts a check; `None`: there was no answer.
    pub fn count(&self, answer: Option<Answer>) {
        let result = answer.map_or(NO_ANSWER, Answer::as_str);
        let at = CHECK_RESULTS.iter().position(|known| *known == result);
        self.0[at.expect("every answer has its counter, as a test sees to")].inc();
    }

    /// How many checks came to what: `commit`, ..., `no_answer`.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CHECK_RESULTS.into_iter().zip(self.0.iter().map(Counter::get))
    }
}

/// The relay's state in one virtual host, each 0 or 1.
#[derive(Clone, Debug)]
pub struct RelayState {
    /// It is connected.
    pub connected: Gauge,
    /// RabbitMQ has sent `connection.blocked`.
    pub blocked: Gauge,
    /// Messages are in flight and no confirm has come for `relay.confirm_timeout`.
    pub stalled: Gauge,
}

impl Metrics {
    /// Metrics at zero.
    pub fn new() -> Self {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("halfway"),
            connections: Gauge::default(),
            connections_accepted: Counter::default(),
            connections_refused: Family::default(),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            transactions: Family::default(),
            transactions_open: Gauge::default(),
            decisions: Family::default(),
            in_store: Family::default(),
            in_doubt_oldest_age_seconds: Gauge::default(),
            commit_seconds: Histogram::new(LATENCIES),
            messages_staged: Counter::default(),
            messages_forwarded: Counter::default(),
            messages_returned: Counter::default(),
            unroutable_messages: Counter::default(),
            relay_in_flight: Gauge::default(),
            relay_nacks: Counter::default(),
            relay_reconnects: Counter::default(),
            relay_connected: Family::default(),
            relay_blocked: Family::default(),
            relay_stalled: Family::default(),
            backlog_transactions: Gauge::default(),
            dead_letters: Gauge::default(),
            checks: Family::default(),
            checks_exhausted: Family::default(),
            checker_circuit_open: Family::default(),
            store_commits: Counter::default(),
            store_group_calls: Counter::default(),
            store_commit_seconds: Counter::default(),
            store_used_bytes: Gauge::default(),
            store_errors: Counter::default(),
        };
        metrics.register();
        // A counter that appears with its first event hides that event from `rate()`.
        for reason in REFUSALS {
            metrics.connections_refused.get_or_create(&RefusedLabel { reason }).inc_by(0);
        }
        for source in SOURCES {
            metrics.decisions.get_or_create(&SourceLabel { source }).inc_by(0);
        }
        for outcome in Outcome::ALL {
            metrics.transactions.get_or_create(&OutcomeLabel { outcome }).inc_by(0);
        }
        metrics
    }

    /// The counters of one checker, for the check-back to keep.
    pub fn checker(&self, name: &str) -> CheckerCounts {
        let checker = || name.to_owned();
        let label = CheckerLabel { checker: checker() };
        let result = |result| self.checks.get_or_create_owned(&CheckLabel { checker: checker(), result });
        CheckerCounts {
            checks: CheckResults(CHECK_RESULTS.map(result)),
            exhausted: self.checks_exhausted.get_or_create_owned(&label),
            circuit_open: self.checker_circuit_open.get_or_create_owned(&label),
        }
    }

    /// Counts a connection that was refused.
    pub fn refused(&self, reason: Refused) {
        self.connections_refused.get_or_create(&RefusedLabel { reason }).inc();
    }

    /// Counts a transaction that ended.
    pub fn transaction(&self, outcome: Outcome) {
        self.transactions.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// How many transactions ended like this.
    pub fn ended(&self, outcome: Outcome) -> u64 {
        self.transactions.get_or_create(&OutcomeLabel { outcome }).get()
    }

    /// Counts a decision about a named transaction that was the first, by the [source](crate::tx::decision::Actor::source) of who made it.
    pub fn decision(&self, source: &'static str) {
        self.decisions.get_or_create(&SourceLabel { source }).inc();
    }

    /// The gauge of transactions in the store that stand like this.
    pub fn in_store(&self, state: State) -> Gauge {
        self.in_store.get_or_create_owned(&StateLabel { state: state.as_str() })
    }

    /// The gauges of one virtual host, for the relay to keep.
    pub fn relay_state(&self, vhost: &str) -> RelayState {
        let label = VhostLabel { vhost: vhost.to_owned() };
        RelayState {
            connected: self.relay_connected.get_or_create_owned(&label),
            blocked: self.relay_blocked.get_or_create_owned(&label),
            stalled: self.relay_stalled.get_or_create_owned(&label),
        }
    }

    /// Everything in the OpenMetrics text format, whose media type is [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing to a String does not fail");
        out
    }

    fn register(&mut self) {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let registry = &mut self.registry;
        registry.register("build", "The version that runs", build);

        registry.register("connections", "Client connections now", self.connections.clone());
        let help = "Client connections accepted, refused ones included";
        registry.register("connections_accepted", help, self.connections_accepted.clone());
        let help = "Client connections refused or given up before they were open";
        registry.register("connections_refused", help, self.connections_refused.clone());
        registry.register("received_bytes", "Bytes from clients", self.received_bytes.clone());
        registry.register("sent_bytes", "Bytes to clients", self.sent_bytes.clone());

        registry.register("transactions", "Transactions that ended, by outcome", self.transactions.clone());
        let help = "Transactions that have messages and no decision";
        registry.register("transactions_open", help, self.transactions_open.clone());
        let help = "Decisions about named transactions, by source";
        registry.register("decisions", help, self.decisions.clone());
        let help = "Unfinished transactions in the store, by state";
        registry.register("transactions_in_store", help, self.in_store.clone());
        let help = "How long the oldest transaction in doubt is so; 0 if there is none";
        registry.register("in_doubt_oldest_age_seconds", help, self.in_doubt_oldest_age_seconds.clone());
        registry.register("commit_seconds", "From tx.commit to tx.commit-ok", self.commit_seconds.clone());
        registry.register("messages_staged", "Messages published in a transaction", self.messages_staged.clone());
        registry.register("messages_forwarded", "Messages that RabbitMQ confirmed", self.messages_forwarded.clone());
        let help = "Mandatory messages that went back to their publisher";
        registry.register("messages_returned", help, self.messages_returned.clone());
        let help = "Messages that reached no queue, whatever became of them";
        registry.register("unroutable_messages", help, self.unroutable_messages.clone());

        let help = "Messages published by the relay and not yet confirmed";
        registry.register("relay_in_flight", help, self.relay_in_flight.clone());
        let help = "Messages that RabbitMQ refused to confirm, to be sent again";
        registry.register("relay_nacks", help, self.relay_nacks.clone());
        registry.register("relay_reconnects", "Relay connections that were lost", self.relay_reconnects.clone());
        registry.register("relay_connected", "1 while the relay is connected", self.relay_connected.clone());
        let help = "1 while RabbitMQ blocks the relay by an alarm";
        registry.register("relay_blocked", help, self.relay_blocked.clone());
        let help = "1 while messages are in flight and confirms fail to come";
        registry.register("relay_stalled", help, self.relay_stalled.clone());
        let help = "Committed transactions that are not delivered yet";
        registry.register("backlog_transactions", help, self.backlog_transactions.clone());
        registry.register("dead_letters", "Messages kept, as RabbitMQ can't take them", self.dead_letters.clone());

        registry.register("checks", "Questions to checkers, by what came of them", self.checks.clone());
        let help = "Transactions that wait for a person, as their checker never knew";
        registry.register("checks_exhausted", help, self.checks_exhausted.clone());
        let help = "1 while a checker is left alone because it does not answer";
        registry.register("checker_circuit_open", help, self.checker_circuit_open.clone());

        registry.register("store_commits", "Commits of the store, each of a whole group", self.store_commits.clone());
        let help = "Calls that these commits answered";
        registry.register("store_group_calls", help, self.store_group_calls.clone());
        registry.register(
            "store_commit_seconds",
            "Time that commits of the store took in all",
            self.store_commit_seconds.clone(),
        );
        registry.register("store_used_bytes", "Bytes in use in the store", self.store_used_bytes.clone());
        registry.register("store_errors", "Commits of the store that failed", self.store_errors.clone());
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        // The encoder knows the last bucket by the largest number that is not infinite.
        let buckets: Vec<_> = snapshot.buckets.iter().map(|(bound, count)| (bound.min(f64::MAX), *count)).collect();
        encoder.encode_histogram::<NoLabelSet>(snapshot.sum, snapshot.count(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl EncodeLabelValue for Refused {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder) -> fmt::Result {
        let name = match self {
            Refused::Limit => "limit",
            Refused::LoopbackUser => "loopback_user",
            Refused::Timeout => "timeout",
            Refused::Tls => "tls",
            Refused::Protocol => "protocol",
            Refused::Upstream => "upstream",
            Refused::Draining => "draining",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder) -> fmt::Result {
        let name = match self {
            Outcome::Committed => "committed",
            Outcome::RolledBack => "rolled_back",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::InDoubt => "in_doubt",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RefusedLabel {
    reason: Refused,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct VhostLabel {
    vhost: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CheckerLabel {
    checker: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CheckLabel {
    checker: String,
    result: &'static str,
}

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const REFUSALS: [Refused; 7] = [
    Refused::Limit,
    Refused::LoopbackUser,
    Refused::Timeout,
    Refused::Tls,
    Refused::Protocol,
    Refused::Upstream,
    Refused::Draining,
];
/// The sources of [`crate::tx::decision::Actor`] that decide about named transactions.
const SOURCES: [&str; 5] = ["channel", "control", "checker", "exhausted", "operator"];
const NO_ANSWER: &str = "no_answer";
const CHECK_RESULTS: [&str; 5] = ["commit", "rollback", "unknown", "ongoing", NO_ANSWER];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_there_from_the_start_and_counts() {
        let metrics = Metrics::new();
        let text = metrics.encode();
        for line in [
            concat!("halfway_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "halfway_connections_refused_total{reason=\"loopback_user\"} 0",
            "halfway_transactions_total{outcome=\"rolled_back\"} 0",
            "halfway_unroutable_messages_total 0",
            "halfway_commit_seconds_bucket{le=\"0.0005\"} 0",
            "halfway_commit_seconds_bucket{le=\"10.0\"} 0",
            "halfway_store_used_bytes 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }

        let checker = metrics.checker("orders");
        checker.checks.count(None);
        for word in ["commit", "rollback", "unknown", "ongoing"] {
            checker.checks.count(Answer::of(word));
        }
        metrics.decision("checker");
        metrics.transaction(Outcome::Committed);
        metrics.in_store(State::InDoubt).set(3);
        metrics.refused(Refused::Limit);
        metrics.received_bytes.inc_by(42);
        metrics.commit_seconds.observe(std::time::Duration::from_millis(2));
        let relay = metrics.relay_state("a\"b");
        relay.connected.set(1);
        let text = metrics.encode();
        for line in [
            "halfway_transactions_total{outcome=\"committed\"} 1",
            "halfway_decisions_total{source=\"checker\"} 1",
            "halfway_decisions_total{source=\"operator\"} 0",
            "halfway_transactions_in_store{state=\"in_doubt\"} 3",
            "halfway_connections_refused_total{reason=\"limit\"} 1",
            "halfway_received_bytes_total 42",
            "halfway_checks_total{checker=\"orders\",result=\"no_answer\"} 1",
            "halfway_checks_total{checker=\"orders\",result=\"ongoing\"} 1",
            "halfway_checker_circuit_open{checker=\"orders\"} 0",
            "halfway_commit_seconds_bucket{le=\"0.0025\"} 1",
            "halfway_relay_connected{vhost=\"a\\\"b\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
