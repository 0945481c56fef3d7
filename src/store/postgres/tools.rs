//! What an operator can do with the database while a proxy has it, or none: look whether it is right, count.

use super::open::{Dial, OpenError};
use super::row::id;
use super::sql::{Failed, Sql, number, words};
use super::{alone, letters};
use crate::config::PostgresUrl;
use crate::store::shares::ROW_BYTES;
use crate::store::stored::is_sound;
use crate::store::tools::{CheckReport, Checked, Found, LaneBacklog, StoreStats, Weakness, count_messages};
use std::sync::atomic::Ordering;

/// Findings told of one store; more would say the same.
const PROBLEMS_MAX: usize = 100;

/// Rows that are looked at before their messages are read.
const ROWS_AT_ONCE: i64 = 1_000;

/// One state of the database, which nobody waits for.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Does what only reads on a store that is there, and gives its schema's version along.
fn look<T: Send>(url: &PostgresUrl, look: impl FnOnce(&Sql, i64) -> Result<T, Failed> + Send) -> Result<T, OpenError> {
    alone(|| {
        let dial = Dial::new(url)?;
        let sql = dial.session()?;
        let schema = dial.schema_version(&sql)?.ok_or_else(|| dial.missing())?;
        sql.transaction(BEGIN, || look(&sql, schema)).map_err(|error| dial.explain(error))
    })
}

/// Counts what is in the store.
///
/// # Errors
/// The database can't be used, or has no store.
pub fn stats(url: &PostgresUrl) -> Result<StoreStats, OpenError> {
    look(url, |sql, schema| {
        let count = |statement| Ok::<_, Failed>(sql.number(statement, &[])?.unsigned_abs());
        let rows = sql.query(
            "SELECT l.vhost, l.number, count(*) FROM transactions AS t JOIN lanes AS l USING (lane)
             WHERE t.state = 'committed' GROUP BY l.vhost, l.number ORDER BY l.vhost, l.number",
            &[],
        )?;
        let lanes = rows
            .iter()
            .map(|row| Ok(LaneBacklog { vhost: words(row, 0)?, lane: number(row, 1)?, committed: number(row, 2)? }));
        let lanes = lanes.collect::<Result<Vec<_>, Failed>>()?;
        let oldest = sql.one("SELECT min(decided_at) FROM transactions WHERE state = 'committed'", &[])?;
        Ok(StoreStats {
            schema,
            file_bytes: count(
                "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
                 WHERE relkind = 'r' AND relnamespace = 'halfway'::regnamespace",
            )?,
            used_bytes: used_bytes(sql)?,
            log_bytes: 0,
            open: count("SELECT count(*) FROM transactions WHERE state <> 'committed' AND state = 'open'")?,
            in_doubt: count("SELECT count(*) FROM transactions WHERE state <> 'committed' AND state = 'in_doubt'")?,
            committed: lanes.iter().map(|lane| lane.committed).sum(),
            delivered: count("SELECT count(*) FROM transactions WHERE state <> 'committed' AND state = 'delivered'")?,
            rolled_back: count(
                "SELECT count(*) FROM transactions WHERE state <> 'committed' AND state = 'rolled_back'",
            )?,
            dead_letters: letters::count_waiting(sql)?,
            oldest_committed_at: oldest.map(|row| row.try_get(0)).transpose()?.flatten(),
            lanes,
        })
    })
}

/// What counts against `store.max_size`.
fn used_bytes(sql: &Sql) -> Result<u64, Failed> {
    let bytes = sql.number(
        "SELECT sum(bytes + $1)::bigint FROM transactions
         WHERE state IN ('open', 'in_doubt', 'committed') AND NOT (packs > 0 AND parked_at IS NULL)",
        &[&ROW_BYTES],
    )?;
    Ok(bytes.unsigned_abs())
}

