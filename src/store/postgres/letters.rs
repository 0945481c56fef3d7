//! Dead letters: made, listed, tried again, discarded. The rules are those of `sqlite/letters.rs`.

use super::row::{ROW_COLUMNS, Row, id, state};
use super::rows::Rows;
use super::sql::{Failed, Sql, Words, number, words};
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
use std::sync::LazyLock;

/// Rows that one answer looks at, at most.
const ROWS_MAX: usize = 2_000;

/// Rows that are read at a time: their messages are held in memory.
const ROWS_AT_ONCE: i64 = 16;

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
    pub(super) fn dead_letter(&mut self, letter: &DeadLetter) -> Result<Outcome, Failed> {
        let (index, code) = (i64::from(letter.index), i64::from(letter.reply_code));
        let again = self.sql.execute(
            "UPDATE dead_letters SET attempts = attempts + 1, reply_code = $3, reply_text = $4
             WHERE sequence = $1 AND message_index = $2",
            &[&letter.sequence.0, &index, &code, &Words(&letter.reply_text)],
        )?;
        if again > 0 || self.refused_again(letter)? {
            return Ok(Outcome::Done);
        }
        let transaction = self.sql.one(
            "UPDATE transactions SET letters = letters + 1 WHERE sequence = $1 AND state = 'committed' RETURNING id",
            &[&letter.sequence.0],
        )?;
        let Some(transaction) = transaction else {
            return Ok(Outcome::NotThere);
        };
        self.sql.execute(
            "INSERT INTO dead_letters (sequence, message_index, message, checksum, reply_code, reply_text, since)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            &[
                &letter.sequence.0,
                &index,
                &&letter.message.bytes()[..],
                &i64::from(letter.message.checksum()),
                &code,
                &Words(&letter.reply_text),
                &letter.since.0,
            ],
        )?;
        self.note_refusal(id(&transaction, 0)?, letter)?;
        self.tally.letters += 1;
        Ok(Outcome::Done)
    }

    /// If it was tried again, it waits again: what brought it is done with.
    fn refused_again(&mut self, letter: &DeadLetter) -> Result<bool, Failed> {
        let of = self.sql.one(
            "UPDATE dead_letters SET attempts = attempts + 1, reply_code = $2, reply_text = $3, retry = NULL
             WHERE retry = $1 RETURNING (SELECT id FROM transactions WHERE transactions.sequence = dead_letters.sequence)",
            &[&letter.sequence.0, &i64::from(letter.reply_code), &Words(&letter.reply_text)],
        )?;
        let Some(of) = of else { return Ok(false) };
        self.end_retry(letter.sequence.0)?;
        self.note_refusal(id(&of, 0)?, letter)?;
        self.tally.letters += 1;
        self.tally.backlog -= 1;
        Ok(true)
    }

    fn note_refusal(&mut self, id: TransactionId, letter: &DeadLetter) -> Result<(), Failed> {
        let reason = about(letter.index, &format!("{} {}", letter.reply_code, letter.reply_text));
        self.note(id, "dead_letter", &Actor::Relay, Some(&reason))
    }

    /// Hands a letter to the relay once more, behind all that is committed now.
    pub(super) fn retry(&mut self, letter: LetterId, actor: &Actor, reason: &str) -> Result<Outcome, Failed> {
        let of = match self.waiting(letter)? {
            Some(of) if of.state == State::DeadLettered => of,
            other => return Ok(not_now(other)),
        };
        let sequence = self.me.sequence();
        self.sql.execute(
            "INSERT INTO transactions (sequence, id, state, lane, \"user\", created_at, decided_at, decided_by, messages,
                 bytes, number, packs, strand)
             SELECT $1, t.id, 'committed', t.lane, t.\"user\", t.created_at, $2, $3, 1, octet_length(d.message), $1, 1,
                 t.strand
             FROM dead_letters AS d JOIN transactions AS t USING (sequence) WHERE d.letter = $4",
            &[&sequence, &self.now.0, &Words(&actor.to_string()), &letter.0],
        )?;
        self.sql.execute(
            "INSERT INTO packs (number, place, first_index, body, checksum)
             SELECT $1, 0, message_index, message, checksum FROM dead_letters WHERE letter = $2",
            &[&sequence, &letter.0],
        )?;
        self.sql.execute("UPDATE dead_letters SET retry = $2 WHERE letter = $1", &[&letter.0, &sequence])?;
        self.note(of.id, "retry", actor, Some(&about(of.index, reason)))?;
        self.tally.letters -= 1;
        let Of { id, lane, strand, .. } = of;
        Ok(Outcome::Retried(Released { sequence: Sequence(sequence), id, lane, strand, packs: 1 }))
    }

    /// Forgets a letter for good.
    pub(super) fn discard_letter(&mut self, letter: LetterId, actor: &Actor, reason: &str) -> Result<Outcome, Failed> {
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
    pub(super) fn retry_delivered(&mut self, row: &Row) -> Result<bool, Failed> {
        let found = self.sql.one(
            "SELECT d.letter, d.message_index, t.sequence, t.state FROM dead_letters AS d
                 JOIN transactions AS t USING (sequence) WHERE d.retry = $1",
            &[&row.sequence],
        )?;
        let Some(found) = found else { return Ok(false) };
        let of = Of {
            index: number(&found, 1)?,
            sequence: found.try_get(2)?,
            state: state(&found, 3)?,
            id: row.id,
            lane: row.lane.clone(),
            strand: row.strand,
        };
        self.end_retry(row.sequence)?;
        self.note(row.id, "redelivered", &Actor::Relay, Some(&about(of.index, "RabbitMQ has it")))?;
        self.letter_gone(found.try_get(0)?, &of, &Actor::Relay)?;
        Ok(true)
    }

    /// Deletes a row that brought a letter, with its message.
    fn end_retry(&mut self, sequence: i64) -> Result<(), Failed> {
        static BY_SEQUENCE: LazyLock<String> = LazyLock::new(|| {
            format!("SELECT {ROW_COLUMNS} FROM transactions AS t JOIN lanes AS l USING (lane) WHERE t.sequence = $1")
        });
        if let Some(row) = self.sql.one(&BY_SEQUENCE, &[&sequence])? {
            self.discard(&Row::read(&row)?)?;
        }
        self.sql.execute("DELETE FROM transactions WHERE sequence = $1", &[&sequence]).map(drop)
    }

    /// Deletes a letter. With the last one its transaction is finished.
    fn letter_gone(&mut self, letter: i64, of: &Of, actor: &Actor) -> Result<(), Failed> {
        self.sql.execute("DELETE FROM dead_letters WHERE letter = $1", &[&letter])?;
        let left = self.sql.number(
            "UPDATE transactions SET letters = letters - 1 WHERE sequence = $1 RETURNING letters",
            &[&of.sequence],
        )?;
        if left > 0 || !of.state.may_become(State::Delivered) {
            return Ok(());
        }
        self.sql.execute(
            "UPDATE transactions SET state = 'delivered', settled_at = $2, finished = $3 WHERE sequence = $1",
            &[&of.sequence, &self.now.0, &self.moment.0],
        )?;
        self.note(of.id, State::Delivered.as_str(), actor, Some("no dead letter is left"))
    }

    /// A letter that waits for a person.
    fn waiting(&self, letter: LetterId) -> Result<Option<Of>, Failed> {
        let found = self.sql.one(
            "SELECT t.sequence, t.id, t.state, l.vhost, l.number, d.message_index, t.strand FROM dead_letters AS d
                 JOIN transactions AS t USING (sequence) JOIN lanes AS l USING (lane)
             WHERE d.letter = $1 AND d.retry IS NULL FOR UPDATE OF t",
            &[&letter.0],
        )?;
        let Some(row) = found else { return Ok(None) };
        Ok(Some(Of {
            sequence: row.try_get(0)?,
            id: id(&row, 1)?,
            state: state(&row, 2)?,
            lane: Lane::new(words(&row, 3)?.into(), number(&row, 4)?),
            index: number(&row, 5)?,
            strand: Strand(number(&row, 6)?),
        }))
    }
}

