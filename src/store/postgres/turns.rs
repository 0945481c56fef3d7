//! Who is to be asked about next: users take turns, so that one with a million transactions in doubt keeps nobody waiting.

use super::row::id;
use super::sql::{Failed, Sql, Words, number, words};
use crate::store::clock::Moment;
use crate::store::{Due, DueNow};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Users that one answer looks at, at most, on each side of the one behind whom it begins.
const USERS_MAX: i64 = 2_500;

/// Of the users behind `$2` up to `$3`, each and when the first of his checks is due: from one to the next along the index,
/// however many checks each has.
const USERS: &str = "WITH RECURSIVE turn AS (
        (SELECT \"user\", next_check_at FROM transactions
         WHERE state = 'in_doubt' AND next_check_at IS NOT NULL AND checker = $1 AND \"user\" > $2
             AND ($3::text IS NULL OR \"user\" <= $3)
         ORDER BY \"user\", next_check_at LIMIT 1)
        UNION ALL
        SELECT next.* FROM turn CROSS JOIN LATERAL (
            SELECT \"user\", next_check_at FROM transactions
            WHERE state = 'in_doubt' AND next_check_at IS NOT NULL AND checker = $1 AND \"user\" > turn.\"user\"
                AND ($3::text IS NULL OR \"user\" <= $3)
            ORDER BY \"user\", next_check_at LIMIT 1) AS next)
    SELECT \"user\", next_check_at FROM turn LIMIT $4";

/// Each user's, the longest overdue first.
const OF_USERS: &str = "SELECT u.place, t.id, t.next_check_at, t.attempts, t.checks_answered
    FROM unnest($2::text[]) WITH ORDINALITY AS u (name, place) CROSS JOIN LATERAL (
        SELECT id, next_check_at, attempts, checks_answered FROM transactions
        WHERE state = 'in_doubt' AND next_check_at IS NOT NULL AND checker = $1 AND \"user\" = u.name
        ORDER BY next_check_at LIMIT $3) AS t
    ORDER BY u.place, t.next_check_at";

pub(super) fn due(sql: &Sql, now: Moment, checker: &str, after: &str, limit: usize) -> Result<DueNow, Failed> {
    let mut found = DueNow::default();
    let users = users_due(sql, now, checker, after, limit.max(1), &mut found.next)?;
    let names: Vec<_> = users.iter().map(|user| Words(user)).collect();
    // One more than can be told, to know when the next is due.
    let each = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let mut turns: Vec<_> = users.iter().map(|_| VecDeque::new()).collect();
    for row in sql.query(OF_USERS, &[&Words(checker), &names, &each])? {
        let place = number::<usize>(&row, 0)? - 1;
        let (id, user) = (id(&row, 1)?, Arc::clone(&users[place]));
        let due = Due { id, user, attempts: number(&row, 3)?, answered: number(&row, 4)? };
        turns[place].push_back((Moment(row.try_get(2)?), due));
    }
    // A round gives each a turn; who has nothing more that is due has none in the next.
    while !turns.is_empty() {
        for mut checks in std::mem::take(&mut turns) {
            let Some((at, due)) = checks.pop_front() else { continue };
            if at > now {
                is_next(&mut found.next, at.since(now));
                continue;
            }
            if found.due.len() == limit {
                is_next(&mut found.next, Duration::ZERO);
                return Ok(found);
            }
            found.due.push(due);
            turns.push(checks);
        }
    }
    Ok(found)
}

/// The first users behind `after`, round to `after` itself, of whose checks some are due; `next` learns when the first of
/// the others' is.
fn users_due(
    sql: &Sql,
    now: Moment,
    checker: &str,
    after: &str,
    limit: usize,
    next: &mut Option<Duration>,
) -> Result<Vec<Arc<str>>, Failed> {
    let mut users = Vec::new();
    for (from, to) in [(after, None), ("", Some(after))] {
        let rows = sql.query(USERS, &[&Words(checker), &Words(from), &to.map(Words), &USERS_MAX])?;
        for row in &rows {
            let at = Moment(row.try_get(1)?);
            if at > now {
                is_next(next, at.since(now));
            } else if users.len() == limit {
                is_next(next, Duration::ZERO);
                return Ok(users);
            } else {
                users.push(words(row, 0)?.into());
            }
        }
        if rows.len() as i64 == USERS_MAX {
            // There may be more behind these.
            is_next(next, Duration::ZERO);
            return Ok(users);
        }
    }
    Ok(users)
}

fn is_next(next: &mut Option<Duration>, wait: Duration) {
    *next = Some(next.map_or(wait, |next| next.min(wait)));
}