/// What of the server's settings makes a promise of the store weaker than it sounds.
///
/// # Errors
/// The database can't be used, or has no store.
pub fn weaknesses(url: &PostgresUrl) -> Result<Vec<Weakness>, OpenError> {
    look(url, |sql, _| {
        let is = |statement| Ok::<_, Failed>(sql.number(statement, &[])? > 0);
        let mut found = Vec::new();
        for (statement, text, why, cure) in [
            (
                "SELECT count(*) FROM pg_settings WHERE name = 'fsync' AND setting = 'off'",
                "fsync is off",
                "what was promised is lost when its machine goes down",
                "ALTER SYSTEM SET fsync = on, and reload PostgreSQL",
            ),
            (
                "SELECT count(*) FROM pg_settings WHERE name = 'full_page_writes' AND setting = 'off'",
                "full_page_writes is off",
                "a machine that goes down can leave pages that are half written",
                "ALTER SYSTEM SET full_page_writes = on, and reload PostgreSQL",
            ),
            (
                "SELECT count(*) FROM pg_settings WHERE name = 'synchronous_standby_names' AND setting = ''",
                "no standby has to confirm",
                "a failover loses what was promised within the last moments",
                "set synchronous_standby_names, unless one server without a failover is what you want",
            ),
        ] {
            if is(statement)? {
                found.push(Weakness { text, why, cure });
            }
        }
        Ok(found)
    })
}

/// Looks at everything in the store: what refers to what, and that every message can be read. Says in `checked` how far it is.
///
/// # Errors
/// The database can't be used, or has no store. What is wrong in one is told in the report.
pub fn check(url: &PostgresUrl, checked: &Checked) -> Result<CheckReport, OpenError> {
    look(url, |sql, _| {
        let mut check = Check { sql, report: CheckReport::default(), checked };
        for (query, problem) in REFERENCES {
            let count = sql.number(query, &[])?;
            if count > 0 {
                check.problem(format!("{count} {problem}"));
            }
        }
        check.transactions()?;
        check.dead_letters()?;
        Ok(check.report)
    })
}

/// What counts something wrong, and what that is.
const REFERENCES: &[(&str, &str)] = &[
    (
        "SELECT count(*) FROM transactions WHERE lane NOT IN (SELECT lane FROM lanes)",
        "transactions take a lane that is not there",
    ),
    (
        "SELECT count(*) FROM packs WHERE number NOT IN
             (SELECT number FROM transactions WHERE number IS NOT NULL UNION SELECT number FROM garbage)",
        "packs belong to no transaction",
    ),
    (
        "SELECT count(*) FROM message_ids WHERE number NOT IN
             (SELECT number FROM transactions WHERE number IS NOT NULL UNION SELECT number FROM garbage)",
        "message-ids belong to no transaction",
    ),
    (
        "SELECT count(*) FROM transactions WHERE (state IN ('open', 'in_doubt')) <> (decided_at IS NULL)",
        "transactions have a decision and are undecided, or the other way round",
    ),
    (
        "SELECT count(*) FROM history WHERE transaction_id NOT IN (SELECT id FROM transactions)",
        "entries of the history belong to no transaction",
    ),
    (
        "SELECT count(*) FROM transactions WHERE letters <>
             (SELECT count(*) FROM dead_letters WHERE dead_letters.sequence = transactions.sequence)",
        "transactions miscount their dead letters",
    ),
    (
        "SELECT count(*) FROM (SELECT 1 FROM transactions JOIN lanes USING (lane)
             WHERE name IS NOT NULL AND state IN ('open', 'in_doubt') GROUP BY name, \"user\", vhost, state
             HAVING count(*) > 1) AS twins",
        "names have two open attempts, or two in doubt",
    ),
    (
        "SELECT count(*) FROM transactions WHERE state = 'in_doubt' AND (name IS NULL OR in_doubt_at IS NULL)",
        "transactions are in doubt without a name or a time",
    ),
    (
        "SELECT count(*) FROM transactions WHERE next_check_at IS NOT NULL AND (state <> 'in_doubt' OR checker IS NULL)",
        "transactions are to be checked that can't be",
    ),
    (
        "SELECT count(*) FROM dead_letters WHERE retry IS NOT NULL AND retry NOT IN
             (SELECT sequence FROM transactions WHERE state = 'committed')",
        "dead letters are hidden, and nothing brings them to RabbitMQ",
    ),
];

