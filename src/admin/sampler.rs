//! One look a second at what the parts count, for everybody who watches: rates, latencies, and five minutes of both.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::Admin;
use super::metrics::Instruments;
use crate::histogram::Snapshot;
use crate::store::system_clock;
use crate::tx::id::Timestamp;
use crate::tx::outcome::Outcome;

/// How often.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// Samples that are kept: five minutes.
const HISTORY: usize = 300;
/// Watchers at one time.
const WATCHERS_MAX: usize = 32;

/// What was sampled, and who watches.
pub(super) struct Sampler {
    history: Mutex<VecDeque<Sample>>,
    ticks: watch::Sender<()>,
    watchers: Arc<Semaphore>,
}

impl Default for Sampler {
    fn default() -> Self {
        let (ticks, watchers) = (watch::Sender::default(), Arc::new(Semaphore::new(WATCHERS_MAX)));
        Self { history: Mutex::default(), ticks, watchers }
    }
}

/// A second. Rates are per second.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) at: Timestamp,
    /// Of every outcome, in the order of [`Outcome::ALL`].
    pub(super) outcomes: [f64; Outcome::ALL.len()],
    pub(super) forwarded: f64,
    pub(super) received_bytes: f64,
    pub(super) sent_bytes: f64,
    /// Seconds; none if nothing was committed.
    pub(super) commit_p50: Option<f64>,
    pub(super) commit_p99: Option<f64>,
    /// Committed and not delivered.
    pub(super) backlog: u64,
    pub(super) in_doubt: u64,
}

impl Sampler {
    /// The last five minutes, the oldest second first.
    pub(super) fn history(&self) -> Vec<Sample> {
        self.lock().iter().cloned().collect()
    }

    /// The last second.
    pub(super) fn last(&self) -> Option<Sample> {
        self.lock().back().cloned()
    }

    /// Word of every sample to come, as long as there is room for one more who watches.
    pub(super) fn watch(&self) -> Option<(watch::Receiver<()>, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.watchers).try_acquire_owned().ok()?;
        Some((self.ticks.subscribe(), permit))
    }

    fn add(&self, sample: Sample) {
        let mut history = self.lock();
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(sample);
        drop(history);
        self.ticks.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Samples, until the future is dropped.
pub(super) async fn run(admin: Admin) -> Infallible {
    let mut before = Reading::take(&admin.numbers.instruments);
    let mut ticks = tokio::time::interval_at(Instant::now() + EVERY, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Reading::take(&admin.numbers.instruments);
        admin.sampler.add(now.since(&before));
        before = now;
    }
}

/// What counters said at one moment.
struct Reading {
    taken: Instant,
    at: Timestamp,
    outcomes: [u64; Outcome::ALL.len()],
    forwarded: u64,
    received_bytes: u64,
    sent_bytes: u64,
    commits: Snapshot,
    backlog: u64,
    in_doubt: u64,
}

impl Reading {
    fn take(counted: &Instruments) -> Self {
        let gauge = |gauge: &Gauge| gauge.get().try_into().unwrap_or_default();
        Self {
            taken: Instant::now(),
            at: system_clock(),
            outcomes: counted.outcomes.each_ref().map(Counter::get),
            forwarded: counted.forwarded.get(),
            received_bytes: counted.received_bytes.get(),
            sent_bytes: counted.sent_bytes.get(),
            commits: counted.commit_seconds.snapshot(),
            backlog: gauge(&counted.unfinished.committed),
            in_doubt: gauge(&counted.unfinished.in_doubt),
        }
    }

    fn since(&self, before: &Self) -> Sample {
        let seconds = self.taken.duration_since(before.taken).as_secs_f64().max(0.001);
        // A thousandth of one a second is nobody's concern, and makes the history shorter.
        let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds * 1e3).round() / 1e3;
        let commits = difference(&self.commits, &before.commits);
        Sample {
            at: self.at,
            outcomes: std::array::from_fn(|place| rate(self.outcomes[place], before.outcomes[place])),
            forwarded: rate(self.forwarded, before.forwarded),
            received_bytes: rate(self.received_bytes, before.received_bytes),
            sent_bytes: rate(self.sent_bytes, before.sent_bytes),
            commit_p50: quantile(&commits, 0.5),
            commit_p99: quantile(&commits, 0.99),
            backlog: self.backlog,
            in_doubt: self.in_doubt,
        }
    }
}

