//! A store of transactions in doubt: what the check-back asks of it, and nothing else.

use crate::check_back::question::tests::{pack, summary};
use crate::store::{
    Bookmark, Check, Due, DueNow, Event, ForCheckBack, Listing, Outside, Pack, Reply, StoreError, Summary,
};
use crate::tx::decision::{Actor, Decision, Fate, Target, Verdict};
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::state::State;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

type Decided = (TransactionId, Decision, Actor, String);

#[derive(Default)]
pub(super) struct FakeStore {
    rows: Mutex<BTreeMap<TransactionId, Row>>,
    decided: Mutex<Vec<Decided>>,
    failure: Mutex<Option<StoreError>>,
    /// Somebody decides this one between the look for what is due and the question.
    decided_between: Mutex<Option<u128>>,
}

struct Row {
    summary: Summary,
    exchange: &'static str,
    results: Vec<String>,
}

/// A wall clock that goes as tokio's does.
pub(super) fn now() -> Timestamp {
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    let since = Instant::now().into_std().saturating_duration_since(*START);
    Timestamp(1_700_000_000_000 + since.as_millis() as i64)
}

pub(super) fn id(number: u128) -> TransactionId {
    TransactionId(Uuid::from_u128(number))
}

fn later(after: Duration) -> Timestamp {
    // One more, because the clock cuts off what is less than a millisecond.
    Timestamp(now().0 + after.as_millis() as i64 + 1)
}

impl FakeStore {
    pub(super) fn new() -> Arc<Self> {
        // The clock begins before any time is taken of it.
        now();
        Arc::default()
    }

    /// A transaction in doubt whose check is due after a while.
    pub(super) fn add(&self, number: u128, after: Duration) {
        let summary = Summary { next_check_at: Some(later(after)), ..summary(number) };
        self.insert(summary, "orders");
    }

    pub(super) fn add_unasked(&self, number: u128, checker: &str, exchange: &'static str) {
        let checker = Some(checker).filter(|checker| !checker.is_empty()).map(Arc::from);
        self.insert(Summary { checker, next_check_at: None, ..summary(number) }, exchange);
    }

    fn insert(&self, summary: Summary, exchange: &'static str) {
        self.rows.lock().unwrap().insert(summary.id, Row { summary, exchange, results: Vec::new() });
    }

    pub(super) fn decided(&self) -> Vec<Decided> {
        self.decided.lock().unwrap().clone()
    }

    pub(super) fn results(&self, number: u128) -> Vec<String> {
        self.rows.lock().unwrap()[&id(number)].results.clone()
    }

    pub(super) fn next_check(&self, number: u128) -> Option<Timestamp> {
        self.rows.lock().unwrap()[&id(number)].summary.next_check_at
    }

    pub(super) fn checker_of(&self, number: u128) -> Option<Arc<str>> {
        self.rows.lock().unwrap()[&id(number)].summary.checker.clone()
    }

    pub(super) fn decide_by_hand(&self, number: u128) {
        let mut rows = self.rows.lock().unwrap();
        let row = rows.get_mut(&id(number)).expect("it was added");
        row.summary.state = State::RolledBack;
        row.summary.next_check_at = None;
    }

    pub(super) fn decide_between(&self, number: u128) {
        *self.decided_between.lock().unwrap() = Some(number);
    }

    /// Lets every call fail from now on.
    pub(super) fn fail_with(&self, failure: Option<StoreError>) {
        *self.failure.lock().unwrap() = failure;
    }

    fn answer<T>(&self, work: impl FnOnce(&mut BTreeMap<TransactionId, Row>) -> T) -> Reply<T> {
        let (answer, reply) = Reply::pair();
        let result = match self.failure.lock().unwrap().clone() {
            Some(failure) => Err(failure),
            None => Ok(work(&mut self.rows.lock().unwrap())),
        };
        drop(answer.send(result));
        reply
    }
}

