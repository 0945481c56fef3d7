//! What people and the check-back read: lists, a transaction with its history and its messages. Each answer
//! is short, because the next caller waits behind it.

use super::history;
use super::packs::{self, Of};
use super::row::{id, key, pack_keys, state};
use crate::store::clock::{Moment, Time};
use crate::store::story::Place;
use crate::store::{Bookmark, Event, Filter, Listing, NameFilter, Pack, Sequence, Strand, Summary};
use crate::tx::batch::FRONT_BYTES;
use crate::tx::decision::Actor;
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::name::TransactionName;
use crate::tx::state::State;
use rusqlite::blob::Blob;
use rusqlite::ffi;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, Transaction, TransactionBehavior, named_params, params};
use std::sync::Arc;

/// Rows that one answer looks at, at most: a filter that hardly anything fits must hold up nobody. Some ten
/// milliseconds.
const ROWS_MAX: usize = 20_000;

/// Milliseconds that the clock may have gone back between a transaction's first message and its commit.
const CLOCK_SLACK: i64 = 1_000;

/// The columns of a [`Summary`] behind its sequence, of `transactions` as `t` and `lanes` as `l`.
const COLUMNS: &str = "t.sequence, t.id, t.name, l.vhost, t.user, t.state, t.created_at, t.parked_at, t.decided_at,
    t.decided_by, t.messages, t.bytes, t.checker, t.attempts, t.checks_answered, t.next_check_at, l.number,
    t.number, t.settled_at";

/// What brings a dead letter to RabbitMQ once more is no transaction of its own.
const NO_RETRY: &str = "NOT EXISTS (SELECT 1 FROM dead_letters AS d INDEXED BY retried
    WHERE d.retry IS NOT NULL AND d.retry = t.sequence)";

/// Rows that a look at a transaction's first message counts for.
const FRONT_ROWS: usize = 10;

fn summary(row: &Row<'_>, time: &Time) -> rusqlite::Result<(Place, Summary)> {
    let decided_at = row.get::<_, Option<i64>>(8)?;
    let decided_by = row.get::<_, Option<String>>(9)?;
    let name = row.get_ref(2)?.as_bytes_or_null()?;
    let summary = Summary {
        id: id(row.get(1)?),
        // It was checked when it came.
        name: name.and_then(|name| TransactionName::new(name).ok()),
        vhost: row.get::<_, String>(3)?.into(),
        user: row.get::<_, String>(4)?.into(),
        state: state(row, 5)?,
        created_at: Timestamp(row.get(6)?),
        parked_at: row.get::<_, Option<i64>>(7)?.map(Timestamp),
        decided_at: decided_at.map(Timestamp),
        // A plain commit does not spell out what it always is.
        decided_by: decided_by.or_else(|| decided_at.map(|_| Actor::Channel.to_string())),
        messages: row.get::<_, i64>(10)?.unsigned_abs(),
        bytes: row.get::<_, i64>(11)?.unsigned_abs(),
        checker: row.get::<_, Option<String>>(12)?.map(Into::into),
        attempts: row.get(13)?,
        checks_answered: row.get(14)?,
        next_check_at: row.get::<_, Option<i64>>(15)?.map(|at| time.shown(Moment(at))),
        lane: row.get(16)?,
    };
    let settled_at = row.get::<_, Option<i64>>(18)?.map(Timestamp);
    Ok((Place { sequence: row.get(0)?, number: row.get(17)?, settled_at }, summary))
}

/// A list that is being made.
struct Rows<'a> {
    time: &'a Time,
    items: Vec<(i64, Summary)>,
    limit: usize,
    /// The last that was looked at, if there may be more behind it.
    next: Option<i64>,
}

impl<'a> Rows<'a> {
    fn new(time: &'a Time, limit: usize) -> Self {
        Self { time, items: Vec::new(), limit: limit.max(1), next: None }
    }

