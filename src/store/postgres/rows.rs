//! The rows that make a transaction, and the statements that change them. The only home of SQL that writes, but for the
//! purge. The rules are those of `sqlite/rows.rs`.

use super::book::{Book, Me};
use super::plain::Plain;
use super::row::{ROW_COLUMNS, Row};
use super::sql::{Failed, Sql, Words, number, words};
use crate::store::clock::{Moment, Time};
use crate::store::request::{Outcome, Released};
use crate::store::shares::{self, ROW_BYTES};
use crate::store::stats::Tally;
use crate::store::{Lane, Messages, Origin, Sequence, StoreError};
use crate::tx::decision::{Actor, Decision};
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::state::State;
use std::sync::LazyLock;
use std::time::Duration;

/// The most that is kept in one value: PostgreSQL takes a message of 1 GiB, and copies it a few times.
const BODY_BYTES_MAX: usize = 512 << 20;

/// Pieces of one transaction.
const PACKS_MAX: u32 = 1 << 20;

/// Messages of a finished transaction that are deleted at once, if they are no more, and no more bytes than...
const DISCARDED_MESSAGES: u32 = 64;

/// ... these: what is deleted at once holds up everybody's commits.
const DISCARDED_BYTES: i64 = 64 * 1024;

/// Lanes that are made for what stepped aside before those of them are deleted that are empty.
const ASIDES_MAX: usize = 10_000;

/// One group being written.
pub(super) struct Rows<'a> {
    pub(super) sql: &'a Sql,
    pub(super) book: &'a mut Book,
    pub(super) me: &'a Me,
    /// For people.
    pub(super) now: Timestamp,
    /// For what is waited for.
    pub(super) moment: Moment,
    pub(super) tally: Tally,
    pub(super) plain: Plain,
}

impl<'a> Rows<'a> {
    pub(super) fn new(sql: &'a Sql, book: &'a mut Book, me: &'a Me, time: &Time) -> Self {
        let read = time.read();
        let (now, moment) = (read.wall, read.count);
        Self { sql, book, me, now, moment, tally: Tally::default(), plain: Plain::new(now) }
    }

    /// A row takes, or gives back, so much of its user's share.
    fn takes(&mut self, user: &str, bytes: i64) {
        shares::add(&mut self.tally.shares, user, bytes);
    }

    pub(super) fn park(&mut self, origin: &Origin, messages: &Messages) -> Result<Outcome, Failed> {
        if messages.bytes.len() > BODY_BYTES_MAX {
            return Ok(Outcome::Refused(too_large()));
        }
        if let Some(named) = &origin.named {
            return self.park_named(origin, named, messages);
        }
        match self.find(origin.id)? {
            None => self.park_first(origin, State::Open, messages),
            Some(row) if row.state == State::Open => self.park_more(&row, messages),
            Some(row) => Ok(Outcome::Refused(conflict(row.state))),
        }
    }

