//! What the writer does beside the calls: moving the log into the file, deleting what nobody needs, and knowing how full
//! the file is. Each step is short, because commits wait for it.

use super::SqliteSettings;
use super::file::Place;
use super::letters::count_waiting;
use super::row::pack_keys;
use super::rows::Rows;
use crate::store::clock::Moment;
use crate::store::stats::{Stats, add, milliseconds, set};
use crate::store::{Limits, Room};
use crate::tx::id::Timestamp;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Pages in the log that make a checkpoint due: 32 MiB. Fewer make commits slower, more make the rare stall longer.
const LOG_PAGES_MAX: u32 = 4096;

/// Of the log as SQLite writes it.
const LOG_HEADER_BYTES: u64 = 32;
/// Of each page in it.
const FRAME_HEADER_BYTES: u64 = 24;

/// How long nothing must have been written before the log is emptied for good.
const IDLE: Duration = Duration::from_secs(1);

/// How often to look for what is older than its retention.
const PURGE_INTERVAL: Duration = Duration::from_secs(30);

/// Between two steps of one purge, so that commits come in between.
const PURGE_PAUSE: Duration = Duration::from_millis(5);

/// Packs deleted in one step, at most.
const PURGED_PACKS: i64 = 256;

/// Message-ids deleted in one step, at most: smaller than packs.
const PURGED_MESSAGE_IDS: i64 = 8 * PURGED_PACKS;

/// Bytes of packs after which a step of the purge ends: to delete a value SQLite walks all its pages.
const PURGED_BYTES: i64 = 8 << 20;

/// Transactions deleted in one step.
const PURGED_TRANSACTIONS: usize = 512;

/// How often to look how full the file is, while it is far from full.
const MEASURE_INTERVAL: Duration = Duration::from_millis(50);

/// How often to look for the oldest undelivered transaction, while commits come. Less than [`IDLE`], so that the last look
/// sees what the last commit changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(900);

/// Hundredths of the limit from which to look after every commit.
const MEASURE_ALWAYS_PERCENT: u64 = 90;

/// A store that was full takes messages again below this many hundredths of its limit, so that publishers are not
/// stopped and let go with every message.
const ROOM_AGAIN_PERCENT: u64 = 95;

pub(super) struct Upkeep {
    stats: Arc<Stats>,
    room: watch::Sender<Room>,
    bytes_max: Option<u64>,
    page_bytes: u64,
    retention: Duration,
    /// Pages in the log after the last commit, as SQLite's hook told.
    log_pages: Arc<AtomicU32>,
    /// The same after the commit before, to notice that the log has started anew.
    log_pages_before: u32,
    /// Pages in the log at which to checkpoint next.
    checkpoint_at: u32,
    empty_log_at: Option<Instant>,
    purge_at: Instant,
    measured_at: Instant,
    /// When the oldest undelivered transaction was looked for last.
    looked_at: Option<Instant>,
    /// Bytes of messages that came since.
    unmeasured_bytes: u64,
}