fn not_now(found: Option<Of>) -> Outcome {
    // A crash would send all of its transaction again, the discarded message among the rest.
    found.map_or(Outcome::NotThere, |_| Outcome::Refused(StoreError::Conflict(STILL_FORWARDED.into())))
}

/// How many wait for a person.
pub(super) fn count_waiting(sql: &Sql) -> Result<u64, Failed> {
    Ok(sql.number("SELECT count(*) FROM dead_letters WHERE retry IS NULL", &[])?.unsigned_abs())
}

/// The columns of a [`Letter`]; its message is the last.
const COLUMNS: &str = "SELECT d.letter, t.id, l.vhost, d.reply_code, d.reply_text, d.since, d.attempts, d.message
    FROM dead_letters AS d JOIN transactions AS t USING (sequence) JOIN lanes AS l USING (lane) WHERE d.retry IS NULL";

fn letter(row: &tokio_postgres::Row) -> Result<(Letter, usize), Failed> {
    let message: &[u8] = row.try_get(7)?;
    let letter = Letter {
        id: LetterId(row.try_get(0)?),
        transaction: id(row, 1)?,
        vhost: words(row, 2)?.into(),
        envelope: Envelope::of(message),
        reply_code: number(row, 3)?,
        reply_text: words(row, 4)?,
        since: Timestamp(row.try_get(5)?),
        attempts: number(row, 6)?,
    };
    Ok((letter, message.len()))
}

pub(super) fn by_id(sql: &Sql, wanted: LetterId) -> Result<Option<Letter>, Failed> {
    static BY_ID: LazyLock<String> = LazyLock::new(|| format!("{COLUMNS} AND d.letter = $1"));
    sql.one(&BY_ID, &[&wanted.0])?.map(|row| Ok(letter(&row)?.0)).transpose()
}

pub(super) fn message(sql: &Sql, wanted: LetterId) -> Result<Option<LetterMessage>, Failed> {
    let found =
        sql.one("SELECT message_index, message FROM dead_letters WHERE letter = $1 AND retry IS NULL", &[&wanted.0])?;
    let Some(row) = found else { return Ok(None) };
    Ok(Some(LetterMessage { index: number(&row, 0)?, message: Bytes::copy_from_slice(row.try_get(1)?) }))
}

pub(super) fn list(sql: &Sql, filter: &LetterFilter, after: Bookmark, limit: usize) -> Result<Listing<Letter>, Failed> {
    static BEHIND: LazyLock<String> =
        LazyLock::new(|| format!("{COLUMNS} AND d.letter > $1 ORDER BY d.letter LIMIT $2"));
    let mut found = Listing::default();
    let (mut seen, mut bytes, mut last) = (0, 0, after.0);
    loop {
        let rows = sql.query(&BEHIND, &[&last, &ROWS_AT_ONCE])?;
        for row in &rows {
            let (letter, length) = letter(row)?;
            last = letter.id.0;
            seen += 1;
            bytes += length;
            if filter.fits(&letter) {
                found.items.push(letter);
            }
            if found.items.len() >= limit.max(1) || seen == ROWS_MAX || bytes >= BYTES_MAX {
                found.next = Some(Bookmark(last));
                return Ok(found);
            }
        }
        if (rows.len() as i64) < ROWS_AT_ONCE {
            return Ok(found);
        }
    }
}
