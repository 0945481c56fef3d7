//! What the proxy counts, as Prometheus reads it. What is counted stands beside what it counts: each room has a
//! `metrics.rs` with handles that it took from the [`Registry`] at the start, and [`crate::report`] has them all. Here are
//! the registry, its labels and its texts.
//!
//! Every name begins with `halfway_`; times are seconds, sizes bytes. A label has few values, whatever clients do: those of
//! an enum, the checkers of the configuration, or the first virtual hosts. A counter that appears with its first event
//! hides that event from `rate()`, so whatever can be there from the start is.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, TypedMetric, counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{self, Metric},
};

use crate::histogram::Histogram;

/// Every metric, for [`Registry::encode`]. A handle's clone counts into the same.
#[derive(Debug)]
pub struct Registry(registry::Registry);

/// A time: seconds since 1970, with a fraction.
pub(crate) type Seconds = Gauge<f64, AtomicU64>;

/// Metrics of one name, one for each value of its labels that somebody asked for.
#[derive(Clone, Debug)]
pub(crate) struct Labelled<M, const LABELS: usize = 1> {
    names: [&'static str; LABELS],
    family: Labels<M, LABELS>,
}

type Labels<M, const LABELS: usize> = Family<[(&'static str, String); LABELS], M, fn() -> M>;

impl Default for Registry {
    fn default() -> Self {
        let mut registry = Self(registry::Registry::with_prefix("halfway"));
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.0.register("build", "The version that runs", build);
        let start: Seconds = registry.add("process_start_time_seconds", "When the process started, since 1970");
        start.set(since_1970(SystemTime::now()));
        registry
    }
}

impl Registry {
    /// A metric at zero.
    pub(crate) fn add<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.add_this(name, help, M::default())
    }

    /// A metric that is there already.
    pub(crate) fn add_this<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    /// A histogram with these upper bounds.
    pub(crate) fn add_histogram(&mut self, name: &str, help: &str, bounds: &'static [f64]) -> Histogram {
        self.add_this(name, help, Histogram::new(bounds))
    }

    /// Metrics at zero, one for each of the values that a label can have.
    pub(crate) fn add_each<M, const VALUES: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: [&'static str; VALUES],
    ) -> [M; VALUES]
    where
        M: TypedMetric + EncodeMetric + fmt::Debug + Clone + Default + Send + Sync + 'static,
    {
        let labelled = self.add_labelled(name, help, [label], M::default);
        values.map(|value| labelled.of([value]))
    }

    /// Metrics for values of these labels that are not known yet, each made by `new`.
    pub(crate) fn add_labelled<M, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&'static str; LABELS],
        new: fn() -> M,
    ) -> Labelled<M, LABELS>
    where
        M: TypedMetric + EncodeMetric + fmt::Debug + Clone + Send + Sync + 'static,
    {
        Labelled { names: labels, family: self.add_this(name, help, Family::new_with_constructor(new)) }
    }

    /// Everything in the OpenMetrics text format, whose media type is [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.0).expect("writing to a String does not fail");
        out
    }

    /// The same in the text format that came before, whose media type is [`TEXT_CONTENT_TYPE`]: for those who don't ask
    /// for the other by name.
    pub fn encode_text(&self) -> String {
        older_text(&self.encode())
    }
}

impl<M: Clone, const LABELS: usize> Labelled<M, LABELS> {
    /// The one with these values. It stays until it is forgotten, so the caller sees to it that there are not too many.
    pub(crate) fn of(&self, values: [&str; LABELS]) -> M {
        self.family.get_or_create_owned(&self.labels(values))
    }

    /// Shows it no more.
    pub(crate) fn forget(&self, values: [&str; LABELS]) {
        self.family.remove(&self.labels(values));
    }

    fn labels(&self, values: [&str; LABELS]) -> [(&'static str, String); LABELS] {
        std::array::from_fn(|place| (self.names[place], values[place].to_owned()))
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

/// As a gauge shows it; what is too large for one is as large as it can be.
pub(crate) fn gauge_of(count: u64) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// Shows what somebody else has counted.
pub(crate) fn show(counter: &Counter, count: u64) {
    counter.inner().store(count, std::sync::atomic::Ordering::Relaxed);
}

/// As [`Seconds`] show it.
pub(crate) fn since_1970(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
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

/// The media type of [`Registry::encode`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of [`Registry::encode_text`].
pub(crate) const TEXT_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_are_known_are_there_from_the_start_and_others_come_and_go() {
        let mut registry = Registry::default();
        let [one, _] = registry.add_each::<Counter, 2>("knocks", "Knocks", "door", ["front", "back"]);
        let rooms = registry.add_labelled("lights", "Lights", ["floor", "room"], Gauge::<i64>::default);
        one.inc();
        rooms.of(["1", "a\"b"]).set(7);
        rooms.of(["1", "gone"]).set(7);
        rooms.forget(["1", "gone"]);
        let text = registry.encode();
        for line in [
            concat!("halfway_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "halfway_knocks_total{door=\"front\"} 1",
            "halfway_knocks_total{door=\"back\"} 0",
            "halfway_lights{floor=\"1\",room=\"a\\\"b\"} 7",
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