    /// Adds what `query` finds behind `after` and `filter` wants. The query has the columns of a summary, and sorts by
    /// the sequence.
    fn add(&mut self, sql: &Connection, query: &str, values: &[&dyn ToSql], filter: &Filter) -> rusqlite::Result<()> {
        let mut statement = sql.prepare_cached(query)?;
        let mut rows = statement.query(values)?;
        let (mut seen, mut found) = (0, 0);
        let mut fronts = Fronts::new(sql);
        while let Some(row) = rows.next()? {
            let (place, summary) = summary(row, self.time)?;
            let sequence = place.sequence;
            seen += 1;
            let mut fits = filter.fits(&summary);
            if fits && filter.exchange.is_some() {
                seen += FRONT_ROWS;
                fits = fronts.read(&place, summary.state)?.is_some_and(|front| filter.fits_front(front));
            }
            if fits {
                found += 1;
                self.items.push((sequence, summary));
            }
            if found == self.limit || seen >= ROWS_MAX {
                // Behind this one the list is not known.
                self.next = Some(self.next.map_or(sequence, |next| next.min(sequence)));
                break;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Listing<Summary> {
        self.items.sort_unstable_by_key(|(sequence, _)| *sequence);
        if let Some(next) = self.next {
            self.items.retain(|(sequence, _)| *sequence <= next);
        }
        if self.items.len() >= self.limit {
            self.items.truncate(self.limit);
            self.next = self.items.last().map(|(sequence, _)| *sequence);
        }
        let items = self.items.into_iter().map(|(_, summary)| summary).collect();
        Listing { items, next: self.next.map(Bookmark) }
    }
}

/// Reads the first bytes of transactions' messages, however many there are of them.
struct Fronts<'a> {
    sql: &'a Connection,
    in_rows: Option<Blob<'a>>,
    in_packs: Option<Blob<'a>>,
    front: [u8; FRONT_BYTES],
}

impl<'a> Fronts<'a> {
    fn new(sql: &'a Connection) -> Self {
        Self { sql, in_rows: None, in_packs: None, front: [0; FRONT_BYTES] }
    }

    /// `None`: it has no messages, or not any more.
    fn read(&mut self, place: &Place, state: State) -> rusqlite::Result<Option<&[u8]>> {
        if !matches!(state, State::Open | State::InDoubt | State::Committed) {
            return Ok(None);
        }
        let (table, blob, row) = match place.number {
            Some(number) => (c"packs", &mut self.in_packs, *pack_keys(number).start()),
            None => (c"transactions", &mut self.in_rows, place.sequence),
        };
        let opened = match blob.take() {
            // To go on to another row is cheaper than to begin anew.
            Some(mut open) => open.reopen(row).map(|()| open),
            None => self.sql.blob_open(c"main", table, c"body", row, true),
        };
        let opened = match opened {
            // SQLite's word for a row, or a value, that is not there.
            Err(rusqlite::Error::SqliteFailure(error, _)) if error.extended_code == ffi::SQLITE_ERROR => {
                return Ok(None);
            }
            opened => opened?,
        };
        let read = opened.read_at(&mut self.front, 0)?;
        *blob = Some(opened);
        Ok(Some(&self.front[..read]))
    }
}

pub(super) fn transactions(
    sql: &Connection,
    time: &Time,
    filter: &Filter,
    after: Bookmark,
    limit: usize,
) -> rusqlite::Result<Listing<Summary>> {
    let sql = Transaction::new_unchecked(sql, TransactionBehavior::Deferred)?;
    let (mut rows, after) = (Rows::new(time, limit), after.0);
    let select = |from: &str| {
        format!(
            "SELECT {COLUMNS} FROM transactions AS t {from} AND t.sequence > ?1 AND {NO_RETRY} ORDER BY t.sequence",
            from = from.replace("WHERE", "CROSS JOIN lanes AS l ON l.lane = t.lane WHERE"),
        )
    };
    // The first conditions are the index's own, word for word: without them SQLite would not use it.
    match (&filter.name, filter.state) {
        (Some(NameFilter::Whole(name)), state) => {
            let rolled_back = "INDEXED BY named_rolled_back
                WHERE t.name IS NOT NULL AND t.state = 'rolled_back' AND t.name = ?2";
            let rest = "INDEXED BY named WHERE t.name IS NOT NULL AND t.state <> 'rolled_back' AND t.name = ?2";
            if state.is_none_or(|state| state == State::RolledBack) {
                rows.add(&sql, &select(rolled_back), &[&after, name], filter)?;
            }
            if state != Some(State::RolledBack) {
                rows.add(&sql, &select(rest), &[&after, name], filter)?;
            }
        }
        (_, Some(State::Committed)) => {
            let query = select("INDEXED BY committed WHERE t.state = 'committed' AND t.lane = ?2");
            for lane in lanes_of(&sql, filter.vhost.as_deref())? {
                rows.add(&sql, &query, &[&after, &lane], filter)?;
            }
        }
        (_, Some(state)) => {
            let query = select("INDEXED BY others WHERE t.state <> 'committed' AND t.state = ?2");
            rows.add(&sql, &query, &[&after, &state.as_str()], filter)?;
        }
        (_, None) => rows.add(&sql, &select("NOT INDEXED WHERE TRUE"), &[&after], filter)?,
    }
    Ok(rows.finish())
}

fn lanes_of(sql: &Connection, vhost: Option<&str>) -> rusqlite::Result<Vec<i64>> {
    let mut lanes = sql.prepare_cached("SELECT lane FROM lanes WHERE ?1 IS NULL OR vhost = ?1")?;
    lanes.query_map([vhost], |row| row.get(0))?.collect()
}

pub(super) fn unasked(
    sql: &Connection,
    time: &Time,
    known: &[Arc<str>],
    after: Bookmark,
    limit: usize,
) -> rusqlite::Result<Listing<Summary>> {
    let sql = Transaction::new_unchecked(sql, TransactionBehavior::Deferred)?;
    let query = format!(
        "SELECT {COLUMNS} FROM transactions AS t INDEXED BY doubtful CROSS JOIN lanes AS l ON l.lane = t.lane
         WHERE t.state = 'in_doubt' AND t.checker IS ?2 AND t.sequence > ?1 ORDER BY t.sequence"
    );
    let (mut rows, after) = (Rows::new(time, limit), after.0);
    let everything = Filter::default();
    rows.add(&sql, &query, &[&after, &None::<String>], &everything)?;
    // From checker to checker: those that are named in rows are few, and the rows may be a million.
    let mut next = sql.prepare_cached(
        "SELECT min(checker) FROM transactions INDEXED BY doubtful WHERE state = 'in_doubt' AND checker > ?1",
    )?;
    let mut last = String::new();
    while let Some(checker) = next.query_row([&last], |row| row.get::<_, Option<String>>(0))? {
        if !known.iter().any(|known| **known == *checker) {
            rows.add(&sql, &query, &[&after, &checker], &everything)?;
        }
        last = checker;
    }
    Ok(rows.finish())
}

/// The place of a transaction among the rows.
fn place(sql: &Connection, id: TransactionId) -> rusqlite::Result<Option<i64>> {
    let known = sql
        .prepare_cached(
            "SELECT sequence FROM transactions INDEXED BY parked WHERE parked_at IS NOT NULL AND id = ?1
             UNION ALL SELECT sequence FROM transactions INDEXED BY dead
                 WHERE parked_at IS NULL AND state IN ('dead_lettered', 'delivered') AND id = ?1",
        )?
        .query_row([key(id)], |row| row.get(0))
        .optional()?;
    match known {
        Some(sequence) => Ok(Some(sequence)),
        None => place_of_plain(sql, id),
    }
}

/// A plain commit pays for no index on its id, but its id tells when it began, and rows lie in the order of decisions.
fn place_of_plain(sql: &Connection, id: TransactionId) -> rusqlite::Result<Option<i64>> {
    let began = id.0.get_timestamp().map_or(0, |at| {
        let (seconds, nanos) = at.to_unix();
        i64::try_from(seconds * 1000 + u64::from(nanos / 1_000_000)).unwrap_or(i64::MAX)
    });
    let last: i64 = sql
        .prepare_cached("SELECT coalesce(max(sequence), 0) FROM transactions NOT INDEXED")?
        .query_row([], |row| row.get(0))?;
    let mut decided = sql.prepare_cached(
        "SELECT sequence, decided_at FROM transactions INDEXED BY committed
         WHERE state = 'committed' AND lane = ?1 AND sequence >= ?2 ORDER BY sequence LIMIT 1",
    )?;
    let mut scan = sql.prepare_cached(
        "SELECT sequence, id FROM transactions INDEXED BY committed
         WHERE state = 'committed' AND lane = ?1 AND sequence >= ?2 ORDER BY sequence LIMIT ?3",
    )?;
    for lane in lanes_of(sql, None)? {
        let (mut from, mut to) = (0, last);
        while from < to {
            let middle = from + (to - from) / 2;
            let found = decided.query_row([lane, middle], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
            match found.optional()? {
                Some((sequence, decided_at)) if decided_at < began.saturating_sub(CLOCK_SLACK) => from = sequence + 1,
                _ => to = middle,
            }
        }
        let mut rows = scan.query(params![lane, from, ROWS_MAX as i64])?;
        while let Some(row) = rows.next()? {
            if row.get::<_, [u8; 16]>(1)? == key(id) {
                return row.get(0).map(Some);
            }
        }
    }
    Ok(None)
}

pub(super) fn transaction(
    sql: &Connection,
    time: &Time,
    id: TransactionId,
) -> rusqlite::Result<Option<(Summary, Vec<Event>)>> {
    let sql = Transaction::new_unchecked(sql, TransactionBehavior::Deferred)?;
    let Some(sequence) = place(&sql, id)? else { return Ok(None) };
    let query = format!(
        "SELECT {COLUMNS} FROM transactions AS t NOT INDEXED CROSS JOIN lanes AS l ON l.lane = t.lane
         WHERE t.sequence = :sequence"
    );
    let (place, summary) = sql
        .prepare_cached(&query)?
        .query_row(named_params! { ":sequence": sequence }, |row| self::summary(row, time))?;
    let events = history::read(&sql, &place, &summary)?;
    Ok(Some((summary, events)))
}

pub(super) fn messages(
    sql: &Connection,
    id: TransactionId,
    from: u32,
    bytes_max: usize,
) -> rusqlite::Result<Vec<Pack>> {
    let sql = Transaction::new_unchecked(sql, TransactionBehavior::Deferred)?;
    let Some(place) = place(&sql, id)? else { return Ok(Vec::new()) };
    let mut statement = sql.prepare_cached(
        "SELECT number, packs, body, decided_at, strand, checksum FROM transactions NOT INDEXED
         WHERE sequence = ?1 AND state IN ('open', 'in_doubt', 'committed')",
    )?;
    let mut rows = statement.query([place])?;
    let Some(row) = rows.next()? else { return Ok(Vec::new()) };
    let decided_at = row.get::<_, Option<i64>>(3)?.map(Timestamp);
    let transaction = Of { sequence: Sequence(place), id, strand: Strand(row.get(4)?), decided_at };
    match row.get::<_, Option<i64>>(0)? {
        Some(number) => packs::of(&sql, transaction, number, row.get(1)?, from, bytes_max),
        None if from > 0 => Ok(Vec::new()),
        None => Ok(vec![transaction.whole(packs::stored(row, 2, 5)?)]),
    }
}
