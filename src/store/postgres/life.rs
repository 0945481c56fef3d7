//! Whose the store is: one process at a time, for now.
//!
//! A process that lives raises its beat in its row, four times a second. Whoever else wants the store watches: a beat that
//! goes up says that it is in use, and one that stands still for [`DEAD_AFTER`] of the watcher's own time says that it is free.
//! No clock of another machine counts. What a proxy that was only stopped for a while does then is refused by the database, for
//! its row is gone; and it is told so by its next beat.

use super::accounts::Accounts;
use super::book::Me;
use super::sql::{Failed, Sql, Words, words};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use uuid::Uuid;

/// Begins the sessions of the beat: none of it has to survive a crash.
pub(super) const SETTINGS: &str = "SET synchronous_commit = off";

/// Between two beats, and between two looks at another's.
const BEAT: Duration = Duration::from_millis(250);

/// How long a beat stands still before its process counts as dead.
const DEAD_AFTER: Duration = Duration::from_secs(4);

/// Who looks more seldom than that has seen nothing: the database may have been away for everybody.
const GAP_MAX: Duration = Duration::from_millis(1_500);

/// How long without a beat that was answered before the database counts as away.
const AWAY_AFTER: Duration = Duration::from_secs(1);

/// Another process, as its row shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Other {
    id: i64,
    beat: i64,
    /// Where it runs.
    pub(super) host: String,
}

/// Takes the store. The other way round, it is the living process's that has it.
pub(super) fn take(sql: &Sql) -> Result<Result<Me, Other>, Failed> {
    let mut watched: Option<(Other, Instant)> = None;
    let mut looked = Instant::now();
    loop {
        let dead = watched.as_ref().filter(|(_, since)| since.elapsed() >= DEAD_AFTER).map(|(other, _)| other);
        let other = match try_take(sql, dead)? {
            Ok(me) => return Ok(Ok(me)),
            Err(other) => other,
        };
        let gap = looked.elapsed();
        looked = Instant::now();
        watched = match watched {
            Some((before, since)) if before == other && gap <= GAP_MAX => Some((before, since)),
            // It goes on: it lives.
            Some((before, _)) if before.id == other.id && before.beat != other.beat => return Ok(Err(other)),
            _ => {
                tracing::info!(host = other.host, wait = ?DEAD_AFTER, "another process has the store, or had it; waiting whether it lives");
                Some((other, looked))
            }
        };
        std::thread::sleep(BEAT);
    }
}

/// Takes the store, if nobody has it, or only one that is dead.
fn try_take(sql: &Sql, dead: Option<&Other>) -> Result<Result<Me, Other>, Failed> {
    sql.transaction("BEGIN", || {
        // One at a time.
        sql.query("SELECT 1 FROM meta FOR UPDATE", &[])?;
        if let Some(dead) = dead {
            // It waits for the last that the other one writes, and then there is nothing more of it.
            sql.execute("DELETE FROM instances WHERE id = $1 AND beat = $2", &[&dead.id, &dead.beat])?;
        }
        if let Some(row) = sql.one("SELECT id, beat, host FROM instances ORDER BY id DESC LIMIT 1", &[])? {
            return Ok(Err(Other { id: row.try_get(0)?, beat: row.try_get(1)?, host: words(&row, 2)? }));
        }
        let key = Uuid::from_u128(u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..)));
        let id =
            sql.number("INSERT INTO instances (key, host) VALUES ($1, $2) RETURNING id", &[&key, &Words(&host())])?;
        Ok(Ok(Me::new(id, key)))
    })
}

/// The name of this machine, for people.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}, process {}", name.trim_end(), std::process::id())
}

/// Shows that this process lives, until it is told to end; then the store is free. Tells by `taken` when another process has it.
pub(super) fn beat(sql: &Sql, me: &Me, accounts: &Accounts, end: &Receiver<()>, taken: &watch::Sender<bool>) {
    let mut beaten = Instant::now();
    while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(BEAT) {
        let began = Instant::now();
        let connected = sql.connect().map_err(|error| Failed::Lost(error.to_string()));
        let raised = connected.and_then(|()| {
            sql.execute("UPDATE instances SET beat = beat + 1 WHERE id = $1 AND key = $2", &[&me.id, &me.key])
        });
        match raised {
            Ok(1) => beaten = began,
            Ok(_) => {
                tracing::error!("another process has taken over the store");
                accounts.set_away(true);
                taken.send_replace(true);
                break;
            }
            Err(error) => tracing::debug!(%error, "a beat failed"),
        }
        accounts.set_away(beaten.elapsed() > AWAY_AFTER);
    }
    // One that is away finds out by itself.
    if sql.connect().is_ok() {
        let _ = sql.execute("DELETE FROM instances WHERE id = $1 AND key = $2", &[&me.id, &me.key]);
    }
    sql.hang_up();
}
