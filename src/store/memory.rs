//! A store that forgets everything with the process, for tests of what stands on a store.

use super::{
    Check, Commit, Committed, Committing, Cursor, DeadLetter, DueNow, Event, Filter, Lane, Listing, Messages, Origin,
    Outlet, Pack, Reply, Sequence, Store, StoreError, Summary,
};
use crate::tx::batch::Batch;
use crate::tx::decision::{Actor, Decision, Target, Verdict};
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::state::State;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The same contract as a store on disk, but for what survives a crash. Answers every call at once.
pub struct MemoryStore {
    outlet: Arc<dyn Outlet>,
    held: Mutex<Held>,
    full: watch::Sender<bool>,
}

#[derive(Default)]
struct Held {
    last_sequence: i64,
    /// Those that were parked, in any state.
    parked: HashMap<TransactionId, Parked>,
    committed: BTreeMap<Sequence, Kept>,
    dead_letters: Vec<(DeadLetter, u32)>,
    failure: Option<StoreError>,
}

struct Parked {
    state: State,
    packs: Vec<Messages>,
    sequence: Option<Sequence>,
    /// A part of it could not be kept.
    broken: Option<StoreError>,
}

struct Kept {
    id: TransactionId,
    lane: Lane,
    packs: Vec<Messages>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(outlet: Arc<dyn Outlet>) -> Arc<Self> {
        Arc::new(Self { outlet, held: Mutex::default(), full: watch::Sender::new(false) })
    }

    /// Lets every park, commit and dead letter fail from now on, as on a bad disk, until it is called with `None`.
    pub fn fail_with(&self, failure: Option<StoreError>) {
        self.held().failure = failure;
    }

    /// Says from now on that the store is past its size limit, or is not.
    pub fn set_full(&self, full: bool) {
        self.full.send_replace(full);
    }

    /// The dead letters, and how often each was tried.
    pub fn dead_letters(&self) -> Vec<(DeadLetter, u32)> {
        self.held().dead_letters.clone()
    }

    /// The state of a transaction that was parked.
    pub fn state(&self, id: TransactionId) -> Option<State> {
        self.held().parked.get(&id).map(|parked| parked.state)
    }

    /// Transactions that are committed and not delivered.
    pub fn backlog(&self) -> usize {
        self.held().committed.len()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn check_disk(&self) -> Result<(), StoreError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn park(&mut self, id: TransactionId, batch: Batch) -> Result<(), StoreError> {
        let new = || Parked { state: State::Open, packs: Vec::new(), sequence: None, broken: None };
        let failure = self.failure.clone();
        let parked = self.parked.entry(id).or_insert_with(new);
        if let Some(error) = failure {
            parked.broken.get_or_insert(error);
        }
        if let Some(error) = &parked.broken {
            return Err(error.clone());
        }
        if parked.state != State::Open {
            return Err(StoreError::Conflict(parked.state.to_string()));
        }
        parked.packs.push(batch.into());
        Ok(())
    }

    fn commit(&mut self, commit: Commit) -> Result<(Sequence, Option<Committed>), StoreError> {
        self.check_disk()?;
        let Commit { origin: Origin { id, lane, .. }, batch, parked, forwarded } = commit;
        let sequence = Sequence(self.last_sequence + 1);
        let messages = Messages::from(batch);
        let mut packs = Vec::new();
        if parked {
            let parked = self.parked.get_mut(&id).ok_or_else(not_there)?;
            if let Some(error) = &parked.broken {
                return Err(error.clone());
            }
            match parked.sequence.filter(|_| parked.state == State::Committed && messages.count == 0) {
                Some(before) => return Ok((before, None)),
                None if !parked.state.may_become(State::Committed) => {
                    return Err(StoreError::Conflict(parked.state.to_string()));
                }
                None => {}
            }
            parked.state = State::Committed;
            parked.sequence = Some(sequence);
            packs.append(&mut parked.packs);
        }
        let inline = (!parked).then(|| messages.bytes.clone());
        if messages.count > 0 || !parked {
            packs.push(messages);
        }
        self.last_sequence = sequence.0;
        self.committed.insert(sequence, Kept { id, lane: lane.clone(), packs });
        Ok((sequence, Some(Committed { sequence, id, lane, messages: inline, forwarded })))
    }

    fn rollback(&mut self, id: TransactionId) -> Result<(), StoreError> {
        let parked = self.parked.get_mut(&id).ok_or_else(not_there)?;
        if parked.state != State::RolledBack && !parked.state.may_become(State::RolledBack) {
            return Err(StoreError::Conflict(parked.state.to_string()));
        }
        parked.state = State::RolledBack;
        parked.broken = None;
        parked.packs.clear();
        Ok(())
    }

    fn delivered(&mut self, sequence: Sequence) {
        let Some(kept) = self.committed.remove(&sequence) else { return };
        if let Some(parked) = self.parked.get_mut(&kept.id) {
            let is_dead = self.dead_letters.iter().any(|(letter, _)| letter.sequence == sequence);
            parked.state = if is_dead { State::DeadLettered } else { State::Delivered };
        }
    }

    fn dead_letter(&mut self, letter: DeadLetter) -> Result<(), StoreError> {
        self.check_disk()?;
        let is_same =
            |(other, _): &&mut (DeadLetter, u32)| (other.sequence, other.index) == (letter.sequence, letter.index);
        if let Some((_, attempts)) = self.dead_letters.iter_mut().find(is_same) {
            *attempts += 1;
        } else if self.committed.contains_key(&letter.sequence) {
            self.dead_letters.push((letter, 1));
        } else {
            return Err(not_there());
        }
        Ok(())
    }

    fn page(&self, lane: &Lane, after: Option<Cursor>, bytes_max: usize) -> Vec<Pack> {
        let mut bytes = 0;
        let of_lane = self.committed.iter().filter(|(_, kept)| kept.lane == *lane);
        let packs = of_lane.flat_map(|(sequence, kept)| kept.packs(*sequence));
        packs
            .filter(|pack| after.is_none_or(|after| Cursor { sequence: pack.sequence, pack: pack.number } > after))
            .take_while(|pack| {
                let has_room = bytes < bytes_max || bytes == 0;
                bytes += pack.messages.len();
                has_room
            })
            .collect()
    }
}

impl Kept {
    fn packs(&self, sequence: Sequence) -> impl Iterator<Item = Pack> {
        let mut first_index = 0;
        (0..).zip(&self.packs).map(move |(number, Messages { bytes, count })| {
            let last = number as usize + 1 == self.packs.len();
            let pack = Pack { sequence, id: self.id, number, first_index, last, messages: bytes.clone() };
            first_index += count;
            pack
        })
    }
}

impl Store for MemoryStore {
    fn park(&self, origin: Origin, batch: Batch) -> Reply<()> {
        answered(self.held().park(origin.id, batch))
    }

