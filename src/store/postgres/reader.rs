//! A thread that reads, over a connection of its own. There are two: what people look for must not hold up the relay's pages.

use super::sql::{Failed, Sql};
use super::{letters, listing, packs, turns};
use crate::store::clock::Time;
use crate::store::request::Answer;
use crate::store::{
    Bookmark, Cursor, DueNow, Event, Filter, Lane, Letter, LetterFilter, LetterId, LetterMessage, Listing, Pack,
    StoreError, Summary,
};
use crate::tx::id::TransactionId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// How long a question waits for a database that is away.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two attempts to reach it.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Several statements, one state of the database.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

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
    sql: Sql,
    time: Time,
    questions: Receiver<Question>,
    closing: Arc<AtomicBool>,
}

impl Reader {
    pub(super) fn new(sql: Sql, time: Time, questions: Receiver<Question>, closing: Arc<AtomicBool>) -> Self {
        Self { sql, time, questions, closing }
    }

    pub(super) fn run(self) {
        let (sql, time) = (&self.sql, &self.time);
        while let Ok(question) = self.questions.recv() {
            match question {
                Question::Lanes { answer } => self.tell(answer, || listing::lanes(sql)),
                Question::Page { lane, after, bytes_max, answer } => {
                    self.tell(answer, || packs::page(sql, &lane, after, bytes_max));
                }
                Question::Due { checker, after, limit, answer } => {
                    self.tell(answer, || turns::due(sql, time.now(), &checker, &after, limit));
                }
                Question::Unasked { known, after, limit, answer } => {
                    self.tell(answer, || listing::unasked(sql, time, &known, after, limit));
                }
                Question::Transaction { id, answer } => self.tell(answer, || listing::transaction(sql, time, id)),
                Question::Transactions { filter, after, limit, answer } => {
                    self.tell(answer, || listing::transactions(sql, time, &filter, after, limit));
                }
                Question::Messages { id, from, bytes_max, answer } => self.tell(answer, || {
                    let place = listing::place(sql, id)?;
                    place.map_or(Ok(Vec::new()), |place| packs::of(sql, id, place, from, bytes_max))
                }),
                Question::Letters { filter, after, limit, answer } => {
                    self.tell(answer, || letters::list(sql, &filter, after, limit));
                }
                Question::Letter { letter, answer } => self.tell(answer, || letters::by_id(sql, letter)),
                Question::LetterMessage { letter, answer } => self.tell(answer, || letters::message(sql, letter)),
                Question::Close => break,
            }
        }
        sql.hang_up();
    }

    /// Asks until there is an answer, or too long: a question that was asked twice changes nothing.
    fn tell<T>(&self, answer: Answer<T>, look: impl Fn() -> Result<T, Failed>) {
        let deadline = Instant::now() + PATIENCE;
        let found = loop {
            let found = match self.sql.connect() {
                Ok(()) => self.sql.transaction(BEGIN, &look),
                Err(error) => Err(Failed::Lost(error.to_string())),
            };
            match found {
                Err(Failed::Lost(_) | Failed::Again(_)) if Instant::now() < deadline && !self.is_closing() => {
                    std::thread::sleep(RETRY_DELAY);
                }
                found => break found,
            }
        };
        // A caller that no longer waits needs no answer.
        let _ = answer.send(found.map_err(|error| {
            tracing::error!(%error, "the store could not read");
            StoreError::Io(error.to_string())
        }));
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }
}