impl Outside for FakeStore {
    fn decide(&self, target: Target, decision: Decision, actor: Actor, reason: Option<String>) -> Reply<Verdict> {
        let Target::Id(id) = target else { panic!("the check-back knows ids") };
        self.answer(|rows| {
            let row = rows.get_mut(&id).expect("it was added");
            let before = row.summary.state;
            let fate = |state| Fate { id, state, decided_at: now(), decided_by: actor.to_string() };
            if before != State::InDoubt {
                return Verdict::Contradicted(fate(before));
            }
            row.summary.state = decision.state();
            row.summary.next_check_at = None;
            self.decided.lock().unwrap().push((id, decision, actor.clone(), reason.expect("a reason")));
            Verdict::Decided(fate(decision.state()))
        })
    }

    fn check_now(&self, id: TransactionId, checker: Option<Arc<str>>) -> Reply<bool> {
        self.answer(|rows| {
            let row = rows.get_mut(&id).expect("it was added");
            row.summary.checker = checker.or(row.summary.checker.take());
            row.summary.next_check_at = Some(now());
            row.summary.checker.is_some()
        })
    }

    fn transaction(&self, id: TransactionId) -> Reply<Option<(Summary, Vec<Event>)>> {
        self.answer(|rows| rows.get(&id).map(|row| (row.summary.clone(), Vec::new())))
    }

    fn messages(&self, id: TransactionId, _: u32, _: usize) -> Reply<Vec<Pack>> {
        let between = self.decided_between.lock().unwrap().take_if(|number| id.0.as_u128() == *number);
        if let Some(number) = between {
            self.decide_by_hand(number);
        }
        self.answer(|rows| rows.get(&id).map(|row| pack(row.exchange.as_bytes(), b"", b"body")).into_iter().collect())
    }
}

impl ForCheckBack for FakeStore {
    fn due(&self, checker: &str, _: &str, limit: usize) -> Reply<DueNow> {
        self.answer(|rows| {
            let now = now();
            let of_checker = rows.values().filter(|row| row.summary.checker.as_deref() == Some(checker));
            let mut all: Vec<_> = of_checker
                .filter(|row| row.summary.state == State::InDoubt)
                .filter_map(|row| Some((row.summary.next_check_at?, &row.summary)))
                .map(|(at, row)| {
                    (
                        at,
                        Due {
                            id: row.id,
                            user: Arc::clone(&row.user),
                            attempts: row.attempts,
                            answered: row.checks_answered,
                        },
                    )
                })
                .collect();
            all.sort_by_key(|(at, _)| *at);
            let count = all.iter().take(limit).take_while(|(at, _)| *at <= now).count();
            let rest = all.split_off(count);
            let next = rest.first().map(|(at, _)| Duration::from_millis((at.0 - now.0).max(0).unsigned_abs()));
            DueNow { due: all.into_iter().map(|(_, due)| due).collect(), next }
        })
    }

    fn checked(&self, id: TransactionId, check: Check) -> Reply<bool> {
        self.answer(|rows| {
            let row = rows.get_mut(&id).expect("it was added");
            if row.summary.state != State::InDoubt {
                return false;
            }
            row.results.push(check.result);
            row.summary.attempts += 1;
            row.summary.checks_answered += u32::from(check.counted);
            row.summary.next_check_at = check.again_after.map(later);
            true
        })
    }

    fn unasked(&self, known: Vec<Arc<str>>, after: Bookmark, limit: usize) -> Reply<Listing<Summary>> {
        self.answer(|rows| {
            // A bookmark of as many digits.
            let place = |row: &Row| format!("{:016x}", row.summary.id.0.as_u128());
            let is_known = |row: &Row| row.summary.checker.as_ref().is_some_and(|checker| known.contains(checker));
            let found = rows.values().filter(|row| place(row) > after.to_string() && !is_known(row));
            let mut items: Vec<_> = found.take(limit + 1).map(|row| row.summary.clone()).collect();
            let last =
                |items: &[Summary]| format!("{:016x}", items[limit - 1].id.0.as_u128()).parse().expect("a bookmark");
            let next = (items.len() > limit).then(|| last(&items));
            items.truncate(limit);
            Listing { items, next }
        })
    }
}
