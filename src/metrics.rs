//! What the proxy counts: atomics, made once and shared by `Arc`. Every name begins with `halfway_`; times are seconds,
//! sizes bytes. A label has few values, whatever clients do: those of an enum, the checkers of the configuration, or the
//! first virtual hosts (see [`Metrics::relay_state`]).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, EncodeMetric, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, TypedMetric, counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

use crate::histogram::{AGES, Histogram, LATENCIES};
use crate::telemetry;
use crate::tx::check_back::Answer;
use crate::tx::decision::Actor;
use crate::tx::outcome::Outcome;
use crate::tx::state::State;

/// Every metric. Increment the fields; [`Metrics::encode`] writes them for Prometheus.
pub struct Metrics {
    registry: Registry,

    /// Whether new clients should come here, as `/readyz` says: 0 or 1.
    pub ready: Gauge,
    reloads: Family<ResultLabel, Counter>,
    last_reload_successful: Gauge,
    last_reload_success: Seconds,
    certificate_not_after: Family<KeyLabel, Seconds>,
    admin_requests: Family<ClassLabel, Counter>,
    /// Connections to the admin port that left for others, and requests that found no place.
    pub admin_turned_away: Counter,
    spans: Family<SpanLabel, Counter>,

    /// Client connections now.
    pub connections: Gauge,
    /// Client connections accepted so far, refused ones included.
    pub connections_accepted: Counter,
    connections_refused: Family<RefusedLabel, Counter>,
    /// Bytes that clients hold in memory.
    pub memory_used_bytes: Gauge,
    memory_limit_bytes: Gauge,
    /// Times that a client was read no more until there was room.
    pub memory_waits: Counter,
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
    /// How long transactions were in doubt that were decided.
    pub in_doubt_seconds: Histogram,
    /// From `tx.commit` to `tx.commit-ok`.
    pub commit_seconds: Histogram,
    /// Messages published in a transaction.
    pub messages_staged: Counter,
    /// Messages that RabbitMQ confirmed.
    pub messages_forwarded: Counter,
    /// From the decision of a transaction to RabbitMQ's answer for its last message.
    pub forward_seconds: Histogram,
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
    /// Times that the store gave the relay messages that are not those it was given.
    pub relay_unreadable: Counter,
    /// Committed transactions that are not delivered yet.
    pub backlog_transactions: Gauge,
    /// How long the oldest of them is committed, in seconds; 0 if there is none.
    pub backlog_oldest_age_seconds: Gauge,
    /// Times that a message became a dead letter.
    pub dead_lettered_messages: Counter,
    /// Messages kept because RabbitMQ can't take them.
    pub dead_letters: Gauge,

    checks: Family<CheckLabel, Counter>,
    check_seconds: Family<CheckerLabel, Histogram, fn() -> Histogram>,
    checks_exhausted: Family<CheckerLabel, Counter>,
    checker_circuit_open: Family<CheckerLabel, Gauge>,

    /// One commit of the store, of a whole group.
    pub store_commit_seconds: Histogram,
    /// Calls that were answered by those commits.
    pub store_group_calls: Counter,
    /// Calls that wait for the store.
    pub store_waiting_calls: Gauge,
    /// Bytes in use in the store.
    pub store_used_bytes: Gauge,
    store_limit_bytes: Gauge,
    /// Whether it is past its limit, and publishers of transactions wait: 0 or 1.
    pub store_full: Gauge,
    /// Whether its last commit failed: 0 or 1.
    pub store_failing: Gauge,
    /// Commits and chores of the store that failed.
    pub store_errors: Counter,
}

/// A time: seconds since 1970, with a fraction.
type Seconds = Gauge<f64, AtomicU64>;

/// Why a client connection was refused or given up before it was open.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Refused {
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

/// What became of a span.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SpanResult {
    /// The collector has it.
    Exported,
    /// Too many were waiting.
    Dropped,
    /// The collector was away, or did not want it.
    Failed,
}

