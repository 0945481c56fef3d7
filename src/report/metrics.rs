//! What every part counts, on one registry.

use crate::admin::{AdminMetrics, Instruments};
use crate::check_back::CheckMetrics;
use crate::memory::MemoryMetrics;
use crate::metrics::{Labelled, Registry, Seconds, since_1970};
use crate::relay::RelayMetrics;
use crate::session::SessionMetrics;
use crate::store::StoreMetrics;
use crate::telemetry;
use crate::trace::SpanMetrics;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use std::time::SystemTime;

/// The handles of every part. A clone counts into the same.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) process: ProcessMetrics,
    pub(crate) admin: AdminMetrics,
    pub(crate) spans: SpanMetrics,
    pub(crate) sessions: SessionMetrics,
    pub(crate) memory: MemoryMetrics,
    pub(crate) store: StoreMetrics,
    pub(crate) relay: RelayMetrics,
    pub(crate) checks: CheckMetrics,
}

/// Of the process as a whole.
#[derive(Clone, Debug)]
pub(crate) struct ProcessMetrics {
    /// Whether new clients should come here, as `/readyz` says: 0 or 1.
    pub(super) ready: Gauge,
    reloaded: Counter,
    not_reloaded: Counter,
    last_reload_successful: Gauge,
    last_reload_success: Seconds,
    certificates: Labelled<Seconds>,
}

impl Metrics {
    /// At zero, and where they are registered.
    pub(crate) fn new() -> (Self, Registry) {
        let mut registry = Registry::default();
        let metrics = Self {
            process: ProcessMetrics::new(&mut registry),
            admin: AdminMetrics::new(&mut registry),
            spans: SpanMetrics::new(&mut registry),
            sessions: SessionMetrics::new(&mut registry),
            memory: MemoryMetrics::new(&mut registry),
            store: StoreMetrics::new(&mut registry),
            relay: RelayMetrics::new(&mut registry),
            checks: CheckMetrics::new(&mut registry),
        };
        (metrics, registry)
    }

    /// What the admin port shows of them.
    pub(crate) fn instruments(&self) -> Instruments {
        let Self { sessions, store, relay, checks, .. } = self.clone();
        Instruments {
            outcomes: sessions.transactions,
            commit_seconds: sessions.commit_seconds,
            forwarded: relay.forwarded,
            received_bytes: sessions.received_bytes,
            sent_bytes: sessions.sent_bytes,
            connections: sessions.connections,
            unfinished: store.unfinished,
            dead_letters: store.dead_letters,
            store_used_bytes: store.used_bytes,
            checks,
        }
    }
}

impl ProcessMetrics {
    fn new(registry: &mut Registry) -> Self {
        let ready = registry.add("ready", "1 while new clients should come here, as /readyz says");
        let help = "Attempts to take over a changed configuration, by result";
        let [reloaded, not_reloaded] = registry.add_each("config_reloads", help, "result", ["success", "failure"]);
        let last_reload_successful: Gauge = registry.add(
            "config_last_reload_successful",
            "1 if the last attempt to take over a changed configuration succeeded, or there was none",
        );
        let last_reload_success: Seconds = registry.add(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration in force was taken over, since 1970",
        );
        last_reload_successful.set(1);
        last_reload_success.set(since_1970(SystemTime::now()));
        let certificates = registry.add_labelled(
            "certificate_not_after_timestamp_seconds",
            "Until when a certificate, and what it stands on, is valid, since 1970",
            ["key"],
            Seconds::default,
        );
        let help = "Lines of the log that could not be written, and were dropped";
        registry.add_this("log_lines_dropped", help, telemetry::dropped_lines());
        Self { ready, reloaded, not_reloaded, last_reload_successful, last_reload_success, certificates }
    }

    /// A changed configuration was taken over, or not.
    pub(crate) fn reloaded(&self, done: bool) {
        let counter = if done { &self.reloaded } else { &self.not_reloaded };
        counter.inc();
        self.last_reload_successful.set(done.into());
        if done {
            self.last_reload_success.set(since_1970(SystemTime::now()));
        }
    }

    /// Until when the certificate under a key of the configuration is valid.
    pub(super) fn certificate(&self, key: &'static str, not_after: SystemTime) {
        self.certificates.of([key]).set(since_1970(not_after));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::RelayStatus;

    /// The names in an exposition as Prometheus shows them: counters and infos with their endings.
    fn names(exposition: &str) -> Vec<String> {
        let types = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let name = |(name, kind): (&str, &str)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        };
        types.map(name).collect()
    }

    #[test]
    fn the_operators_manual_has_every_metric() {
        let (mut metrics, registry) = Metrics::new();
        let status = RelayStatus::default();
        status.vhost(&"/".into());
        metrics.relay.show(&status, &status.snapshot());
        metrics.checks.checker("orders");
        metrics.process.certificate("listen.tls.certificate", SystemTime::UNIX_EPOCH);
        metrics.process.reloaded(false);
        let (text, operations) = (registry.encode(), include_str!("../../docs/operations.md"));
        let names = names(&text);
        assert!(names.len() > 50, "{names:?}");
        let missing: Vec<_> = names.iter().filter(|name| !operations.contains(&format!("`{name}`"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
        for line in [
            "halfway_config_reloads_total{result=\"failure\"} 1",
            "halfway_config_reloads_total{result=\"success\"} 0",
            "halfway_config_last_reload_successful 0",
            "halfway_relay_connected{vhost=\"/\"} 0",
            "halfway_unroutable_messages_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
