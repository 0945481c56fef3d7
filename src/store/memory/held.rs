//! What is held, and what becomes of it.

use super::letters::Kept;
use super::row::Row;
use crate::store::clock::{Reading, Time};
use crate::store::{
    Bookmark, COMMITTED_BEFORE, Check, Commit, Committed, Committing, Cursor, Due, DueNow, Lane, Listing, Messages,
    Named, Origin, Pack, Sequence, StoreError, Strand, Summary,
};
use crate::tx::batch::Batch;
use crate::tx::decision::{Actor, Decision, Owned, Target, Verdict};
use crate::tx::id::TransactionId;
use crate::tx::state::State;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

pub(super) struct Held {
    pub(super) time: Time,
    pub(super) last_sequence: i64,
    pub(super) rows: BTreeMap<i64, Row>,
    /// Where each transaction stands among the rows.
    pub(super) places: HashMap<TransactionId, i64>,
    pub(super) letters: Vec<Kept>,
    pub(super) last_letter: i64,
    /// Transactions that wait beside their lane.
    pub(super) asides: HashSet<Sequence>,
    /// Undecided transactions of which a part could not be kept, and why.
    pub(super) broken: HashMap<TransactionId, StoreError>,
    pub(super) failure: Option<StoreError>,
}

/// The attempts under one name that are not rolled back, but for one's own.
#[derive(Default)]
pub(super) struct Namesakes {
    open: Option<i64>,
    in_doubt: Option<i64>,
    committed: Option<i64>,
}

/// Whether it was committed, and what of it is to be handed on.
pub(super) type Released = (Committing, Option<Committed>);

impl Held {
    pub(super) fn new(time: Time) -> Self {
        Self {
            time,
            last_sequence: 0,
            rows: BTreeMap::new(),
            places: HashMap::new(),
            letters: Vec::new(),
            last_letter: 0,
            asides: HashSet::new(),
            broken: HashMap::new(),
            failure: None,
        }
    }

    pub(super) fn check_disk(&self) -> Result<(), StoreError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    pub(super) fn find(&self, id: TransactionId) -> Option<i64> {
        self.places.get(&id).copied()
    }

    pub(super) fn row(&mut self, place: i64) -> &mut Row {
        self.rows.get_mut(&place).expect("a place is a row's")
    }

    pub(super) fn insert(&mut self, row: Row) -> i64 {
        self.last_sequence += 1;
        self.places.insert(row.origin.id, self.last_sequence);
        self.rows.insert(self.last_sequence, row);
        self.last_sequence
    }

    pub(super) fn namesakes(&self, owned: &Owned, own: Option<TransactionId>) -> Namesakes {
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

    pub(super) fn park(&mut self, origin: Origin, batch: Batch, now: Reading) -> Result<(), StoreError> {
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

    pub(super) fn try_park(&mut self, origin: Origin, messages: Messages, now: Reading) -> Result<(), StoreError> {
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

    pub(super) fn park_own(
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

    pub(super) fn commit(&mut self, commit: Commit, now: Reading) -> Result<Released, StoreError> {
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
    pub(super) fn release(&mut self, place: i64, now: Reading, actor: &Actor, reason: Option<&str>) -> Committed {
        let mut row = self.rows.remove(&place).expect("a place is a row's");
        row.decide(State::Committed, now, actor, reason);
        let Origin { id, strand, lane, .. } = row.origin.clone();
        let sequence = Sequence(self.insert(row));
        Committed { sequence, id, lane, strand, decided: Instant::now(), messages: None, forwarded: None }
    }

    /// A name has one fate, and it is another attempt's.
    pub(super) fn replace(&mut self, place: i64, by: TransactionId, now: Reading) {
        self.row(place).roll_back(now, &Actor::Attempt(by), Some(&format!("replaced by attempt {by}")));
    }

    pub(super) fn rollback(&mut self, id: TransactionId, now: Reading, reason: Option<&str>) -> Result<(), StoreError> {
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

    pub(super) fn abandon(&mut self, id: TransactionId, now: Reading) -> Result<(), StoreError> {
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

    pub(super) fn decide(
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

    pub(super) fn in_doubt(&mut self, id: TransactionId) -> Option<&mut Row> {
        let place = self.find(id)?;
        Some(self.row(place)).filter(|row| row.state == State::InDoubt)
    }

    pub(super) fn checked(&mut self, id: TransactionId, check: Check, now: Reading) -> bool {
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

    pub(super) fn check_now(&mut self, id: TransactionId, checker: Option<Arc<str>>) -> bool {
        let moment = self.time.now();
        let Some(row) = self.in_doubt(id) else { return false };
        row.checker = checker.or(row.checker.take());
        if row.checker.is_some() {
            row.next_check = Some(moment);
        }
        row.checker.is_some()
    }

    pub(super) fn due(&self, checker: &str, after: &str, limit: usize) -> DueNow {
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

    pub(super) fn list(&self, after: Bookmark, limit: usize, fits: impl Fn(&Row) -> bool) -> Listing<Summary> {
        let fitting = self.rows.range(after.0.saturating_add(1)..).filter(|(_, row)| fits(row)).take(limit.max(1));
        let found: Vec<_> = fitting.map(|(place, row)| (*place, row.summary(&self.time))).collect();
        let next = found.last().filter(|_| found.len() >= limit.max(1)).map(|(place, _)| Bookmark(*place));
        Listing { items: found.into_iter().map(|(_, summary)| summary).collect(), next }
    }

    pub(super) fn messages(&self, id: TransactionId, from: u32, bytes_max: usize) -> Vec<Pack> {
        let Some(place) = self.find(id) else { return Vec::new() };
        until(bytes_max, self.rows[&place].packs(Sequence(place)).filter(|pack| pack.number >= from))
    }

    pub(super) fn delivered(&mut self, sequence: Sequence, now: Reading) {
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

    pub(super) fn committed(&self) -> impl Iterator<Item = (Sequence, &Row)> {
        let committed = self.rows.iter().filter(|(_, row)| row.state == State::Committed);
        committed.map(|(place, row)| (Sequence(*place), row))
    }

    /// Where a transaction of this lane waits.
    pub(super) fn way(&self, lane: &Lane, strand: Strand, sequence: Sequence) -> Lane {
        Lane { aside: self.asides.contains(&sequence).then_some(strand), ..lane.clone() }
    }

    pub(super) fn page(&self, lane: &Lane, after: Option<Cursor>, bytes_max: usize) -> Vec<Pack> {
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
pub(super) fn until(bytes_max: usize, packs: impl Iterator<Item = Pack>) -> Vec<Pack> {
    let mut bytes = 0;
    packs
        .take_while(|pack| {
            let has_room = bytes < bytes_max || bytes == 0;
            bytes += pack.messages.bytes().len();
            has_room
        })
        .collect()
}

pub(super) fn owned(origin: &Origin, named: &Named) -> Owned {
    Owned { vhost: Arc::clone(&origin.lane.vhost), user: Arc::clone(&origin.user), name: named.name.clone() }
}

pub(super) fn conflict(state: State) -> StoreError {
    StoreError::Conflict(state.to_string())
}

pub(super) fn not_there() -> StoreError {
    StoreError::Conflict("not there".into())
}