    /// Makes the transaction.
    pub(super) fn park_first(&mut self, origin: &Origin, state: State, messages: &Messages) -> Result<Outcome, Failed> {
        let number = self.me.sequence();
        let lane = self.lane(&origin.lane)?;
        let named = origin.named.as_deref();
        let check = named.and_then(|named| named.check.as_ref());
        let first_after = check.map(|plan| milliseconds(plan.first_after));
        let doubts = state == State::InDoubt;
        // Before its messages: what they are compared with stands under its number.
        let messages = match named {
            Some(_) => self.without_duplicates(number, messages)?,
            None => messages.clone(),
        };
        let name = named.map(|named| Words(named.name.as_str()));
        let checker = check.map(|plan| Words(&plan.checker));
        let next_check_at = first_after.filter(|_| doubts).map(|after| self.moment.0.saturating_add(after));
        let made = self.sql.execute(
            "INSERT INTO transactions (sequence, id, state, lane, \"user\", created_at, parked_at, messages, bytes, number,
                 packs, name, checker, first_after, in_doubt_at, next_check_at, strand)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $1, 1, $10, $11, $12, $13, $14, $15)
             ON CONFLICT (id) WHERE parked_at IS NOT NULL DO NOTHING",
            &[
                &number,
                &origin.id.0,
                &state.as_str(),
                &lane,
                &Words(&origin.user),
                &origin.created_at.0,
                &self.now.0,
                &i64::from(messages.count),
                &(messages.bytes.len() as i64),
                &name,
                &checker,
                &first_after,
                &doubts.then_some(self.now.0),
                &next_check_at,
                &i64::from(origin.strand.0),
            ],
        )?;
        if made == 0 {
            self.forget_message_ids(number)?;
            let state = self.find(origin.id)?.map(|row| row.state).expect("what is in the way is there");
            return Ok(Outcome::Refused(conflict(state)));
        }
        self.pack(number, 0, 0, &messages)?;
        self.takes(&origin.user, messages.bytes.len() as i64 + ROW_BYTES);
        if named.is_none() {
            return Ok(Outcome::Done);
        }
        self.tally.moved(None, state);
        Ok(Outcome::Parked(origin.id, messages.bytes))
    }

    pub(super) fn park_more(&mut self, row: &Row, messages: &Messages) -> Result<Outcome, Failed> {
        // Less the one that the decision may add.
        if row.packs >= PACKS_MAX - 1 {
            return Ok(Outcome::Refused(too_large()));
        }
        let messages = match row.name {
            Some(_) => self.without_duplicates(row.number, messages)?,
            None => messages.clone(),
        };
        if messages.count > 0 {
            let bytes = messages.bytes.len() as i64;
            self.sql.execute(
                "UPDATE transactions SET packs = packs + 1, messages = messages + $2, bytes = bytes + $3
                 WHERE sequence = $1",
                &[&row.sequence, &i64::from(messages.count), &bytes],
            )?;
            self.pack(row.number, row.packs, row.messages, &messages)?;
            self.takes(&row.user, bytes);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn commit(&mut self, origin: &Origin, messages: &Messages, parked: bool) -> Result<Outcome, Failed> {
        if messages.bytes.len() > BODY_BYTES_MAX {
            return Ok(Outcome::Refused(too_large()));
        }
        match &origin.named {
            Some(named) if parked || messages.count > 0 => self.commit_named(origin, named, messages, parked),
            _ if !parked => self.commit_plain(origin, messages),
            _ => match self.find(origin.id)? {
                Some(row) => self.commit_own(&row, messages),
                None => Ok(Outcome::NotThere),
            },
        }
    }

    fn commit_plain(&mut self, origin: &Origin, messages: &Messages) -> Result<Outcome, Failed> {
        let (sequence, lane) = (self.me.sequence(), self.lane(&origin.lane)?);
        self.plain.add(sequence, lane, origin, messages);
        self.takes(&origin.user, messages.bytes.len() as i64 + ROW_BYTES);
        let Origin { id, strand, .. } = *origin;
        let sequence = Sequence(sequence);
        Ok(Outcome::Committed(Released { sequence, id, lane: origin.lane.clone(), strand, packs: 0 }))
    }

    /// Commits on behalf of the channel that published.
    pub(super) fn commit_own(&mut self, row: &Row, messages: &Messages) -> Result<Outcome, Failed> {
        if row.state.may_become(State::Committed) {
            return Ok(Outcome::Committed(self.commit_row(row, messages, &Actor::Channel, None)?));
        }
        // An equal decision changes nothing; one that brings messages is not equal, and saying yes would lose them.
        if Decision::Commit.is_of(row.state) && messages.count == 0 {
            return Ok(Outcome::CommittedBefore);
        }
        Ok(Outcome::Refused(conflict(row.state)))
    }

    /// The new sequence puts the transaction behind all that were committed before it, however long it was parked.
    pub(super) fn commit_row(
        &mut self,
        row: &Row,
        messages: &Messages,
        actor: &Actor,
        reason: Option<&str>,
    ) -> Result<Released, Failed> {
        static COMMIT: LazyLock<String> = LazyLock::new(|| {
            format!(
                "UPDATE transactions SET sequence = $1, state = '{committed}', decided_at = $2, decided_by = $3,
                     packs = packs + $4, messages = messages + $5, bytes = bytes + $6, next_check_at = NULL,
                     attempts = attempts + $7, checks_answered = checks_answered + $7
                 WHERE sequence = $8 AND state IN ({from})",
                committed = State::Committed,
                from = states_before(State::Committed),
            )
        });
        let messages = match row.name {
            Some(_) if messages.count > 0 => self.without_duplicates(row.number, messages)?,
            _ => messages.clone(),
        };
        let more = u32::from(messages.count > 0);
        let (sequence, bytes) = (self.me.sequence(), messages.bytes.len() as i64);
        let changed = self.sql.execute(
            &COMMIT,
            &[
                &sequence,
                &self.now.0,
                &Words(&actor.to_string()),
                &i64::from(more),
                &i64::from(messages.count),
                &bytes,
                &i64::from(actor.answers()),
                &row.sequence,
            ],
        )?;
        decided_once(changed)?;
        if more > 0 {
            self.pack(row.number, row.packs, row.messages, &messages)?;
        }
        self.takes(&row.user, bytes);
        self.left(row, State::Committed, actor);
        self.note_commit(row.id, actor, reason)?;
        let sequence = Sequence(sequence);
        Ok(Released { sequence, id: row.id, lane: row.lane.clone(), strand: row.strand, packs: row.packs + more })
    }

    pub(super) fn rollback(&mut self, id: TransactionId, reason: Option<&str>) -> Result<Outcome, Failed> {
        Ok(match self.find(id)? {
            None => Outcome::NotThere,
            Some(row) if row.state.may_become(State::RolledBack) => {
                self.roll_back_row(&row, &Actor::Channel, reason)?;
                Outcome::Done
            }
            Some(row) if row.state == State::RolledBack => Outcome::Done,
            Some(row) => Outcome::Refused(conflict(row.state)),
        })
    }

    pub(super) fn roll_back_row(&mut self, row: &Row, actor: &Actor, reason: Option<&str>) -> Result<(), Failed> {
        static ROLLBACK: LazyLock<String> = LazyLock::new(|| {
            format!(
                "UPDATE transactions SET state = '{rolled_back}', decided_at = $1, decided_by = $2, finished = $3,
                     next_check_at = NULL, attempts = attempts + $4, checks_answered = checks_answered + $4
                 WHERE sequence = $5 AND state IN ({from})",
                rolled_back = State::RolledBack,
                from = states_before(State::RolledBack),
            )
        });
        let (by, answers) = (actor.to_string(), i64::from(actor.answers()));
        let changed =
            self.sql.execute(&ROLLBACK, &[&self.now.0, &Words(&by), &self.moment.0, &answers, &row.sequence])?;
        decided_once(changed)?;
        self.takes(&row.user, -row.bytes - ROW_BYTES);
        self.left(row, State::RolledBack, actor);
        self.discard(row)?;
        self.note(row.id, State::RolledBack.as_str(), actor, reason)
    }

    fn left(&mut self, row: &Row, next: State, actor: &Actor) {
        if row.name.is_none() {
            return;
        }
        self.tally.moved(Some(row.state), next);
        self.tally.decisions[actor.kind()] += 1;
        if let (State::InDoubt, Some(since)) = (row.state, row.in_doubt_at) {
            // A clock that was set back makes no doubt shorter than none.
            let age = self.now.0.saturating_sub(since).max(0);
            self.tally.doubts.push(Duration::from_millis(age.unsigned_abs()));
        }
    }

    /// RabbitMQ has these, or a dead letter keeps what it has not. Plain ones leave; the others stay for their history.
    /// Says how many are no longer in the backlog.
    pub(super) fn forget(&mut self, delivered: &[i64]) -> Result<u64, Failed> {
        let left = self.sql.query(
            "WITH gone AS (
                 DELETE FROM transactions WHERE sequence = ANY($1) AND state = 'committed' AND packs = 0 AND letters = 0
                 RETURNING \"user\", bytes)
             SELECT \"user\", sum(bytes)::bigint, count(*) FROM gone GROUP BY \"user\"",
            &[&delivered],
        )?;
        let mut gone = 0;
        for row in &left {
            let (bytes, rows): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
            self.takes(&words(row, 0)?, -bytes - rows * ROW_BYTES);
            gone += rows.unsigned_abs();
        }
        let kept = if gone < delivered.len() as u64 { self.forget_kept(delivered)? } else { 0 };
        Ok(gone + kept)
    }

    fn forget_kept(&mut self, delivered: &[i64]) -> Result<u64, Failed> {
        static KEPT: LazyLock<String> = LazyLock::new(|| {
            format!(
                "SELECT {ROW_COLUMNS}, t.letters, t.parked_at IS NOT NULL FROM transactions AS t JOIN lanes AS l USING (lane)
                 WHERE t.sequence = ANY($1) AND t.state = 'committed' ORDER BY t.sequence"
            )
        });
        let kept = self.sql.query(&KEPT, &[&delivered])?;
        for found in &kept {
            let (row, letters, was_parked): (_, u32, bool) =
                (Row::read(found)?, number(found, 16)?, found.try_get(17)?);
            // What has packs and was never parked brings a letter once more.
            if row.packs > 0 && !was_parked && self.retry_delivered(&row)? {
                continue;
            }
            if row.packs == 0 || was_parked {
                self.takes(&row.user, -row.bytes - ROW_BYTES);
            }
            let state = if letters == 0 { State::Delivered } else { State::DeadLettered };
            let is_finished = state == State::Delivered;
            let [settled_at, finished] = [self.now.0, self.moment.0].map(|at| is_finished.then_some(at));
            let lane = self.lane(&row.lane)?;
            self.sql.execute(
                "UPDATE transactions SET state = $2, body = NULL, settled_at = $3, finished = $4, lane = $5
                 WHERE sequence = $1 AND state = 'committed'",
                &[&row.sequence, &state.as_str(), &settled_at, &finished, &lane],
            )?;
            if row.packs > 0 {
                self.discard(&row)?;
            }
            if state == State::DeadLettered {
                self.note(row.id, state.as_str(), &Actor::Relay, None)?;
            }
        }
        Ok(kept.len() as u64)
    }

    /// Has these wait beside their lane.
    pub(super) fn step_aside(&mut self, aside: &Lane, transactions: &[Sequence]) -> Result<Outcome, Failed> {
        let lane = self.lane(aside)?;
        let sequences: Vec<_> = transactions.iter().map(|sequence| sequence.0).collect();
        self.sql.execute(
            "UPDATE transactions SET lane = $2 WHERE sequence = ANY($1) AND state = 'committed'",
            &[&sequences, &lane],
        )?;
        Ok(Outcome::Done)
    }

    /// Nothing that is finished stands in a lane of those that stepped aside, so with the last one it can go.
    pub(super) fn forget_asides(&mut self) -> Result<(), Failed> {
        self.sql.execute(
            "DELETE FROM lanes WHERE aside <> -1 AND NOT EXISTS
                 (SELECT 1 FROM transactions WHERE state = 'committed' AND transactions.lane = lanes.lane)",
            &[],
        )?;
        self.book.lanes.retain(|lane, _| lane.aside.is_none());
        self.book.asides = 0;
        Ok(())
    }

    fn lane(&mut self, lane: &Lane) -> Result<i64, Failed> {
        if let Some(known) = self.book.lanes.get(lane) {
            return Ok(*known);
        }
        if lane.aside.is_some() {
            if self.book.asides >= ASIDES_MAX {
                self.forget_asides()?;
            }
            self.book.asides += 1;
        }
        self.sql.execute(
            "INSERT INTO lanes (vhost, number, aside) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            &[&Words(&lane.vhost), &i64::from(lane.number), &aside(lane)],
        )?;
        let found = lane_number(self.sql, lane)?.expect("the row is there: it was inserted, or was there before");
        self.book.lanes.insert(lane.clone(), found);
        Ok(found)
    }

    pub(super) fn pack(&self, number: i64, place: u32, first: u32, messages: &Messages) -> Result<(), Failed> {
        self.sql.execute(
            "INSERT INTO packs (number, place, first_index, body, checksum) VALUES ($1, $2, $3, $4, $5)",
            &[&number, &i64::from(place), &i64::from(first), &&messages.bytes[..], &i64::from(messages.checksum)],
        )?;
        Ok(())
    }

    /// The messages of this one are needed no more. Few are deleted at once; many, bit by bit later.
    pub(super) fn discard(&mut self, row: &Row) -> Result<(), Failed> {
        if row.messages <= DISCARDED_MESSAGES && row.bytes <= DISCARDED_BYTES {
            self.sql.execute("DELETE FROM packs WHERE number = $1", &[&row.number])?;
            return if row.name.is_some() { self.forget_message_ids(row.number) } else { Ok(()) };
        }
        self.sql.execute("INSERT INTO garbage (number) VALUES ($1)", &[&row.number])?;
        self.tally.garbage = true;
        Ok(())
    }

    fn forget_message_ids(&self, number: i64) -> Result<(), Failed> {
        self.sql.execute("DELETE FROM message_ids WHERE number = $1", &[&number]).map(drop)
    }

    /// A transaction that was parked.
    pub(super) fn find(&self, id: TransactionId) -> Result<Option<Row>, Failed> {
        static FIND: LazyLock<String> = LazyLock::new(|| {
            format!(
                "SELECT {ROW_COLUMNS} FROM transactions AS t JOIN lanes AS l USING (lane)
                 WHERE t.parked_at IS NOT NULL AND t.id = $1"
            )
        });
        self.sql.one(&FIND, &[&id.0])?.map(|row| Row::read(&row)).transpose()
    }
}

/// The number that stands for a lane, if it was ever used.
pub(super) fn lane_number(sql: &Sql, lane: &Lane) -> Result<Option<i64>, Failed> {
    let row = sql.one(
        "SELECT lane FROM lanes WHERE vhost = $1 AND number = $2 AND aside = $3",
        &[&Words(&lane.vhost), &i64::from(lane.number), &aside(lane)],
    )?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

fn aside(lane: &Lane) -> i64 {
    lane.aside.map_or(-1, |strand| strand.0.into())
}

/// The states that may become `next`, as a list in SQL: a state machine has one home, and it is not here.
fn states_before(next: State) -> String {
    let before = State::ALL.into_iter().filter(|state| state.may_become(next));
    before.map(|state| format!("'{state}'")).collect::<Vec<_>>().join(", ")
}

/// The row was read in the same SQL transaction, in a state that may change; if somebody came in between all the same,
/// nothing of this group may stay.
fn decided_once(changed: u64) -> Result<(), Failed> {
    if changed == 1 { Ok(()) } else { Err(Failed::Again(format!("{changed} rows were changed instead of one"))) }
}

/// As a column holds it; so long at most that added to a time it is one still.
fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(1 << 52)
}

pub(super) fn conflict(state: State) -> StoreError {
    StoreError::Conflict(state.to_string())
}

pub(super) fn too_large() -> StoreError {
    StoreError::Full(format!("a transaction is kept in at most {PACKS_MAX} pieces of {BODY_BYTES_MAX} bytes"))
}
