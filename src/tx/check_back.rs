//! When a transaction in doubt is asked about, how often, and what an answer leads to. And how fast a checker is asked:
//! a rate that is kept, and a breaker for one that is down.

use super::decision::Decision;
use std::time::{Duration, Instant};

/// What becomes of a transaction about which the checker gave its last answer and knew nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenExhausted {
    /// It stays in doubt and waits for a person.
    Hold,
    /// It is decided.
    Decide(Decision),
}

/// How often a checker is asked about one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// From one check to the next, before it doubles.
    pub interval: Duration,
    /// The longest that gets by doubling. Not shorter than `interval`.
    pub max_interval: Duration,
    /// Answers that count, until there is no further check.
    pub max_checks: u32,
    /// What then.
    pub when_exhausted: WhenExhausted,
}

/// What a checker said about a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It knows what is right.
    Decision(Decision),
    /// It does not know, and perhaps never will.
    Unknown,
    /// The producer still works on it.
    Ongoing,
}

impl Answer {
    /// The word in the answer, in the history, and on metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decision(decision) => decision.as_str(),
            Self::Unknown => "unknown",
            Self::Ongoing => "ongoing",
        }
    }

    /// The answer that is written so.
    pub fn of(word: &str) -> Option<Self> {
        const ALL: [Answer; 4] = [
            Answer::Decision(Decision::Commit),
            Answer::Decision(Decision::RollBack),
            Answer::Unknown,
            Answer::Ongoing,
        ];
        ALL.into_iter().find(|answer| answer.as_str() == word)
    }
}

/// How often a transaction was asked about before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Checks so far, answered or not.
    pub attempts: u32,
    /// Answers so far that counted.
    pub answered: u32,
}

/// What a check leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The checker knew.
    Decide(Decision),
    /// Ask again.
    Later {
        /// Not before so much has passed.
        after: Duration,
        /// Whether this was an answer that counts.
        counted: bool,
    },
    /// This was the last answer that counts, and it was no decision.
    Exhausted(WhenExhausted),
}

impl Policy {
    /// What follows from a check that ended with `answer` (none: there was no answer). `random` is between 0
    /// and 1, and spreads what would otherwise come at one time.
    ///
    /// Only `unknown` counts. `ongoing` starts the timer anew: the next check comes after one `interval`. A checker that
    /// says nothing is asked ever more rarely, and uses up nothing.
    pub fn next(&self, asked: Asked, answer: Option<Answer>, random: f64) -> Next {
        let later = |earlier: u32, counted| Next::Later { after: self.pause(earlier, random), counted };
        match answer {
            Some(Answer::Decision(decision)) => Next::Decide(decision),
            Some(Answer::Unknown) if asked.answered.saturating_add(1) >= self.max_checks => {
                Next::Exhausted(self.when_exhausted)
            }
            Some(Answer::Unknown) => later(asked.answered, true),
            Some(Answer::Ongoing) => later(0, false),
            None => later(asked.attempts.saturating_sub(asked.answered), false),
        }
    }

    /// The pause after as many checks of one kind as `earlier`: the whole of it, and up to a quarter more, so that no
    /// check comes before its time.
    fn pause(&self, earlier: u32, random: f64) -> Duration {
        let doubled = self.interval.saturating_mul(1 << earlier.min(DOUBLINGS_MAX));
        let whole = doubled.min(self.max_interval);
        whole.saturating_add((whole / 4).mul_f64(random.clamp(0.0, 1.0)))
    }
}

/// Keeps a rate: a token bucket that holds a tenth of a second's worth, at least one.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Between two, on the average.
    gap: Duration,
    /// How far ahead of the average a burst may run.
    slack: Duration,
    /// When the next one would come, if all had come evenly.
    even: Option<Instant>,
}

impl Pace {
    /// `rate` a second, at least 1.
    pub fn new(rate: u32) -> Self {
        let gap = Duration::from_secs(1) / rate.max(1);
        Self { gap, slack: BURST.saturating_sub(gap), even: None }
    }

    /// When the next may come, without taking it.
    pub fn free_at(&self) -> Option<Instant> {
        self.even.and_then(|even| even.checked_sub(self.slack))
    }

    /// Takes one now. Call it at [`Pace::free_at`] or later.
    pub fn take(&mut self, now: Instant) {
        self.even = Some(self.even.map_or(now, |even| even.max(now)) + self.gap);
    }
}

/// Leaves a checker alone that is down: closed while it answers, open for a while after several checks in a row had no
/// answer, then half open: one check finds out.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    /// Checks without an answer, in a row.
    failures: u32,
    state: BreakerState,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum BreakerState {
    #[default]
    Closed,
    Open {
        until: Instant,
        /// How often in a row it has opened, from 1.
        times: u32,
    },
    /// One check is under way.
    HalfOpen { times: u32 },
}

/// Whether a checker may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// It may.
    Now,
    /// Not before.
    At(Instant),
    /// Not before an answer is there, or is missed, to the check that is under way.
    WithTheAnswer,
}

