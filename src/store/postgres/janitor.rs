//! The thread that clears away: what is delivered, what nobody needs any more. Nobody waits for it, so its SQL transactions
//! are not synced each; what a crash forgets of them is done again.

use super::accounts::Accounts;
use super::book::{Book, Me};
use super::once::Once;
use super::rows::Rows;
use super::sql::{Failed, Sql};
use crate::store::clock::{Moment, Reading, SLACK, Time};
use crate::store::stats::{Tally, add, milliseconds, set, subtract};
use crate::tx::id::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Begins its sessions.
pub(super) const SETTINGS: &str = "SET synchronous_commit = off";

/// How long what is delivered waits for more of it.
const FORGET_DELAY: Duration = Duration::from_millis(50);

/// What is delivered that is cleared away at once.
const FORGET_AT_ONCE: usize = 256;

/// Deletes in one SQL transaction, at most.
const FORGOTTEN_MAX: usize = 2048;

/// How long to leave the database alone after it failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How often to look for the oldest undelivered transaction, and at the clock.
const LOOK_INTERVAL: Duration = Duration::from_millis(900);

/// How old the count of time in the database may be.
const TIME_KEPT: Duration = Duration::from_secs(10);

/// How often to look for what is older than its retention.
const PURGE_INTERVAL: Duration = Duration::from_secs(30);

/// Transactions, packs, or eight times as many message-ids, deleted in one step of a purge.
const PURGED_MAX: i64 = 256;

/// What is to be done.
#[derive(Debug)]
pub(super) enum Chore {
    /// RabbitMQ has these.
    Forget(Vec<i64>),
    /// There is garbage.
    Purge,
    /// What was in doubt is not, or the other way round.
    LookForDoubt,
    /// What is finished is kept for so long from now on.
    Retain(Duration),
    Close,
}

pub(super) struct Janitor {
    sql: Sql,
    chores: Receiver<Chore>,
    time: Time,
    accounts: Arc<Accounts>,
    me: Arc<Me>,
    book: Book,
    retention: Duration,
    delivered: Vec<i64>,
    /// What is being cleared away just now, in a SQL transaction of which nobody may know what became.
    forgetting: Option<(Vec<i64>, Once<Forgotten>)>,
    /// The last number of such a SQL transaction: below zero, for those above are the writer's.
    number: i64,
    forget_at: Option<Instant>,
    purge_at: Instant,
    look_at: Instant,
    /// What the database says of the count of time; none: nobody knows.
    kept: Option<Reading>,
    closing: Arc<AtomicBool>,
}

/// How many left the backlog, and what else changed.
struct Forgotten(u64, Tally);

impl Janitor {
    pub(super) fn new(
        sql: Sql,
        chores: Receiver<Chore>,
        time: Time,
        accounts: Arc<Accounts>,
        me: Arc<Me>,
        retention: Duration,
        closing: Arc<AtomicBool>,
    ) -> Self {
        let now = Instant::now();
        let (forgetting, forget_at, kept) = (None, None, None);
        let (book, delivered, number) = (Book::default(), Vec::new(), 0);
        Self {
            sql,
            chores,
            time,
            accounts,
            me,
            book,
            retention,
            delivered,
            forgetting,
            number,
            forget_at,
            purge_at: now,
            look_at: now,
            kept,
            closing,
        }
    }

    pub(super) fn run(mut self) {
        let mut open = true;
        while open {
            let due = self.forget_at.map_or(self.look_at, |at| at.min(self.look_at)).min(self.purge_at);
            match self.chores.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(chore) => open = self.note(chore),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            while let Ok(chore) = self.chores.try_recv() {
                open &= self.note(chore);
            }
            self.work();
        }
        while self.is_behind() && self.try_work("forget", Self::forget) {}
        self.sql.hang_up();
    }

    fn is_behind(&self) -> bool {
        self.forgetting.is_some() || !self.delivered.is_empty()
    }

    /// Says whether there is more to come.
    fn note(&mut self, chore: Chore) -> bool {
        let now = Instant::now();
        match chore {
            Chore::Forget(delivered) => {
                self.delivered.extend(delivered);
                let at = if self.delivered.len() >= FORGET_AT_ONCE { now } else { now + FORGET_DELAY };
                // A database that failed is left alone for as long as was said.
                self.forget_at = Some(self.forget_at.map_or(at, |due| due.min(at)));
            }
            Chore::Purge => self.purge_at = self.purge_at.min(now),
            Chore::LookForDoubt => self.look_at = self.look_at.min(now),
            Chore::Retain(retention) => (self.retention, self.purge_at) = (retention, now),
            Chore::Close => return false,
        }
        true
    }

    fn work(&mut self) {
        let now = Instant::now();
        if self.forget_at.is_some_and(|at| at <= now) {
            let done = self.try_work("forget", Self::forget);
            let pause = if done { Duration::ZERO } else { RETRY_DELAY };
            self.forget_at = self.is_behind().then(|| Instant::now() + pause);
        }
        if self.look_at <= now {
            self.try_work("look", Self::look);
            self.look_at = Instant::now() + LOOK_INTERVAL;
        }
        if self.purge_at <= now {
            let mut more = false;
            self.try_work("purge", |janitor| janitor.purge().map(|found| more = found));
            self.purge_at = if more { now } else { Instant::now() + PURGE_INTERVAL };
        }
    }

