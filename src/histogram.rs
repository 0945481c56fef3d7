//! Durations counted in buckets, by atomics alone: whoever counts waits for nobody.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of latencies, in seconds.
pub(crate) const LATENCIES: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Upper bounds of ages, in seconds: up to a day.
pub(crate) const AGES: &[f64] =
    &[0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 86_400.0];

/// A histogram. A clone counts into the same buckets.
#[derive(Clone)]
pub struct Histogram(Arc<Inner>);

struct Inner {
    bounds: &'static [f64],
    /// One for each bound, and one for what is beyond the last. None includes another.
    buckets: Box<[AtomicU64]>,
    /// Of all that was counted. Nanoseconds would be full after some centuries of ages.
    micros: AtomicU64,
}

/// A histogram at one moment. Two of them, one taken from the other, tell of the time between.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Upper bounds in seconds, and how many durations are above the bound before and not above this one. The last
    /// bound is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of all durations, in seconds.
    pub sum: f64,
}

impl Snapshot {
    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

impl Histogram {
    /// With these upper bounds, in seconds, which rise.
    pub fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { bounds, buckets, micros: AtomicU64::new(0) }))
    }

    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        let Inner { bounds, buckets, micros } = &*self.0;
        let seconds = duration.as_secs_f64();
        let place = bounds.iter().position(|bound| seconds <= *bound).unwrap_or(bounds.len());
        buckets[place].fetch_add(1, Ordering::Relaxed);
        micros.fetch_add(duration.as_micros().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What was counted up to now.
    pub fn snapshot(&self) -> Snapshot {
        let Inner { bounds, buckets, micros } = &*self.0;
        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
        let counts = buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        Snapshot { buckets: bounds.zip(counts).collect(), sum: micros.load(Ordering::Relaxed) as f64 / 1e6 }
    }

    /// Shows what another one, with the same bounds, has counted.
    pub fn show(&self, other: &Self) {
        debug_assert_eq!(self.0.bounds, other.0.bounds);
        for (to, from) in self.0.buckets.iter().zip(&other.0.buckets) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.0.micros.store(other.0.micros.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_that_takes_it() {
        let histogram = Histogram::new(LATENCIES);
        for micros in [0, 500, 501, 9_999_999, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let shown = Histogram::new(LATENCIES);
        shown.show(&histogram);
        let snapshot = shown.snapshot();
        let filled: Vec<_> = snapshot.buckets.iter().copied().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.0005, 2), (0.001, 1), (10.0, 2), (f64::INFINITY, 1)]);
        assert_eq!(snapshot.count(), 6);
        assert!((snapshot.sum - 30.001_001).abs() < 1e-9, "{}", snapshot.sum);
    }

    #[test]
    fn bounds_rise() {
        for bounds in [LATENCIES, AGES] {
            assert!(bounds.is_sorted_by(|low, high| low < high), "{bounds:?}");
        }
    }
}
