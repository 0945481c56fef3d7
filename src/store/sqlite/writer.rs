//! The one thread that writes: it drains its queue into one SQL transaction, syncs, and answers everybody.

use super::book::Book;
use super::file::{Held, Place};
use super::open::Own;
use super::row::key;
use super::rows::Rows;
use super::shares::count_on;
use super::upkeep::Upkeep;
use super::{SqliteSettings, upkeep};
use crate::store::clock::Time;
use crate::store::request::{Desk, Outcome, Request, is_one};
use crate::store::shares::Shares;
use crate::store::stats::{Stats, Tally, add, add_signed, milliseconds, set, subtract};
use crate::store::{Limits, Outlet, Room, Sequence, StoreError};
use crate::tx::decision::Actor;
use crate::tx::id::TransactionId;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

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

/// Between two steps of counting what users have, so that commits come in between.
const COUNT_PAUSE: Duration = Duration::from_millis(5);

/// What comes through the queue.
#[derive(Debug)]
pub(super) enum Call {
    Request(Request),
    Delivered(Vec<Sequence>),
    ChangeLimits(Limits),
    Close,
}

pub(super) struct Writer {
    sql: Connection,
    queue: Receiver<Call>,
    time: Time,
    stats: Arc<Stats>,
    book: Book,
    desk: Desk,
    /// What the relay is done with, still to be deleted.
    delivered: Vec<i64>,
    /// Ends of transactions that could not be written. Their channels are gone, so nobody else would try again.
    unfinished: Vec<Request>,
    /// When to write unasked, if no request comes before: to delete, or to see whether the disk is well again.
    write_at: Option<Instant>,
    upkeep: Upkeep,
    shares: Shares,
    /// When to count more of what users have.
    count_at: Option<Instant>,
    place: Place,
    /// As long as the file is ours; dropped last.
    held: Held,
}

impl Writer {
    pub(super) fn new(
        own: Own,
        queue: Receiver<Call>,
        settings: &SqliteSettings,
        stats: Arc<Stats>,
        room: watch::Sender<Room>,
        shares: Shares,
        outlet: Arc<dyn Outlet>,
    ) -> rusqlite::Result<Self> {
        let Own { mut sql, time, place, held } = own;
        let mut book = Book::read(&sql)?;
        let sql_tx = Transaction::new_unchecked(&sql, TransactionBehavior::Immediate)?;
        let mut rows = Rows::new(&sql_tx, &mut book, &time)?;
        let (rolled_back, in_doubt) = rows.after_restart()?;
        rows.forget_asides()?;
        let tally = rows.tally;
        sql_tx.commit()?;
        stats.decided(&tally);
        if rolled_back + in_doubt > 0 {
            tracing::info!(rolled_back, in_doubt, "ended what was open when the proxy ended");
        }
        upkeep::count(&sql, &stats)?;
        let upkeep = Upkeep::new(&mut sql, settings, Arc::clone(&stats), room)?;
        Ok(Self {
            sql,
            queue,
            desk: Desk::new(outlet, Arc::clone(&stats)),
            time,
            stats,
            book,
            delivered: Vec::new(),
            unfinished: Vec::new(),
            write_at: None,
            upkeep,
            shares,
            count_at: Some(Instant::now()),
            place,
            held,
        })
    }

