//! The one thread that writes what is asked: it drains its queue into one SQL transaction, and answers everybody when that
//! is durable. A group of plain commits is one statement.

use super::accounts::Accounts;
use super::book::{Book, Me};
use super::janitor::Chore;
use super::once::Once;
use super::plain::Plain;
use super::rows::Rows;
use super::sql::{Failed, Sql};
use crate::store::clock::Time;
use crate::store::request::{Desk, Outcome, Request, is_one};
use crate::store::stats::{Tally, add, subtract};
use crate::store::{Limits, Sequence, StoreError};
use crate::tx::decision::Actor;
use crate::tx::id::TransactionId;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Begins the writer's sessions: what is answered has been synced, whatever the account is set to.
pub(super) const SETTINGS: &str =
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// Requests in one group, so that the first of them does not wait long for the last.
const GROUP_REQUESTS_MAX: usize = 4096;

/// Bytes after which a group takes no further request: one that is short holds up nobody who takes over.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// How long a database is waited for that is away, before what was never sent is refused.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two attempts to reach it.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// When to try again what could not be written, and nobody asks for any more.
const UNFINISHED_DELAY: Duration = Duration::from_secs(1);

/// What comes through the queue.
#[derive(Debug)]
pub(super) enum Call {
    Request(Request),
    Delivered(Vec<Sequence>),
    ChangeLimits(Limits),
    Close,
}

pub(super) struct Writer {
    sql: Sql,
    queue: Receiver<Call>,
    janitor: Sender<Chore>,
    desk: Desk,
    time: Time,
    accounts: Arc<Accounts>,
    me: Arc<Me>,
    book: Book,
    /// Of the last group that was more than plain commits.
    group: i64,
    /// Since when the database is away; none: it was there when it was last asked.
    away_since: Option<Instant>,
    /// Ends of transactions that could not be written. Their channels are gone, so nobody else would try again.
    unfinished: Vec<Request>,
    again_at: Option<Instant>,
    /// What the relay is done with, for the janitor, once what was asked before is written.
    delivered: Vec<i64>,
    /// Whether the process ends: a database that is away is waited for no longer.
    closing: Arc<AtomicBool>,
}

impl Writer {
    /// Ends what an earlier process left open.
    #[expect(clippy::too_many_arguments)]
    pub(super) fn new(
        sql: Sql,
        queue: Receiver<Call>,
        janitor: Sender<Chore>,
        desk: Desk,
        time: Time,
        accounts: Arc<Accounts>,
        me: Arc<Me>,
        closing: Arc<AtomicBool>,
    ) -> Result<Self, Failed> {
        let mut book = Book::default();
        let ((rolled_back, in_doubt), tally) = Once::new(0).attempt(&sql, &me, || {
            let mut rows = Rows::new(&sql, &mut book, &me, &time);
            let ended = rows.after_restart()?;
            rows.forget_asides()?;
            Ok((ended, rows.tally))
        })?;
        accounts.stats.decided(&tally);
        if rolled_back + in_doubt > 0 {
            tracing::info!(rolled_back, in_doubt, "ended what was open when the proxy ended");
        }
        let (group, away_since, unfinished, again_at, delivered) = (0, None, Vec::new(), None, Vec::new());
        Ok(Self {
            sql,
            queue,
            janitor,
            desk,
            time,
            accounts,
            me,
            book,
            group,
            away_since,
            unfinished,
            again_at,
            delivered,
            closing,
        })
    }

    pub(super) fn sql(&self) -> &Sql {
        &self.sql
    }

