//! A thread that reads, over a connection of its own, in SQL transactions that last one answer: a log that somebody reads
//! in can't start anew. There are two: what people look for must not hold up the relay's pages.

use super::{letters, listing, packs, turns};
use crate::store::clock::Time;
use crate::store::request::Answer;
use crate::store::{
    Bookmark, Cursor, DueNow, Event, Filter, Lane, Letter, LetterFilter, LetterId, LetterMessage, Listing, Pack,
    StoreError, Strand, Summary,
};
use crate::tx::id::TransactionId;
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// What a reader is asked.
#[derive(Debug)]
pub(super) enum Question {
    Lanes { answer: Answer<Vec<Lane>> },
    Page { lane: Lane, after: Option<Cursor>, bytes_max: usize, answer: Answer<Vec<Pack>> },
    Due { checker: String, after: String, limit: usize, answer: Answer<DueNow> },
    Unasked { known: Vec<Arc<str>>, after: Bookmark, limit: usize, answer: Answer<Listing<Summary>> },
    Transaction { id: TransactionId, answer: Answer<Option<(Summary, Vec<Event>)>> },
    Transactions { filter: Filter, after: Bookmark, limit: usize, answer: Answer<Listing<Summary>> },
    Messages { id: TransactionId, from: u32, bytes_max: usize, answer: Answer<Vec<Pack>> },
    Letters { filter: LetterFilter, after: Bookmark, limit: usize, answer: Answer<Listing<Letter>> },
    Letter { letter: LetterId, answer: Answer<Option<Letter>> },
    LetterMessage { letter: LetterId, answer: Answer<Option<LetterMessage>> },
    Close,
}

pub(super) struct Reader {
    sql: Connection,
    time: Time,
    questions: Receiver<Question>,
}

impl Reader {
    pub(super) fn new(sql: Connection, time: Time, questions: Receiver<Question>) -> Self {
        Self { sql, time, questions }
    }

    pub(super) fn run(self) {
        let (sql, time) = (&self.sql, &self.time);
        while let Ok(question) = self.questions.recv() {
            match question {
                Question::Lanes { answer } => tell(answer, lanes(sql)),
                Question::Page { lane, after, bytes_max, answer } => {
                    tell(answer, packs::page(sql, &lane, after, bytes_max))
                }
                Question::Due { checker, after, limit, answer } => {
                    tell(answer, turns::due(sql, time.now(), &checker, &after, limit));
                }
                Question::Unasked { known, after, limit, answer } => {
                    tell(answer, listing::unasked(sql, time, &known, after, limit));
                }
                Question::Transaction { id, answer } => tell(answer, listing::transaction(sql, time, id)),
                Question::Transactions { filter, after, limit, answer } => {
                    tell(answer, listing::transactions(sql, time, &filter, after, limit));
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
        "SELECT vhost, number, nullif(aside, -1) FROM lanes
         WHERE EXISTS (SELECT 1 FROM transactions WHERE state = 'committed' AND transactions.lane = lanes.lane)
         ORDER BY vhost, number, aside",
    )?
    .query_map([], |row| {
        let aside = row.get::<_, Option<u32>>(2)?.map(Strand);
        Ok(Lane { vhost: row.get::<_, String>(0)?.into(), number: row.get(1)?, aside })
    })?
    .collect()
}
