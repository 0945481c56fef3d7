//! The rows that make a transaction, and the statements that change them. The only home of SQL that writes, but for the
//! purge.

use super::book::Book;
use super::row::{PACK_BITS, PIECE_BYTES, ROW_COLUMNS, Row, key, mark, pack_keys};
use crate::store::clock::{Moment, Reading, Time};
use crate::store::request::{Outcome, Released};
use crate::store::shares::{self, ROW_BYTES};
use crate::store::stats::Tally;
use crate::store::{Lane, Messages, Origin, Sequence, StoreError};
use crate::tx::decision::{Actor, Decision};
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::state::State;
use rusqlite::{Connection, OptionalExtension, named_params, params};
use std::ops::RangeInclusive;
use std::sync::LazyLock;
use std::time::Duration;

/// How old the count of time in the file may be, when something is written.
const TIME_KEPT: Duration = Duration::from_secs(10);

/// Sequences taken at a time. What is left of a block at the end of the process is skipped.
const SEQUENCES: i64 = 1 << 16;

/// The most that SQLite keeps in one value, less room for the row's other columns.
const BODY_BYTES_MAX: usize = 999_000_000;

/// Rows that all of a call's messages take at most.
const PIECES_MAX: u32 = BODY_BYTES_MAX.div_ceil(PIECE_BYTES) as u32;

/// Messages of a finished transaction that are deleted at once, if they are no more, and no more bytes than...
const DISCARDED_MESSAGES: u32 = 64;

/// ... these: what is deleted at once holds up everybody's commits.
const DISCARDED_BYTES: i64 = 64 * 1024;

/// Lanes that are made for what stepped aside before those of them are deleted that are empty.
const ASIDES_MAX: usize = 10_000;

/// One SQL transaction being written.
pub(super) struct Rows<'a> {
    pub(super) sql: &'a Connection,
    pub(super) book: &'a mut Book,
    /// For people.
    pub(super) now: Timestamp,
    /// For what is waited for.
    pub(super) moment: Moment,
    pub(super) tally: Tally,
}

impl<'a> Rows<'a> {
    pub(super) fn new(sql: &'a Connection, book: &'a mut Book, time: &Time) -> rusqlite::Result<Self> {
        let read = time.read();
        let rows = Self { sql, book, now: read.wall, moment: read.count, tally: Tally::default() };
        rows.keep_time(read)
    }

    /// Writes the count of time down, now and then: what a crash finds must not be much older than the moments that were
    /// written by it, nor say another difference to the wall clock.
    fn keep_time(self, read: Reading) -> rusqlite::Result<Self> {
        let is_fresh = |written: Reading| read.passed_since(&written) < TIME_KEPT && !self.book.is_clock_set(read);
        if !self.book.time.is_some_and(is_fresh) {
            self.sql.prepare_cached("UPDATE store SET count = ?1, wall = ?2")?.execute([read.count.0, read.wall.0])?;
            self.book.time = Some(read);
        }
        Ok(self)
    }

    /// A row takes, or gives back, so much of its user's share, if it is counted.
    fn takes(&mut self, user: &str, sequence: i64, bytes: i64) {
        if self.book.counted.has(sequence) {
            shares::add(&mut self.tally.shares, user, bytes);
        }
    }