    pub(super) fn run(mut self) {
        let mut group = Vec::new();
        let mut open = true;
        while open {
            let wait = self.again_at.map(|at| at.saturating_duration_since(Instant::now()));
            match self.queue.recv_timeout(wait.unwrap_or(Duration::MAX)) {
                Ok(call) => open = self.gather(call, &mut group),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            if !group.is_empty() {
                self.write(&mut group);
            }
            if !self.delivered.is_empty() {
                let delivered = std::mem::take(&mut self.delivered);
                self.chore(Chore::Forget(delivered));
            }
            if self.again_at.is_some_and(|at| at <= Instant::now()) {
                self.again_at = None;
                let mut again = std::mem::take(&mut self.unfinished);
                add(&self.accounts.stats.queued, again.len() as u64);
                self.write(&mut again);
            }
        }
        self.sql.hang_up();
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
                Call::Delivered(transactions) => self.delivered.extend(transactions.iter().map(|sequence| sequence.0)),
                Call::ChangeLimits(limits) => {
                    self.accounts.change_limits(limits);
                    self.chore(Chore::Retain(limits.retention));
                }
                Call::Close => return false,
            }
            let room = group.len() < GROUP_REQUESTS_MAX && bytes < GROUP_BYTES_MAX;
            next = if room { self.queue.try_recv().ok() } else { None };
        }
        true
    }

    fn chore(&self, chore: Chore) {
        // After the end there is nobody to do it: what is forgotten is done by the next process, or sent again.
        let _ = self.janitor.send(chore);
    }

    /// Writes a group, answers it, and leaves it empty.
    fn write(&mut self, group: &mut Vec<Request>) {
        subtract(&self.accounts.stats.queued, group.len() as u64);
        match self.attempt(group) {
            Ok(outcomes) => self.desk.answer(group.drain(..).zip(outcomes)),
            // What PostgreSQL can't take must not take down what it can.
            Err(StoreError::Full(_) | StoreError::Io(_)) if group.len() > 1 && self.away_since.is_none() => {
                for request in group.drain(..) {
                    match self.attempt(std::slice::from_ref(&request)) {
                        Ok(outcomes) => self.desk.answer(std::iter::once(request).zip(outcomes)),
                        Err(error) => self.refuse(request, error),
                    }
                }
            }
            Err(error) => group.drain(..).for_each(|request| self.refuse(request, error.clone())),
        }
    }

    /// One SQL transaction with all of the requests, sent until it is known what became of it. `Ok` means that it is durable.
    fn attempt(&mut self, requests: &[Request]) -> Result<Vec<Outcome>, StoreError> {
        let started = Instant::now();
        self.group += 1;
        let mut way = if requests.iter().all(is_plain) { Way::Plain(None) } else { Way::Once(Once::new(self.group)) };
        let mut sent = false;
        loop {
            let written = match self.sql.connect() {
                Ok(()) => {
                    let written = self.write_by(&mut way, requests);
                    sent |= matches!(written, Err(Failed::Lost(_)));
                    written
                }
                Err(error) => Err(Failed::Lost(error.to_string())),
            };
            match written {
                Ok(Written { outcomes, tally }) => {
                    self.wrote(&tally, requests.len(), started.elapsed());
                    return Ok(outcomes);
                }
                Err(error) => {
                    self.book.doubt();
                    if let Some(error) = self.failed(error, requests.len(), sent) {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn write_by(&mut self, way: &mut Way, requests: &[Request]) -> Result<Written, Failed> {
        let Self { sql, book, me, time, desk, .. } = self;
        let mut build = || -> Result<(Plain, Written), Failed> {
            let mut rows = Rows::new(sql, book, me, time);
            let outcomes = requests.iter().map(|request| write(&mut rows, &mut desk.broken, request));
            let outcomes = outcomes.collect::<Result<Vec<_>, Failed>>()?;
            Ok((rows.plain, Written { outcomes, tally: rows.tally }))
        };
        match way {
            Way::Once(once) => once.attempt(sql, me, || {
                let (plain, written) = build()?;
                plain.write(sql, me).map(|()| written)
            }),
            Way::Plain(built) => {
                // With the same sequences each time, so that it is written once.
                let (plain, written) = match built.take() {
                    Some(built) => *built,
                    None => build()?,
                };
                match plain.write(sql, me) {
                    Ok(()) => Ok(written),
                    Err(error) => {
                        *built = Some(Box::new((plain, written)));
                        Err(error)
                    }
                }
            }
        }
    }

    /// What a SQL transaction that is durable changed.
    fn wrote(&mut self, tally: &Tally, requests: usize, took: Duration) {
        let stats = &self.accounts.stats;
        if requests > 0 {
            stats.group(requests, took);
        }
        self.away_since = None;
        if stats.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("the store can write again");
        }
        self.accounts.count(tally);
        if tally.doubts_changed {
            self.chore(Chore::LookForDoubt);
        }
        if tally.garbage {
            self.chore(Chore::Purge);
        }
    }

    /// What to tell those who asked; none: it has to be tried again. `sent` says whether it may have taken effect.
    fn failed(&mut self, error: Failed, requests: usize, sent: bool) -> Option<StoreError> {
        if let Failed::Again(_) = error {
            return None;
        }
        let stats = &self.accounts.stats;
        add(&stats.errors, 1);
        if stats.fails(&error) {
            tracing::debug!(%error, requests, "the store still can't write");
        } else {
            tracing::error!(%error, requests, "the store can't write");
        }
        let closing = self.closing.load(Ordering::Relaxed);
        match error {
            Failed::Fenced => return Some(StoreError::Fenced),
            // An earlier attempt may have taken effect, and then it has to be handed on: only who takes over could do it else.
            error if sent && closing => return Some(StoreError::Unknown(error.to_string())),
            _ if sent => {}
            Failed::Full(why) => return Some(StoreError::Full(why)),
            Failed::Other(why) | Failed::Again(why) => return Some(StoreError::Io(why)),
            Failed::Lost(why) => {
                let away = self.away_since.get_or_insert_with(Instant::now).elapsed();
                if closing || away >= PATIENCE {
                    return Some(StoreError::Io(why));
                }
            }
        }
        std::thread::sleep(RETRY_DELAY);
        None
    }

    fn refuse(&mut self, request: Request, error: StoreError) {
        let Self { desk, sql, unfinished, .. } = self;
        let is_final = error.is_final();
        if let Some(again) = desk.refuse(request, error, |id| is_kept(sql, id))
            && !is_final
        {
            unfinished.push(again);
            self.again_at.get_or_insert_with(|| Instant::now() + UNFINISHED_DELAY);
        }
    }
}

/// How a group is written.
enum Way {
    /// By one statement; and the group, once it is made.
    Plain(Option<Box<(Plain, Written)>>),
    /// By several.
    Once(Once<Written>),
}

/// What one SQL transaction came to.
struct Written {
    outcomes: Vec<Outcome>,
    tally: Tally,
}

/// Whether it is one row, and depends on no other.
fn is_plain(request: &Request) -> bool {
    match request {
        Request::Commit { origin, messages, parked, .. } => !parked && (origin.named.is_none() || messages.count == 0),
        _ => false,
    }
}

/// Whether anything of a transaction that was parked is in the store, as far as can be seen.
fn is_kept(sql: &Sql, id: TransactionId) -> bool {
    let kept = sql.one("SELECT 1 FROM transactions WHERE parked_at IS NOT NULL AND id = $1", &[&id.0]);
    kept.map_or(true, |row| row.is_some())
}

/// Does what is asked, within the SQL transaction.
fn write(
    rows: &mut Rows<'_>,
    broken: &mut HashMap<TransactionId, StoreError>,
    request: &Request,
) -> Result<Outcome, Failed> {
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