impl Breaker {
    /// Whether a check may begin at `now`.
    pub fn permit(&self, now: Instant) -> Permit {
        match self.state {
            BreakerState::Closed => Permit::Now,
            BreakerState::Open { until, .. } if now < until => Permit::At(until),
            BreakerState::Open { .. } => Permit::Now,
            BreakerState::HalfOpen { .. } => Permit::WithTheAnswer,
        }
    }

    /// A check begins, as [`Breaker::permit`] allowed.
    pub fn begin(&mut self) {
        if let BreakerState::Open { times, .. } = self.state {
            self.state = BreakerState::HalfOpen { times };
        }
    }

    /// Somebody does not want to wait until the checker is tried again.
    pub fn hurry(&mut self, now: Instant) {
        if let BreakerState::Open { until, .. } = &mut self.state {
            *until = now.min(*until);
        }
    }

    /// A check ended, at `now`. `random` is between 0 and 1.
    pub fn end(&mut self, answered: bool, now: Instant, random: f64) {
        if answered {
            *self = Self::default();
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let times = match self.state {
            BreakerState::Closed if self.failures < FAILURES_MAX => return,
            BreakerState::Closed => 1,
            BreakerState::HalfOpen { times } => times.saturating_add(1),
            // It began before the breaker opened, and says nothing new.
            BreakerState::Open { .. } => return,
        };
        let whole = OPEN_FIRST.saturating_mul(1 << (times - 1).min(DOUBLINGS_MAX)).min(OPEN_MAX);
        let until = now + whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        self.state = BreakerState::Open { until, times };
    }

    /// A check that had begun came to nothing before the checker was asked.
    pub fn cancel(&mut self, now: Instant) {
        if let BreakerState::HalfOpen { times } = self.state {
            self.state = BreakerState::Open { until: now, times };
        }
    }

    /// Whether the checker is left alone, or about to be tried.
    pub fn is_open(&self) -> bool {
        self.state != BreakerState::Closed
    }
}

/// Enough for every pause to have reached its longest.
const DOUBLINGS_MAX: u32 = 20;
const BURST: Duration = Duration::from_millis(100);
/// Checks without an answer in a row that open the breaker.
const FAILURES_MAX: u32 = 5;
const OPEN_FIRST: Duration = Duration::from_secs(1);
const OPEN_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(max_checks: u32) -> Policy {
        Policy {
            interval: Duration::from_secs(30),
            max_interval: Duration::from_secs(600),
            max_checks,
            when_exhausted: WhenExhausted::Hold,
        }
    }

    const COMMIT: Answer = Answer::Decision(Decision::Commit);

    #[test]
    fn words_and_answers_are_the_same() {
        for word in ["commit", "rollback", "unknown", "ongoing"] {
            assert_eq!(Answer::of(word).map(Answer::as_str), Some(word));
        }
        assert_eq!(Answer::of("Commit"), None);
        assert_eq!(Answer::of(""), None);
    }

    #[test]
    fn pauses_double_and_are_never_cut_short() {
        let policy = policy(100);
        let pause = |asked, answer, random| match policy.next(asked, answer, random) {
            Next::Later { after, .. } => after.as_secs(),
            other => panic!("{other:?}"),
        };
        for (answered, seconds) in [(0, 30), (1, 60), (4, 480), (5, 600), (90, 600)] {
            let asked = Asked { attempts: 7 + answered, answered };
            assert_eq!(pause(asked, Some(Answer::Unknown), 0.0), seconds);
            assert_eq!(pause(asked, Some(Answer::Unknown), 1.0), seconds * 5 / 4);
            assert_eq!(pause(asked, Some(Answer::Ongoing), 0.0), 30);
            assert_eq!(pause(asked, None, 0.0), 600);
        }
        assert_eq!(pause(Asked { attempts: 3, answered: 2 }, None, 0.0), 60);
    }

    #[test]
    fn the_last_answer_that_counts_exhausts() {
        let next = |answered, answer| policy(3).next(Asked { attempts: 9, answered }, answer, 0.5);
        assert!(matches!(next(1, Some(Answer::Unknown)), Next::Later { counted: true, .. }));
        assert_eq!(next(2, Some(Answer::Unknown)), Next::Exhausted(WhenExhausted::Hold));
        // After a restart with a smaller number, too.
        assert_eq!(next(7, Some(Answer::Unknown)), Next::Exhausted(WhenExhausted::Hold));
        assert!(matches!(next(2, Some(Answer::Ongoing)), Next::Later { counted: false, .. }));
        assert!(matches!(next(2, None), Next::Later { counted: false, .. }));
        assert_eq!(next(2, Some(COMMIT)), Next::Decide(Decision::Commit));
    }

