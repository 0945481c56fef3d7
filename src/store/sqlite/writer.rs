//! The one thread that writes: it drains its queue into one SQL transaction, syncs, and answers everybody.

use super::rows::{Book, Forgotten, Outcome, Rows};
use super::stats::{Stats, add, subtract};
use super::upkeep::Upkeep;
use super::{SqliteSettings, upkeep};
use crate::store::{Committed, Committing, DeadLetter, Forwarded, Messages, Origin, Outlet, Sequence, StoreError};
use crate::tx::id::{Timestamp, TransactionId};
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use std::collections::HashMap;
use std::fs::File;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Requests in one SQL transaction, so that the first of them does not wait long for the last.
const GROUP_REQUESTS_MAX: usize = 4096;

/// Bytes after which a SQL transaction takes no further request.
const GROUP_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long deletes wait for a commit whose sync they can share.
const DELETE_DELAY: Duration = Duration::from_millis(50);

/// Deletes that go along with the next commit at once. Fewer wait for more: rows lie in the order of commits, so a page
/// is then written once for all of its rows instead of once for each.
const DELETES_WORTH_IT: usize = 256;

/// Deletes in one SQL transaction, more than commits in the mean, so that they keep up.
const DELETES_MAX: usize = 2048;

/// How long to leave the disk alone after it failed, if nobody asks.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How to answer a call.
pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What comes through the queue.
#[derive(Debug)]
pub(super) enum Call {
    Request(Request),
    Delivered(Vec<Sequence>),
    Close,
}

/// A call that is answered when it is durable.
#[derive(Debug)]
pub(super) enum Request {
    Park {
        origin: Origin,
        messages: Messages,
        answer: Answer<()>,
    },
    Commit {
        origin: Origin,
        messages: Messages,
        parked: bool,
        forwarded: Option<oneshot::Sender<Forwarded>>,
        answer: Answer<Committing>,
    },
    Rollback {
        id: TransactionId,
        answer: Answer<()>,
    },
    DeadLetter {
        letter: DeadLetter,
        answer: Answer<()>,
    },
}

impl Request {
    fn bytes(&self) -> usize {
        match self {
            Self::Park { messages, .. } | Self::Commit { messages, .. } => messages.bytes.len(),
            Self::DeadLetter { letter, .. } => letter.message.len(),
            Self::Rollback { .. } => 0,
        }
    }

    fn refuse(self, error: StoreError) {
        // A caller that no longer waits needs no answer; so everywhere below.
        match self {
            Self::Park { answer, .. } | Self::Rollback { answer, .. } | Self::DeadLetter { answer, .. } => {
                let _ = answer.send(Err(error));
            }
            Self::Commit { answer, .. } => {
                let _ = answer.send(Err(error));
            }
        }
    }
}

pub(super) struct Writer {
    sql: Connection,
    queue: Receiver<Call>,
    outlet: Arc<dyn Outlet>,
    clock: fn() -> Timestamp,
    stats: Arc<Stats>,
    book: Book,
    /// Undecided transactions a part of which could not be stored, and why. They can only be rolled back: the caller of
    /// a park need not wait for its answer, and a commit behind it must not stand for less than was published.
    broken: HashMap<TransactionId, StoreError>,
    /// What the relay is done with, still to be deleted.
    delivered: Vec<i64>,
    /// When to write unasked, if no request comes before: to delete, or to see whether the disk is well again.
    write_at: Option<Instant>,
    upkeep: Upkeep,
    /// Held as long as the file is ours; dropped last.
    _lock: File,
}

impl Writer {
    pub(super) fn new(
        mut sql: Connection,
        lock: File,
        queue: Receiver<Call>,
        settings: &SqliteSettings,
        stats: Arc<Stats>,
        full: watch::Sender<bool>,
        outlet: Arc<dyn Outlet>,
    ) -> rusqlite::Result<Self> {
        let mut book = Book::read(&sql)?;
        let sql_tx = Transaction::new_unchecked(&sql, TransactionBehavior::Immediate)?;
        let rolled_back = Rows { sql: &sql_tx, book: &mut book, now: (settings.clock)() }.roll_back_open()?;
        sql_tx.commit()?;
        if rolled_back > 0 {
            tracing::info!(transactions = rolled_back, "rolled back what was open when the proxy ended");
        }
        upkeep::count(&sql, &stats)?;
        let upkeep = Upkeep::new(&mut sql, settings, Arc::clone(&stats), full)?;
        Ok(Self {
            sql,
            queue,
            outlet,
            clock: settings.clock,
            stats,
            book,
            broken: HashMap::new(),
            delivered: Vec::new(),
            write_at: None,
            upkeep,
            _lock: lock,
        })
    }

