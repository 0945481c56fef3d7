//! A store that keeps its contract in memory: what is called takes effect at once, is durable at the next sync, and is
//! answered behind it. A crash forgets what was not synced.

use pure::protocol::command::Ticket;
use pure::tx::checker::Named;
use pure::tx::decision::{Decision, Fate, Verdict};
use pure::tx::id::{Timestamp, TransactionId};
use pure::tx::name::TransactionName;
use pure::tx::outcome::StoreError;
use pure::tx::state::State;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: Option<TransactionName>,
    /// The channel that published: its messages keep their order.
    pub(crate) lane: usize,
    pub(crate) state: State,
    pub(crate) messages: Vec<String>,
    /// A part of it could not be kept.
    broken: bool,
    /// The place in the order of commits.
    pub(crate) sequence: u64,
    pub(crate) in_doubt_at: i64,
    pub(crate) next_check_at: i64,
    pub(crate) answered: u32,
    pub(crate) attempts: u32,
    first_after: i64,
}

/// What a session is told when it is durable.
pub(crate) enum Answer {
    Parked(u16, TransactionId, Result<(), StoreError>),
    Committed(u16, TransactionId, Result<bool, StoreError>),
    RolledBack(u16, TransactionId),
    Decided(u16, Ticket, TransactionName, Result<Verdict, StoreError>),
}

#[derive(Default)]
pub(crate) struct Store {
    rows: BTreeMap<TransactionId, Row>,
    /// What a crash leaves.
    pub(crate) disk: BTreeMap<TransactionId, Row>,
    sequence: u64,
    answers: Vec<(u64, Answer)>,
    /// Every write fails.
    pub(crate) failing: bool,
    pub(crate) now: i64,
}

fn undecided(state: State) -> bool {
    matches!(state, State::Open | State::InDoubt)
}

impl Store {
    pub(crate) fn answer(&mut self, session: u64, answer: Answer) {
        self.answers.push((session, answer));
    }

    fn row(&mut self, id: TransactionId, lane: usize, named: Option<&Arc<Named>>) -> &mut Row {
        let now = self.now;
        self.rows.entry(id).or_insert_with(|| {
            let plan = named.and_then(|named| named.check.as_ref());
            let first_after = plan.map_or(0, |plan| plan.first_after.as_millis() as i64);
            let in_doubt = named.is_some_and(|named| !named.transactional);
            Row {
                name: named.map(|named| named.name.clone()),
                lane,
                state: if in_doubt { State::InDoubt } else { State::Open },
                messages: Vec::new(),
                broken: false,
                sequence: 0,
                in_doubt_at: now,
                next_check_at: now + first_after,
                answered: 0,
                attempts: 0,
                first_after,
            }
        })
    }

    pub(crate) fn park(
        &mut self,
        id: TransactionId,
        lane: usize,
        named: Option<&Arc<Named>>,
        messages: Vec<String>,
    ) -> Result<(), StoreError> {
        let failing = self.failing;
        // Outside transactional channels, messages join what is in doubt under their name.
        let joined = named.filter(|named| !named.transactional).and_then(|named| {
            let same = |(_, row): &(&TransactionId, &Row)| row.name.as_ref() == Some(&named.name);
            self.rows.iter().find(same).map(|(id, _)| *id)
        });
        if failing && named.is_some_and(|named| !named.transactional) {
            return Err(StoreError::Io("input/output error".into()));
        }
        let row = self.row(joined.unwrap_or(id), lane, named);
        row.broken |= failing;
        match row.state {
            _ if row.broken => Err(StoreError::Io("input/output error".into())),
            State::Open | State::InDoubt => {
                row.messages.extend(messages);
                Ok(())
            }
            State::RolledBack => Err(StoreError::Conflict(row.state.to_string())),
            _ => Ok(()),
        }
    }

    pub(crate) fn commit(
        &mut self,
        id: TransactionId,
        lane: usize,
        named: Option<&Arc<Named>>,
        messages: Vec<String>,
    ) -> Result<bool, StoreError> {
        if self.failing {
            return Err(StoreError::Full("disk full".into()));
        }
        self.sequence += 1;
        let sequence = self.sequence;
        let row = self.row(id, lane, named);
        match row.state {
            _ if row.broken => Err(StoreError::Io("input/output error".into())),
            State::Open => {
                row.messages.extend(messages);
                (row.state, row.sequence) = (State::Committed, sequence);
                Ok(true)
            }
            state => Err(StoreError::Conflict(state.to_string())),
        }
    }

