//! A store of which the HTTP port sees no difference to a real one.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use uuid::Uuid;

use crate::store::{
    Bookmark, Bounded, Envelope, Event, Filter, ForAdmin, Letter, LetterFilter, LetterId, LetterMessage, Listing,
    Outside, Pack, Reply, Room, StoreError, Summary,
};
use crate::tx::decision::{Actor, Decision, Fate, Target, Verdict};
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::name::TransactionName;
use crate::tx::state::State;

/// 2026-01-02T03:04:05.678Z.
pub(super) const DECIDED_AT: Timestamp = Timestamp(1_767_323_045_678);

#[derive(Default)]
pub(super) struct FakeStore {
    pub(super) rows: Mutex<Vec<Summary>>,
    /// What [`Outside::decide`] was given.
    pub(super) decisions: Mutex<Vec<(Decision, Actor, Option<String>)>>,
    pub(super) packs: Mutex<Vec<Pack>>,
    pub(super) letters: Mutex<Vec<Letter>>,
    /// What [`ForAdmin::retry`] and [`ForAdmin::discard`] were given.
    pub(super) handled: Mutex<Vec<(&'static str, LetterId, Actor, String)>>,
    /// Lets decisions fail.
    pub(super) decision_failure: Mutex<Option<StoreError>>,
    /// Lets every call fail.
    pub(super) failure: Mutex<Option<StoreError>>,
}

/// The id of the row that was added as number `number`.
pub(super) fn id(number: u128) -> TransactionId {
    TransactionId(Uuid::from_u128(number))
}

/// As a store writes it.
fn bookmark(place: i64) -> String {
    format!("{place:016x}")
}

fn numbered(letter: &Letter) -> String {
    bookmark(letter.id.to_string().parse().unwrap())
}

impl FakeStore {
    /// Adds a transaction of `user` in `vhost`, number 1 first.
    pub(super) fn add(&self, state: State, vhost: &str, user: &str, name: &str) {
        let mut rows = self.rows.lock().unwrap();
        let decided = !matches!(state, State::Open | State::InDoubt);
        let row = Summary {
            id: id(rows.len() as u128 + 1),
            name: Some(TransactionName::new(name.as_bytes()).unwrap()),
            vhost: vhost.into(),
            user: user.into(),
            state,
            created_at: Timestamp(1_000),
            parked_at: Some(Timestamp(2_001)),
            decided_at: decided.then_some(DECIDED_AT),
            decided_by: decided.then(|| "checker orders".to_owned()),
            messages: 3,
            bytes: 4096,
            checker: None,
            attempts: 2,
            checks_answered: 1,
            next_check_at: None,
            lane: 0,
        };
        rows.push(row);
    }

    /// Adds a dead letter of transaction 1, number 1 first.
    pub(super) fn add_letter(&self, vhost: &str, exchange: &str) {
        let mut letters = self.letters.lock().unwrap();
        let number = letters.len() + 1;
        letters.push(Letter {
            id: number.to_string().parse().unwrap(),
            transaction: id(1),
            vhost: vhost.into(),
            envelope: Envelope { exchange: exchange.into(), routing_key: "k".into(), message_id: Some("m".into()) },
            reply_code: 404,
            reply_text: "NOT_FOUND".into(),
            since: DECIDED_AT,
            attempts: 2,
        });
    }

    fn handle(
        &self,
        what: &'static str,
        letter: LetterId,
        actor: Actor,
        reason: String,
    ) -> Reply<Option<TransactionId>> {
        self.handled.lock().unwrap().push((what, letter, actor, reason));
        self.answer(|_| {
            let mut letters = self.letters.lock().unwrap();
            let place = letters.iter().position(|other| other.id == letter)?;
            Some(letters.remove(place).transaction)
        })
    }

