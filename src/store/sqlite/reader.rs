//! The thread that reads, for the relay above all, over a connection of its own, in SQL transactions that last one answer: a log
//! that somebody reads in can't start anew.

use super::letters;
use super::listing;
use super::rows::{lane_number, pack_keys};
use super::writer::Answer;
use crate::store::{
    Cursor, DueNow, Event, Filter, Lane, Letter, LetterFilter, LetterId, LetterMessage, Listing, Pack, Sequence,
    StoreError, Summary,
};
use crate::tx::id::{Timestamp, TransactionId};
use bytes::Bytes;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use uuid::Uuid;

/// What the reader is asked.
#[derive(Debug)]
pub(super) enum Question {
    Lanes { answer: Answer<Vec<Lane>> },
    Page { lane: Lane, after: Option<Cursor>, bytes_max: usize, answer: Answer<Vec<Pack>> },
    Due { checker: String, now: Timestamp, limit: usize, answer: Answer<DueNow> },
    Unasked { known: Vec<Arc<str>>, after: i64, limit: usize, answer: Answer<Listing<Summary>> },
    Transaction { id: TransactionId, answer: Answer<Option<(Summary, Vec<Event>)>> },
    Transactions { filter: Filter, after: i64, limit: usize, answer: Answer<Listing<Summary>> },
    Messages { id: TransactionId, from: u32, bytes_max: usize, answer: Answer<Vec<Pack>> },
    Letters { filter: LetterFilter, after: i64, limit: usize, answer: Answer<Listing<Letter>> },
    Letter { letter: LetterId, answer: Answer<Option<Letter>> },
    LetterMessage { letter: LetterId, answer: Answer<Option<LetterMessage>> },
    Close,
}

pub(super) struct Reader {
    sql: Connection,
    questions: Receiver<Question>,
}

impl Reader {
    pub(super) fn new(sql: Connection, questions: Receiver<Question>) -> Self {
        Self { sql, questions }
    }

    pub(super) fn run(self) {
        let sql = &self.sql;
        while let Ok(question) = self.questions.recv() {
            match question {
                Question::Lanes { answer } => tell(answer, lanes(sql)),
                Question::Page { lane, after, bytes_max, answer } => tell(answer, page(sql, &lane, after, bytes_max)),
                Question::Due { checker, now, limit, answer } => tell(answer, listing::due(sql, &checker, now, limit)),
                Question::Unasked { known, after, limit, answer } => {
                    tell(answer, listing::unasked(sql, &known, after, limit));
                }
                Question::Transaction { id, answer } => tell(answer, listing::transaction(sql, id)),
                Question::Transactions { filter, after, limit, answer } => {
                    tell(answer, listing::transactions(sql, &filter, after, limit));
                }
                Question::Messages { id, from, bytes_max, answer } => {
                    tell(answer, listing::messages(sql, id, from, bytes_max));
                }
                Question::Letters { filter, after, limit, answer } => {
                    tell(answer, letters::list(sql, &filter, after, limit));
                }
                Question::Letter { letter, answer } => tell(answer, letters::by_id(sql, letter)),
                Question::LetterMessage { letter, answer } => tell(answer, letters::message(sql, letter)),
                Question::Close => return,
            }
        }
    }
}

fn tell<T>(answer: Answer<T>, found: rusqlite::Result<T>) {
    // A caller that no longer waits needs no answer.
    let _ = answer.send(found.map_err(failed));
}

fn failed(error: rusqlite::Error) -> StoreError {
    tracing::error!(%error, "the store could not read");
    StoreError::Io(error.to_string())
}

fn lanes(sql: &Connection) -> rusqlite::Result<Vec<Lane>> {
    sql.prepare_cached(
        "SELECT vhost, number FROM lanes
         WHERE EXISTS (SELECT 1 FROM transactions WHERE state = 'committed' AND transactions.lane = lanes.lane)
         ORDER BY vhost, number",
    )?
    .query_map([], |row| Ok(Lane { vhost: row.get::<_, String>(0)?.into(), number: row.get(1)? }))?
    .collect()
}

