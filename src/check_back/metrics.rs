//! What is counted of checks.

use crate::histogram::{Histogram, LATENCIES};
use crate::metrics::{Labelled, Registry};
use crate::tx::check_back::Answer;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

/// Of every checker.
#[derive(Clone, Debug)]
pub struct CheckMetrics {
    checks: Labelled<Counter, 2>,
    seconds: Labelled<Histogram>,
    exhausted: Labelled<Counter>,
    circuit_open: Labelled<Gauge>,
}

/// Of one checker.
#[derive(Clone, Debug)]
pub(crate) struct CheckerCounts {
    /// Checks by what came of them.
    pub(crate) checks: CheckResults,
    /// From a question to its answer, or to where it was given up.
    pub(crate) seconds: Histogram,
    /// Transactions that it never knew about, and that wait for a person.
    pub(crate) exhausted: Counter,
    /// 1 while it is left alone because it does not answer.
    pub(crate) circuit_open: Gauge,
}

/// Counters of one checker's checks.
#[derive(Clone, Debug)]
pub(crate) struct CheckResults([Counter; RESULTS.len()]);

const NO_ANSWER: &str = "no_answer";
const RESULTS: [&str; 5] = ["commit", "rollback", "unknown", "ongoing", NO_ANSWER];

impl CheckMetrics {
    /// Of no checker yet.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            checks: registry.add_labelled(
                "checks",
                "Questions to checkers, by what came of them",
                ["checker", "result"],
                Counter::default,
            ),
            seconds: registry.add_labelled(
                "check_seconds",
                "From a question to a checker to its answer, or to where it was given up",
                ["checker"],
                || Histogram::new(LATENCIES),
            ),
            exhausted: registry.add_labelled(
                "checks_exhausted",
                "Transactions that wait for a person, as their checker never knew",
                ["checker"],
                Counter::default,
            ),
            circuit_open: registry.add_labelled(
                "checker_circuit_open",
                "1 while a checker is left alone because it does not answer",
                ["checker"],
                Gauge::default,
            ),
        }
    }

    /// The counters of one checker, for its task to keep.
    pub(crate) fn checker(&self, name: &str) -> CheckerCounts {
        CheckerCounts {
            checks: CheckResults(RESULTS.map(|result| self.checks.of([name, result]))),
            seconds: self.seconds.of([name]),
            exhausted: self.exhausted.of([name]),
            circuit_open: self.circuit_open.of([name]),
        }
    }

    /// Shows no more of a checker that is gone: a breaker that was open would stay so for ever.
    pub(super) fn forget(&self, name: &str) {
        RESULTS.into_iter().for_each(|result| self.checks.forget([name, result]));
        self.seconds.forget([name]);
        self.exhausted.forget([name]);
        self.circuit_open.forget([name]);
    }
}

impl CheckResults {
    /// Counts a check; `None`: there was no answer.
    pub(crate) fn count(&self, answer: Option<Answer>) {
        let result = answer.map_or(NO_ANSWER, Answer::as_str);
        let at = RESULTS.iter().position(|known| *known == result);
        self.0[at.expect("every answer has its counter, as a test sees to")].inc();
    }

    /// How many checks came to what: `commit`, ..., `no_answer`.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RESULTS.into_iter().zip(self.0.iter().map(Counter::get))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_its_counter_and_a_checker_that_is_gone_has_none() {
        let mut registry = Registry::default();
        let metrics = CheckMetrics::new(&mut registry);
        let checker = metrics.checker("orders");
        checker.checks.count(None);
        for word in ["commit", "rollback", "unknown", "ongoing"] {
            checker.checks.count(Answer::of(word));
        }
        assert!(checker.checks.each().all(|(_, count)| count == 1));
        metrics.checker("gone");
        metrics.forget("gone");
        let text = registry.encode();
        for line in [
            "halfway_checks_total{checker=\"orders\",result=\"no_answer\"} 1",
            "halfway_checks_total{checker=\"orders\",result=\"ongoing\"} 1",
            "halfway_checker_circuit_open{checker=\"orders\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("gone"), "{text}");
    }
}
