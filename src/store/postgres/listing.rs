//! What people and the check-back read: lists, and a transaction with its history. The caller sees to it that all of an
//! answer is one state of the database.

use super::history;
use super::row::{id, state};
use super::sql::{Failed, Param, Sql, Words, number, words, words_if_any};
use crate::store::clock::{Moment, Time};
use crate::store::story::Place;
use crate::store::{Bookmark, Event, Filter, Lane, Listing, NameFilter, Strand, Summary};
use crate::tx::batch::FRONT_BYTES;
use crate::tx::decision::Actor;
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::name::TransactionName;
use crate::tx::state::State;
use std::sync::{Arc, LazyLock};
use tokio_postgres::Row;

/// Rows that one answer looks at, at most: a filter that hardly anything fits must hold up nobody.
const ROWS_MAX: i64 = 20_000;

/// Rows that are read at a time.
const ROWS_AT_ONCE: i64 = 500;

/// Milliseconds that the clock may have gone back between a transaction's first message and its commit.
const CLOCK_SLACK: i64 = 1_000;

/// The columns of a [`Summary`] and its place.
const COLUMNS: &str = "t.sequence, t.id, t.name, l.vhost, t.\"user\", t.state, t.created_at, t.parked_at, t.decided_at,
    t.decided_by, t.messages, t.bytes, t.checker, t.attempts, t.checks_answered, t.next_check_at, l.number, t.number,
    t.settled_at";

/// The beginning of a transaction's messages, if it has them still.
const FRONT: &str = "CASE WHEN t.state NOT IN ('open', 'in_doubt', 'committed') THEN NULL
    WHEN t.number IS NULL THEN substring(t.body FROM 1 FOR $5)
    ELSE (SELECT substring(p.body FROM 1 FOR $5) FROM packs AS p WHERE p.number = t.number AND p.place = 0) END";

/// What brings a dead letter to RabbitMQ once more is no transaction of its own.
const NO_RETRY: &str = "NOT EXISTS (SELECT 1 FROM dead_letters AS d WHERE d.retry = t.sequence)";

fn summary(row: &Row, time: &Time) -> Result<(Place, Summary), Failed> {
    let decided_at = row.try_get::<_, Option<i64>>(8)?;
    let decided_by = words_if_any(row, 9)?;
    let summary = Summary {
        id: id(row, 1)?,
        // It was checked when it came.
        name: words_if_any(row, 2)?.and_then(|name| TransactionName::new(name.as_bytes()).ok()),
        vhost: words(row, 3)?.into(),
        user: words(row, 4)?.into(),
        state: state(row, 5)?,
        created_at: Timestamp(row.try_get(6)?),
        parked_at: row.try_get::<_, Option<i64>>(7)?.map(Timestamp),
        decided_at: decided_at.map(Timestamp),
        // A plain commit does not spell out what it always is.
        decided_by: decided_by.or_else(|| decided_at.map(|_| Actor::Channel.to_string())),
        messages: number(row, 10)?,
        bytes: number(row, 11)?,
        checker: words_if_any(row, 12)?.map(Into::into),
        attempts: number(row, 13)?,
        checks_answered: number(row, 14)?,
        next_check_at: row.try_get::<_, Option<i64>>(15)?.map(|at| time.shown(Moment(at))),
        lane: number(row, 16)?,
    };
    let settled_at = row.try_get::<_, Option<i64>>(18)?.map(Timestamp);
    Ok((Place { sequence: row.try_get(0)?, number: row.try_get(17)?, settled_at }, summary))
}

/// Which rows a list is made of, before each is looked at. The words of the indexes, as far as they are known beforehand.
macro_rules! list_of {
    ($condition:literal) => {{
        static LIST: LazyLock<String> = LazyLock::new(|| {
            format!(
                "SELECT {COLUMNS}, CASE WHEN $5 > 0 THEN {FRONT} END FROM transactions AS t JOIN lanes AS l USING (lane)
                 WHERE {} AND t.sequence > $1 AND ($2::text IS NULL OR t.name = $2)
                     AND ($3::text[] IS NULL OR t.checker IS NULL OR t.checker <> ALL ($3)) AND {NO_RETRY}
                 ORDER BY t.sequence LIMIT $4",
                $condition
            )
        });
        &**LIST
    }};
}

fn list_for(filter: &Filter) -> &'static str {
    // What has a name is found by it, in whatever state.
    if let Some(NameFilter::Whole(_)) = filter.name {
        return list_of!("t.name IS NOT NULL AND t.name = $2");
    }
    match filter.state {
        None => list_of!("TRUE"),
        Some(State::Committed) => list_of!("t.state = 'committed'"),
        Some(State::Open) => list_of!("t.state <> 'committed' AND t.state = 'open'"),
        Some(State::InDoubt) => list_of!("t.state <> 'committed' AND t.state = 'in_doubt'"),
        Some(State::Delivered) => list_of!("t.state <> 'committed' AND t.state = 'delivered'"),
        Some(State::RolledBack) => list_of!("t.state <> 'committed' AND t.state = 'rolled_back'"),
        Some(State::DeadLettered) => list_of!("t.state <> 'committed' AND t.state = 'dead_lettered'"),
    }
}