    pub(super) fn run(mut self) {
        let mut group = Vec::new();
        let mut open = true;
        while open {
            let now = Instant::now();
            let due = self.write_at.into_iter().chain([self.upkeep.due()]).min().unwrap_or(now);
            match self.queue.recv_timeout(due.saturating_duration_since(now)) {
                Ok(call) => open = self.gather(call, &mut group),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            if !group.is_empty() {
                self.write(&mut group);
            }
            let now = Instant::now();
            if self.write_at.is_some_and(|at| at <= now) {
                // If it fails, it sets the time of the next attempt.
                let _ = self.attempt(&[], true);
            }
            if self.upkeep.due() <= now {
                self.upkeep.work(&self.sql, (self.clock)());
            }
            self.upkeep.checkpoint(&self.sql);
        }
        self.close();
    }

    /// Takes `call` and all that waits behind it, within bounds. Says whether there is more to come.
    fn gather(&mut self, call: Call, group: &mut Vec<Request>) -> bool {
        let mut bytes = 0;
        let mut next = Some(call);
        while let Some(call) = next {
            match call {
                Call::Request(request) => {
                    bytes += request.bytes();
                    group.push(request);
                }
                Call::Delivered(transactions) => {
                    self.delivered.extend(transactions.iter().map(|sequence| sequence.0));
                    self.write_at.get_or_insert_with(|| Instant::now() + DELETE_DELAY);
                }
                Call::Close => return false,
            }
            let room = group.len() < GROUP_REQUESTS_MAX && bytes < GROUP_BYTES_MAX;
            next = if room { self.queue.try_recv().ok() } else { None };
        }
        true
    }

    /// Writes a group, answers it, and leaves it empty.
    fn write(&mut self, group: &mut Vec<Request>) {
        subtract(&self.stats.queued, group.len() as u64);
        let due = self.write_at.is_some_and(|at| at <= Instant::now());
        match self.attempt(group, due || self.delivered.len() >= DELETES_WORTH_IT) {
            Ok(outcomes) => self.answer(group.drain(..).zip(outcomes)),
            // What is too large for the disk must not take down what is small.
            Err(StoreError::Full(_)) if group.len() > 1 => {
                for request in group.drain(..) {
                    match self.attempt(std::slice::from_ref(&request), false) {
                        Ok(outcomes) => self.answer(std::iter::once(request).zip(outcomes)),
                        Err(error) => self.refuse(request, error),
                    }
                }
            }
            Err(error) => group.drain(..).for_each(|request| self.refuse(request, error.clone())),
        }
    }

    /// One SQL transaction with all of the requests, and with deletes if they are wanted. `Ok` means that it is synced.
    fn attempt(&mut self, requests: &[Request], with_deletes: bool) -> Result<Vec<Outcome>, StoreError> {
        let started = Instant::now();
        let deletes = if with_deletes { self.take_deletes() } else { Vec::new() };
        match self.try_attempt(requests, &deletes) {
            Ok((outcomes, forgotten)) => {
                if !requests.is_empty() {
                    self.stats.group(requests.len(), started.elapsed());
                }
                self.deleted(&forgotten);
                if self.stats.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the store can write again");
                }
                self.upkeep.wrote(&self.sql, requests.iter().map(Request::bytes).sum());
                Ok(outcomes)
            }
            Err(error) => {
                self.delivered.extend(deletes);
                self.write_at = Some(Instant::now() + RETRY_DELAY);
                Err(self.failed(&error, requests.len()))
            }
        }
    }

    fn try_attempt(&mut self, requests: &[Request], deletes: &[i64]) -> rusqlite::Result<(Vec<Outcome>, Forgotten)> {
        let sql_tx = Transaction::new_unchecked(&self.sql, TransactionBehavior::Immediate)?;
        let mut rows = Rows { sql: &sql_tx, book: &mut self.book, now: (self.clock)() };
        let mut letters = 0;
        let mut outcomes = Vec::with_capacity(requests.len());
        for request in requests {
            outcomes.push(match request {
                Request::Park { origin, messages, .. } => match self.broken.get(&origin.id) {
                    None => {
                        let outcome = rows.park(origin, messages)?;
                        if let Outcome::Refused(error @ StoreError::Full(_)) = &outcome {
                            self.broken.insert(origin.id, error.clone());
                        }
                        outcome
                    }
                    Some(error) => Outcome::Refused(error.clone()),
                },
                Request::Commit { origin, messages, parked, .. } => match self.broken.get(&origin.id) {
                    None => rows.commit(origin, messages, *parked)?,
                    Some(error) => Outcome::Refused(error.clone()),
                },
                Request::Rollback { id, .. } => match (rows.rollback(*id)?, self.broken.contains_key(id)) {
                    // The first part of it was what failed.
                    (Outcome::Refused(_), true) => Outcome::Done,
                    (outcome, _) => outcome,
                },
                Request::DeadLetter { letter, .. } => {
                    let (outcome, is_new) = rows.dead_letter(letter)?;
                    letters += u64::from(is_new);
                    outcome
                }
            });
        }
        if self.stats.failing.load(Ordering::Relaxed) {
            rows.reserve_sequences()?;
        }
        // Behind the requests: a dead letter has to find its transaction.
        let forgotten = forget(&mut rows, deletes)?;
        sql_tx.commit()?;
        add(&self.stats.dead_letters, letters);
        Ok((outcomes, forgotten))
    }