impl Upkeep {
    pub(super) fn new(
        sql: &mut Connection,
        settings: &SqliteSettings,
        stats: Arc<Stats>,
        room: watch::Sender<Room>,
    ) -> rusqlite::Result<Self> {
        let log_pages = Arc::new(AtomicU32::new(0));
        let told = Arc::clone(&log_pages);
        sql.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: i32| {
            told.store(pages.try_into().unwrap_or_default(), Ordering::Relaxed);
            Ok(())
        }))?;
        let now = Instant::now();
        let mut upkeep = Self {
            stats,
            room,
            bytes_max: settings.max_size,
            retention: settings.retention,
            page_bytes: sql.pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0))?.into(),
            log_pages,
            log_pages_before: 0,
            checkpoint_at: LOG_PAGES_MAX,
            empty_log_at: Some(now + IDLE),
            purge_at: now,
            measured_at: now,
            looked_at: None,
            unmeasured_bytes: 0,
        };
        upkeep.measure(sql);
        upkeep.look_for_oldest(sql, now);
        Ok(upkeep)
    }

    /// Works by these from now on.
    pub(super) fn change_limits(&mut self, sql: &Connection, limits: Limits) {
        (self.bytes_max, self.retention) = (Some(limits.max_size), limits.retention);
        self.measure(sql);
        self.purge_soon();
    }

    /// When there is something to do next.
    pub(super) fn due(&self) -> Instant {
        self.empty_log_at.map_or(self.purge_at, |at| at.min(self.purge_at))
    }

    /// Does what is due.
    pub(super) fn work(&mut self, sql: &Connection, now: Moment) {
        if self.empty_log_at.is_some_and(|at| at <= Instant::now()) {
            self.empty_log(sql);
            // What the last commits changed.
            self.look_for_oldest(sql, Instant::now());
        }
        if self.purge_at <= Instant::now() {
            self.purge(sql, now);
        }
    }

    /// Packs became garbage.
    pub(super) fn purge_soon(&mut self) {
        self.purge_at = self.purge_at.min(Instant::now() + PURGE_PAUSE);
    }

    /// After a commit that brought so many bytes of messages.
    pub(super) fn wrote(&mut self, sql: &Connection, bytes: usize) {
        let now = Instant::now();
        self.unmeasured_bytes += bytes as u64;
        if now >= self.measured_at + MEASURE_INTERVAL || self.is_near_full() {
            self.measured_at = now;
            self.unmeasured_bytes = 0;
            self.measure(sql);
        }
        self.look_for_oldest(sql, now);
        self.empty_log_at = Some(now + IDLE);
        let pages = self.log_pages.load(Ordering::Relaxed);
        if pages < self.log_pages_before {
            self.checkpoint_at = LOG_PAGES_MAX;
        }
        self.log_pages_before = pages;
    }

    /// Moves the log into the file if it is long. Called when everybody is answered.
    pub(super) fn checkpoint(&mut self, sql: &Connection) {
        if self.log_pages_before < self.checkpoint_at {
            return;
        }
        // The next commit starts the log anew if no reader is in it; else it goes on growing, and trying again before
        // it has grown by as much would be work for nothing.
        self.checkpoint_at = self.log_pages_before + LOG_PAGES_MAX;
        if let Err(error) = checkpoint(sql, "PASSIVE") {
            self.failed("checkpoint", &error);
        }
    }

    /// Moves the log into the file and gives its space back, unless somebody reads in it.
    pub(super) fn empty_log(&mut self, sql: &Connection) {
        self.empty_log_at = match checkpoint(sql, "PASSIVE").and_then(|_| checkpoint(sql, "TRUNCATE")) {
            Ok(Checkpointed { busy: false, .. }) => None,
            // A reader that is in the log, a backup for one, is no failure.
            Ok(_) => Some(Instant::now() + IDLE),
            Err(error) => {
                self.failed("checkpoint", &error);
                Some(Instant::now() + IDLE)
            }
        };
    }

    /// After a SQL transaction failed, perhaps in its sync: what it may have left in the log is answered as failed, and a
    /// crash now must not bring it back. Nor does the next one that does not fail, which takes its place there.
    pub(super) fn drop_failed(&mut self, sql: &Connection, place: &Place) {
        self.empty_log(sql);
        if self.empty_log_at.is_none() {
            return;
        }
        // Somebody reads in it, or the disk does not take it: then what is valid stays, and nothing behind it.
        match self.valid_log(sql) {
            Ok(Some((bytes, alone))) => {
                if let Err(error) = place.cut_log(bytes) {
                    self.failed("cut the log", &error);
                }
                drop(alone);
            }
            Ok(None) => {}
            Err(error) => self.failed("cut the log", &error),
        }
    }

    /// The bytes of the log that are valid, and what keeps them so: a SQL transaction in which nobody else can write. None
    /// if somebody else did, or does.
    fn valid_log<'a>(&self, sql: &'a Connection) -> rusqlite::Result<Option<(u64, Transaction<'a>)>> {
        let version = || sql.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0));
        let before = version()?;
        let Ok(frames) = u64::try_from(checkpoint(sql, "PASSIVE")?.frames) else { return Ok(None) };
        let alone = match Transaction::new_unchecked(sql, TransactionBehavior::Immediate) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => return Ok(None),
            alone => alone?,
        };
        let bytes = LOG_HEADER_BYTES + frames * (FRAME_HEADER_BYTES + self.page_bytes);
        Ok((version()? == before).then_some((bytes, alone)))
    }

    /// Deletes some of what nobody needs any more.
    fn purge(&mut self, sql: &Connection, now: Moment) {
        let kept = self.retention.as_millis().try_into().unwrap_or(i64::MAX);
        let pause = match purge(sql, Moment(now.0.saturating_sub(kept))) {
            Ok(Purged { wrote, more }) => {
                if wrote {
                    self.wrote(sql, 0);
                }
                if more { PURGE_PAUSE } else { PURGE_INTERVAL }
            }
            Err(error) => {
                self.failed("purge", &error);
                PURGE_INTERVAL
            }
        };
        self.purge_at = Instant::now() + pause;
    }

    fn is_near_full(&self) -> bool {
        // Rows take more room than their messages alone.
        let used = self.stats.used_bytes.load(Ordering::Relaxed) + 2 * self.unmeasured_bytes;
        self.bytes_max.is_some_and(|max| used >= max / 100 * MEASURE_ALWAYS_PERCENT)
    }

    /// Looks how much of the file is in use, which SQLite knows without counting.
    fn measure(&self, sql: &Connection) {
        let number = |pragma: &str| {
            sql.prepare_cached(pragma).and_then(|mut statement| statement.query_row([], |row| row.get::<_, i64>(0)))
        };
        let (Ok(pages), Ok(free)) = (number("PRAGMA page_count"), number("PRAGMA freelist_count")) else {
            return;
        };
        let used = u64::try_from(pages - free).unwrap_or_default() * self.page_bytes;
        set(&self.stats.used_bytes, used);
        let Some(max) = self.bytes_max else { return };
        self.room.send_if_modified(|room| {
            let was = !room.is_free();
            let full = is_full(was, used, max);
            if full != was {
                *room = if full { Room::Full } else { Room::Free };
                tracing::warn!(used, max, full, "the store's size limit");
            }
            full != was
        });
    }

    /// Looks since when the oldest undelivered transaction is committed, if that is not known well enough.
    fn look_for_oldest(&mut self, sql: &Connection, now: Instant) {
        if self.looked_at.is_some_and(|at| now < at + LOOK_INTERVAL) {
            return;
        }
        self.looked_at = Some(now);
        match oldest_committed(sql) {
            Ok(oldest) => set(&self.stats.oldest_committed, milliseconds(oldest)),
            Err(error) => tracing::warn!(%error, "the store could not look for the oldest that is committed"),
        }
    }

    fn failed(&self, chore: &str, error: &impl std::error::Error) {
        add(&self.stats.errors, 1);
        tracing::warn!(%error, chore, "a chore of the store failed; it will be tried again");
    }
}

