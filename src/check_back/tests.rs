//! The check-back on a store in memory that holds transactions in doubt only, with a clock that stands still but for
//! what tests let pass.

mod fake;
mod served;

use super::CheckMetrics;
use super::ask::{Ask, NoAnswer};
use super::question::Question;
use super::sweep;
use super::worker::{Context, Worker};
use crate::metrics::Registry;
use crate::roster::Roster;
use crate::store::StoreError;
use crate::tx::check_back::{Answer, Policy, WhenExhausted};
use crate::tx::checker::{Rule, Rules};
use crate::tx::decision::{Actor, Decision};
use fake::{FakeStore, id, now};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const COMMIT: Answer = Answer::Decision(Decision::Commit);
/// Of the fake clock: nothing in these tests takes that long.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// A checker that answers as a function says, after a while, and remembers who asked when.
struct FakeChecker {
    takes: Duration,
    answer: Box<dyn Fn(u128, u32) -> Result<Answer, NoAnswer> + Send + Sync>,
    asked: Mutex<Vec<(u128, u32, Instant)>>,
    running: AtomicUsize,
    most: AtomicUsize,
}

impl FakeChecker {
    fn new(
        takes: Duration,
        answer: impl Fn(u128, u32) -> Result<Answer, NoAnswer> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let answer = Box::new(answer);
        Arc::new(Self { takes, answer, asked: Mutex::default(), running: 0.into(), most: 0.into() })
    }

    fn asked(&self) -> Vec<(u128, u32, Instant)> {
        self.asked.lock().unwrap().clone()
    }

    fn ids(&self) -> Vec<u128> {
        self.asked().iter().map(|(id, _, _)| *id).collect()
    }
}

/// Counts down when a check is given up, too.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Ask for Arc<FakeChecker> {
    async fn ask(&self, question: &Question) -> Result<Answer, NoAnswer> {
        let id = question.id.0.as_u128();
        self.asked.lock().unwrap().push((id, question.attempt, Instant::now()));
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        let _running = Running(&self.running);
        self.most.fetch_max(running, Ordering::SeqCst);
        sleep(self.takes).await;
        (self.answer)(id, question.attempt)
    }
}

struct Run {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    registry: Registry,
    roster: Arc<Roster>,
    wake: Arc<Notify>,
}

fn policy(max_checks: u32, when_exhausted: WhenExhausted) -> Policy {
    Policy { interval: 30 * SECOND, max_interval: 120 * SECOND, max_checks, when_exhausted }
}

fn start(store: &Arc<FakeStore>, checker: &Arc<FakeChecker>, policy: Policy, at_once: usize, rate: u32) -> Run {
    let (mut registry, roster) = (Registry::default(), Arc::new(Roster::default()));
    let context = Context {
        name: "orders".into(),
        asker: Arc::clone(checker),
        policy,
        timeout: 5 * SECOND,
        store: store.clone(),
        clock: Arc::new(now),
        roster: Arc::clone(&roster),
        counts: CheckMetrics::new(&mut registry).checker("orders"),
        tracer: None,
    };
    let (stop, wake) = (watch::Sender::new(false), Arc::new(Notify::new()));
    let task = tokio::spawn(Worker::new(context, at_once, rate).run(stop.subscribe(), Arc::clone(&wake)));
    Run { stop, task, registry, roster, wake }
}