    pub(super) fn park(&mut self, origin: &Origin, messages: &Messages) -> rusqlite::Result<Outcome> {
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
    pub(super) fn park_first(
        &mut self,
        origin: &Origin,
        state: State,
        messages: &Messages,
    ) -> rusqlite::Result<Outcome> {
        let number = self.sequence()?;
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
        let made = self
            .sql
            .prepare_cached(
                "INSERT INTO transactions (sequence, id, state, lane, user, created_at, parked_at, messages, bytes,
                     number, packs, name, checker, first_after, in_doubt_at, next_check_at, strand)
                 VALUES (:number, :id, :state, :lane, :user, :created_at, :now, :messages, :bytes, :number, :packs, :name,
                     :checker, :first_after, :in_doubt_at, :next_check_at, :strand)
                 ON CONFLICT (id) WHERE parked_at IS NOT NULL DO NOTHING",
            )?
            .execute(named_params! {
                ":number": number, ":id": key(origin.id), ":state": state.as_str(), ":lane": lane,
                ":user": origin.user, ":created_at": origin.created_at.0, ":now": self.now.0,
                ":messages": messages.count, ":bytes": messages.bytes.len() as i64, ":packs": pieces(&messages),
                ":name": named.map(|named| named.name.as_str()), ":checker": check.map(|plan| &plan.checker),
                ":first_after": first_after, ":in_doubt_at": doubts.then_some(self.now.0),
                ":strand": origin.strand.0,
                ":next_check_at": first_after.filter(|_| doubts).map(|after| self.moment.0.saturating_add(after)),
            })?;
        if made == 0 {
            self.forget_message_ids(number)?;
            let state = self.find(origin.id)?.map(|row| row.state).expect("what is in the way is there");
            return Ok(Outcome::Refused(conflict(state)));
        }
        self.pack(number, 0, 0, &messages)?;
        self.takes(&origin.user, number, messages.bytes.len() as i64 + ROW_BYTES);
        if named.is_none() {
            return Ok(Outcome::Done);
        }
        self.tally.moved(None, state);
        Ok(Outcome::Parked(origin.id, messages.bytes))
    }