struct Check<'a> {
    sql: &'a Sql,
    report: CheckReport,
    checked: &'a Checked,
}

impl Check<'_> {
    fn problem(&mut self, problem: String) {
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(problem);
        }
    }

    fn transactions(&mut self) -> Result<(), Failed> {
        let total = self
            .sql
            .number("SELECT count(*) FROM transactions WHERE state IN ('open', 'in_doubt', 'committed')", &[])?;
        self.checked.total.store(total.unsigned_abs(), Ordering::Relaxed);
        let mut last = 0_i64;
        loop {
            // A letter that is tried again is the only message of its row, under its old place.
            let rows = self.sql.query(
                "SELECT sequence, id, messages, bytes, number, packs, body IS NOT NULL,
                     coalesce((SELECT message_index FROM dead_letters WHERE retry = transactions.sequence), 0)
                 FROM transactions WHERE state IN ('open', 'in_doubt', 'committed') AND sequence > $1
                 ORDER BY sequence LIMIT $2",
                &[&last, &ROWS_AT_ONCE],
            )?;
            for row in &rows {
                last = row.try_get(0)?;
                let mut found = Found::from(row.try_get(7)?);
                match (row.try_get::<_, Option<i64>>(4)?, row.try_get::<_, bool>(6)?) {
                    (Some(number), false) => self.packs(&mut found, number, row.try_get(5)?)?,
                    (None, true) => self.body(&mut found, last)?,
                    _ => found.problem("keeps its messages in no place, or in two".into()),
                }
                self.report.transactions += 1;
                self.checked.done.store(self.report.transactions, Ordering::Relaxed);
                self.report.messages += found.messages.unsigned_abs();
                if let Some(problem) = found.verdict(row.try_get(2)?, row.try_get(3)?) {
                    self.problem(format!("transaction {} {problem}", id(row, 1)?));
                }
            }
            if (rows.len() as i64) < ROWS_AT_ONCE {
                return Ok(());
            }
        }
    }

    fn body(&self, found: &mut Found, sequence: i64) -> Result<(), Failed> {
        let row = self.sql.one("SELECT body, checksum FROM transactions WHERE sequence = $1", &[&sequence])?;
        if let Some(row) = row {
            let checksum = row.try_get::<_, Option<i64>>(1)?.map(|checksum| checksum as u32);
            found.add(0, row.try_get(0)?, checksum);
        }
        Ok(())
    }

    fn packs(&self, found: &mut Found, number: i64, packs: i64) -> Result<(), Failed> {
        let mut next = 0_i64;
        loop {
            // One at a time: each may be large.
            let row = self.sql.one(
                "SELECT place, first_index, body, checksum FROM packs WHERE number = $1 AND place >= $2
                 ORDER BY place LIMIT 1",
                &[&number, &next],
            )?;
            let Some(row) = row else { break };
            let place: i64 = row.try_get(0)?;
            if place != next {
                found.problem(format!("lacks its pack {next}"));
            }
            next = place + 1;
            found.add(row.try_get(1)?, row.try_get(2)?, Some(row.try_get::<_, i64>(3)? as u32));
        }
        if next != packs {
            found.problem(format!("should have {packs} packs, and has {next}"));
        }
        Ok(())
    }

    fn dead_letters(&mut self) -> Result<(), Failed> {
        let mut last = 0_i64;
        let next = "SELECT letter, message, checksum FROM dead_letters WHERE letter > $1 ORDER BY letter LIMIT 1";
        while let Some(row) = self.sql.one(next, &[&last])? {
            let message: &[u8] = row.try_get(1)?;
            last = row.try_get(0)?;
            if !is_sound(message, Some(row.try_get::<_, i64>(2)? as u32)) {
                self.problem(format!("dead letter {last} is not what was kept"));
            } else if count_messages(message) != Ok(1) {
                self.problem(format!("dead letter {last} is not one message"));
            }
        }
        Ok(())
    }
}