    fn answer<T>(&self, work: impl FnOnce(&mut Vec<Summary>) -> T) -> Reply<T> {
        let (answer, reply) = Reply::pair();
        let failure = self.failure.lock().unwrap().clone();
        let result = failure.map_or_else(|| Ok(work(&mut self.rows.lock().unwrap())), Err);
        let _ = answer.send(result);
        reply
    }
}

impl Bounded for FakeStore {
    fn room(&self) -> watch::Receiver<Room> {
        watch::channel(Room::Free).1
    }
}

impl Outside for FakeStore {
    fn decide(&self, target: Target, decision: Decision, actor: Actor, reason: Option<String>) -> Reply<Verdict> {
        if let Some(error) = self.decision_failure.lock().unwrap().clone() {
            let (answer, reply) = Reply::pair();
            let _ = answer.send(Err(error));
            return reply;
        }
        self.decisions.lock().unwrap().push((decision, actor.clone(), reason));
        let is_meant = move |row: &&mut Summary| match &target {
            Target::Id(id) => row.id == *id,
            Target::Name(owned) => {
                (&row.vhost, &row.user, row.name.as_ref()) == (&owned.vhost, &owned.user, Some(&owned.name))
            }
        };
        self.answer(|rows| {
            let Some(row) = rows.iter_mut().find(is_meant) else { return Verdict::Unknown };
            let is_first = row.decided_at.is_none();
            if is_first {
                row.state = decision.state();
                row.decided_at = Some(DECIDED_AT);
                row.decided_by = Some(actor.to_string());
            }
            let decided_by = row.decided_by.clone().unwrap();
            let fate = Fate { id: row.id, state: row.state, decided_at: DECIDED_AT, decided_by };
            match (is_first, decision.is_of(row.state)) {
                (true, _) => Verdict::Decided(fate),
                (false, true) => Verdict::Before(fate),
                (false, false) => Verdict::Contradicted(fate),
            }
        })
    }

    fn check_now(&self, id: TransactionId, _: Option<Arc<str>>) -> Reply<bool> {
        self.answer(|rows| {
            let is_due = |row: &&mut Summary| row.id == id && row.state == State::InDoubt && row.checker.is_some();
            let Some(row) = rows.iter_mut().find(is_due) else { return false };
            row.next_check_at = Some(DECIDED_AT);
            true
        })
    }

    fn transaction(&self, id: TransactionId) -> Reply<Option<(Summary, Vec<Event>)>> {
        let reason = Some("a \"reason\"".to_owned());
        let event = Event { at: Timestamp(2_001), event: "parked".into(), actor: "channel".into(), reason };
        self.answer(|rows| rows.iter().find(|row| row.id == id).map(|row| (row.clone(), vec![event])))
    }

    fn messages(&self, id: TransactionId, from: u32, _: usize) -> Reply<Vec<Pack>> {
        let packs = self.packs.lock().unwrap().clone();
        self.answer(|_| packs.into_iter().filter(|pack| pack.id == id && pack.number >= from).collect())
    }
}

impl ForAdmin for FakeStore {
    fn transactions(&self, filter: Filter, after: Bookmark, limit: usize) -> Reply<Listing<Summary>> {
        let fits = |row: &Summary| filter.fits(row);
        self.answer(|rows| {
            let mut fitting =
                (1i64..).zip(rows.iter()).filter(|(place, row)| bookmark(*place) > after.to_string() && fits(row));
            let page: Vec<_> = fitting.by_ref().take(limit).collect();
            let next = fitting.next().and(page.last().map(|(place, _)| bookmark(*place).parse().unwrap()));
            Listing { items: page.into_iter().map(|(_, row)| row.clone()).collect(), next }
        })
    }

    fn dead_letters(&self, filter: LetterFilter, after: Bookmark, limit: usize) -> Reply<Listing<Letter>> {
        let fits = |letter: &Letter| {
            filter.vhost.as_deref().is_none_or(|vhost| *letter.vhost == *vhost)
                && filter.exchange.as_deref().is_none_or(|exchange| letter.envelope.exchange == exchange)
        };
        self.answer(|_| {
            let letters = self.letters.lock().unwrap();
            let items: Vec<_> =
                letters.iter().filter(|it| numbered(it) > after.to_string() && fits(it)).take(limit).cloned().collect();
            let next = items.last().filter(|_| items.len() == limit).map(|letter| numbered(letter).parse().unwrap());
            Listing { items, next }
        })
    }

    fn dead_letter_by_id(&self, letter: LetterId) -> Reply<Option<Letter>> {
        self.answer(|_| self.letters.lock().unwrap().iter().find(|other| other.id == letter).cloned())
    }

    fn dead_letter_message(&self, letter: LetterId) -> Reply<Option<LetterMessage>> {
        self.answer(|_| {
            let is_there = self.letters.lock().unwrap().iter().any(|other| other.id == letter);
            let pack = self.packs.lock().unwrap().first().cloned().filter(|_| is_there)?;
            Some(LetterMessage { index: pack.first_index, message: pack.messages.bytes().clone() })
        })
    }

    fn retry(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>> {
        self.handle("retry", letter, actor, reason)
    }

    fn discard(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>> {
        self.handle("discard", letter, actor, reason)
    }
}