/// What is counted of one checker.
#[derive(Clone, Debug)]
pub struct CheckerCounts {
    /// Checks by what came of them.
    pub checks: CheckResults,
    /// From a question to its answer, or to where it was given up.
    pub seconds: Histogram,
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
            ready: Gauge::default(),
            reloads: Family::default(),
            last_reload_successful: Gauge::default(),
            last_reload_success: Gauge::default(),
            certificate_not_after: Family::default(),
            admin_requests: Family::default(),
            admin_turned_away: Counter::default(),
            spans: Family::default(),
            connections: Gauge::default(),
            connections_accepted: Counter::default(),
            connections_refused: Family::default(),
            memory_used_bytes: Gauge::default(),
            memory_limit_bytes: Gauge::default(),
            memory_waits: Counter::default(),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            transactions: Family::default(),
            transactions_open: Gauge::default(),
            decisions: Family::default(),
            in_store: Family::default(),
            in_doubt_oldest_age_seconds: Gauge::default(),
            in_doubt_seconds: Histogram::new(AGES),
            commit_seconds: Histogram::new(LATENCIES),
            messages_staged: Counter::default(),
            messages_forwarded: Counter::default(),
            forward_seconds: Histogram::new(LATENCIES),
            messages_returned: Counter::default(),
            unroutable_messages: Counter::default(),
            relay_in_flight: Gauge::default(),
            relay_nacks: Counter::default(),
            relay_reconnects: Counter::default(),
            relay_connected: Family::default(),
            relay_blocked: Family::default(),
            relay_stalled: Family::default(),
            relay_unreadable: Counter::default(),
            backlog_transactions: Gauge::default(),
            backlog_oldest_age_seconds: Gauge::default(),
            dead_lettered_messages: Counter::default(),
            dead_letters: Gauge::default(),
            checks: Family::default(),
            check_seconds: Family::new_with_constructor(|| Histogram::new(LATENCIES)),
            checks_exhausted: Family::default(),
            checker_circuit_open: Family::default(),
            store_commit_seconds: Histogram::new(LATENCIES),
            store_group_calls: Counter::default(),
            store_waiting_calls: Gauge::default(),
            store_used_bytes: Gauge::default(),
            store_limit_bytes: Gauge::default(),
            store_full: Gauge::default(),
            store_failing: Gauge::default(),
            store_errors: Counter::default(),
        };
        metrics.register();
        // A counter that appears with its first event hides that event from `rate()`.
        for reason in REFUSALS {
            metrics.connections_refused.get_or_create(&RefusedLabel { reason }).inc_by(0);
        }
        for source in Actor::SOURCES {
            metrics.decisions(source, 0);
        }
        for result in [RELOADED, NOT_RELOADED] {
            metrics.reloads.get_or_create(&ResultLabel { result }).inc_by(0);
        }
        for result in [SpanResult::Exported, SpanResult::Dropped, SpanResult::Failed] {
            metrics.spans(result, 0);
        }
        for class in STATUS_CLASSES {
            metrics.admin_requests.get_or_create(&ClassLabel { class }).inc_by(0);
        }
        for state in [State::Open, State::InDoubt, State::Committed] {
            metrics.in_store(state).set(0);
        }
        metrics.last_reload_successful.set(1);
        metrics.last_reload_success.set(since_1970(SystemTime::now()));
        for outcome in Outcome::ALL {
            metrics.transactions.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc_by(0);
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
            seconds: self.check_seconds.get_or_create_owned(&label),
            exhausted: self.checks_exhausted.get_or_create_owned(&label),
            circuit_open: self.checker_circuit_open.get_or_create_owned(&label),
        }
    }

    /// Shows no more of a checker that is gone: a breaker that was open would stay so for ever.
    pub fn forget_checker(&self, name: &str) {
        let checker = || name.to_owned();
        for result in CHECK_RESULTS {
            self.checks.remove(&CheckLabel { checker: checker(), result });
        }
        let label = CheckerLabel { checker: checker() };
        self.check_seconds.remove(&label);
        self.checks_exhausted.remove(&label);
        self.checker_circuit_open.remove(&label);
    }

    /// Counts a connection that was refused.
    pub fn refused(&self, reason: Refused) {
        self.connections_refused.get_or_create(&RefusedLabel { reason }).inc();
    }

    /// Counts a transaction that ended.
    pub fn transaction(&self, outcome: Outcome) {
        self.transactions.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc();
    }

    /// How many transactions ended like this.
    pub fn ended(&self, outcome: Outcome) -> u64 {
        self.transactions.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).get()
    }

    /// Shows how many first decisions about named transactions came from `source`, one of [`Actor::SOURCES`].
    pub fn decisions(&self, source: &'static str, count: u64) {
        self.decisions.get_or_create(&SourceLabel { source }).inner().store(count, Ordering::Relaxed);
    }

    /// Counts an attempt to take over a changed configuration.
    pub fn reloaded(&self, done: bool) {
        let result = if done { RELOADED } else { NOT_RELOADED };
        self.reloads.get_or_create(&ResultLabel { result }).inc();
        self.last_reload_successful.set(done.into());
        if done {
            self.last_reload_success.set(since_1970(SystemTime::now()));
        }
    }

    /// Shows until when the certificate under a key of the configuration is valid.
    pub fn certificate(&self, key: &'static str, not_after: SystemTime) {
        self.certificate_not_after.get_or_create(&KeyLabel { key }).set(since_1970(not_after));
    }

    /// Shows `memory.max`.
    pub fn memory_limit(&self, bytes: u64) {
        self.memory_limit_bytes.set(bytes.try_into().unwrap_or(i64::MAX));
    }

    /// Shows `store.max_size`.
    pub fn store_limit(&self, bytes: u64) {
        self.store_limit_bytes.set(bytes.try_into().unwrap_or(i64::MAX));
    }

    /// Counts an answer of the admin port.
    pub fn admin_request(&self, status: u16) {
        let class = STATUS_CLASSES[usize::from(status / 100).clamp(1, STATUS_CLASSES.len()) - 1];
        self.admin_requests.get_or_create(&ClassLabel { class }).inc();
    }

    /// Counts spans.
    pub fn spans(&self, result: SpanResult, count: u64) {
        let result = match result {
            SpanResult::Exported => "exported",
            SpanResult::Dropped => "dropped",
            SpanResult::Failed => "failed",
        };
        self.spans.get_or_create(&SpanLabel { result }).inc_by(count);
    }

    /// The gauge of transactions in the store that stand like this.
    pub fn in_store(&self, state: State) -> Gauge {
        self.in_store.get_or_create_owned(&StateLabel { state: state.as_str() })
    }

    /// The gauges of one virtual host. Each stays for ever, so the caller sees to it that there are not too many.
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

    /// The same in the text format that came before, whose media type is [`TEXT_CONTENT_TYPE`]: for those who don't ask
    /// for the other by name.
    pub fn encode_text(&self) -> String {
        older_text(&self.encode())
    }

    fn register(&mut self) {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let registry = &mut self.registry;
        registry.register("build", "The version that runs", build);
        let start = Seconds::default();
        start.set(since_1970(SystemTime::now()));
        registry.register("process_start_time_seconds", "When the process started, since 1970", start);
        registry.register("ready", "1 while new clients should come here, as /readyz says", self.ready.clone());
        let help = "Attempts to take over a changed configuration, by result";
        registry.register("config_reloads", help, self.reloads.clone());
        let help = "1 if the last attempt to take over a changed configuration succeeded, or there was none";
        registry.register("config_last_reload_successful", help, self.last_reload_successful.clone());
        let help = "When the configuration in force was taken over, since 1970";
        registry.register("config_last_reload_success_timestamp_seconds", help, self.last_reload_success.clone());
        let help = "Until when a certificate, and what it stands on, is valid, since 1970";
        registry.register("certificate_not_after_timestamp_seconds", help, self.certificate_not_after.clone());
        let help = "Lines of the log that could not be written, and were dropped";
        registry.register("log_lines_dropped", help, telemetry::dropped_lines());
        registry.register("spans", "Spans for OpenTelemetry, by what became of them", self.spans.clone());
        let help = "Answers of the admin port, by the class of their status";
        registry.register("admin_requests", help, self.admin_requests.clone());
        let help = "Connections to the admin port that had to leave for others, and requests that found no place";
        registry.register("admin_turned_away", help, self.admin_turned_away.clone());

        registry.register("connections", "Client connections now", self.connections.clone());
        let help = "Client connections accepted, refused ones included";
        registry.register("connections_accepted", help, self.connections_accepted.clone());
        let help = "Client connections refused or given up before they were open";
        registry.register("connections_refused", help, self.connections_refused.clone());
        registry.register("memory_used_bytes", "Bytes that clients hold in memory", self.memory_used_bytes.clone());
        let help = "Bytes that clients may hold in memory";
        registry.register("memory_limit_bytes", help, self.memory_limit_bytes.clone());
        let help = "Times that a client which held much was read no more until there was room";
        registry.register("memory_waits", help, self.memory_waits.clone());
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
        let help = "How long transactions were in doubt that were decided";
        registry.register("in_doubt_seconds", help, self.in_doubt_seconds.clone());
        registry.register("commit_seconds", "From tx.commit to tx.commit-ok", self.commit_seconds.clone());
        registry.register("messages_staged", "Messages published in a transaction", self.messages_staged.clone());
        registry.register("messages_forwarded", "Messages that RabbitMQ confirmed", self.messages_forwarded.clone());
        let help = "From the decision of a transaction to RabbitMQ's answer for its last message";
        registry.register("forward_seconds", help, self.forward_seconds.clone());
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
        let help = "Times that the store gave the relay messages that are not those it was given";
        registry.register("relay_unreadable_transactions", help, self.relay_unreadable.clone());
        let help = "Committed transactions that are not delivered yet";
        registry.register("backlog_transactions", help, self.backlog_transactions.clone());
        let help = "How long the oldest of them is committed; 0 if there is none";
        registry.register("backlog_oldest_age_seconds", help, self.backlog_oldest_age_seconds.clone());
        let help = "Times that a message became a dead letter";
        registry.register("dead_lettered_messages", help, self.dead_lettered_messages.clone());
        registry.register("dead_letters", "Messages kept, as RabbitMQ can't take them", self.dead_letters.clone());

        registry.register("checks", "Questions to checkers, by what came of them", self.checks.clone());
        let help = "From a question to a checker to its answer, or to where it was given up";
        registry.register("check_seconds", help, self.check_seconds.clone());
        let help = "Transactions that wait for a person, as their checker never knew";
        registry.register("checks_exhausted", help, self.checks_exhausted.clone());
        let help = "1 while a checker is left alone because it does not answer";
        registry.register("checker_circuit_open", help, self.checker_circuit_open.clone());

        let help = "One commit of the store, each of a whole group of calls";
        registry.register("store_commit_seconds", help, self.store_commit_seconds.clone());
        let help = "Calls that these commits answered";
        registry.register("store_group_calls", help, self.store_group_calls.clone());
        registry.register("store_waiting_calls", "Calls that wait for the store", self.store_waiting_calls.clone());
        registry.register("store_used_bytes", "Bytes in use in the store", self.store_used_bytes.clone());
        registry.register("store_limit_bytes", "Bytes in use past which it is full", self.store_limit_bytes.clone());
        let help = "1 while the store is past its limit, and publishers of transactions wait";
        registry.register("store_full", help, self.store_full.clone());
        registry.register("store_failing", "1 while the store can't write", self.store_failing.clone());
        registry.register("store_errors", "Commits and chores of the store that failed", self.store_errors.clone());
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        encoder.encode_histogram::<NoLabelSet>(snapshot.sum, snapshot.count(), &snapshot.buckets, None)
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
            Refused::Handshakes => "handshakes",
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

/// OpenMetrics as Prometheus wrote metrics before: a counter's name has its ending in the head too, and there are fewer
/// types.
fn older_text(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut help = "";
    for line in openmetrics.lines() {
        if let Some(text) = line.strip_prefix("# HELP ") {
            help = text.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|text| text.split_once(' ')) {
            let (ending, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            out += &format!("# HELP {name}{ending} {help}\n# TYPE {name}{ending} {kind}\n");
        } else if !line.starts_with('#') {
            out += line;
            out.push('\n');
        }
    }
    out
}

fn since_1970(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct SpanLabel {
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct KeyLabel {
    key: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ClassLabel {
    class: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RefusedLabel {
    reason: Refused,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabel {
    outcome: &'static str,
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
/// The media type of [`Metrics::encode_text`].
pub const TEXT_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const RELOADED: &str = "success";
const NOT_RELOADED: &str = "failure";
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const REFUSALS: [Refused; 8] = [
    Refused::Limit,
    Refused::Handshakes,
    Refused::LoopbackUser,
    Refused::Timeout,
    Refused::Tls,
    Refused::Protocol,
    Refused::Upstream,
    Refused::Draining,
];
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
        metrics.decisions("checker", 1);
        metrics.admin_request(404);
        metrics.reloaded(false);
        metrics.checker("gone");
        metrics.forget_checker("gone");
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
            "halfway_commit_seconds_bucket{le=\"+Inf\"} 1",
            "halfway_commit_seconds_count 1",
            "halfway_commit_seconds_sum 0.002",
            "halfway_admin_requests_total{class=\"4xx\"} 1",
            "halfway_config_reloads_total{result=\"failure\"} 1",
            "halfway_config_last_reload_successful 0",
            "halfway_relay_connected{vhost=\"a\\\"b\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("gone"), "{text}");
    }

    #[test]
    fn the_older_text_has_heads_with_whole_names() {
        let openmetrics = "# HELP halfway_a A.\n# TYPE halfway_a counter\nhalfway_a_total{b=\"c\"} 1\n\
            # HELP halfway_d D.\n# TYPE halfway_d info\nhalfway_d_info{e=\"f\"} 1\n\
            # HELP halfway_g G.\n# TYPE halfway_g gauge\nhalfway_g 2\n# EOF\n";
        let text = "# HELP halfway_a_total A.\n# TYPE halfway_a_total counter\nhalfway_a_total{b=\"c\"} 1\n\
            # HELP halfway_d_info D.\n# TYPE halfway_d_info gauge\nhalfway_d_info{e=\"f\"} 1\n\
            # HELP halfway_g G.\n# TYPE halfway_g gauge\nhalfway_g 2\n";
        assert_eq!(older_text(openmetrics), text);
    }
}
