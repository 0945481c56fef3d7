//! A store that forgets everything with the process, for tests of what stands on a store.

mod held;
mod letters;
mod row;

use self::held::Held;
use self::row::Row;
use super::clock::{Reading, Time};
use super::{
    Bookmark, Bounded, Check, Clock, Commit, Committing, Cursor, DeadLetter, DueNow, Event, Filter, ForAdmin,
    ForCheckBack, ForRelay, ForSessions, Heavy, Lane, Letter, LetterFilter, LetterId, LetterMessage, Listing, Origin,
    Outlet, Outside, Pack, Reply, Room, Sequence, StoreError, Summary,
};
use crate::tx::batch::Batch;
use crate::tx::decision::{Actor, Decision, Target, Verdict};
use crate::tx::id::TransactionId;
use crate::tx::state::State;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The same contract as a store on disk, but for what survives a crash. Answers every call at once.
pub struct MemoryStore {
    outlet: Arc<dyn Outlet>,
    time: Time,
    held: Mutex<Held>,
    room: watch::Sender<Room>,
    heavy: watch::Sender<Heavy>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(outlet: Arc<dyn Outlet>) -> Arc<Self> {
        Self::with_clock(outlet, Clock::default())
    }

    /// An empty store that tells the time by `clock`.
    pub fn with_clock(outlet: Arc<dyn Outlet>, clock: Clock) -> Arc<Self> {
        let time = Time::new(clock);
        let held = Held::new(time.clone());
        Arc::new(Self {
            outlet,
            time,
            held: Mutex::new(held),
            room: watch::Sender::new(Room::Free),
            heavy: watch::Sender::default(),
        })
    }

    /// Lets every call that writes messages or decides fail from now on, as on a bad disk, until it is called with
    /// `None`.
    pub fn fail_with(&self, failure: Option<StoreError>) {
        self.held().failure = failure;
    }

    /// Says from now on that there is so much room.
    pub fn set_room(&self, room: Room) {
        self.room.send_replace(room);
    }

    /// The dead letters, and how often each was tried.
    pub fn letters(&self) -> Vec<(DeadLetter, u32)> {
        self.held().letters.iter().map(|kept| (kept.letter.clone(), kept.attempts)).collect()
    }

    /// The state of a transaction that was parked.
    pub fn state(&self, id: TransactionId) -> Option<State> {
        let held = self.held();
        let parked = held.find(id).filter(|place| held.rows[place].parked_at.is_some());
        parked.map(|place| held.rows[&place].state)
    }

    /// Transactions that are committed and not delivered.
    pub fn backlog(&self) -> usize {
        let held = self.held();
        held.committed().count() + held.retries().count()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Reading {
        self.time.read()
    }
}

impl Bounded for MemoryStore {
    fn room(&self) -> watch::Receiver<Room> {
        self.room.subscribe()
    }
}

impl Outside for MemoryStore {
    fn decide(&self, target: Target, decision: Decision, actor: Actor, reason: Option<String>) -> Reply<Verdict> {
        let mut held = self.held();
        let decided = held.decide(&target, decision, self.now(), &actor, reason.as_deref());
        answered(decided.map(|(verdict, committed)| {
            if let Some(committed) = committed {
                self.outlet.committed(vec![committed]);
            }
            verdict
        }))
    }

    fn check_now(&self, id: TransactionId, checker: Option<Arc<str>>) -> Reply<bool> {
        let mut held = self.held();
        answered(held.check_disk().map(|()| held.check_now(id, checker)))
    }

    fn transaction(&self, id: TransactionId) -> Reply<Option<(Summary, Vec<Event>)>> {
        let held = self.held();
        let row = held.find(id).map(|place| &held.rows[&place]);
        answered(Ok(row.map(|row| (row.summary(&held.time), row.history.clone()))))
    }

    fn messages(&self, id: TransactionId, from: u32, bytes_max: usize) -> Reply<Vec<Pack>> {
        answered(Ok(self.held().messages(id, from, bytes_max)))
    }
}

impl ForSessions for MemoryStore {
    fn heavy_users(&self) -> watch::Receiver<Heavy> {
        self.heavy.subscribe()
    }