    fn commit(&self, commit: Commit) -> Reply<Committing> {
        // The outlet is told under the lock, so that it hears of commits in their order.
        let mut held = self.held();
        answered(held.commit(commit).map(|(sequence, committed)| match committed {
            Some(committed) => {
                self.outlet.committed(vec![committed]);
                Committing::Now(sequence)
            }
            None => Committing::Before,
        }))
    }

    fn rollback(&self, id: TransactionId, _reason: Option<String>) -> Reply<()> {
        answered(self.held().rollback(id))
    }

    fn abandon(&self, _id: TransactionId) -> Reply<()> {
        unimplemented!()
    }

    fn decide(&self, _target: Target, _decision: Decision, _actor: Actor, _reason: Option<String>) -> Reply<Verdict> {
        unimplemented!()
    }

    fn due(&self, _checker: &str, _now: Timestamp, _limit: usize) -> Reply<DueNow> {
        unimplemented!()
    }

    fn checked(&self, _id: TransactionId, _check: Check) -> Reply<bool> {
        unimplemented!()
    }

    fn check_now(&self, _id: TransactionId, _checker: Option<Arc<str>>) -> Reply<bool> {
        unimplemented!()
    }

    fn unasked(&self, _known: Vec<Arc<str>>, _after: i64, _limit: usize) -> Reply<Listing> {
        unimplemented!()
    }

    fn transaction(&self, _id: TransactionId) -> Reply<Option<(Summary, Vec<Event>)>> {
        unimplemented!()
    }

    fn transactions(&self, _filter: Filter, _after: i64, _limit: usize) -> Reply<Listing> {
        unimplemented!()
    }

    fn messages(&self, _id: TransactionId, _bytes_max: usize) -> Reply<Vec<Pack>> {
        unimplemented!()
    }

    fn delivered(&self, transactions: Vec<Sequence>) {
        let mut held = self.held();
        transactions.into_iter().for_each(|sequence| held.delivered(sequence));
    }

    fn dead_letter(&self, letter: DeadLetter) -> Reply<()> {
        answered(self.held().dead_letter(letter))
    }

    fn lanes(&self) -> Reply<Vec<Lane>> {
        let mut lanes: Vec<_> = self.held().committed.values().map(|kept| kept.lane.clone()).collect();
        lanes.sort();
        lanes.dedup();
        answered(Ok(lanes))
    }

    fn page(&self, lane: &Lane, after: Option<Cursor>, bytes_max: usize) -> Reply<Vec<Pack>> {
        answered(Ok(self.held().page(lane, after, bytes_max)))
    }

    fn is_full(&self) -> bool {
        *self.full.borrow()
    }

    fn fullness(&self) -> watch::Receiver<bool> {
        self.full.subscribe()
    }
}

fn answered<T>(result: Result<T, StoreError>) -> Reply<T> {
    let (answer, reply) = Reply::pair();
    let _ = answer.send(result);
    reply
}

fn not_there() -> StoreError {
    StoreError::Conflict("not there".into())
}
