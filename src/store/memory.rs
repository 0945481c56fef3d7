//! A store that forgets everything with the process, for tests of what stands on a store.

mod letters;

use self::letters::Kept;
use super::clock::{Moment, Reading, Time};
use super::{
    COMMITTED_BEFORE, Check, Clock, Commit, Committed, Committing, Cursor, DeadLetter, Due, DueNow, Event, Filter,
    Lane, Letter, LetterFilter, LetterId, LetterMessage, Listing, Messages, Named, Origin, Outlet, Pack, Reply,
    Sequence, Store, StoreError, Stored, Strand, Summary,
};
use crate::amqp::properties::Properties;
use crate::tx::batch::{self, Batch};
use crate::tx::decision::{Actor, Decision, Fate, Owned, Target, Verdict};
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::name::TransactionName;
use crate::tx::state::State;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// The same contract as a store on disk, but for what survives a crash. Answers every call at once.
pub struct MemoryStore {
    outlet: Arc<dyn Outlet>,
    time: Time,
    held: Mutex<Held>,
    full: watch::Sender<bool>,
}

struct Held {
    time: Time,
    last_sequence: i64,
    rows: BTreeMap<i64, Row>,
    /// Where each transaction stands among the rows.
    places: HashMap<TransactionId, i64>,
    letters: Vec<Kept>,
    last_letter: i64,
    /// Transactions that wait beside their lane.
    asides: HashSet<Sequence>,
    /// Undecided transactions of which a part could not be kept, and why.
    broken: HashMap<TransactionId, StoreError>,
    failure: Option<StoreError>,
}

struct Row {
    origin: Origin,
    state: State,
    parked_at: Option<Timestamp>,
    decided: Option<(Reading, String)>,
    packs: Vec<Messages>,
    messages: u32,
    bytes: u64,
    message_ids: HashSet<Vec<u8>>,
    checker: Option<Arc<str>>,
    next_check: Option<Moment>,
    attempts: u32,
    answered: u32,
    history: Vec<Event>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(outlet: Arc<dyn Outlet>) -> Arc<Self> {
        Self::with_clock(outlet, Clock::default())
    }

    /// An empty store that tells the time by `clock`.
    pub fn with_clock(outlet: Arc<dyn Outlet>, clock: Clock) -> Arc<Self> {
        let time = Time::new(clock);
        let held = Held {
            time: time.clone(),
            last_sequence: 0,
            rows: BTreeMap::new(),
            places: HashMap::new(),
            letters: Vec::new(),
            last_letter: 0,
            asides: HashSet::new(),
            broken: HashMap::new(),
            failure: None,
        };
        Arc::new(Self { outlet, time, held: Mutex::new(held), full: watch::Sender::new(false) })
    }

    /// Lets every call that writes messages or decides fail from now on, as on a bad disk, until it is called with
    /// `None`.
    pub fn fail_with(&self, failure: Option<StoreError>) {
        self.held().failure = failure;
    }