    fn answers() -> impl Strategy<Value = Option<Answer>> {
        prop_oneof![
            Just(None),
            Just(Some(Answer::Unknown)),
            Just(Some(Answer::Ongoing)),
            Just(Some(COMMIT)),
            Just(Some(Answer::Decision(Decision::RollBack))),
        ]
    }

    proptest! {
        /// Whatever a checker answers: it is asked until it decides or has answered `max_checks` times, each time at
        /// least one interval later, and it alone decides.
        #[test]
        fn a_life_in_doubt(
            answers in proptest::collection::vec((answers(), 0.0..1.0), 1..200),
            max_checks in 1_u32..20,
            interval in 1_u64..100_000,
            factor in 1_u32..100,
        ) {
            let interval = Duration::from_millis(interval);
            let max_interval = interval * factor;
            let policy = Policy { interval, max_interval, max_checks, when_exhausted: WhenExhausted::Hold };
            let mut asked = Asked { attempts: 0, answered: 0 };
            for (answer, random) in answers {
                let next = policy.next(asked, answer, random);
                asked.attempts += 1;
                match next {
                    Next::Decide(decision) => {
                        prop_assert_eq!(answer, Some(Answer::Decision(decision)));
                        break;
                    }
                    Next::Exhausted(_) => {
                        prop_assert_eq!(answer, Some(Answer::Unknown));
                        prop_assert_eq!(asked.answered + 1, max_checks);
                        break;
                    }
                    Next::Later { after, counted } => {
                        prop_assert_eq!(counted, answer == Some(Answer::Unknown));
                        prop_assert!(after >= interval && after <= max_interval.mul_f64(1.25) + Duration::from_millis(1));
                        asked.answered += u32::from(counted);
                        prop_assert!(asked.answered < max_checks);
                    }
                }
            }
        }

        /// Within any stretch of time, no more than its share and a burst.
        #[test]
        fn a_pace_is_kept(rate in 1_u32..10_000, steps in proptest::collection::vec(0_u64..50_000, 1..300)) {
            let start = Instant::now();
            let (mut now, mut pace, mut taken) = (start, Pace::new(rate), 0_u32);
            for step in steps {
                now += Duration::from_micros(step);
                while pace.free_at().is_none_or(|at| at <= now) {
                    pace.take(now);
                    taken += 1;
                    let share = (now - start).as_secs_f64() * f64::from(rate);
                    let burst = (f64::from(rate) / 10.0).max(1.0);
                    prop_assert!(f64::from(taken) <= share + burst + 1.0, "{taken} at {share}");
                }
            }
        }

        /// A checker that never answers is asked ever more rarely, one check at a time; one that answers again is asked
        /// as before.
        #[test]
        fn a_breaker_opens_and_heals(randoms in proptest::collection::vec(0.0..1.0, 50)) {
            let (mut now, mut breaker) = (Instant::now(), Breaker::default());
            let mut openings = 0;
            for random in randoms {
                match breaker.permit(now) {
                    Permit::Now => {
                        breaker.begin();
                        prop_assert!(!breaker.is_open() || breaker.permit(now) == Permit::WithTheAnswer);
                        breaker.end(false, now, random);
                    }
                    Permit::At(at) => {
                        let pause = at - now;
                        openings += 1;
                        let whole = OPEN_FIRST.saturating_mul(1 << (openings - 1).min(10)).min(OPEN_MAX);
                        prop_assert!(pause >= whole / 2 && pause <= whole, "{pause:?} at {openings}");
                        now = at;
                    }
                    Permit::WithTheAnswer => prop_assert!(false, "nothing is under way"),
                }
            }
            prop_assert!(breaker.is_open() && openings >= 20);
            breaker.end(true, now, 0.0);
            prop_assert!(!breaker.is_open() && breaker.permit(now) == Permit::Now);
        }
    }

    #[test]
    fn checks_that_began_before_it_opened_change_nothing_but_by_an_answer() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES_MAX {
            assert_eq!(breaker.permit(now), Permit::Now);
            breaker.end(false, now, 1.0);
        }
        assert_eq!(breaker.permit(now), Permit::At(now + OPEN_FIRST));
        breaker.end(false, now, 1.0);
        assert_eq!(breaker.permit(now), Permit::At(now + OPEN_FIRST));
        let later = now + OPEN_FIRST;
        let mut hurried = breaker.clone();
        hurried.hurry(now);
        assert_eq!(hurried.permit(now), Permit::Now, "a person asked for it");
        hurried.begin();
        hurried.hurry(now);
        assert_eq!(hurried.permit(now), Permit::WithTheAnswer, "one at a time all the same");
        hurried.end(false, now, 1.0);
        assert_eq!(hurried.permit(now), Permit::At(now + 2 * OPEN_FIRST));
        breaker.begin();
        assert_eq!(breaker.permit(later), Permit::WithTheAnswer);
        breaker.cancel(later);
        assert_eq!(breaker.permit(later), Permit::Now);
        breaker.end(true, now, 1.0);
        assert_eq!(breaker.permit(now), Permit::Now);
    }
}
