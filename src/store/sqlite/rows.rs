//! The rows that make a transaction, and the statements that change them. The only home of SQL that writes, but for the
//! purge.

use crate::store::{DeadLetter, Lane, Messages, Origin, Sequence, StoreError};
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::state::State;
use rusqlite::{Connection, OptionalExtension, named_params, params};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

/// A pack's key is its transaction's number and, in this many bits, its place: a million packs a transaction, and
/// 2^43 numbers, which is 28 years of 10,000 transactions a second.
const PACK_BITS: u32 = 20;

/// Sequences taken at a time. What is left of a block at the end of the process is skipped.
const SEQUENCES: i64 = 1 << 16;

/// The most that SQLite keeps in one value, less room for the row's other columns.
const BODY_BYTES_MAX: usize = 999_000_000;

/// Who decides in the name of the channel that published.
const CHANNEL: &str = "channel";

/// What the writer remembers of the file between SQL transactions, so as not to ask again.
#[derive(Debug, Default)]
pub(super) struct Book {
    next_sequence: i64,
    sequence_reserved: i64,
    lanes: HashMap<Lane, i64>,
}

impl Book {
    pub(super) fn read(sql: &Connection) -> rusqlite::Result<Self> {
        let reserved = sql.query_row("SELECT sequence_reserved FROM store", [], |row| row.get(0))?;
        Ok(Self { next_sequence: reserved, sequence_reserved: reserved, lanes: HashMap::new() })
    }

    /// Forgets what may have been written by a SQL transaction that was rolled back. Sequences that it gave out stay
    /// unused.
    pub(super) fn doubt(&mut self) {
        self.sequence_reserved = self.next_sequence;
        self.lanes.clear();
    }
}

/// What a request came to, to be told once the SQL transaction is durable.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Done.
    Done,
    /// Committed, to be handed to the relay.
    Committed(Sequence),
    /// An equal decision was there before.
    CommittedBefore,
    /// Not done, and nothing was written for it.
    Refused(StoreError),
}

/// What became of transactions that the relay is done with.
#[derive(Debug, Default)]
pub(super) struct Forgotten {
    /// Those that are no longer in the backlog.
    pub(super) transactions: u64,
    /// Whether packs have to be deleted.
    pub(super) garbage: bool,
}

/// One SQL transaction being written.
pub(super) struct Rows<'a> {
    pub(super) sql: &'a Connection,
    pub(super) book: &'a mut Book,
    pub(super) now: Timestamp,
}