/// What `filter` wants behind `after`; of `known` checkers nothing, if they are given.
fn list(
    sql: &Sql,
    time: &Time,
    filter: &Filter,
    known: Option<&[Arc<str>]>,
    after: Bookmark,
    limit: usize,
) -> Result<Listing<Summary>, Failed> {
    let name = match &filter.name {
        Some(NameFilter::Whole(name)) => Some(Words(name)),
        _ => None,
    };
    let known: Option<Vec<_>> = known.map(|known| known.iter().map(|checker| Words(checker)).collect());
    let front = if filter.exchange.is_some() { FRONT_BYTES as i32 } else { 0 };
    let mut found = Listing::default();
    let (mut seen, mut last) = (0, after.0);
    loop {
        let values: [Param<'_>; 5] = [&last, &name, &known, &ROWS_AT_ONCE, &front];
        let rows = sql.query(list_for(filter), &values)?;
        for row in &rows {
            let (place, summary) = summary(row, time)?;
            last = place.sequence;
            let fits_front = || match filter.exchange {
                None => Ok(true),
                Some(_) => {
                    Ok::<_, Failed>(row.try_get::<_, Option<&[u8]>>(19)?.is_some_and(|front| filter.fits_front(front)))
                }
            };
            if filter.fits(&summary) && fits_front()? {
                found.items.push(summary);
            }
            if found.items.len() == limit.max(1) {
                found.next = Some(Bookmark(last));
                return Ok(found);
            }
        }
        seen += rows.len() as i64;
        if (rows.len() as i64) < ROWS_AT_ONCE {
            return Ok(found);
        }
        if seen >= ROWS_MAX {
            found.next = Some(Bookmark(last));
            return Ok(found);
        }
    }
}

pub(super) fn transactions(
    sql: &Sql,
    time: &Time,
    filter: &Filter,
    after: Bookmark,
    limit: usize,
) -> Result<Listing<Summary>, Failed> {
    list(sql, time, filter, None, after, limit)
}

pub(super) fn unasked(
    sql: &Sql,
    time: &Time,
    known: &[Arc<str>],
    after: Bookmark,
    limit: usize,
) -> Result<Listing<Summary>, Failed> {
    let in_doubt = Filter { state: Some(State::InDoubt), ..Filter::default() };
    list(sql, time, &in_doubt, Some(known), after, limit)
}

/// The place of a transaction among the rows.
pub(super) fn place(sql: &Sql, id: TransactionId) -> Result<Option<i64>, Failed> {
    let known = sql.one(
        "SELECT sequence FROM transactions WHERE parked_at IS NOT NULL AND id = $1
         UNION ALL SELECT sequence FROM transactions
             WHERE parked_at IS NULL AND state IN ('dead_lettered', 'delivered') AND id = $1",
        &[&id.0],
    )?;
    match known {
        Some(row) => Ok(Some(row.try_get(0)?)),
        None => place_of_plain(sql, id),
    }
}

/// A plain commit pays for no index on its id, but its id tells when it began, and rows lie in the order of decisions.
fn place_of_plain(sql: &Sql, id: TransactionId) -> Result<Option<i64>, Failed> {
    let began = id.0.get_timestamp().map_or(0, |at| {
        let (seconds, nanos) = at.to_unix();
        i64::try_from(seconds * 1000 + u64::from(nanos / 1_000_000)).unwrap_or(i64::MAX)
    });
    let ends = sql.one("SELECT coalesce(min(sequence), 0), coalesce(max(sequence), 0) FROM transactions", &[])?;
    let Some(ends) = ends else { return Ok(None) };
    let (mut from, mut to): (i64, i64) = (ends.try_get(0)?, ends.try_get(1)?);
    while from < to {
        let middle = from + (to - from) / 2;
        let found = sql.one(
            "SELECT sequence, decided_at FROM transactions WHERE state = 'committed' AND sequence >= $1
             ORDER BY sequence LIMIT 1",
            &[&middle],
        )?;
        match found {
            Some(row) if row.try_get::<_, i64>(1)? < began.saturating_sub(CLOCK_SLACK) => {
                from = row.try_get::<_, i64>(0)? + 1;
            }
            _ => to = middle,
        }
    }
    let found = sql.one(
        "SELECT sequence FROM (SELECT sequence, id FROM transactions WHERE state = 'committed' AND sequence >= $1
             ORDER BY sequence LIMIT $2) AS near WHERE id = $3",
        &[&from, &ROWS_MAX, &id.0],
    )?;
    Ok(found.map(|row| row.try_get(0)).transpose()?)
}

pub(super) fn transaction(sql: &Sql, time: &Time, id: TransactionId) -> Result<Option<(Summary, Vec<Event>)>, Failed> {
    static BY_PLACE: LazyLock<String> = LazyLock::new(|| {
        format!("SELECT {COLUMNS} FROM transactions AS t JOIN lanes AS l USING (lane) WHERE t.sequence = $1")
    });
    let Some(sequence) = place(sql, id)? else { return Ok(None) };
    let Some(row) = sql.one(&BY_PLACE, &[&sequence])? else { return Ok(None) };
    let (place, summary) = summary(&row, time)?;
    let events = history::read(sql, &place, &summary)?;
    Ok(Some((summary, events)))
}

/// Lanes, and what stepped aside of them, that hold committed messages.
pub(super) fn lanes(sql: &Sql) -> Result<Vec<Lane>, Failed> {
    let rows = sql.query(
        "SELECT vhost, number, nullif(aside, -1) FROM lanes
         WHERE EXISTS (SELECT 1 FROM transactions WHERE state = 'committed' AND transactions.lane = lanes.lane)
         ORDER BY vhost, number, aside",
        &[],
    )?;
    let lanes = rows.iter().map(|row| {
        let aside = row.try_get::<_, Option<i64>>(2)?.map(|strand| Strand(strand as u32));
        Ok(Lane { vhost: words(row, 0)?.into(), number: number(row, 1)?, aside })
    });
    lanes.collect()
}