    pub(super) fn run(mut self) {
        let mut group = Vec::new();
        let mut open = true;
        while open {
            let now = Instant::now();
            let due =
                [self.write_at, self.count_at, Some(self.upkeep.due())].into_iter().flatten().min().unwrap_or(now);
            match self.queue.recv_timeout(due.saturating_duration_since(now)) {
                Ok(call) => open = self.gather(call, &mut group),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            if !group.is_empty() {
                self.write(&mut group);
            }
            let now = Instant::now();
            if self.book.is_clock_set(self.time.read()) {
                self.write_at = Some(now);
            }
            if self.write_at.is_some_and(|at| at <= now) {
                self.write_unasked();
            }
            if self.count_at.is_some_and(|at| at <= now) {
                self.count_shares();
            }
            if self.upkeep.due() <= now {
                self.upkeep.work(&self.sql, self.time.now());
                // A store that nobody writes to has to notice as well.
                if self.place.check().is_err() {
                    self.write_at.get_or_insert(now);
                }
            }
            self.upkeep.checkpoint(&self.sql);
        }
        self.close();
    }

    /// Deletes, and tries again what could not be written. If it fails, it sets the time of the next attempt.
    fn write_unasked(&mut self) {
        let mut again = std::mem::take(&mut self.unfinished);
        let written = self.attempt(&[], true).is_ok();
        if written && !again.is_empty() {
            add(&self.stats.queued, again.len() as u64);
            self.write(&mut again);
        } else {
            self.unfinished.append(&mut again);
        }
    }

    /// Counts some more of what users had in the file at the start.
    fn count_shares(&mut self) {
        let pause = match count_on(&mut self.shares, &self.sql, &mut self.book.counted) {
            Ok(()) if self.book.counted.is_whole() => None,
            Ok(()) => Some(COUNT_PAUSE),
            Err(error) => {
                tracing::warn!(%error, "the store could not count what its users have in it; it will be tried again");
                Some(RETRY_DELAY)
            }
        };
        self.count_at = pause.map(|pause| Instant::now() + pause);
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
                Call::ChangeLimits(limits) => {
                    self.upkeep.change_limits(&self.sql, limits);
                    self.shares.change_limits(limits);
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
            Ok(outcomes) => self.desk.answer(group.drain(..).zip(outcomes)),
            // What is too large for the disk must not take down what is small.
            Err(StoreError::Full(_)) if group.len() > 1 => {
                for request in group.drain(..) {
                    match self.attempt(std::slice::from_ref(&request), false) {
                        Ok(outcomes) => self.desk.answer(std::iter::once(request).zip(outcomes)),
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
            Ok(Attempt { outcomes, forgotten, tally }) => {
                if !requests.is_empty() {
                    self.stats.group(requests.len(), started.elapsed());
                }
                subtract(&self.stats.backlog, forgotten);
                self.count(&tally);
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

    fn try_attempt(&mut self, requests: &[Request], deletes: &[i64]) -> rusqlite::Result<Attempt> {
        let sql_tx = Transaction::new_unchecked(&self.sql, TransactionBehavior::Immediate)?;
        let mut rows = Rows::new(&sql_tx, &mut self.book, &self.time)?;
        let outcomes = requests.iter().map(|request| write(&mut rows, &mut self.desk.broken, request));
        let outcomes = outcomes.collect::<rusqlite::Result<Vec<_>>>()?;
        if self.stats.failing.load(Ordering::Relaxed) {
            rows.reserve_sequences()?;
        }
        // Behind the requests: a dead letter has to find its transaction.
        let mut forgotten = 0;
        for run in runs(deletes) {
            forgotten += rows.forget(run)?;
        }
        let tally = rows.tally;
        self.place.check()?;
        sql_tx.commit()?;
        Ok(Attempt { outcomes, forgotten, tally })
    }

    fn refuse(&mut self, request: Request, error: StoreError) {
        let Self { desk, sql, unfinished, .. } = self;
        unfinished.extend(desk.refuse(request, error, |id| is_kept(sql, id)));
    }

    /// After a SQL transaction was rolled back.
    fn failed(&mut self, error: &rusqlite::Error, requests: usize) -> StoreError {
        self.book.doubt();
        add(&self.stats.errors, 1);
        let failed_before = self.stats.fails(error);
        let error = store_error(error);
        if failed_before {
            tracing::debug!(%error, requests, "the store still can't write");
        } else {
            tracing::error!(%error, requests, "the store can't write");
        }
        self.upkeep.drop_failed(&self.sql, &self.place);
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

    /// What a SQL transaction that is durable changed.
    fn count(&mut self, tally: &Tally) {
        add_signed(&self.stats.open_named, tally.open);
        add_signed(&self.stats.in_doubt, tally.in_doubt);
        add_signed(&self.stats.dead_letters, tally.letters);
        add_signed(&self.stats.backlog, tally.backlog);
        self.stats.decided(tally);
        self.shares.change(&tally.shares);
        if tally.doubts_changed {
            match Rows::oldest_doubt(&self.sql) {
                Ok(oldest) => set(&self.stats.oldest_in_doubt, milliseconds(oldest)),
                Err(error) => tracing::warn!(%error, "the store could not look for the oldest in doubt"),
            }
        }
        if tally.garbage {
            self.upkeep.purge_soon();
        }
    }

    fn close(mut self) {
        while !self.delivered.is_empty() && self.attempt(&[], true).is_ok() {}
        self.upkeep.empty_log(&self.sql);
        let Self { sql, held, .. } = self;
        drop(sql);
        held.release();
    }
}

/// What one SQL transaction came to.
struct Attempt {
    outcomes: Vec<Outcome>,
    /// Transactions that left the backlog.
    forgotten: u64,
    tally: Tally,
}

/// Does what is asked, within the SQL transaction.
fn write(
    rows: &mut Rows<'_>,
    broken: &mut HashMap<TransactionId, StoreError>,
    request: &Request,
) -> rusqlite::Result<Outcome> {
    Ok(match request {
        Request::Park { origin, messages, .. } => match broken.get(&origin.id) {
            None => {
                let outcome = rows.park(origin, messages)?;
                if let Outcome::Refused(error) = &outcome
                    && is_one(origin)
                {
                    broken.insert(origin.id, error.clone());
                }
                outcome
            }
            Some(error) => Outcome::Refused(error.clone()),
        },
        Request::Commit { origin, messages, parked, .. } => match broken.get(&origin.id) {
            None => rows.commit(origin, messages, *parked)?,
            Some(error) => Outcome::Refused(error.clone()),
        },
        Request::Rollback { id, reason, .. } => match rows.rollback(*id, reason.as_deref())? {
            // The first part of it was what failed.
            Outcome::NotThere if broken.contains_key(id) => Outcome::Done,
            outcome => outcome,
        },
        Request::Abandon { id, .. } => {
            match broken.get(id) {
                // What lacks a part must not be released by those who can't know it.
                Some(error) => drop(rows.rollback(*id, Some(&format!("a part of it was not kept: {error}")))?),
                None => rows.abandon(*id, &Actor::Channel, "its channel ended undecided")?,
            }
            Outcome::Done
        }
        Request::Decide { target, decision, actor, reason, .. } => {
            rows.decide(target, *decision, actor, reason.as_deref(), |id| broken.get(&id).cloned())?
        }
        Request::Checked { id, check, .. } => Outcome::Is(rows.checked(*id, check)?),
        Request::CheckNow { id, checker, .. } => Outcome::Is(rows.check_now(*id, checker.as_deref())?),
        Request::DeadLetter { letter, .. } => rows.dead_letter(letter)?,
        Request::StepAside { aside, transactions, .. } => rows.step_aside(aside, transactions)?,
        Request::Retry { letter, actor, reason, .. } => rows.retry(*letter, actor, reason)?,
        Request::Discard { letter, actor, reason, .. } => rows.discard_letter(*letter, actor, reason)?,
    })
}

/// Whether anything of a transaction that was parked is in the file, as far as can be seen.
fn is_kept(sql: &Connection, id: TransactionId) -> bool {
    sql.prepare_cached("SELECT 1 FROM transactions INDEXED BY parked WHERE parked_at IS NOT NULL AND id = ?1")
        .and_then(|mut statement| statement.exists([key(id)]))
        .unwrap_or(true)
}

/// Deletes go in runs, because the relay is done with neighbours mostly, and one statement for a run is many times
/// cheaper.
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