/// When the oldest undelivered transaction was committed: each lane has its own first one at the head of an index.
fn oldest_committed(sql: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    let oldest = sql
        .prepare_cached(
            "SELECT min(oldest) FROM (SELECT (SELECT decided_at FROM transactions INDEXED BY committed
                 WHERE state = 'committed' AND transactions.lane = lanes.lane ORDER BY sequence LIMIT 1) AS oldest
             FROM lanes)",
        )?
        .query_row([], |row| row.get::<_, Option<i64>>(0))?;
    Ok(oldest.map(Timestamp))
}

fn is_full(was: bool, used: u64, max: u64) -> bool {
    if was { used > max / 100 * ROOM_AGAIN_PERCENT } else { used >= max }
}

/// Counts what the gauges start with. Counts entries of small indexes, never rows.
pub(super) fn count(sql: &Connection, stats: &Stats) -> rusqlite::Result<()> {
    let count = |statement: &str| sql.query_row(statement, [], |row| row.get::<_, i64>(0));
    let backlog = count("SELECT count(*) FROM transactions INDEXED BY committed WHERE state = 'committed'")?;
    let in_doubt = count("SELECT count(*) FROM transactions INDEXED BY doubtful WHERE state = 'in_doubt'")?;
    set(&stats.backlog, backlog.try_into().unwrap_or_default());
    set(&stats.dead_letters, count_waiting(sql)?);
    set(&stats.in_doubt, in_doubt.try_into().unwrap_or_default());
    set(&stats.oldest_in_doubt, milliseconds(Rows::oldest_doubt(sql)?));
    Ok(())
}

/// What a checkpoint came to.
struct Checkpointed {
    /// Whether somebody reads in the log who is in the way.
    busy: bool,
    /// Pages in the log that are valid, with their headers; -1: there is no log.
    frames: i64,
}