    /// Says whether it went well.
    fn try_work(&mut self, chore: &str, work: impl FnOnce(&mut Self) -> Result<(), Failed>) -> bool {
        let connected = self.sql.connect().map_err(|error| Failed::Lost(error.to_string()));
        match connected.and_then(|()| work(self)) {
            Ok(()) => true,
            // Others tell of a database that is away, and of one that has been taken over.
            Err(Failed::Lost(_) | Failed::Again(_) | Failed::Fenced) => false,
            Err(error) if self.closing.load(Ordering::Relaxed) => {
                tracing::debug!(%error, chore, "a chore of the store failed at the end");
                false
            }
            Err(error) => {
                add(&self.accounts.stats.errors, 1);
                tracing::warn!(%error, chore, "a chore of the store failed; it will be tried again");
                false
            }
        }
    }

    /// Clears away some of what is delivered.
    fn forget(&mut self) -> Result<(), Failed> {
        let (batch, mut once) = match self.forgetting.take() {
            Some(again) => again,
            None => {
                self.number -= 1;
                let rest = self.delivered.split_off(self.delivered.len().min(FORGOTTEN_MAX));
                (std::mem::replace(&mut self.delivered, rest), Once::new(self.number))
            }
        };
        let Self { sql, book, me, time, .. } = self;
        let forgotten = once.attempt(sql, me, || {
            let mut rows = Rows::new(sql, book, me, time);
            let gone = rows.forget(&batch)?;
            Ok(Forgotten(gone, rows.tally))
        });
        match forgotten {
            Ok(Forgotten(gone, tally)) => {
                subtract(&self.accounts.stats.backlog, gone);
                self.accounts.count(&tally);
                if tally.garbage {
                    self.purge_at = Instant::now();
                }
                Ok(())
            }
            Err(error) => {
                self.book.doubt();
                self.forgetting = Some((batch, once));
                Err(error)
            }
        }
    }

    /// Looks at what the gauges show that nobody counts, and writes the count of time down, now and then: what a crash finds
    /// must not be much older than the moments that were written by it, nor say another difference to the wall clock.
    fn look(&mut self) -> Result<(), Failed> {
        let now = self.time.read();
        let is_kept = |kept: &Reading| now.passed_since(kept) < TIME_KEPT && now.set_since(kept) <= SLACK;
        if !self.kept.as_ref().is_some_and(is_kept) {
            self.sql.execute(
                "UPDATE meta SET count = $1, wall = $2 WHERE EXISTS (SELECT 1 FROM instances WHERE id = $3 AND key = $4)",
                &[&now.count.0, &now.wall.0, &self.me.id, &self.me.key],
            )?;
            // Whoever asks about a group asks soon.
            self.sql.execute(
                "DELETE FROM groups WHERE instance <> $1 OR (number > 0 AND number < (SELECT max(number) - 1000
                     FROM groups WHERE instance = $1)) OR (number < 0 AND number > $2::bigint + 10)",
                &[&self.me.id, &self.number],
            )?;
            self.kept = Some(now);
        }
        let oldest = "SELECT min(oldest) FROM (SELECT (SELECT decided_at FROM transactions
                 WHERE state = 'committed' AND transactions.lane = lanes.lane ORDER BY sequence LIMIT 1) AS oldest
             FROM lanes) AS of_lanes";
        let committed = self.sql.number(oldest, &[])?;
        set(&self.accounts.stats.oldest_committed, milliseconds(Some(Timestamp(committed))));
        set(&self.accounts.stats.oldest_in_doubt, milliseconds(Rows::oldest_doubt(&self.sql)?));
        Ok(())
    }

    /// Deletes some of what nobody needs any more. Says whether there is more.
    fn purge(&mut self) -> Result<bool, Failed> {
        let (sql, me) = (&self.sql, &self.me);
        let kept = self.retention.as_millis().try_into().unwrap_or(i64::MAX);
        let before = Moment(self.time.now().0.saturating_sub(kept));
        sql.transaction("BEGIN", || {
            let mine =
                sql.one("SELECT 1 FROM instances WHERE id = $1 AND key = $2 FOR KEY SHARE", &[&me.id, &me.key])?;
            mine.ok_or(Failed::Fenced)?;
            let garbage = purge_garbage(sql)?;
            let old = sql.query(
                "DELETE FROM transactions WHERE sequence IN (SELECT sequence FROM transactions
                     WHERE state IN ('delivered', 'rolled_back') AND finished < $1 LIMIT $2)
                     AND state IN ('delivered', 'rolled_back') RETURNING id",
                &[&before.0, &PURGED_MAX],
            )?;
            let ids = old.iter().map(|row| row.try_get(0)).collect::<Result<Vec<Uuid>, _>>()?;
            if !ids.is_empty() {
                sql.execute("DELETE FROM history WHERE transaction_id = ANY($1)", &[&ids])?;
            }
            Ok(garbage || ids.len() as i64 == PURGED_MAX)
        })
    }
}

/// Deletes the first packs and message-ids under a number, and the number when nothing is left. Says whether there is more.
fn purge_garbage(sql: &Sql) -> Result<bool, Failed> {
    let Some(row) = sql.one("SELECT number FROM garbage LIMIT 1", &[])? else { return Ok(false) };
    let number: i64 = row.try_get(0)?;
    let packs = sql.execute(
        "DELETE FROM packs WHERE number = $1 AND place IN
             (SELECT place FROM packs WHERE number = $1 ORDER BY place LIMIT $2)",
        &[&number, &PURGED_MAX],
    )?;
    let ids = sql.execute(
        "DELETE FROM message_ids WHERE number = $1 AND message_id IN
             (SELECT message_id FROM message_ids WHERE number = $1 LIMIT $2)",
        &[&number, &(8 * PURGED_MAX)],
    )?;
    if (packs as i64) < PURGED_MAX && (ids as i64) < 8 * PURGED_MAX {
        sql.execute("DELETE FROM garbage WHERE number = $1", &[&number])?;
    }
    Ok(true)
}