    /// Hands on what was committed, then answers. In this order because what RabbitMQ takes long for goes first.
    fn answer(&mut self, answered: impl Iterator<Item = (Request, Outcome)>) {
        let mut committed = Vec::new();
        let answered = answered.map(|(request, outcome)| self.hand_on(request, outcome, &mut committed));
        let replies = answered.collect::<Vec<_>>();
        add(&self.stats.commits, committed.len() as u64);
        add(&self.stats.backlog, committed.len() as u64);
        if !committed.is_empty() {
            self.outlet.committed(committed);
        }
        replies.into_iter().for_each(Told::send);
    }

    fn hand_on(&mut self, request: Request, outcome: Outcome, committed: &mut Vec<Committed>) -> Told {
        match request {
            Request::Park { answer, .. } | Request::DeadLetter { answer, .. } => Told::Plain(answer, done(outcome)),
            Request::Rollback { id, answer } => {
                self.broken.remove(&id);
                Told::Plain(answer, done(outcome))
            }
            Request::Commit { origin, messages, parked, forwarded, answer } => match outcome {
                Outcome::Committed(sequence) => {
                    let Origin { id, lane, .. } = origin;
                    let messages = (!parked).then_some(messages.bytes);
                    committed.push(Committed { sequence, id, lane, messages, forwarded });
                    Told::Commit(answer, Ok(Committing::Now(sequence)))
                }
                Outcome::CommittedBefore => Told::Commit(answer, Ok(Committing::Before)),
                Outcome::Refused(error) => Told::Commit(answer, Err(error)),
                Outcome::Done => unreachable!("a commit has a sequence, or a reason why not"),
            },
        }
    }

    fn refuse(&mut self, request: Request, error: StoreError) {
        if let Request::Park { origin, .. } = &request {
            self.broken.entry(origin.id).or_insert_with(|| error.clone());
        }
        request.refuse(error);
    }

    /// After a SQL transaction was rolled back.
    fn failed(&mut self, error: &rusqlite::Error, requests: usize) -> StoreError {
        self.book.doubt();
        add(&self.stats.errors, 1);
        let error = store_error(error);
        if self.stats.failing.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, requests, "the store still can't write");
        } else {
            tracing::error!(%error, requests, "the store can't write");
        }
        // Takes the space of the log back, and with it what a commit that failed in its sync may have left there: a
        // crash now must not bring back what is answered as failed.
        self.upkeep.empty_log(&self.sql);
        error
    }

    fn take_deletes(&mut self) -> Vec<i64> {
        let rest = self.delivered.split_off(self.delivered.len().min(DELETES_MAX));
        let deletes = std::mem::replace(&mut self.delivered, rest);
        if self.delivered.is_empty() {
            self.write_at = None;
        }
        deletes
    }

    fn deleted(&mut self, forgotten: &Forgotten) {
        subtract(&self.stats.backlog, forgotten.transactions);
        if forgotten.garbage {
            self.upkeep.purge_soon();
        }
    }

    fn close(mut self) {
        while !self.delivered.is_empty() && self.attempt(&[], true).is_ok() {}
        self.upkeep.empty_log(&self.sql);
    }
}

/// An answer to be sent.
enum Told {
    Plain(Answer<()>, Result<(), StoreError>),
    Commit(Answer<Committing>, Result<Committing, StoreError>),
}

impl Told {
    fn send(self) {
        match self {
            Self::Plain(answer, result) => {
                let _ = answer.send(result);
            }
            Self::Commit(answer, result) => {
                let _ = answer.send(result);
            }
        }
    }
}

fn done(outcome: Outcome) -> Result<(), StoreError> {
    match outcome {
        Outcome::Refused(error) => Err(error),
        Outcome::Done | Outcome::Committed(_) | Outcome::CommittedBefore => Ok(()),
    }
}

/// Deletes in runs, because the relay is done with neighbours mostly, and one statement for a run is many times cheaper.
fn forget(rows: &mut Rows<'_>, sequences: &[i64]) -> rusqlite::Result<Forgotten> {
    let mut all = Forgotten::default();
    for run in runs(sequences) {
        let forgotten = rows.forget(run)?;
        all.transactions += forgotten.transactions;
        all.garbage |= forgotten.garbage;
    }
    Ok(all)
}

fn runs(sequences: &[i64]) -> Vec<RangeInclusive<i64>> {
    let mut sorted = sequences.to_vec();
    sorted.sort_unstable();
    let mut runs: Vec<RangeInclusive<i64>> = Vec::new();
    for sequence in sorted {
        match runs.last_mut() {
            Some(run) if sequence <= run.end() + 1 => *run = *run.start()..=sequence,
            _ => runs.push(sequence..=sequence),
        }
    }
    runs
}

fn store_error(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull | ErrorCode::TooBig) => StoreError::Full(error.to_string()),
        _ => StoreError::Io(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