impl Run {
    fn metric(&self, line: &str) -> u64 {
        let text = self.registry.encode();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("{line} is missing in\n{text}"))
    }

    fn checks(&self, result: &str) -> u64 {
        self.metric(&format!("halfway_checks_total{{checker=\"orders\",result=\"{result}\"}}"))
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

#[tokio::test(start_paused = true)]
async fn a_check_comes_at_its_time_and_its_answer_decides() {
    let store = FakeStore::new();
    store.add(1, 6 * SECOND);
    store.add(2, 7 * SECOND);
    let checker =
        FakeChecker::new(SECOND / 10, |id, _| Ok(if id == 1 { COMMIT } else { Answer::Decision(Decision::RollBack) }));
    let begun = Instant::now();
    let running = start(&store, &checker, policy(15, WhenExhausted::Hold), 8, 1000);
    until("both decisions", || store.decided().len() == 2).await;
    for ((_, attempt, at), due) in checker.asked().into_iter().zip([6, 7]) {
        assert_eq!(attempt, 1);
        let late = at.duration_since(begun).checked_sub(due * SECOND).expect("not before its time");
        assert!(late < Duration::from_millis(250), "{late:?}");
    }
    let by = Actor::Checker("orders".into());
    let decided = store.decided();
    assert_eq!(decided[0], (id(1), Decision::Commit, by.clone(), "answered commit in 100 ms".into()));
    assert_eq!(decided[1], (id(2), Decision::RollBack, by, "answered rollback in 100 ms".into()));
    sleep(3600 * SECOND).await;
    assert_eq!(checker.ids(), [1, 2], "no check after the decision");
    assert_eq!((running.checks("commit"), running.checks("rollback")), (1, 1));
    assert_eq!(running.metric("halfway_check_seconds_bucket{le=\"0.05\",checker=\"orders\"}"), 0);
    assert_eq!(running.metric("halfway_check_seconds_bucket{le=\"0.25\",checker=\"orders\"}"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_word_wakes_it_before_the_next_look() {
    let store = FakeStore::new();
    let checker = FakeChecker::new(Duration::ZERO, |_, _| Ok(COMMIT));
    let running = start(&store, &checker, policy(1, WhenExhausted::Hold), 1, 1000);
    sleep(Duration::from_millis(50)).await;
    let added = Instant::now();
    store.add(1, Duration::ZERO);
    running.wake.notify_one();
    until("the check", || !checker.asked().is_empty()).await;
    assert!(checker.asked()[0].2.duration_since(added) < Duration::from_millis(20));
}

#[tokio::test(start_paused = true)]
async fn only_answers_count_and_then_it_holds() {
    let store = FakeStore::new();
    store.add(1, Duration::ZERO);
    let checker = FakeChecker::new(Duration::ZERO, |_, attempt| match attempt {
        1 | 3 => Err(NoAnswer::new("down")),
        2 | 5 => Ok(Answer::Ongoing),
        _ => Ok(Answer::Unknown),
    });
    let running = start(&store, &checker, policy(3, WhenExhausted::Hold), 8, 1000);
    until("the last check", || store.next_check(1).is_none()).await;
    assert_eq!(checker.asked().len(), 7, "two without answer, two ongoing, three unknown");
    let asked = checker.asked();
    for pair in asked.windows(2) {
        assert!(pair[1].2 - pair[0].2 >= 30 * SECOND, "{pair:?}");
    }
    assert_eq!(store.results(1)[..3], ["no answer: down", "ongoing in 0 ms", "no answer: down"]);
    sleep(3600 * SECOND).await;
    assert_eq!(checker.asked().len(), 7);
    assert!(store.decided().is_empty());
    assert_eq!(running.metric("halfway_checks_exhausted_total{checker=\"orders\"}"), 1);
    assert_eq!((running.checks("unknown"), running.checks("no_answer"), running.checks("ongoing")), (3, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn when_exhausted_may_decide() {
    let store = FakeStore::new();
    store.add(1, Duration::ZERO);
    let checker = FakeChecker::new(Duration::ZERO, |_, _| Ok(Answer::Unknown));
    let _running = start(&store, &checker, policy(2, WhenExhausted::Decide(Decision::RollBack)), 8, 1000);
    until("the decision", || !store.decided().is_empty()).await;
    let by = Actor::Exhausted("orders".into());
    assert_eq!(store.decided(), [(id(1), Decision::RollBack, by, "2 answers, and none knew".into())]);
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_comes_meanwhile_wins() {
    let store = FakeStore::new();
    store.add(1, Duration::ZERO);
    store.add(2, Duration::ZERO);
    let checker = FakeChecker::new(SECOND, |id, _| Ok(if id == 1 { Answer::Unknown } else { COMMIT }));
    let _running = start(&store, &checker, policy(2, WhenExhausted::Hold), 8, 1000);
    until("both questions", || checker.asked().len() == 2).await;
    store.decide_by_hand(1);
    store.decide_by_hand(2);
    sleep(3600 * SECOND).await;
    assert_eq!(checker.asked().len(), 2);
    assert!(store.decided().is_empty() && store.results(1).is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_about_what_was_decided_since_it_was_found_due() {
    let store = FakeStore::new();
    store.add(1, Duration::ZERO);
    store.add(2, SECOND);
    store.decide_between(1);
    let checker = FakeChecker::new(Duration::ZERO, |_, _| Ok(COMMIT));
    let running = start(&store, &checker, policy(2, WhenExhausted::Hold), 8, 1000);
    until("the other decision", || store.decided().len() == 1).await;
    assert_eq!(checker.ids(), [2]);
    assert_eq!(running.checks("commit"), 1);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_come_first_and_only_so_many_at_once() {
    let store = FakeStore::new();
    for number in 1..=50 {
        store.add(number, Duration::from_millis(100 - number as u64));
    }
    let checker = FakeChecker::new(SECOND, |_, _| Ok(COMMIT));
    sleep(SECOND).await;
    let _running = start(&store, &checker, policy(2, WhenExhausted::Hold), 3, 10_000);
    until("all decisions", || store.decided().len() == 50).await;
    assert_eq!(checker.most.load(Ordering::SeqCst), 3);
    assert_eq!(checker.ids(), (1..=50).rev().collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_kept() {
    let store = FakeStore::new();
    (1..=100).for_each(|number| store.add(number, Duration::ZERO));
    let checker = FakeChecker::new(Duration::ZERO, |_, _| Ok(COMMIT));
    let begun = Instant::now();
    let _running = start(&store, &checker, policy(2, WhenExhausted::Hold), 100, 20);
    until("all decisions", || store.decided().len() == 100).await;
    let took = begun.elapsed();
    assert!((Duration::from_millis(4_800)..Duration::from_millis(5_500)).contains(&took), "{took:?}");
}

/// A checker that is down until it is told to be up, and then knows.
fn down() -> (Arc<FakeChecker>, Arc<AtomicBool>) {
    let up = Arc::new(AtomicBool::new(false));
    let is_up = Arc::clone(&up);
    let checker = FakeChecker::new(Duration::ZERO, move |_, _| {
        if is_up.load(Ordering::SeqCst) { Ok(COMMIT) } else { Err(NoAnswer::new("down")) }
    });
    (checker, up)
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_no_storm_and_ends_with_the_oldest() {
    let store = FakeStore::new();
    for number in 1..=1000 {
        store.add(number, Duration::from_millis(number as u64));
    }
    let (checker, up) = down();
    let running = start(&store, &checker, policy(2, WhenExhausted::Hold), 4, 1000);
    sleep(120 * SECOND).await;
    let asked = checker.asked().len();
    assert!((8..30).contains(&asked), "{asked} checks in two minutes of outage");
    assert_eq!(running.metric("halfway_checker_circuit_open{checker=\"orders\"}"), 1);
    up.store(true, Ordering::SeqCst);
    until("all decisions", || store.decided().len() == 1000).await;
    assert_eq!(running.metric("halfway_checker_circuit_open{checker=\"orders\"}"), 0);
}

#[tokio::test(start_paused = true)]
async fn who_asks_by_hand_does_not_wait_for_the_breaker() {
    let store = FakeStore::new();
    (1..=100).for_each(|number| store.add(number, Duration::from_millis(number as u64)));
    let (checker, up) = down();
    let running = start(&store, &checker, policy(2, WhenExhausted::Hold), 4, 1000);
    sleep(120 * SECOND).await;
    let asked = checker.asked().len();
    until("one more try", || checker.asked().len() > asked).await;
    up.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    running.roster.hurry_checkers();
    until("a decision", || !store.decided().is_empty()).await;
    // By itself the breaker waits for 15 seconds at least. The clock is the test's own.
    assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_checker_that_says_nothing_is_given_up() {
    let store = FakeStore::new();
    store.add(1, Duration::ZERO);
    let checker = FakeChecker::new(LONG, |_, _| Ok(COMMIT));
    let running = start(&store, &checker, policy(1, WhenExhausted::Decide(Decision::Commit)), 8, 1000);
    until("three attempts", || checker.asked().len() == 3).await;
    assert_eq!(store.results(1), ["no answer: nothing came within 5s"; 2]);
    assert!(store.decided().is_empty());
    let last = running.roster.last_check("orders").expect("it was asked");
    assert_eq!((last.answer, last.took), (None, 5 * SECOND));
    assert!(last.reason.is_some_and(|reason| reason.contains("nothing came within 5s")));
}

#[tokio::test(start_paused = true)]
async fn a_check_that_breaks_off_costs_no_slot() {
    let store = FakeStore::new();
    store.add(1, Duration::ZERO);
    let broken = AtomicUsize::new(0);
    let checker = FakeChecker::new(Duration::ZERO, move |_, _| {
        assert!(broken.fetch_add(1, Ordering::SeqCst) > 1, "a fault of the test's own");
        Ok(COMMIT)
    });
    let _running = start(&store, &checker, policy(1, WhenExhausted::Hold), 1, 1000);
    until("the decision", || store.decided().len() == 1).await;
    assert_eq!(checker.asked().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_outlives_a_store_that_fails() {
    let store = FakeStore::new();
    store.add(1, Duration::ZERO);
    let checker = FakeChecker::new(SECOND, |_, _| Ok(COMMIT));
    let _running = start(&store, &checker, policy(1, WhenExhausted::Hold), 8, 1000);
    until("the question", || checker.asked().len() == 1).await;
    store.fail_with(Some(StoreError::Full("no space".into())));
    sleep(60 * SECOND).await;
    assert!(store.decided().is_empty());
    store.fail_with(None);
    until("the decision", || store.decided().len() == 1).await;
    assert_eq!(checker.asked().len(), 1, "it is not asked again for what it has said");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_it_asks_no_more_and_waits_for_what_runs() {
    let store = FakeStore::new();
    (1..=3).for_each(|number| store.add(number, Duration::ZERO));
    let checker = FakeChecker::new(SECOND, |_, _| Ok(COMMIT));
    let running = start(&store, &checker, policy(1, WhenExhausted::Hold), 2, 1000);
    until("two questions", || checker.asked().len() == 2).await;
    running.stop.send_replace(true);
    timeout(2 * SECOND, running.task).await.expect("it ends").expect("in good order");
    assert_eq!((store.decided().len(), checker.asked().len()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_would_ask_about_gets_a_checker_by_the_rules() {
    let store = FakeStore::new();
    for number in 1..=1200 {
        store.add_unasked(
            number,
            if number == 1200 { "gone" } else { "" },
            if number == 7 { "other" } else { "orders" },
        );
    }
    store.add(2000, SECOND);
    let rule = Rule {
        checker: "orders".into(),
        vhost: Some("/".into()),
        user: None,
        transaction: None,
        exchange: Some("orders".into()),
        first_after: SECOND,
    };
    sweep::assign(&*store, &Rules::new(vec![rule]), vec!["orders".into()]).await;
    let without: Vec<u128> =
        (1..=1200).filter(|number| store.checker_of(*number).as_deref() != Some("orders")).collect();
    assert_eq!(without, [7]);
}

/// Whatever a checker does, over many seeds: nothing is asked before its time, by two checks at once, or after its
/// decision; and what is decided is what was answered.
#[test]
fn whatever_a_checker_does_the_promises_hold() {
    for seed in 0..20_u64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut random = fastrand::Rng::with_seed(seed);
            let script: HashMap<(u128, u32), u32> = (1..=20_u128)
                .flat_map(|id| (1..=200).map(move |attempt| (id, attempt)))
                .map(|key| (key, random.u32(0..10)))
                .collect();
            let (store, answers) = (FakeStore::new(), script.clone());
            let checker = FakeChecker::new(SECOND / 2, move |id, attempt| match answers.get(&(id, attempt)) {
                Some(0) => Ok(COMMIT),
                Some(1) => Ok(Answer::Decision(Decision::RollBack)),
                Some(2..6) => Ok(Answer::Unknown),
                Some(6 | 7) => Ok(Answer::Ongoing),
                _ => Err(NoAnswer::new("down")),
            });
            (1..=20).for_each(|number| store.add(number, SECOND * number as u32));
            let _running = start(&store, &checker, policy(4, WhenExhausted::Hold), 3, 50);
            until("an end of all", || (1..=20).all(|number| store.next_check(number).is_none())).await;
            let mut last: HashMap<u128, Instant> = HashMap::new();
            for (number, attempt, at) in checker.asked() {
                if let Some(before) = last.insert(number, at) {
                    assert!(at - before >= 30 * SECOND, "seed {seed}: {number} was asked too early");
                    assert!(attempt > 1 && script[&(number, attempt - 1)] > 1, "seed {seed}: asked after its decision");
                }
            }
            for (decided, decision, _, _) in store.decided() {
                let number = decided.0.as_u128();
                let attempts = checker.ids().iter().filter(|asked| **asked == number).count() as u32;
                let said = if decision == Decision::Commit { 0 } else { 1 };
                assert_eq!(script[&(number, attempts)], said, "seed {seed}");
            }
        });
    }
}