fn checkpoint(sql: &Connection, mode: &str) -> rusqlite::Result<Checkpointed> {
    // Commits wait for us, so we wait for no reader.
    let patience: i64 = sql.pragma_query_value(None, "busy_timeout", |row| row.get(0))?;
    sql.busy_timeout(Duration::ZERO)?;
    let came_to = sql.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        Ok(Checkpointed { busy: row.get(0)?, frames: row.get(1)? })
    });
    sql.busy_timeout(Duration::from_millis(patience.unsigned_abs()))?;
    came_to
}

/// What a step of the purge did.
struct Purged {
    wrote: bool,
    more: bool,
}

fn purge(sql: &Connection, finished_before: Moment) -> rusqlite::Result<Purged> {
    let garbage = sql
        .prepare_cached("SELECT number FROM garbage LIMIT ?1")?
        .query_map([PURGED_PACKS], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    let old = sql
        .prepare_cached(
            "SELECT sequence, id FROM transactions INDEXED BY finished
             WHERE state IN ('delivered', 'rolled_back') AND coalesce(finished, settled_at, decided_at) < ?1
             LIMIT ?2",
        )?
        .query_map(params![finished_before.0, PURGED_TRANSACTIONS as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<(i64, [u8; 16])>>>()?;
    if garbage.is_empty() && old.is_empty() {
        return Ok(Purged { wrote: false, more: false });
    }
    let sql_tx = Transaction::new_unchecked(sql, TransactionBehavior::Immediate)?;
    let mut budget = Budget { rows: PURGED_PACKS, bytes: PURGED_BYTES };
    for number in &garbage {
        purge_packs(&sql_tx, *number, &mut budget)?;
        if budget.is_spent() {
            break;
        }
    }
    for (sequence, id) in &old {
        sql_tx.prepare_cached("DELETE FROM history WHERE transaction_id = ?1")?.execute([id])?;
        sql_tx.prepare_cached("DELETE FROM transactions WHERE sequence = ?1")?.execute([sequence])?;
    }
    sql_tx.commit()?;
    Ok(Purged { wrote: true, more: !garbage.is_empty() || old.len() == PURGED_TRANSACTIONS })
}

/// What one step of the purge may still delete.
struct Budget {
    rows: i64,
    bytes: i64,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.rows <= 0 || self.bytes <= 0
    }
}

/// Deletes the first packs under a number, then what goes with them, and the number when nothing is left.
fn purge_packs(sql: &Connection, number: i64, budget: &mut Budget) -> rusqlite::Result<()> {
    let (first, last) = pack_keys(number).into_inner();
    let mut statement =
        sql.prepare_cached("SELECT key, length(body) FROM packs WHERE key BETWEEN ?1 AND ?2 ORDER BY key")?;
    let mut packs = statement.query([first, last])?;
    let mut end = None;
    while !budget.is_spent() {
        let Some(pack) = packs.next()? else { break };
        end = Some(pack.get::<_, i64>(0)?);
        budget.rows -= 1;
        budget.bytes -= pack.get::<_, i64>(1)?;
    }
    drop(packs);
    if let Some(end) = end {
        sql.prepare_cached("DELETE FROM packs WHERE key BETWEEN ?1 AND ?2")?.execute([first, end])?;
    }
    if budget.is_spent() {
        return Ok(());
    }
    let ids = sql
        .prepare_cached(
            "DELETE FROM message_ids WHERE number = ?1 AND message_id IN
                 (SELECT message_id FROM message_ids WHERE number = ?1 LIMIT ?2)",
        )?
        .execute([number, PURGED_MESSAGE_IDS])?;
    budget.rows -= 1 + ids as i64 / (PURGED_MESSAGE_IDS / PURGED_PACKS);
    if (ids as i64) < PURGED_MESSAGE_IDS {
        sql.prepare_cached("DELETE FROM garbage WHERE number = ?1")?.execute([number])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_at_the_limit_and_until_there_is_some_room() {
        let mut full = false;
        let told = [99, 100, 99, 96, 95, 96, 99, 100].map(|used| {
            full = is_full(full, used * 1000, 100_000);
            full
        });
        assert_eq!(told, [false, true, true, true, false, false, false, true]);
    }
}