    /// Says from now on that the store is past its size limit, or is not.
    pub fn set_full(&self, full: bool) {
        self.full.send_replace(full);
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

/// The attempts under one name that are not rolled back, but for one's own.
#[derive(Default)]
struct Namesakes {
    open: Option<i64>,
    in_doubt: Option<i64>,
    committed: Option<i64>,
}

/// Whether it was committed, and what of it is to be handed on.
type Released = (Committing, Option<Committed>);

impl Row {
    fn new(origin: Origin, state: State) -> Self {
        let checker =
            origin.named.as_ref().and_then(|named| named.check.as_ref()).map(|plan| Arc::clone(&plan.checker));
        Self {
            origin,
            state,
            parked_at: None,
            decided: None,
            packs: Vec::new(),
            messages: 0,
            bytes: 0,
            message_ids: HashSet::new(),
            checker,
            next_check: None,
            attempts: 0,
            answered: 0,
            history: Vec::new(),
        }
    }

    fn name(&self) -> Option<&TransactionName> {
        self.origin.named.as_ref().map(|named| &named.name)
    }

    fn belongs_to(&self, owned: &Owned) -> bool {
        self.name() == Some(&owned.name) && self.origin.user == owned.user && self.origin.lane.vhost == owned.vhost
    }

    fn add(&mut self, messages: Messages) {
        let messages = if self.name().is_some() { self.without_duplicates(messages) } else { messages };
        if messages.count > 0 {
            self.messages += messages.count;
            self.bytes += messages.bytes.len() as u64;
            self.packs.push(messages);
        }
    }

    fn without_duplicates(&mut self, messages: Messages) -> Messages {
        let mut kept = Batch::default();
        for message in batch::iter(&messages.bytes).map_while(Result::ok) {
            let properties = Properties::parse(message.header).ok();
            let message_id = properties.and_then(|properties| properties.message_id);
            if message_id.is_none_or(|message_id| self.message_ids.insert(message_id.to_vec())) {
                kept.push(message);
            }
        }
        kept.into()
    }

    fn note(&mut self, at: Reading, event: &str, actor: &Actor, reason: Option<&str>) {
        let (event, actor, reason) = (event.into(), actor.to_string(), reason.map(Into::into));
        self.history.push(Event { at: at.wall, event, actor, reason });
    }

    fn doubt(&mut self, now: Reading, reason: &str) {
        self.state = State::InDoubt;
        let plan = self.origin.named.as_ref().and_then(|named| named.check.as_ref());
        self.next_check = plan.map(|plan| now.count.after(plan.first_after));
        self.note(now, State::InDoubt.as_str(), &Actor::Channel, Some(reason));
    }

    fn roll_back(&mut self, now: Reading, actor: &Actor, reason: Option<&str>) {
        self.decide(State::RolledBack, now, actor, reason);
        self.packs.clear();
    }

    fn decide(&mut self, state: State, now: Reading, actor: &Actor, reason: Option<&str>) {
        self.state = state;
        self.decided = Some((now, actor.to_string()));
        self.next_check = None;
        self.attempts += actor.answers();
        self.answered += actor.answers();
        // A plain commit has no history.
        if self.parked_at.is_some() {
            self.note(now, state.as_str(), actor, reason);
        }
    }

    fn fate(&self) -> Fate {
        let (decided_at, decided_by) = match &self.decided {
            Some((at, by)) => (at.wall, by.clone()),
            None => (Timestamp(0), Actor::Channel.to_string()),
        };
        Fate { id: self.origin.id, state: self.state, decided_at, decided_by }
    }

    fn summary(&self, time: &Time) -> Summary {
        Summary {
            id: self.origin.id,
            name: self.name().cloned(),
            vhost: Arc::clone(&self.origin.lane.vhost),
            user: Arc::clone(&self.origin.user),
            state: self.state,
            created_at: self.origin.created_at,
            parked_at: self.parked_at,
            decided_at: self.decided.as_ref().map(|(at, _)| at.wall),
            decided_by: self.decided.as_ref().map(|(_, by)| by.clone()),
            messages: self.messages.into(),
            bytes: self.bytes,
            checker: self.checker.clone(),
            attempts: self.attempts,
            checks_answered: self.answered,
            next_check_at: self.next_check.map(|at| time.shown(at)),
            lane: self.origin.lane.number,
        }
    }

    fn fits_front(&self, filter: &Filter) -> bool {
        filter.fits_front(self.packs.first().map_or(&[], |pack| &pack.bytes))
    }

    fn packs(&self, sequence: Sequence) -> impl Iterator<Item = Pack> {
        let mut first_index = 0;
        (0..).zip(&self.packs).map(move |(number, Messages { bytes, count, .. })| {
            let last = number as usize + 1 == self.packs.len();
            let pack = Pack {
                sequence,
                id: self.origin.id,
                strand: self.origin.strand,
                number,
                first_index,
                last,
                decided_at: self.decided.as_ref().map(|(at, _)| at.wall),
                retried: false,
                messages: Stored::Sound(bytes.clone()),
            };
            first_index += count;
            pack
        })
    }
}

impl Held {
    fn check_disk(&self) -> Result<(), StoreError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn find(&self, id: TransactionId) -> Option<i64> {
        self.places.get(&id).copied()
    }

    fn row(&mut self, place: i64) -> &mut Row {
        self.rows.get_mut(&place).expect("a place is a row's")
    }

    fn insert(&mut self, row: Row) -> i64 {
        self.last_sequence += 1;
        self.places.insert(row.origin.id, self.last_sequence);
        self.rows.insert(self.last_sequence, row);
        self.last_sequence
    }

    fn namesakes(&self, owned: &Owned, own: Option<TransactionId>) -> Namesakes {
        let mut same = Namesakes::default();
        let others = self.rows.iter().filter(|(_, row)| row.belongs_to(owned) && own != Some(row.origin.id));
        for (place, row) in others {
            match row.state {
                State::Open => same.open = Some(*place),
                State::InDoubt => same.in_doubt = Some(*place),
                State::RolledBack => {}
                State::Committed | State::Delivered | State::DeadLettered => same.committed = Some(*place),
            }
        }
        same
    }

    fn park(&mut self, origin: Origin, batch: Batch, now: Reading) -> Result<(), StoreError> {
        if let Some(error) = self.broken.get(&origin.id) {
            return Err(error.clone());
        }
        let (id, is_one) = (origin.id, origin.named.as_ref().is_none_or(|named| named.transactional));
        let parked = self.check_disk().and_then(|()| self.try_park(origin, batch.into(), now));
        if let Err(error) = &parked
            && is_one
        {
            self.broken.insert(id, error.clone());
        }
        parked
    }

    fn try_park(&mut self, origin: Origin, messages: Messages, now: Reading) -> Result<(), StoreError> {
        let own = self.find(origin.id);
        let Some(named) = origin.named.clone() else {
            return self.park_own(origin, own, messages, now);
        };
        let owned = owned(&origin, &named);
        let same = self.namesakes(&owned, named.transactional.then_some(origin.id));
        if named.transactional
            && let Some(state) = own.map(|own| self.rows[&own].state)
            && state != State::Open
        {
            return Err(conflict(state));
        }
        if same.committed.is_some() {
            return Ok(());
        }
        if same.open.is_some() {
            return Err(StoreError::Locked(named.name.to_string()));
        }
        let into = if named.transactional { own } else { same.in_doubt.or(own) };
        self.park_own(origin, into, messages, now)
    }

    fn park_own(
        &mut self,
        origin: Origin,
        own: Option<i64>,
        messages: Messages,
        now: Reading,
    ) -> Result<(), StoreError> {
        let decides = origin.named.as_ref().is_none_or(|named| named.transactional);
        let place = match own {
            Some(place) => match self.rows[&place].state {
                State::Open => place,
                State::InDoubt if !decides => place,
                state => return Err(conflict(state)),
            },
            None => {
                let mut row = Row::new(origin, State::Open);
                row.parked_at = Some(now.wall);
                row.note(now, "parked", &Actor::Channel, None);
                if !decides {
                    row.doubt(now, "its channel decides nothing");
                }
                self.insert(row)
            }
        };
        self.row(place).add(messages);
        Ok(())
    }

    fn commit(&mut self, commit: Commit, now: Reading) -> Result<Released, StoreError> {
        self.check_disk()?;
        let Commit { origin, batch, parked, forwarded } = commit;
        if let Some(error) = self.broken.get(&origin.id) {
            return Err(error.clone());
        }
        let messages = Messages::from(batch);
        let same = match &origin.named {
            Some(named) => self.namesakes(&owned(&origin, named), Some(origin.id)),
            None => Namesakes::default(),
        };
        let own = self.find(origin.id);
        if let Some(before) = same.committed {
            let by = Actor::Attempt(self.rows[&before].origin.id);
            if let Some(own) = own.filter(|own| self.rows[own].state.may_become(State::RolledBack)) {
                self.row(own).roll_back(now, &by, Some(COMMITTED_BEFORE));
            }
            return Ok((Committing::Before, None));
        }
        let id = origin.id;
        let inline = (!parked).then(|| messages.bytes.clone());
        let own = match own {
            Some(own) => own,
            None if parked => return Err(not_there()),
            None => match same.open {
                Some(_) => {
                    return Err(StoreError::Locked(origin.named.map_or_else(String::new, |n| n.name.to_string())));
                }
                None => {
                    let mut row = Row::new(origin, State::Open);
                    row.parked_at = row.origin.named.is_some().then_some(now.wall);
                    self.insert(row)
                }
            },
        };
        let state = self.rows[&own].state;
        if !state.may_become(State::Committed) {
            let is_same = Decision::Commit.is_of(state) && messages.count == 0;
            return if is_same { Ok((Committing::Before, None)) } else { Err(conflict(state)) };
        }
        if messages.count > 0 {
            self.row(own).add(messages);
        } else if inline.is_some() {
            self.row(own).packs.push(messages);
        }
        let mut committed = self.release(own, now, &Actor::Channel, None);
        if let Some(earlier) = same.in_doubt {
            self.replace(earlier, id, now);
        }
        committed.messages = inline;
        committed.forwarded = forwarded;
        Ok((Committing::Now(committed.sequence), Some(committed)))
    }

    /// Commits: puts the transaction behind all that were committed before it.
    fn release(&mut self, place: i64, now: Reading, actor: &Actor, reason: Option<&str>) -> Committed {
        let mut row = self.rows.remove(&place).expect("a place is a row's");
        row.decide(State::Committed, now, actor, reason);
        let Origin { id, strand, lane, .. } = row.origin.clone();
        let sequence = Sequence(self.insert(row));
        Committed { sequence, id, lane, strand, decided: Instant::now(), messages: None, forwarded: None }
    }

    /// A name has one fate, and it is another attempt's.
    fn replace(&mut self, place: i64, by: TransactionId, now: Reading) {
        self.row(place).roll_back(now, &Actor::Attempt(by), Some(&format!("replaced by attempt {by}")));
    }

    fn rollback(&mut self, id: TransactionId, now: Reading, reason: Option<&str>) -> Result<(), StoreError> {
        let was_broken = self.broken.remove(&id).is_some();
        let Some(place) = self.find(id) else {
            // The first part of it was what failed.
            return if was_broken { Ok(()) } else { Err(not_there()) };
        };
        match self.rows[&place].state {
            State::RolledBack => {}
            state if state.may_become(State::RolledBack) => self.row(place).roll_back(now, &Actor::Channel, reason),
            state => return Err(conflict(state)),
        }
        Ok(())
    }

    fn abandon(&mut self, id: TransactionId, now: Reading) -> Result<(), StoreError> {
        self.check_disk()?;
        if let Some(error) = self.broken.remove(&id) {
            // What lacks a part must not be released by those who can't know it.
            let reason = format!("a part of it was not kept: {error}");
            let _ = self.rollback(id, now, Some(&reason));
            return Ok(());
        }
        let Some(place) = self.find(id).filter(|place| self.rows[place].state == State::Open) else { return Ok(()) };
        let row = &self.rows[&place];
        let Some(named) = row.origin.named.clone() else { return Ok(()) };
        let (messages, same) = (row.messages, self.namesakes(&owned(&row.origin, &named), Some(id)));
        if let Some(before) = same.committed {
            let by = Actor::Attempt(self.rows[&before].origin.id);
            self.row(place).roll_back(now, &by, Some(COMMITTED_BEFORE));
            return Ok(());
        }
        if let Some(earlier) = same.in_doubt {
            let winner = self.rows[&earlier].origin.id;
            if self.rows[&earlier].messages > messages {
                self.replace(place, winner, now);
                return Ok(());
            }
            self.replace(earlier, id, now);
        }
        self.row(place).doubt(now, "its channel ended undecided");
        Ok(())
    }

    fn decide(
        &mut self,
        target: &Target,
        decision: Decision,
        now: Reading,
        actor: &Actor,
        reason: Option<&str>,
    ) -> Result<(Verdict, Option<Committed>), StoreError> {
        self.check_disk()?;
        let found = match target {
            Target::Id(id) => self.find(*id),
            Target::Name(owned) => {
                let same = self.namesakes(owned, None);
                let rolled_back = || {
                    let all = self.rows.iter().filter(|(_, row)| row.belongs_to(owned));
                    all.max_by_key(|(_, row)| row.decided.as_ref().map(|(at, _)| at.count)).map(|(place, _)| *place)
                };
                same.in_doubt.or(same.open).or(same.committed).or_else(rolled_back)
            }
        };
        let Some(place) = found else { return Ok((Verdict::Unknown, None)) };
        let row = &self.rows[&place];
        let id = row.origin.id;
        if !row.state.may_become(decision.state()) {
            let is_same = decision.is_of(row.state);
            let verdict = if is_same { Verdict::Before } else { Verdict::Contradicted };
            return Ok((verdict(row.fate()), None));
        }
        if decision == Decision::RollBack {
            self.row(place).roll_back(now, actor, reason);
            return Ok((Verdict::Decided(self.rows[&place].fate()), None));
        }
        if let Some(error) = self.broken.get(&id) {
            return Err(error.clone());
        }
        let Some(named) = row.origin.named.clone() else {
            return Err(StoreError::Conflict("open and has no name: only its channel can commit it".into()));
        };
        let same = self.namesakes(&owned(&row.origin, &named), Some(id));
        if let Some(before) = same.committed {
            let fate = self.rows[&before].fate();
            self.row(place).roll_back(now, &Actor::Attempt(fate.id), Some(COMMITTED_BEFORE));
            return Ok((Verdict::Before(fate), None));
        }
        let committed = self.release(place, now, actor, reason);
        if let Some(earlier) = same.in_doubt {
            self.replace(earlier, id, now);
        }
        Ok((Verdict::Decided(self.rows[&committed.sequence.0].fate()), Some(committed)))
    }

    fn in_doubt(&mut self, id: TransactionId) -> Option<&mut Row> {
        let place = self.find(id)?;
        Some(self.row(place)).filter(|row| row.state == State::InDoubt)
    }

    fn checked(&mut self, id: TransactionId, check: Check, now: Reading) -> bool {
        let again = check.again_after.map(|pause| now.count.after(pause));
        let Some(row) = self.in_doubt(id) else { return false };
        row.attempts += 1;
        row.answered += u32::from(check.counted);
        row.next_check = again;
        let actor = Actor::Checker(check.checker);
        let last = row.history.iter().rfind(|event| event.event == "check");
        let was_said = last.is_some_and(|last| {
            last.actor == actor.to_string() && last.reason.as_deref() == Some(check.result.as_str())
        });
        if check.answered || !was_said {
            row.note(now, "check", &actor, Some(&check.result));
        }
        true
    }

    fn check_now(&mut self, id: TransactionId, checker: Option<Arc<str>>) -> bool {
        let moment = self.time.now();
        let Some(row) = self.in_doubt(id) else { return false };
        row.checker = checker.or(row.checker.take());
        if row.checker.is_some() {
            row.next_check = Some(moment);
        }
        row.checker.is_some()
    }

    fn due(&self, checker: &str, after: &str, limit: usize) -> DueNow {
        let now = self.time.now();
        let of_checker = self.rows.values().filter(|row| row.state == State::InDoubt);
        let of_checker = of_checker.filter(|row| row.checker.as_deref() == Some(checker));
        let mut scheduled: Vec<_> = of_checker
            .filter_map(|row| {
                let (user, attempts, answered) = (Arc::clone(&row.origin.user), row.attempts, row.answered);
                Some((row.next_check?, Due { id: row.origin.id, user, attempts, answered }))
            })
            .collect();
        scheduled.sort_by_key(|(at, _)| *at);
        let later = scheduled.split_off(scheduled.partition_point(|(at, _)| *at <= now));
        let mut turns: HashMap<Arc<str>, u32> = HashMap::new();
        let mut due: Vec<_> = scheduled
            .into_iter()
            .map(|(_, due)| {
                let turn = turns.entry(Arc::clone(&due.user)).or_default();
                *turn += 1;
                (*turn, due)
            })
            .collect();
        due.sort_by_key(|(turn, due)| (*turn, *due.user <= *after, Arc::clone(&due.user)));
        let next = if due.len() > limit { Some(now) } else { later.first().map(|(at, _)| *at) };
        due.truncate(limit);
        DueNow { due: due.into_iter().map(|(_, due)| due).collect(), next: next.map(|at| at.since(now)) }
    }

    fn list(&self, after: i64, limit: usize, fits: impl Fn(&Row) -> bool) -> Listing<Summary> {
        let fitting = self.rows.range(after.saturating_add(1)..).filter(|(_, row)| fits(row)).take(limit.max(1));
        let found: Vec<_> = fitting.map(|(place, row)| (*place, row.summary(&self.time))).collect();
        let next = found.last().filter(|_| found.len() >= limit.max(1)).map(|(place, _)| *place);
        Listing { items: found.into_iter().map(|(_, summary)| summary).collect(), next }
    }

    fn messages(&self, id: TransactionId, from: u32, bytes_max: usize) -> Vec<Pack> {
        let Some(place) = self.find(id) else { return Vec::new() };
        until(bytes_max, self.rows[&place].packs(Sequence(place)).filter(|pack| pack.number >= from))
    }

    fn delivered(&mut self, sequence: Sequence, now: Reading) {
        self.asides.remove(&sequence);
        self.retry_delivered(sequence, now);
        let is_dead = self.is_dead(sequence);
        let Some(row) = self.rows.get_mut(&sequence.0).filter(|row| row.state == State::Committed) else { return };
        if row.parked_at.is_none() && !is_dead {
            self.places.remove(&row.origin.id);
            self.rows.remove(&sequence.0);
            return;
        }
        row.state = if is_dead { State::DeadLettered } else { State::Delivered };
        row.packs.clear();
        row.note(now, row.state.as_str(), &Actor::Relay, None);
    }

    fn committed(&self) -> impl Iterator<Item = (Sequence, &Row)> {
        let committed = self.rows.iter().filter(|(_, row)| row.state == State::Committed);
        committed.map(|(place, row)| (Sequence(*place), row))
    }

    /// Where a transaction of this lane waits.
    fn way(&self, lane: &Lane, strand: Strand, sequence: Sequence) -> Lane {
        Lane { aside: self.asides.contains(&sequence).then_some(strand), ..lane.clone() }
    }

    fn page(&self, lane: &Lane, after: Option<Cursor>, bytes_max: usize) -> Vec<Pack> {
        let way = |sequence, origin: &Origin| self.way(&origin.lane, origin.strand, sequence);
        let of_lane = self.committed().filter(|(sequence, row)| way(*sequence, &row.origin) == *lane);
        let packs = of_lane.flat_map(|(sequence, row)| row.packs(sequence));
        let retries = self.retries().filter(|(of, _)| of == lane).map(|(_, pack)| pack);
        let is_behind =
            |pack: &Pack| after.is_none_or(|after| Cursor { sequence: pack.sequence, pack: pack.number } > after);
        let mut packs: Vec<_> = packs.chain(retries).filter(is_behind).collect();
        packs.sort_by_key(|pack| (pack.sequence, pack.number));
        until(bytes_max, packs.into_iter())
    }
}

/// Packs until they add up to `bytes_max`, one at least.
fn until(bytes_max: usize, packs: impl Iterator<Item = Pack>) -> Vec<Pack> {
    let mut bytes = 0;
    packs
        .take_while(|pack| {
            let has_room = bytes < bytes_max || bytes == 0;
            bytes += pack.messages.bytes().len();
            has_room
        })
        .collect()
}

fn owned(origin: &Origin, named: &Named) -> Owned {
    Owned { vhost: Arc::clone(&origin.lane.vhost), user: Arc::clone(&origin.user), name: named.name.clone() }
}

fn conflict(state: State) -> StoreError {
    StoreError::Conflict(state.to_string())
}

impl Store for MemoryStore {
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

    fn due(&self, checker: &str, after: &str, limit: usize) -> Reply<DueNow> {
        answered(Ok(self.held().due(checker, after, limit)))
    }

    fn checked(&self, id: TransactionId, check: Check) -> Reply<bool> {
        let mut held = self.held();
        answered(held.check_disk().map(|()| held.checked(id, check, self.now())))
    }

    fn check_now(&self, id: TransactionId, checker: Option<Arc<str>>) -> Reply<bool> {
        let mut held = self.held();
        answered(held.check_disk().map(|()| held.check_now(id, checker)))
    }

    fn unasked(&self, known: Vec<Arc<str>>, after: i64, limit: usize) -> Reply<Listing<Summary>> {
        answered(Ok(self.held().list(after, limit, |row| {
            row.state == State::InDoubt && row.checker.as_ref().is_none_or(|checker| !known.contains(checker))
        })))
    }

    fn transaction(&self, id: TransactionId) -> Reply<Option<(Summary, Vec<Event>)>> {
        let held = self.held();
        let row = held.find(id).map(|place| &held.rows[&place]);
        answered(Ok(row.map(|row| (row.summary(&held.time), row.history.clone()))))
    }

    fn transactions(&self, filter: Filter, after: i64, limit: usize) -> Reply<Listing<Summary>> {
        let held = self.held();
        let fits = |row: &Row| filter.fits(&row.summary(&held.time)) && row.fits_front(&filter);
        answered(Ok(held.list(after, limit, fits)))
    }

    fn messages(&self, id: TransactionId, from: u32, bytes_max: usize) -> Reply<Vec<Pack>> {
        answered(Ok(self.held().messages(id, from, bytes_max)))
    }

    fn delivered(&self, transactions: Vec<Sequence>) {
        let mut held = self.held();
        transactions.into_iter().for_each(|sequence| held.delivered(sequence, self.now()));
    }

    fn dead_letter(&self, letter: DeadLetter) -> Reply<()> {
        answered(self.held().dead_letter(letter, self.now()))
    }

    fn dead_letters(&self, filter: LetterFilter, after: i64, limit: usize) -> Reply<Listing<Letter>> {
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

    fn step_aside(&self, _: &Lane, transactions: Vec<Sequence>) -> Reply<()> {
        self.held().asides.extend(transactions);
        answered(Ok(()))
    }

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