    fn park(&self, origin: Origin, batch: Batch) -> Reply<()> {
        answered(self.held().park(origin, batch, self.now()))
    }

    fn commit(&self, commit: Commit) -> Reply<Committing> {
        // The outlet is told under the lock, so that it hears of commits in their order. So with decisions.
        let mut held = self.held();
        answered(held.commit(commit, self.now()).map(|(committing, committed)| {
            if let Some(committed) = committed {
                self.outlet.committed(vec![committed]);
            }
            committing
        }))
    }

    fn rollback(&self, id: TransactionId, reason: Option<String>) -> Reply<()> {
        answered(self.held().rollback(id, self.now(), reason.as_deref()))
    }

    fn abandon(&self, id: TransactionId) -> Reply<()> {
        answered(self.held().abandon(id, self.now()))
    }
}

impl ForRelay for MemoryStore {
    fn lanes(&self) -> Reply<Vec<Lane>> {
        let held = self.held();
        let way = |(sequence, row): (_, &Row)| held.way(&row.origin.lane, row.origin.strand, sequence);
        let mut lanes: Vec<_> = held.committed().map(way).collect();
        lanes.extend(held.retries().map(|(lane, _)| lane));
        lanes.sort();
        lanes.dedup();
        answered(Ok(lanes))
    }

    fn page(&self, lane: &Lane, after: Option<Cursor>, bytes_max: usize) -> Reply<Vec<Pack>> {
        answered(Ok(self.held().page(lane, after, bytes_max)))
    }

    fn delivered(&self, transactions: Vec<Sequence>) {
        let mut held = self.held();
        transactions.into_iter().for_each(|sequence| held.delivered(sequence, self.now()));
    }

    fn dead_letter(&self, letter: DeadLetter) -> Reply<()> {
        answered(self.held().dead_letter(letter, self.now()))
    }

    fn step_aside(&self, _: &Lane, transactions: Vec<Sequence>) -> Reply<()> {
        self.held().asides.extend(transactions);
        answered(Ok(()))
    }
}

impl ForCheckBack for MemoryStore {
    fn due(&self, checker: &str, after: &str, limit: usize) -> Reply<DueNow> {
        answered(Ok(self.held().due(checker, after, limit)))
    }

    fn checked(&self, id: TransactionId, check: Check) -> Reply<bool> {
        let mut held = self.held();
        answered(held.check_disk().map(|()| held.checked(id, check, self.now())))
    }

    fn unasked(&self, known: Vec<Arc<str>>, after: Bookmark, limit: usize) -> Reply<Listing<Summary>> {
        answered(Ok(self.held().list(after, limit, |row| {
            row.state == State::InDoubt && row.checker.as_ref().is_none_or(|checker| !known.contains(checker))
        })))
    }
}

impl ForAdmin for MemoryStore {
    fn transactions(&self, filter: Filter, after: Bookmark, limit: usize) -> Reply<Listing<Summary>> {
        let held = self.held();
        let fits = |row: &Row| filter.fits(&row.summary(&held.time)) && row.fits_front(&filter);
        answered(Ok(held.list(after, limit, fits)))
    }

    fn dead_letters(&self, filter: LetterFilter, after: Bookmark, limit: usize) -> Reply<Listing<Letter>> {
        answered(Ok(self.held().list_letters(&filter, after, limit)))
    }

    fn dead_letter_by_id(&self, letter: LetterId) -> Reply<Option<Letter>> {
        answered(Ok(self.held().letter(letter)))
    }

    fn dead_letter_message(&self, letter: LetterId) -> Reply<Option<LetterMessage>> {
        answered(Ok(self.held().letter_message(letter)))
    }

    fn retry(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>> {
        let mut held = self.held();
        answered(held.retry(letter, self.now(), &actor, &reason).map(|committed| {
            let committed = committed?;
            let id = committed.id;
            self.outlet.committed(vec![committed]);
            Some(id)
        }))
    }

    fn discard(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>> {
        answered(self.held().discard(letter, self.now(), &actor, &reason))
    }
}

fn answered<T>(result: Result<T, StoreError>) -> Reply<T> {
    let (answer, reply) = Reply::pair();
    let _ = answer.send(result);
    reply
}