    pub(crate) fn rollback(&mut self, id: TransactionId) {
        if let Some(row) = self.rows.get_mut(&id).filter(|row| undecided(row.state)) {
            row.state = State::RolledBack;
        }
    }

    pub(crate) fn abandon(&mut self, id: TransactionId) {
        let now = self.now;
        let Some(row) = self.rows.get_mut(&id).filter(|row| row.state == State::Open) else { return };
        row.state = if row.broken { State::RolledBack } else { State::InDoubt };
        (row.in_doubt_at, row.next_check_at) = (now, now + row.first_after);
    }

    pub(crate) fn decide(&mut self, name: &TransactionName, decision: Decision) -> Result<Verdict, StoreError> {
        if self.failing {
            return Err(StoreError::Io("input/output error".into()));
        }
        self.sequence += 1;
        let found = self.rows.iter_mut().find(|(_, row)| row.name.as_ref() == Some(name));
        let Some((id, row)) = found else { return Ok(Verdict::Unknown) };
        let before = row.state;
        if row.state == State::InDoubt {
            (row.state, row.sequence) = (decision.state(), self.sequence);
        }
        let fate = Fate { id: *id, state: row.state, decided_at: Timestamp(self.now), decided_by: "test".into() };
        Ok(match before {
            State::InDoubt => Verdict::Decided(fate),
            state if decision.is_of(state) => Verdict::Before(fate),
            _ => Verdict::Contradicted(fate),
        })
    }

    /// Writes down a check that decided nothing.
    pub(crate) fn checked(&mut self, id: TransactionId, counted: bool, next_check_at: i64) {
        if let Some(row) = self.rows.get_mut(&id).filter(|row| row.state == State::InDoubt) {
            row.attempts += 1;
            row.answered += u32::from(counted);
            row.next_check_at = next_check_at;
        }
    }

    pub(crate) fn delivered(&mut self, id: TransactionId) {
        if let Some(row) = self.rows.get_mut(&id) {
            row.state = State::Delivered;
        }
    }

    /// Makes durable what was called, and gives back whom to answer.
    pub(crate) fn sync(&mut self) -> Vec<(u64, Answer)> {
        for (id, before) in &self.disk {
            let (before, after) = (before.state, self.rows[id].state);
            assert!(undecided(before) || before == after || before.may_become(after), "{id}: {before}, then {after}");
        }
        self.disk.clone_from(&self.rows);
        std::mem::take(&mut self.answers)
    }

    /// The process ends and starts again.
    pub(crate) fn crash(&mut self) {
        self.rows.clone_from(&self.disk);
        self.answers.clear();
        for id in self.rows.keys().copied().collect::<Vec<_>>() {
            match self.rows[&id].name {
                Some(_) => self.abandon(id),
                None => self.rollback(id),
            }
        }
        self.sync();
    }

    /// Those in doubt that may be asked about.
    pub(crate) fn due(&self) -> Vec<TransactionId> {
        let is_due = |row: &Row| row.state == State::InDoubt && row.next_check_at <= self.now;
        self.rows.iter().filter(|(_, row)| is_due(row)).map(|(id, _)| *id).collect()
    }

    /// Whether anything of this lane is committed, and not delivered.
    pub(crate) fn has_backlog(&self, lane: usize) -> bool {
        self.rows.values().any(|row| row.lane == lane && row.state == State::Committed)
    }

    /// The next place in the order of commits.
    pub(crate) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(crate) fn get(&self, id: TransactionId) -> &Row {
        &self.rows[&id]
    }

    /// What is committed on disk and not delivered, in its order.
    pub(crate) fn backlog(&self) -> Vec<TransactionId> {
        let mut found: Vec<_> = self.disk.iter().filter(|(_, row)| row.state == State::Committed).collect();
        found.sort_by_key(|(_, row)| row.sequence);
        found.into_iter().map(|(id, _)| *id).collect()
    }
}
