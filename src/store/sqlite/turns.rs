//! Who is to be asked about next: users take turns, so that one with a million transactions in doubt keeps nobody waiting.

use super::row::id;
use crate::store::clock::Moment;
use crate::store::{Due, DueNow};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use std::sync::Arc;
use std::time::Duration;

/// Users that one answer looks at, at most. Some ten milliseconds.
const USERS_MAX: usize = 5_000;

/// Of the users behind `?2`, the first, and when the first of his checks is due.
const NEXT_USER: &str = "SELECT user, next_check_at FROM transactions INDEXED BY due
    WHERE state = 'in_doubt' AND next_check_at IS NOT NULL AND checker = ?1 AND user > ?2
    ORDER BY user, next_check_at LIMIT 1";

/// A user's, the longest overdue first.
const OF_USER: &str = "SELECT id, next_check_at, attempts, checks_answered FROM transactions INDEXED BY due
    WHERE state = 'in_doubt' AND next_check_at IS NOT NULL AND checker = ?1 AND user = ?2 ORDER BY next_check_at";

pub(super) fn due(sql: &Connection, now: Moment, checker: &str, after: &str, limit: usize) -> rusqlite::Result<DueNow> {
    let sql = Transaction::new_unchecked(sql, TransactionBehavior::Deferred)?;
    let mut found = DueNow::default();
    let users = users_due(&sql, now, checker, after, limit.max(1), &mut found.next)?;
    let mut statements = users.iter().map(|_| sql.prepare_cached(OF_USER)).collect::<rusqlite::Result<Vec<_>>>()?;
    let mut turns = Vec::new();
    for (user, statement) in users.iter().zip(&mut statements) {
        turns.push((user, statement.query([checker, user])?));
    }
    // A round gives each a turn; who has nothing more that is due has none in the next.
    while !turns.is_empty() {
        for (user, mut rows) in std::mem::take(&mut turns) {
            let Some(row) = rows.next()? else { continue };
            let at = Moment(row.get(1)?);
            if at > now {
                is_next(&mut found.next, at.since(now));
                continue;
            }
            if found.due.len() == limit {
                is_next(&mut found.next, Duration::ZERO);
                return Ok(found);
            }
            let (attempts, answered) = (row.get(2)?, row.get(3)?);
            found.due.push(Due { id: id(row.get(0)?), user: Arc::clone(user), attempts, answered });
            turns.push((user, rows));
        }
    }
    Ok(found)
}

/// The first users behind `after`, round to `after` itself, of whose checks some are due; `next` learns when the first of
/// the others' is.
fn users_due(
    sql: &Connection,
    now: Moment,
    checker: &str,
    after: &str,
    limit: usize,
    next: &mut Option<Duration>,
) -> rusqlite::Result<Vec<Arc<str>>> {
    let mut statement = sql.prepare_cached(NEXT_USER)?;
    let mut users = Vec::new();
    let (mut last, mut is_round) = (after.to_owned(), false);
    for _ in 0..USERS_MAX {
        let user: Option<(String, i64)> =
            statement.query_row([checker, &last], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        match user.filter(|(user, _)| !is_round || **user <= *after) {
            None if is_round => return Ok(users),
            None => (last, is_round) = (String::new(), true),
            Some((user, at)) => {
                if Moment(at) > now {
                    is_next(next, Moment(at).since(now));
                } else if users.len() == limit {
                    is_next(next, Duration::ZERO);
                    return Ok(users);
                } else {
                    users.push(user.as_str().into());
                }
                last = user;
            }
        }
    }
    // There may be more behind these.
    is_next(next, Duration::ZERO);
    Ok(users)
}

fn is_next(next: &mut Option<Duration>, wait: Duration) {
    *next = Some(next.map_or(wait, |next| next.min(wait)));
}
