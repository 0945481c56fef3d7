//! Dead letters: made, listed, tried again, discarded.
//!
//! A letter that is tried again stays in its row, hidden, and travels as the only message of a row of its own in
//! `transactions`. So a crash finds either the letter waiting, or that row on its way like any other; and when RabbitMQ
//! refuses it once more, it waits again under its old number.

use super::row::{ROW_COLUMNS, Row, id, state};
use super::rows::Rows;
use crate::store::letter::{STILL_FORWARDED, about};
use crate::store::request::{Outcome, Released};
use crate::store::{
    Bookmark, DeadLetter, Envelope, Lane, Letter, LetterFilter, LetterId, LetterMessage, Listing, Sequence, StoreError,
    Strand,
};
use crate::tx::decision::Actor;
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::state::State;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, named_params, params};

/// Rows that one answer looks at, at most.
const ROWS_MAX: usize = 2_000;

/// Bytes of messages after which an answer ends: the relay's pages wait behind it.
const BYTES_MAX: usize = 8 << 20;

/// A letter's transaction.
struct Of {
    sequence: i64,
    id: TransactionId,
    state: State,
    lane: Lane,
    strand: Strand,
    index: u32,
}

impl Rows<'_> {
    /// Keeps a message that RabbitMQ can't take.
    pub(super) fn dead_letter(&mut self, letter: &DeadLetter) -> rusqlite::Result<Outcome> {
        let again = self
            .sql
            .prepare_cached(
                "UPDATE dead_letters SET attempts = attempts + 1, reply_code = ?3, reply_text = ?4
                 WHERE sequence = ?1 AND message_index = ?2",
            )?
            .execute(params![letter.sequence.0, letter.index, letter.reply_code, letter.reply_text])?;
        if again > 0 || self.refused_again(letter)? {
            return Ok(Outcome::Done);
        }
        let transaction = self
            .sql
            .prepare_cached(
                "UPDATE transactions SET letters = letters + 1 WHERE sequence = ?1 AND state = 'committed' RETURNING id",
            )?
            .query_row([letter.sequence.0], |row| row.get::<_, [u8; 16]>(0))
            .optional()?;
        let Some(transaction) = transaction else {
            return Ok(Outcome::NotThere);
        };
        self.sql
            .prepare_cached(
                "INSERT INTO dead_letters (sequence, message_index, message, checksum, reply_code, reply_text, since)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                letter.sequence.0,
                letter.index,
                &letter.message.bytes()[..],
                letter.message.checksum(),
                letter.reply_code,
                letter.reply_text,
                letter.since.0,
            ])?;
        self.note_refusal(id(transaction), letter)?;
        self.tally.letters += 1;
        Ok(Outcome::Done)
    }

    /// If it was tried again, it waits again: what brought it is done with.
    fn refused_again(&mut self, letter: &DeadLetter) -> rusqlite::Result<bool> {
        let of = self
            .sql
            .prepare_cached(
                "UPDATE dead_letters INDEXED BY retried
                 SET attempts = attempts + 1, reply_code = ?2, reply_text = ?3, retry = NULL
                 WHERE retry IS NOT NULL AND retry = ?1 RETURNING sequence",
            )?
            .query_row(params![letter.sequence.0, letter.reply_code, letter.reply_text], |row| row.get::<_, i64>(0))
            .optional()?;
        let Some(sequence) = of else { return Ok(false) };
        let transaction = self
            .sql
            .prepare_cached("SELECT id FROM transactions WHERE sequence = ?1")?
            .query_row([sequence], |row| row.get(0))?;
        self.end_retry(letter.sequence.0)?;
        self.note_refusal(id(transaction), letter)?;
        self.tally.letters += 1;
        self.tally.backlog -= 1;
        Ok(true)
    }

    fn note_refusal(&mut self, id: TransactionId, letter: &DeadLetter) -> rusqlite::Result<()> {
        let reason = about(letter.index, &format!("{} {}", letter.reply_code, letter.reply_text));
        self.note(id, "dead_letter", &Actor::Relay, Some(&reason))
    }

    /// Hands a letter to the relay once more, behind all that is committed now.
    pub(super) fn retry(&mut self, letter: LetterId, actor: &Actor, reason: &str) -> rusqlite::Result<Outcome> {
        let of = match self.waiting(letter)? {
            Some(of) if of.state == State::DeadLettered => of,
            other => return Ok(not_now(other)),
        };
        let sequence = self.sequence()?;
        self.sql
            .prepare_cached(
                "INSERT INTO transactions (sequence, id, state, lane, user, created_at, decided_at, decided_by, messages,
                     bytes, number, packs, strand)
                 SELECT :sequence, t.id, 'committed', t.lane, t.user, t.created_at, :now, :actor, 1, length(d.message),
                     :sequence, 1, t.strand
                 FROM dead_letters AS d JOIN transactions AS t USING (sequence) WHERE d.letter = :letter",
            )?
            .execute(named_params! {
                ":sequence": sequence, ":now": self.now.0, ":actor": actor.to_string(), ":letter": letter.0,
            })?;
        self.sql
            .prepare_cached(
                "INSERT INTO packs (key, first_index, body, checksum)
                     SELECT ?1, message_index, message, checksum FROM dead_letters
                 WHERE letter = ?2",
            )?
            .execute(params![super::row::pack_keys(sequence).start(), letter.0])?;
        self.sql
            .prepare_cached("UPDATE dead_letters SET retry = ?2 WHERE letter = ?1")?
            .execute([letter.0, sequence])?;
        self.note(of.id, "retry", actor, Some(&about(of.index, reason)))?;
        self.tally.letters -= 1;
        let Of { id, lane, strand, .. } = of;
        Ok(Outcome::Retried(Released { sequence: Sequence(sequence), id, lane, strand, packs: 1 }))
    }

    /// Forgets a letter for good.
    pub(super) fn discard_letter(
        &mut self,
        letter: LetterId,
        actor: &Actor,
        reason: &str,
    ) -> rusqlite::Result<Outcome> {
        let of = match self.waiting(letter)? {
            Some(of) if of.state == State::DeadLettered => of,
            other => return Ok(not_now(other)),
        };
        self.note(of.id, "discard", actor, Some(&about(of.index, reason)))?;
        self.letter_gone(letter.0, &of, actor)?;
        self.tally.letters -= 1;
        Ok(Outcome::Discarded(of.id))
    }

    /// RabbitMQ has the message that this row brought once more, if it is such a row.
    pub(super) fn retry_delivered(&mut self, row: &Row) -> rusqlite::Result<bool> {
        let found = self
            .sql
            .prepare_cached(
                "SELECT d.letter, d.message_index, t.sequence, t.state FROM dead_letters AS d INDEXED BY retried
                 CROSS JOIN transactions AS t ON t.sequence = d.sequence WHERE d.retry IS NOT NULL AND d.retry = ?1",
            )?
            .query_row([row.sequence], |found| {
                let of = Of {
                    index: found.get(1)?,
                    sequence: found.get(2)?,
                    state: state(found, 3)?,
                    id: row.id,
                    lane: row.lane.clone(),
                    strand: row.strand,
                };
                Ok((found.get(0)?, of))
            })
            .optional()?;
        let Some((letter, of)) = found else { return Ok(false) };
        self.end_retry(row.sequence)?;
        self.note(row.id, "redelivered", &Actor::Relay, Some(&about(of.index, "RabbitMQ has it")))?;
        self.letter_gone(letter, &of, &Actor::Relay)?;
        Ok(true)
    }

    /// Deletes a row that brought a letter, with its message.
    fn end_retry(&mut self, sequence: i64) -> rusqlite::Result<()> {
        let query = format!(
            "SELECT {ROW_COLUMNS} FROM transactions AS t NOT INDEXED CROSS JOIN lanes AS l ON l.lane = t.lane
             WHERE t.sequence = ?1"
        );
        let row = self.sql.prepare_cached(&query)?.query_row([sequence], Row::read)?;
        self.discard(&row)?;
        self.sql.prepare_cached("DELETE FROM transactions WHERE sequence = ?1")?.execute([sequence])?;
        Ok(())
    }

    /// Deletes a letter. With the last one its transaction is finished.
    fn letter_gone(&mut self, letter: i64, of: &Of, actor: &Actor) -> rusqlite::Result<()> {
        self.sql.prepare_cached("DELETE FROM dead_letters WHERE letter = ?1")?.execute([letter])?;
        let left = self
            .sql
            .prepare_cached("UPDATE transactions SET letters = letters - 1 WHERE sequence = ?1 RETURNING letters")?
            .query_row([of.sequence], |row| row.get::<_, i64>(0))?;
        if left > 0 || !of.state.may_become(State::Delivered) {
            return Ok(());
        }
        self.sql
            .prepare_cached(
                "UPDATE transactions SET state = 'delivered', settled_at = ?2, finished = ?3 WHERE sequence = ?1",
            )?
            .execute([of.sequence, self.now.0, self.moment.0])?;
        self.note(of.id, State::Delivered.as_str(), actor, Some("no dead letter is left"))
    }

    /// A letter that waits for a person.
    fn waiting(&self, letter: LetterId) -> rusqlite::Result<Option<Of>> {
        self.sql
            .prepare_cached(
                "SELECT t.sequence, t.id, t.state, l.vhost, l.number, d.message_index, t.strand FROM dead_letters AS d
                 CROSS JOIN transactions AS t ON t.sequence = d.sequence CROSS JOIN lanes AS l ON l.lane = t.lane
                 WHERE d.letter = ?1 AND d.retry IS NULL",
            )?
            .query_row([letter.0], |row| {
                Ok(Of {
                    sequence: row.get(0)?,
                    id: id(row.get(1)?),
                    state: state(row, 2)?,
                    lane: Lane::new(row.get::<_, String>(3)?.into(), row.get(4)?),
                    index: row.get(5)?,
                    strand: Strand(row.get(6)?),
                })
            })
            .optional()
    }
}