impl Rows<'_> {
    pub(super) fn park(&mut self, origin: &Origin, messages: &Messages) -> rusqlite::Result<Outcome> {
        if messages.bytes.len() > BODY_BYTES_MAX {
            return Ok(Outcome::Refused(too_large()));
        }
        let grown = self
            .sql
            .prepare_cached(
                "UPDATE transactions SET packs = packs + 1, messages = messages + :messages, bytes = bytes + :bytes
                 WHERE parked_at IS NOT NULL AND id = :id AND state = 'open' AND packs < :packs_max
                 RETURNING number, packs, messages",
            )?
            .query_row(
                named_params! {
                    ":messages": messages.count, ":bytes": messages.bytes.len() as i64, ":id": key(origin.id),
                    // Less the one that the decision may add.
                    ":packs_max": (1 << PACK_BITS) - 1,
                },
                |row| Ok((row.get(0)?, row.get::<_, i64>(1)? - 1, row.get::<_, u32>(2)? - messages.count)),
            )
            .optional()?;
        if let Some((number, place, first_index)) = grown {
            self.pack(number, place, first_index, messages)?;
            return Ok(Outcome::Done);
        }
        if let Some((_, state)) = self.parked(origin.id)? {
            let is_open = state == State::Open.as_str();
            return Ok(Outcome::Refused(if is_open { too_large() } else { StoreError::Conflict(state) }));
        }
        let number = self.sequence()?;
        let lane = self.lane(&origin.lane)?;
        self.sql
            .prepare_cached(
                "INSERT INTO transactions
                     (sequence, id, state, lane, user, created_at, parked_at, messages, bytes, number, packs)
                 VALUES (:number, :id, 'open', :lane, :user, :created_at, :now, :messages, :bytes, :number, 1)",
            )?
            .execute(named_params! {
                ":number": number, ":id": key(origin.id), ":lane": lane, ":user": origin.user,
                ":created_at": origin.created_at.0, ":now": self.now.0, ":messages": messages.count,
                ":bytes": messages.bytes.len() as i64,
            })?;
        self.pack(number, 0, 0, messages)?;
        self.note(origin.id, "parked", CHANNEL, None)?;
        Ok(Outcome::Done)
    }

    pub(super) fn commit(&mut self, origin: &Origin, messages: &Messages, parked: bool) -> rusqlite::Result<Outcome> {
        if messages.bytes.len() > BODY_BYTES_MAX {
            return Ok(Outcome::Refused(too_large()));
        }
        if parked { self.commit_parked(origin, messages) } else { self.commit_plain(origin, messages) }
    }

    fn commit_plain(&mut self, origin: &Origin, messages: &Messages) -> rusqlite::Result<Outcome> {
        let sequence = self.sequence()?;
        let lane = self.lane(&origin.lane)?;
        self.sql
            .prepare_cached(
                "INSERT INTO transactions (sequence, id, state, lane, user, created_at, decided_at, messages, bytes, body)
                 VALUES (?1, ?2, 'committed', ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
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
            ])?;
        Ok(Outcome::Committed(Sequence(sequence)))
    }

    /// The new sequence puts the transaction behind all that were committed before it, however long it was parked.
    fn commit_parked(&mut self, origin: &Origin, messages: &Messages) -> rusqlite::Result<Outcome> {
        static COMMIT: LazyLock<String> = LazyLock::new(|| {
            format!(
                "UPDATE transactions SET sequence = :sequence, state = '{committed}', decided_at = :now,
                     decided_by = :actor, packs = packs + :packs, messages = messages + :messages,
                     bytes = bytes + :bytes
                 WHERE parked_at IS NOT NULL AND id = :id AND state IN ({from})
                 RETURNING number, packs, messages",
                committed = State::Committed,
                from = states_before(State::Committed),
            )
        });
        let sequence = self.sequence()?;
        let committed = self
            .sql
            .prepare_cached(&COMMIT)?
            .query_row(
                named_params! {
                    ":sequence": sequence, ":now": self.now.0, ":actor": CHANNEL,
                    ":packs": u32::from(messages.count > 0), ":messages": messages.count,
                    ":bytes": messages.bytes.len() as i64, ":id": key(origin.id),
                },
                |row| Ok((row.get(0)?, row.get::<_, i64>(1)? - 1, row.get::<_, u32>(2)? - messages.count)),
            )
            .optional()?;
        if let Some((number, place, first_index)) = committed {
            if messages.count > 0 {
                self.pack(number, place, first_index, messages)?;
            }
            self.note(origin.id, State::Committed.as_str(), CHANNEL, None)?;
            return Ok(Outcome::Committed(Sequence(sequence)));
        }
        Ok(match self.parked(origin.id)? {
            // An equal decision changes nothing; one that brings messages is not equal, and saying yes would lose them.
            Some((_, state)) if state == State::Committed.as_str() && messages.count == 0 => Outcome::CommittedBefore,
            Some((_, state)) => Outcome::Refused(StoreError::Conflict(state)),
            None => Outcome::Refused(not_there()),
        })
    }

    pub(super) fn rollback(&mut self, id: TransactionId) -> rusqlite::Result<Outcome> {
        static ROLLBACK: LazyLock<String> = LazyLock::new(|| {
            format!(
                "UPDATE transactions SET state = '{rolled_back}', decided_at = :now, decided_by = :actor
                 WHERE parked_at IS NOT NULL AND id = :id AND state IN ({from}) RETURNING number",
                rolled_back = State::RolledBack,
                from = states_before(State::RolledBack),
            )
        });
        let number = self
            .sql
            .prepare_cached(&ROLLBACK)?
            .query_row(named_params! { ":now": self.now.0, ":actor": CHANNEL, ":id": key(id) }, |row| row.get(0))
            .optional()?;
        if let Some(number) = number {
            self.discard_packs(number)?;
            self.note(id, State::RolledBack.as_str(), CHANNEL, None)?;
            return Ok(Outcome::Done);
        }
        Ok(match self.parked(id)? {
            Some((_, state)) if state == State::RolledBack.as_str() => Outcome::Done,
            Some((_, state)) => Outcome::Refused(StoreError::Conflict(state)),
            None => Outcome::Refused(not_there()),
        })
    }

    /// Rolls back what an earlier process left open: its channels ended with it.
    pub(super) fn roll_back_open(&mut self) -> rusqlite::Result<usize> {
        // The first condition is the index's own, word for word: without it SQLite would not use it.
        let mut open = self.sql.prepare(
            "SELECT id, number FROM transactions INDEXED BY undecided
             WHERE state IN ('open', 'in_doubt') AND state = 'open'",
        )?;
        let open = open.query_map([], |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, i64>(1)?)))?;
        let open = open.collect::<rusqlite::Result<Vec<_>>>()?;
        for (id, number) in &open {
            self.sql
                .prepare_cached(
                    "UPDATE transactions SET state = 'rolled_back', decided_at = ?1, decided_by = 'restart'
                     WHERE parked_at IS NOT NULL AND id = ?2 AND state = 'open'",
                )?
                .execute(params![self.now.0, id])?;
            self.discard_packs(*number)?;
            let id = TransactionId(uuid::Uuid::from_bytes(*id));
            self.note(id, State::RolledBack.as_str(), "restart", Some("the proxy ended before its channel decided"))?;
        }
        Ok(open.len())
    }

    /// Keeps a message that RabbitMQ can't take. Says whether it is a new one.
    pub(super) fn dead_letter(&mut self, letter: &DeadLetter) -> rusqlite::Result<(Outcome, bool)> {
        let again = self
            .sql
            .prepare_cached(
                "UPDATE dead_letters SET attempts = attempts + 1, reply_code = ?3, reply_text = ?4
                 WHERE sequence = ?1 AND message_index = ?2",
            )?
            .execute(params![letter.sequence.0, letter.index, letter.reply_code, letter.reply_text])?;
        if again > 0 {
            return Ok((Outcome::Done, false));
        }
        let id = self
            .sql
            .prepare_cached(
                "UPDATE transactions SET letters = letters + 1 WHERE sequence = ?1 AND state = 'committed' RETURNING id",
            )?
            .query_row([letter.sequence.0], |row| row.get::<_, [u8; 16]>(0))
            .optional()?;
        let Some(id) = id else {
            return Ok((Outcome::Refused(not_there()), false));
        };
        self.sql
            .prepare_cached(
                "INSERT INTO dead_letters (sequence, message_index, message, reply_code, reply_text, since)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                letter.sequence.0,
                letter.index,
                &letter.message[..],
                letter.reply_code,
                letter.reply_text,
                letter.since.0,
            ])?;
        let reason = format!("message {}: {} {}", letter.index, letter.reply_code, letter.reply_text);
        self.note(TransactionId(uuid::Uuid::from_bytes(id)), "dead_letter", "relay", Some(&reason))?;
        Ok((Outcome::Done, true))
    }

    /// RabbitMQ has these, or a dead letter keeps what it has not. Plain ones leave; the others stay for their history.
    pub(super) fn forget(&mut self, run: RangeInclusive<i64>) -> rusqlite::Result<Forgotten> {
        let (first, last) = run.into_inner();
        // NOT INDEXED: the key alone leads to them. The planner must not be tempted by the index on the state.
        let left = self
            .sql
            .prepare_cached(
                "DELETE FROM transactions NOT INDEXED
                 WHERE sequence BETWEEN ?1 AND ?2 AND state = 'committed' AND packs = 0 AND letters = 0",
            )?
            .execute([first, last])?;
        let mut forgotten = Forgotten { transactions: left as u64, garbage: false };
        if (left as i64) <= last - first {
            self.forget_kept(first, last, &mut forgotten)?;
        }
        Ok(forgotten)
    }

    fn forget_kept(&mut self, first: i64, last: i64, forgotten: &mut Forgotten) -> rusqlite::Result<()> {
        let mut kept = self.sql.prepare_cached(
            "SELECT sequence, id, letters, number FROM transactions NOT INDEXED
             WHERE sequence BETWEEN ?1 AND ?2 AND state = 'committed'",
        )?;
        type Kept = (i64, [u8; 16], u32, Option<i64>);
        let kept = kept.query_map([first, last], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
        for (sequence, id, letters, number) in kept.collect::<rusqlite::Result<Vec<Kept>>>()? {
            let state = if letters > 0 { State::DeadLettered } else { State::Delivered };
            self.sql
                .prepare_cached(
                    "UPDATE transactions SET state = ?2, body = NULL WHERE sequence = ?1 AND state = 'committed'",
                )?
                .execute(params![sequence, state.as_str()])?;
            if let Some(number) = number {
                self.discard_packs(number)?;
                forgotten.garbage = true;
            }
            self.note(TransactionId(uuid::Uuid::from_bytes(id)), state.as_str(), "relay", None)?;
            forgotten.transactions += 1;
        }
        Ok(())
    }

    fn sequence(&mut self) -> rusqlite::Result<i64> {
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

    fn lane(&mut self, lane: &Lane) -> rusqlite::Result<i64> {
        if let Some(known) = self.book.lanes.get(lane) {
            return Ok(*known);
        }
        self.sql
            .prepare_cached("INSERT INTO lanes (vhost, number) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
            .execute(params![lane.vhost, lane.number])?;
        let found = lane_number(self.sql, lane)?.expect("the row is there: it was inserted, or was there before");
        self.book.lanes.insert(lane.clone(), found);
        Ok(found)
    }

    fn pack(&self, number: i64, place: i64, first_index: u32, messages: &Messages) -> rusqlite::Result<()> {
        self.sql.prepare_cached("INSERT INTO packs (key, first_index, body) VALUES (?1, ?2, ?3)")?.execute(params![
            *pack_keys(number).start() + place,
            first_index,
            &messages.bytes[..],
        ])?;
        Ok(())
    }

    fn discard_packs(&self, number: i64) -> rusqlite::Result<()> {
        self.sql.prepare_cached("INSERT INTO garbage (number) VALUES (?1)")?.execute([number])?;
        Ok(())
    }

    /// The sequence and the state of a transaction that was parked.
    fn parked(&self, id: TransactionId) -> rusqlite::Result<Option<(Sequence, String)>> {
        self.sql
            .prepare_cached("SELECT sequence, state FROM transactions WHERE parked_at IS NOT NULL AND id = ?1")?
            .query_row([key(id)], |row| Ok((Sequence(row.get(0)?), row.get(1)?)))
            .optional()
    }

    fn note(&self, id: TransactionId, event: &str, actor: &str, reason: Option<&str>) -> rusqlite::Result<()> {
        self.sql
            .prepare_cached(
                "INSERT INTO history (transaction_id, at, event, actor, reason) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![key(id), self.now.0, event, actor, reason])?;
        Ok(())
    }
}

/// The keys of a transaction's packs.
pub(super) fn pack_keys(number: i64) -> RangeInclusive<i64> {
    let first = number << PACK_BITS;
    first..=first + (1 << PACK_BITS) - 1
}

/// The number that stands for a lane in the file, if it was ever used.
pub(super) fn lane_number(sql: &Connection, lane: &Lane) -> rusqlite::Result<Option<i64>> {
    sql.prepare_cached("SELECT lane FROM lanes WHERE vhost = ?1 AND number = ?2")?
        .query_row(params![lane.vhost, lane.number], |row| row.get(0))
        .optional()
}

/// The states that may become `next`, as a list in SQL: a state machine has one home, and it is not here.
fn states_before(next: State) -> String {
    let before = State::ALL.into_iter().filter(|state| state.may_become(next));
    before.map(|state| format!("'{state}'")).collect::<Vec<_>>().join(", ")
}

fn key(id: TransactionId) -> [u8; 16] {
    id.0.into_bytes()
}

fn not_there() -> StoreError {
    StoreError::Conflict("not there".into())
}

fn too_large() -> StoreError {
    StoreError::Full(format!("a transaction is kept in at most {} pieces of {BODY_BYTES_MAX} bytes", 1 << PACK_BITS))
}