fn page(sql: &Connection, lane: &Lane, after: Option<Cursor>, bytes_max: usize) -> rusqlite::Result<Vec<Pack>> {
    // Several statements, one state of the file.
    let sql = Transaction::new_unchecked(sql, TransactionBehavior::Deferred)?;
    let Some(lane) = lane_number(&sql, lane)? else {
        return Ok(Vec::new());
    };
    let from = after.map_or(0, |cursor| cursor.sequence.0);
    let mut statement = sql.prepare_cached(
        "SELECT sequence, id, number, packs, body, decided_at FROM transactions INDEXED BY committed
         WHERE state = 'committed' AND lane = ?1 AND sequence >= ?2 ORDER BY sequence",
    )?;
    let mut rows = statement.query([lane, from])?;
    let mut page = Page { packs: Vec::new(), bytes: 0, bytes_max };
    while let Some(row) = rows.next()? {
        let sequence = Sequence(row.get(0)?);
        let id = TransactionId(Uuid::from_bytes(row.get(1)?));
        let transaction = Of { sequence, id, decided_at: row.get::<_, Option<i64>>(5)?.map(Timestamp) };
        let read = after.filter(|cursor| cursor.sequence == sequence).map(|cursor| cursor.pack);
        let has_room = match row.get::<_, Option<i64>>(2)? {
            Some(number) => page.add_packs(&sql, transaction, number, row.get(3)?, read)?,
            None if read.is_some() => true,
            None => {
                let messages = Bytes::copy_from_slice(row.get_ref(4)?.as_blob()?);
                page.add(transaction.whole(messages))
            }
        };
        if !has_room {
            break;
        }
    }
    Ok(page.packs)
}

/// The packs of one transaction from pack number `from` on, until they add up to `bytes_max`.
pub(super) fn packs_of(
    sql: &Connection,
    transaction: Of,
    number: i64,
    packs: u32,
    from: u32,
    bytes_max: usize,
) -> rusqlite::Result<Vec<Pack>> {
    let mut page = Page { packs: Vec::new(), bytes: 0, bytes_max };
    page.add_packs(sql, transaction, number, packs, from.checked_sub(1))?;
    Ok(page.packs)
}

/// Whose packs are read.
#[derive(Clone, Copy)]
pub(super) struct Of {
    pub(super) sequence: Sequence,
    pub(super) id: TransactionId,
    pub(super) decided_at: Option<Timestamp>,
}

impl Of {
    /// All of its messages, which stand in its row.
    pub(super) fn whole(self, messages: Bytes) -> Pack {
        let Of { sequence, id, decided_at } = self;
        Pack { sequence, id, number: 0, first_index: 0, last: true, decided_at, retried: false, messages }
    }
}

struct Page {
    packs: Vec<Pack>,
    bytes: usize,
    bytes_max: usize,
}

impl Page {
    /// Says whether there is room for more.
    fn add(&mut self, pack: Pack) -> bool {
        self.bytes += pack.messages.len();
        self.packs.push(pack);
        self.bytes < self.bytes_max
    }

    fn add_packs(
        &mut self,
        sql: &Connection,
        transaction: Of,
        number: i64,
        packs: u32,
        read: Option<u32>,
    ) -> rusqlite::Result<bool> {
        let Of { sequence, id, decided_at } = transaction;
        let (first, last) = pack_keys(number).into_inner();
        let retried = letters::is_retry(sql, sequence)?;
        let from = read.map_or(0, |pack| i64::from(pack) + 1);
        let mut statement =
            sql.prepare_cached("SELECT key, first_index, body FROM packs WHERE key BETWEEN ?1 AND ?2 ORDER BY key")?;
        let mut rows = statement.query(params![first + from, last])?;
        while let Some(row) = rows.next()? {
            let place = (row.get::<_, i64>(0)? - first) as u32;
            let pack = Pack {
                sequence,
                id,
                number: place,
                first_index: row.get(1)?,
                last: place + 1 == packs,
                decided_at,
                retried,
                messages: Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?),
            };
            if !self.add(pack) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