fn not_now(found: Option<Of>) -> Outcome {
    // A crash would send all of its transaction again, the discarded message among the rest.
    found.map_or(Outcome::NotThere, |_| Outcome::Refused(StoreError::Conflict(STILL_FORWARDED.into())))
}

/// Whether this row of `transactions` brings a letter once more.
pub(super) fn is_retry(sql: &Connection, sequence: Sequence) -> rusqlite::Result<bool> {
    sql.prepare_cached("SELECT 1 FROM dead_letters INDEXED BY retried WHERE retry IS NOT NULL AND retry = ?1")?
        .exists([sequence.0])
}

/// How many wait for a person.
pub(super) fn count_waiting(sql: &Connection) -> rusqlite::Result<u64> {
    // Two indexes are counted, and no messages are read.
    let query = "SELECT (SELECT count(*) FROM dead_letters)
        - (SELECT count(*) FROM dead_letters INDEXED BY retried WHERE retry IS NOT NULL)";
    sql.query_row(query, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

/// The columns of a [`Letter`]; its message is the last.
const COLUMNS: &str = "d.letter, t.id, l.vhost, d.reply_code, d.reply_text, d.since, d.attempts, d.message
    FROM dead_letters AS d NOT INDEXED CROSS JOIN transactions AS t ON t.sequence = d.sequence
    CROSS JOIN lanes AS l ON l.lane = t.lane WHERE d.retry IS NULL";

fn letter(row: &rusqlite::Row<'_>) -> rusqlite::Result<(Letter, usize)> {
    let message = row.get_ref(7)?.as_blob()?;
    let letter = Letter {
        id: LetterId(row.get(0)?),
        transaction: id(row.get(1)?),
        vhost: row.get::<_, String>(2)?.into(),
        envelope: Envelope::of(message),
        reply_code: row.get(3)?,
        reply_text: row.get(4)?,
        since: Timestamp(row.get(5)?),
        attempts: row.get(6)?,
    };
    Ok((letter, message.len()))
}

pub(super) fn by_id(sql: &Connection, wanted: LetterId) -> rusqlite::Result<Option<Letter>> {
    sql.prepare_cached(&format!("SELECT {COLUMNS} AND d.letter = ?1"))?
        .query_row([wanted.0], |row| Ok(letter(row)?.0))
        .optional()
}

pub(super) fn message(sql: &Connection, wanted: LetterId) -> rusqlite::Result<Option<LetterMessage>> {
    sql.prepare_cached("SELECT message_index, message FROM dead_letters WHERE letter = ?1 AND retry IS NULL")?
        .query_row([wanted.0], |row| {
            Ok(LetterMessage { index: row.get(0)?, message: Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?) })
        })
        .optional()
}

pub(super) fn list(
    sql: &Connection,
    filter: &LetterFilter,
    after: Bookmark,
    limit: usize,
) -> rusqlite::Result<Listing<Letter>> {
    let sql = Transaction::new_unchecked(sql, TransactionBehavior::Deferred)?;
    let mut statement = sql.prepare_cached(&format!("SELECT {COLUMNS} AND d.letter > ?1 ORDER BY d.letter"))?;
    let mut rows = statement.query([after.0])?;
    let mut found = Listing::default();
    let (mut seen, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        let (letter, length) = letter(row)?;
        let place = Bookmark(letter.id.0);
        seen += 1;
        bytes += length;
        if filter.fits(&letter) {
            found.items.push(letter);
        }
        if found.items.len() >= limit.max(1) || seen == ROWS_MAX || bytes >= BYTES_MAX {
            found.next = Some(place);
            break;
        }
    }
    Ok(found)
}