    pub(super) fn park_more(&mut self, row: &Row, messages: &Messages) -> rusqlite::Result<Outcome> {
        // Less those that this call, and the decision, may add.
        if row.packs > (1 << PACK_BITS) - 2 * PIECES_MAX {
            return Ok(Outcome::Refused(too_large()));
        }
        let messages = match row.name {
            Some(_) => self.without_duplicates(row.number, messages)?,
            None => messages.clone(),
        };
        if messages.count > 0 {
            self.sql
                .prepare_cached(
                    "UPDATE transactions SET packs = packs + ?4, messages = messages + ?2, bytes = bytes + ?3
                     WHERE sequence = ?1",
                )?
                .execute(params![row.sequence, messages.count, messages.bytes.len() as i64, pieces(&messages)])?;
            self.pack(row.number, row.packs.into(), row.messages, &messages)?;
            self.takes(&row.user, row.sequence, messages.bytes.len() as i64);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn commit(&mut self, origin: &Origin, messages: &Messages, parked: bool) -> rusqlite::Result<Outcome> {
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

    fn commit_plain(&mut self, origin: &Origin, messages: &Messages) -> rusqlite::Result<Outcome> {
        let sequence = self.sequence()?;
        let lane = self.lane(&origin.lane)?;
        self.sql
            .prepare_cached(
                "INSERT INTO transactions (sequence, id, state, lane, user, created_at, decided_at, messages, bytes, body,
                     strand, checksum)
                 VALUES (?1, ?2, 'committed', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .execute(params![
                sequence,
                key(origin.id),
                lane,
                origin.user,
                origin.created_at.0,
                self.now.0,
                messages.count,
                messages.bytes.len() as i64,
                &messages.bytes[..],
                origin.strand.0,
                messages.checksum,
            ])?;
        self.takes(&origin.user, sequence, messages.bytes.len() as i64 + ROW_BYTES);
        let Origin { id, strand, .. } = *origin;
        let sequence = Sequence(sequence);
        Ok(Outcome::Committed(Released { sequence, id, lane: origin.lane.clone(), strand, packs: 0 }))
    }

    /// Commits on behalf of the channel that published.
    pub(super) fn commit_own(&mut self, row: &Row, messages: &Messages) -> rusqlite::Result<Outcome> {
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
    ) -> rusqlite::Result<Released> {
        static COMMIT: LazyLock<String> = LazyLock::new(|| {
            format!(
                "UPDATE transactions SET sequence = :sequence, state = '{committed}', decided_at = :now,
                     decided_by = :actor, packs = packs + :packs, messages = messages + :messages,
                     bytes = bytes + :bytes, next_check_at = NULL,
                     attempts = attempts + :answers, checks_answered = checks_answered + :answers
                 WHERE sequence = :before AND state IN ({from})",
                committed = State::Committed,
                from = states_before(State::Committed),
            )
        });
        let messages = match row.name {
            Some(_) if messages.count > 0 => self.without_duplicates(row.number, messages)?,
            _ => messages.clone(),
        };
        let more = if messages.count > 0 { pieces(&messages) } else { 0 };
        let sequence = self.sequence()?;
        let changed = self.sql.prepare_cached(&COMMIT)?.execute(named_params! {
            ":sequence": sequence, ":now": self.now.0, ":actor": actor.to_string(), ":packs": more,
            ":messages": messages.count, ":bytes": messages.bytes.len() as i64, ":before": row.sequence, ":answers": actor.answers(),
        })?;
        decided_once(changed)?;
        if more > 0 {
            self.pack(row.number, row.packs.into(), row.messages, &messages)?;
        }
        self.takes(&row.user, row.sequence, -row.bytes - ROW_BYTES);
        self.takes(&row.user, sequence, row.bytes + messages.bytes.len() as i64 + ROW_BYTES);
        self.left(row, State::Committed, actor);
        self.note_commit(row.id, actor, reason)?;
        let sequence = Sequence(sequence);
        Ok(Released { sequence, id: row.id, lane: row.lane.clone(), strand: row.strand, packs: row.packs + more })
    }

    pub(super) fn rollback(&mut self, id: TransactionId, reason: Option<&str>) -> rusqlite::Result<Outcome> {
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

    pub(super) fn roll_back_row(&mut self, row: &Row, actor: &Actor, reason: Option<&str>) -> rusqlite::Result<()> {
        static ROLLBACK: LazyLock<String> = LazyLock::new(|| {
            format!(
                "UPDATE transactions SET state = '{rolled_back}', decided_at = :now, decided_by = :actor,
                     finished = :moment, next_check_at = NULL, attempts = attempts + :answers,
                     checks_answered = checks_answered + :answers
                 WHERE sequence = :sequence AND state IN ({from})",
                rolled_back = State::RolledBack,
                from = states_before(State::RolledBack),
            )
        });
        let changed = self.sql.prepare_cached(&ROLLBACK)?.execute(named_params! {
             ":now": self.now.0, ":moment": self.moment.0, ":actor": actor.to_string(), ":answers": actor.answers(),
            ":sequence": row.sequence,
        })?;
        decided_once(changed)?;
        self.takes(&row.user, row.sequence, -row.bytes - ROW_BYTES);
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
    pub(super) fn forget(&mut self, run: RangeInclusive<i64>) -> rusqlite::Result<u64> {
        let (first, last) = run.into_inner();
        // NOT INDEXED: the key alone leads to them. The planner must not be tempted by the index on the state.
        let sql = self.sql;
        let mut plain = sql.prepare_cached(
            "SELECT sequence, user, bytes FROM transactions NOT INDEXED
             WHERE sequence BETWEEN ?1 AND ?2 AND state = 'committed' AND packs = 0 AND letters = 0",
        )?;
        let mut rows = plain.query([first, last])?;
        while let Some(row) = rows.next()? {
            let bytes: i64 = row.get(2)?;
            self.takes(row.get_ref(1)?.as_str()?, row.get(0)?, -bytes - ROW_BYTES);
        }
        drop(rows);
        let left = self
            .sql
            .prepare_cached(
                "DELETE FROM transactions NOT INDEXED
                 WHERE sequence BETWEEN ?1 AND ?2 AND state = 'committed' AND packs = 0 AND letters = 0",
            )?
            .execute([first, last])?;
        let kept = if (left as i64) <= last - first { self.forget_kept(first, last)? } else { 0 };
        Ok(left as u64 + kept)
    }

    fn forget_kept(&mut self, first: i64, last: i64) -> rusqlite::Result<u64> {
        static KEPT: LazyLock<String> = LazyLock::new(|| {
            format!(
                "SELECT {ROW_COLUMNS}, t.letters, t.parked_at IS NOT NULL FROM transactions AS t NOT INDEXED
                 CROSS JOIN lanes AS l ON l.lane = t.lane
                 WHERE t.sequence BETWEEN ?1 AND ?2 AND t.state = 'committed'"
            )
        });
        let sql = self.sql;
        let mut kept = sql.prepare_cached(&KEPT)?;
        let kept = kept.query_map([first, last], |row| Ok((Row::read(row)?, row.get(16)?, row.get(17)?)))?;
        let kept = kept.collect::<rusqlite::Result<Vec<(Row, u32, bool)>>>()?;
        let mut settle = sql.prepare_cached(
            "UPDATE transactions SET state = ?2, body = NULL, settled_at = ?3, finished = ?4, lane = ?5
             WHERE sequence = ?1 AND state = 'committed'",
        )?;
        for (row, letters, was_parked) in &kept {
            // What has packs and was never parked brings a letter once more.
            if row.packs > 0 && !was_parked && self.retry_delivered(row)? {
                continue;
            }
            if row.packs == 0 || *was_parked {
                self.takes(&row.user, row.sequence, -row.bytes - ROW_BYTES);
            }
            let state = if *letters == 0 { State::Delivered } else { State::DeadLettered };
            let is_finished = state == State::Delivered;
            let [settled_at, finished] = [self.now.0, self.moment.0].map(|at| is_finished.then_some(at));
            let lane = self.lane(&row.lane)?;
            settle.execute(params![row.sequence, state.as_str(), settled_at, finished, lane])?;
            if row.packs > 0 {
                self.discard(row)?;
            }
            if state == State::DeadLettered {
                self.note(row.id, state.as_str(), &Actor::Relay, None)?;
            }
        }
        Ok(kept.len() as u64)
    }

    pub(super) fn sequence(&mut self) -> rusqlite::Result<i64> {
        if self.book.next_sequence >= self.book.sequence_reserved {
            self.reserve_sequences()?;
        }
        self.book.next_sequence += 1;
        Ok(self.book.next_sequence - 1)
    }

    /// Takes another block of sequences. Also the least that can be written to see whether the disk is well.
    pub(super) fn reserve_sequences(&mut self) -> rusqlite::Result<()> {
        let reserved = self.book.next_sequence + SEQUENCES;
        self.sql.prepare_cached("UPDATE store SET sequence_reserved = ?1")?.execute([reserved])?;
        self.book.sequence_reserved = reserved;
        Ok(())
    }

    /// Has these wait beside their lane.
    pub(super) fn step_aside(&mut self, aside: &Lane, transactions: &[Sequence]) -> rusqlite::Result<Outcome> {
        let lane = self.lane(aside)?;
        let mut step =
            self.sql.prepare_cached("UPDATE transactions SET lane = ?2 WHERE sequence = ?1 AND state = 'committed'")?;
        for sequence in transactions {
            step.execute([sequence.0, lane])?;
        }
        Ok(Outcome::Done)
    }

    /// Nothing that is finished stands in a lane of those that stepped aside, so with the last one it can go.
    pub(super) fn forget_asides(&mut self) -> rusqlite::Result<()> {
        self.sql
            .prepare_cached(
                "DELETE FROM lanes WHERE aside <> -1 AND NOT EXISTS
                     (SELECT 1 FROM transactions WHERE state = 'committed' AND transactions.lane = lanes.lane)",
            )?
            .execute([])?;
        self.book.lanes.retain(|lane, _| lane.aside.is_none());
        self.book.asides = 0;
        Ok(())
    }

    fn lane(&mut self, lane: &Lane) -> rusqlite::Result<i64> {
        if let Some(known) = self.book.lanes.get(lane) {
            return Ok(*known);
        }
        if lane.aside.is_some() {
            if self.book.asides >= ASIDES_MAX {
                self.forget_asides()?;
            }
            self.book.asides += 1;
        }
        self.sql
            .prepare_cached("INSERT INTO lanes (vhost, number, aside) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?
            .execute(params![lane.vhost, lane.number, aside(lane)])?;
        let found = lane_number(self.sql, lane)?.expect("the row is there: it was inserted, or was there before");
        self.book.lanes.insert(lane.clone(), found);
        Ok(found)
    }

    fn pack(&self, number: i64, place: i64, first_index: u32, messages: &Messages) -> rusqlite::Result<()> {
        let mut insert =
            self.sql.prepare_cached("INSERT INTO packs (key, first_index, body, checksum) VALUES (?1, ?2, ?3, ?4)")?;
        let key = *pack_keys(number).start() + place;
        if messages.bytes.len() <= PIECE_BYTES {
            insert.execute(params![key, mark(first_index, false), &messages.bytes[..], messages.checksum])?;
            return Ok(());
        }
        let mut pieces = (key..).zip(messages.bytes.chunks(PIECE_BYTES)).peekable();
        while let Some((key, piece)) = pieces.next() {
            let mark = mark(first_index, pieces.peek().is_some());
            insert.execute(params![key, mark, piece, crc32fast::hash(piece)])?;
        }
        Ok(())
    }

    /// The messages of this one are needed no more. Few are deleted at once; many, bit by bit later.
    pub(super) fn discard(&mut self, row: &Row) -> rusqlite::Result<()> {
        if row.messages <= DISCARDED_MESSAGES && row.bytes <= DISCARDED_BYTES {
            let (first, last) = pack_keys(row.number).into_inner();
            self.sql.prepare_cached("DELETE FROM packs WHERE key BETWEEN ?1 AND ?2")?.execute([first, last])?;
            return if row.name.is_some() { self.forget_message_ids(row.number) } else { Ok(()) };
        }
        self.sql.prepare_cached("INSERT INTO garbage (number) VALUES (?1)")?.execute([row.number])?;
        self.tally.garbage = true;
        Ok(())
    }

    fn forget_message_ids(&self, number: i64) -> rusqlite::Result<()> {
        self.sql.prepare_cached("DELETE FROM message_ids WHERE number = ?1")?.execute([number])?;
        Ok(())
    }

    /// A transaction that was parked.
    pub(super) fn find(&self, id: TransactionId) -> rusqlite::Result<Option<Row>> {
        static FIND: LazyLock<String> = LazyLock::new(|| {
            format!(
                "SELECT {ROW_COLUMNS} FROM transactions AS t INDEXED BY parked
                 CROSS JOIN lanes AS l ON l.lane = t.lane WHERE t.parked_at IS NOT NULL AND t.id = ?1"
            )
        });
        self.sql.prepare_cached(&FIND)?.query_row([key(id)], Row::read).optional()
    }
}

/// The number that stands for a lane in the file, if it was ever used.
pub(super) fn lane_number(sql: &Connection, lane: &Lane) -> rusqlite::Result<Option<i64>> {
    sql.prepare_cached("SELECT lane FROM lanes WHERE vhost = ?1 AND number = ?2 AND aside = ?3")?
        .query_row(params![lane.vhost, lane.number, aside(lane)], |row| row.get(0))
        .optional()
}

/// Rows that they take as a pack.
fn pieces(messages: &Messages) -> u32 {
    // Of one call, whose bytes are few enough.
    messages.bytes.len().div_ceil(PIECE_BYTES).max(1) as u32
}

fn aside(lane: &Lane) -> i64 {
    lane.aside.map_or(-1, |strand| strand.0.into())
}

/// The states that may become `next`, as a list in SQL: a state machine has one home, and it is not here.
fn states_before(next: State) -> String {
    let before = State::ALL.into_iter().filter(|state| state.may_become(next));
    before.map(|state| format!("'{state}'")).collect::<Vec<_>>().join(", ")
}

/// The row was read in the same SQL transaction, in a state that may change; if another writer came in between all the
/// same, nothing of this group may stay.
fn decided_once(changed: usize) -> rusqlite::Result<()> {
    if changed == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(changed)) }
}

/// As a column holds it; so long at most that added to a time it is one still.
fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(1 << 52)
}

pub(super) fn conflict(state: State) -> StoreError {
    StoreError::Conflict(state.to_string())
}

pub(super) fn too_large() -> StoreError {
    StoreError::Full(format!("a transaction is kept in at most {} pieces of {BODY_BYTES_MAX} bytes", 1 << PACK_BITS))
}
