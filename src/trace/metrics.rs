//! What is counted of spans.

use crate::metrics::Registry;
use prometheus_client::metrics::counter::Counter;

/// Spans, by what became of them.
#[derive(Clone, Debug)]
pub(crate) struct SpanMetrics {
    /// The collector has them.
    pub(super) exported: Counter,
    /// Too many were waiting.
    pub(super) dropped: Counter,
    /// The collector was away, or did not want them.
    pub(super) failed: Counter,
}

impl SpanMetrics {
    /// At zero.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let help = "Spans for OpenTelemetry, by what became of them";
        let [exported, dropped, failed] = registry.add_each("spans", help, "result", ["exported", "dropped", "failed"]);
        Self { exported, dropped, failed }
    }
}