/// What was counted between two snapshots: upper bounds and counts, none of which includes another.
fn difference(now: &Snapshot, before: &Snapshot) -> Vec<(f64, u64)> {
    let pairs = now.buckets.iter().zip(&before.buckets);
    pairs.map(|((bound, now), (_, before))| (*bound, now.saturating_sub(*before))).collect()
}

/// The value below which this share lies, as Prometheus would tell: as if each bucket were filled evenly. Behind the
/// last bound it is that bound.
fn quantile(buckets: &[(f64, u64)], share: f64) -> Option<f64> {
    let total: u64 = buckets.iter().map(|(_, count)| count).sum();
    let rank = share * total as f64;
    let (mut below, mut low) = (0.0, 0.0);
    for (bound, count) in buckets {
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            let within = if bound.is_finite() { low + (bound - low) * (rank - below) / count } else { low };
            return Some((within * 1e6).round() / 1e6);
        }
        (below, low) = (below + count, *bound);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_where_the_counts_say() {
        let buckets = [(0.001, 0), (0.01, 90), (0.1, 9), (1.0, 0), (f64::INFINITY, 1)];
        assert_eq!(quantile(&buckets, 0.5), Some(0.006));
        assert_eq!(quantile(&buckets, 0.9), Some(0.01));
        assert_eq!(quantile(&buckets, 0.99), Some(0.1));
        assert_eq!(quantile(&buckets, 1.0), Some(1.0), "nothing is known behind the last bound");
        assert_eq!(quantile(&[(0.001, 0), (f64::INFINITY, 0)], 0.5), None);
    }

    #[test]
    fn a_sample_is_what_happened_in_its_second() {
        let counted = Instruments::default();
        counted.outcomes[Outcome::Committed as usize].inc();
        counted.commit_seconds.observe(Duration::from_secs(20));
        let before = Reading::take(&counted);
        for _ in 0..10 {
            counted.outcomes[Outcome::Committed as usize].inc();
            counted.commit_seconds.observe(Duration::from_micros(200));
        }
        counted.outcomes[Outcome::InDoubt as usize].inc();
        counted.received_bytes.inc_by(3_000);
        counted.unfinished.in_doubt.set(7);
        let mut now = Reading::take(&counted);
        now.taken = before.taken + Duration::from_secs(2);
        let sample = now.since(&before);
        assert_eq!(sample.outcomes, [5.0, 0.0, 0.0, 0.0, 0.5]);
        assert_eq!((sample.received_bytes, sample.in_doubt, sample.backlog), (1_500.0, 7, 0));
        assert_eq!((sample.commit_p50, sample.commit_p99), (Some(0.00025), Some(0.000495)));
        assert_eq!(now.since(&now).commit_p50, None, "what was before does not count again");
    }

    #[test]
    fn history_and_watchers_have_their_bounds() {
        let counted = Instruments::default();
        let sampler = Sampler::default();
        for _ in 0..HISTORY + 5 {
            let reading = Reading::take(&counted);
            sampler.add(reading.since(&reading));
        }
        assert_eq!(sampler.history().len(), HISTORY);
        let watchers: Vec<_> = std::iter::from_fn(|| sampler.watch()).take(WATCHERS_MAX + 1).collect();
        assert_eq!(watchers.len(), WATCHERS_MAX);
        drop(watchers);
        assert!(sampler.watch().is_some());
    }
}
