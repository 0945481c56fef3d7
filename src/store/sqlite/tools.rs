//! What an operator can do with the file while a proxy has it, or none: look whether it is right, copy it, count.

use super::file::{beside, private};
use super::letters::count_waiting;
use super::open::{OpenError, open_reader, schema_version};
use super::packs::Pieces;
use super::row::{goes_on, pack_keys};
use crate::store::stored::{Stored, is_sound};
use crate::store::tools::{CheckReport, Checked, Found, LaneBacklog, StoreStats, count_messages};
use crate::tx::id::TransactionId;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, Statement, Transaction, TransactionBehavior};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// Findings told of one damaged file; more would say the same.
const PROBLEMS_MAX: usize = 100;

/// Why a command on the file failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The file could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A backup never writes over a file.
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    /// Reading the store failed.
    #[error("the store could not be read: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// Writing the backup failed.
    #[error("the backup could not be written: {0}")]
    Write(#[from] std::io::Error),
}

fn open(path: &Path) -> Result<Connection, OpenError> {
    if path.is_dir() {
        return Err(OpenError::Folder { path: path.into() });
    }
    if !path.exists() {
        return Err(OpenError::Missing { path: path.into() });
    }
    let sql = open_reader(path)?;
    if schema_version(&sql, path)? == 0 {
        return Err(OpenError::NotAStore { path: path.into(), reason: "it is empty".into() });
    }
    Ok(sql)
}

/// Counts what is in the file.
///
/// # Errors
/// The file can't be opened or read.
pub fn stats(path: &Path) -> Result<StoreStats, ToolError> {
    let sql = open(path)?;
    let sql = Transaction::new_unchecked(&sql, TransactionBehavior::Deferred)?;
    let count = |query: &str| sql.query_row(query, [], |row| row.get::<_, i64>(0)).map(|count| count.unsigned_abs());
    let undecided = |state: &str| {
        count(&format!("SELECT count(*) FROM transactions WHERE state IN ('open', 'in_doubt') AND state = '{state}'"))
    };
    let finished = |state: &str| {
        count(&format!(
            "SELECT count(*) FROM transactions WHERE state IN ('delivered', 'rolled_back') AND state = '{state}'"
        ))
    };
    let lanes = sql
        .prepare(
            "SELECT vhost, number,
                 sum((SELECT count(*) FROM transactions WHERE state = 'committed' AND transactions.lane = lanes.lane))
             FROM lanes GROUP BY vhost, number ORDER BY vhost, number",
        )?
        .query_map([], |row| {
            Ok(LaneBacklog { vhost: row.get(0)?, lane: row.get(1)?, committed: row.get::<_, i64>(2)?.unsigned_abs() })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let lanes: Vec<_> = lanes.into_iter().filter(|lane| lane.committed > 0).collect();
    let pages = count("PRAGMA page_count")?;
    let page_bytes = count("PRAGMA page_size")?;
    let oldest = "SELECT decided_at FROM transactions WHERE sequence =
                      (SELECT min(first) FROM (SELECT (SELECT min(sequence) FROM transactions
                           WHERE state = 'committed' AND transactions.lane = lanes.lane) AS first FROM lanes))";
    Ok(StoreStats {
        schema: schema_version(&sql, path)?,
        file_bytes: pages * page_bytes,
        used_bytes: (pages - count("PRAGMA freelist_count")?) * page_bytes,
        log_bytes: std::fs::metadata(beside(path, "-wal")).map_or(0, |log| log.len()),
        open: undecided("open")?,
        in_doubt: undecided("in_doubt")?,
        committed: lanes.iter().map(|lane| lane.committed).sum(),
        delivered: finished("delivered")?,
        rolled_back: finished("rolled_back")?,
        dead_letters: match schema_version(&sql, path)? {
            0..3 => count("SELECT count(*) FROM dead_letters")?,
            _ => count_waiting(&sql)?,
        },
        oldest_committed_at: sql.query_row(oldest, [], |row| row.get(0)).or_else(none_if_no_row)?,
        lanes,
    })
}

fn none_if_no_row<T>(error: rusqlite::Error) -> rusqlite::Result<Option<T>> {
    if error == rusqlite::Error::QueryReturnedNoRows { Ok(None) } else { Err(error) }
}

/// How many bytes of a backup are written, for somebody who looks on.
pub fn written(target: &Path) -> u64 {
    std::fs::metadata(partial(target)).map_or(0, |file| file.len())
}

/// The name of a backup that is not whole yet.
fn partial(target: &Path) -> PathBuf {
    beside(target, ".partial")
}

/// Copies the store as it is at one moment to a new file, while proxies go on. The log grows meanwhile.
///
/// # Errors
/// The target is there already, or something could not be read or written; then there is no target.
pub fn backup(path: &Path, target: &Path) -> Result<(), ToolError> {
    if target.exists() {
        return Err(ToolError::Exists(target.into()));
    }
    let sql = open(path)?;
    let partial = partial(target);
    let copied = copy(&sql, &partial).and_then(|()| {
        std::fs::rename(&partial, target)?;
        // The new name has to be as durable as what it names.
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(File::open(folder)?.sync_all()?)
    });
    if copied.is_err() {
        // It may not have come to be.
        let _ = std::fs::remove_file(&partial);
    }
    copied
}

fn copy(sql: &Connection, partial: &Path) -> Result<(), ToolError> {
    // What an interrupted backup left behind.
    match std::fs::remove_file(partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    private().write(true).create_new(true).open(partial)?;
    let mut copy = Connection::open(partial)?;
    // All in one step: between two steps others may write, and then SQLite begins anew, under load for ever.
    let step = Backup::new(sql, &mut copy)?.step(-1)?;
    if step != StepResult::Done {
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        return Err(rusqlite::Error::SqliteFailure(busy, None).into());
    }
    copy.close().map_err(|(_, error)| error)?;
    Ok(File::open(partial)?.sync_all()?)
}

/// Looks at everything in the file: SQLite's structures, what refers to what, and that every message can be read.
///
/// # Errors
/// The file can't be opened or read. What is wrong in it is told in the report.
pub fn check(path: &Path) -> Result<CheckReport, ToolError> {
    check_telling(path, &Checked::default())
}

/// The same as [`check`], telling meanwhile how far it is.
///
/// # Errors
/// As [`check`].
pub fn check_telling(path: &Path, checked: &Checked) -> Result<CheckReport, ToolError> {
    let sql = open(path)?;
    let sql = Transaction::new_unchecked(&sql, TransactionBehavior::Deferred)?;
    let schema = schema_version(&sql, path)?;
    let mut check = Check { sql: &sql, schema, report: CheckReport::default(), checked };
    check.structure()?;
    // With broken pages everything behind would only repeat it.
    if check.report.problems.is_empty() {
        check.references()?;
        check.transactions()?;
        check.dead_letters()?;
    }
    Ok(check.report)
}

/// What counts something wrong, and what that is.
const REFERENCES: &[(&str, &str)] = &[
    (
        "SELECT count(*) FROM packs WHERE key >> 20 NOT IN
             (SELECT number FROM transactions WHERE number IS NOT NULL UNION SELECT number FROM garbage)",
        "packs belong to no transaction",
    ),
    (
        "SELECT count(*) FROM transactions, store WHERE sequence >= sequence_reserved",
        "transactions have a sequence that will be given out again",
    ),
    (
        "SELECT count(*) FROM transactions
         WHERE (state IN ('open', 'in_doubt')) <> (decided_at IS NULL)",
        "transactions have a decision and are undecided, or the other way round",
    ),
    (
        "SELECT count(*) FROM history WHERE transaction_id NOT IN (SELECT id FROM transactions)",
        "entries of the history belong to no transaction",
    ),
    (
        "SELECT count(*) FROM transactions WHERE letters > 0 AND letters <>
             (SELECT count(*) FROM dead_letters WHERE dead_letters.sequence = transactions.sequence)",
        "transactions miscount their dead letters",
    ),
];

/// The same for what only transactions with a name have.
const NAMED_REFERENCES: &[(&str, &str)] = &[
    (
        "SELECT count(*) FROM message_ids WHERE number NOT IN
             (SELECT number FROM transactions WHERE number IS NOT NULL UNION SELECT number FROM garbage)",
        "message-ids belong to no transaction",
    ),
    (
        "SELECT count(*) FROM (SELECT 1 FROM transactions JOIN lanes USING (lane)
             WHERE name IS NOT NULL AND state IN ('open', 'in_doubt') GROUP BY name, user, vhost, state
             HAVING count(*) > 1)",
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
];

/// The same for dead letters that are tried again.
const RETRY_REFERENCES: &[(&str, &str)] = &[(
    "SELECT count(*) FROM dead_letters WHERE retry IS NOT NULL AND retry NOT IN
         (SELECT sequence FROM transactions WHERE state = 'committed')",
    "dead letters are hidden, and nothing brings them to RabbitMQ",
)];

struct Check<'a> {
    sql: &'a Connection,
    schema: i64,
    report: CheckReport,
    checked: &'a Checked,
}

impl Check<'_> {
    fn problem(&mut self, problem: String) {
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(problem);
        }
    }

    fn structure(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.sql.prepare("PRAGMA integrity_check")?;
        let mut rows = statement.query([])?;
        loop {
            match rows.next() {
                Ok(Some(row)) => {
                    let line = row.get::<_, String>(0)?;
                    if line != "ok" {
                        self.problem(line);
                    }
                }
                Ok(None) => return Ok(()),
                // Where SQLite can't even tell what is wrong.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
                    self.problem(error.to_string());
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn references(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.sql.prepare("PRAGMA foreign_key_check")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (table, to): (String, String) = (row.get(0)?, row.get(2)?);
            self.problem(format!("a row of {table} refers to a row of {to} that is not there"));
        }
        for (query, problem) in REFERENCES {
            self.count(query, problem)?;
        }
        // A file that no proxy of this version has opened yet has less.
        if self.schema >= 2 {
            for (query, problem) in NAMED_REFERENCES {
                self.count(query, problem)?;
            }
        }
        if self.schema >= 3 {
            for (query, problem) in RETRY_REFERENCES {
                self.count(query, problem)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, query: &str, problem: &str) -> rusqlite::Result<()> {
        let count: i64 = self.sql.query_row(query, [], |row| row.get(0))?;
        if count > 0 {
            self.problem(format!("{count} {problem}"));
        }
        Ok(())
    }

    fn transactions(&mut self) -> rusqlite::Result<()> {
        const KEPT: &str = "state IN ('open', 'in_doubt', 'committed')";
        let count = format!("SELECT count(*) FROM transactions WHERE {KEPT}");
        let total = self.sql.query_row(&count, [], |row| row.get::<_, i64>(0))?;
        self.checked.total.store(total.unsigned_abs(), Ordering::Relaxed);
        // A letter that is tried again is the only message of its row, under its old place.
        let first_index = match self.schema {
            0..3 => "NULL",
            _ => "(SELECT message_index FROM dead_letters WHERE retry IS NOT NULL AND retry = transactions.sequence)",
        };
        let mut statement = self.sql.prepare(&format!(
            "SELECT id, messages, bytes, number, packs, body, coalesce({first_index}, 0), {checksum} FROM transactions
             WHERE {KEPT} ORDER BY sequence",
            checksum = self.checksum(),
        ))?;
        let mut packs = self.sql.prepare(&format!(
            "SELECT key, first_index, body, {} FROM packs WHERE key BETWEEN ?1 AND ?2 ORDER BY key",
            self.checksum()
        ))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let id = TransactionId(Uuid::from_bytes(row.get(0)?));
            let (messages, bytes): (i64, i64) = (row.get(1)?, row.get(2)?);
            let mut found = Found::from(row.get(6)?);
            match (row.get::<_, Option<i64>>(3)?, row.get_ref(5)?.as_blob_or_null()?) {
                (Some(number), None) => packs_of(&mut found, &mut packs, number, row.get(4)?)?,
                (None, Some(body)) => found.add(0, body, row.get(7)?),
                _ => found.problem("keeps its messages in no place, or in two".into()),
            }
            self.report.transactions += 1;
            self.checked.done.store(self.report.transactions, Ordering::Relaxed);
            self.report.messages += found.messages.unsigned_abs();
            if let Some(problem) = found.verdict(messages, bytes) {
                self.problem(format!("transaction {id} {problem}"));
            }
        }
        Ok(())
    }

    fn dead_letters(&mut self) -> rusqlite::Result<()> {
        let query = format!("SELECT letter, message, {} FROM dead_letters", self.checksum());
        let mut statement = self.sql.prepare(&query)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (letter, message): (i64, _) = (row.get(0)?, row.get_ref(1)?.as_blob()?);
            if !is_sound(message, row.get(2)?) {
                self.problem(format!("dead letter {letter} is not what was kept"));
            } else if count_messages(message) != Ok(1) {
                self.problem(format!("dead letter {letter} is not one message"));
            }
        }
        Ok(())
    }

    /// The column of checksums; a file that no proxy of this version has opened yet has none.
    fn checksum(&self) -> &'static str {
        if self.schema >= 7 { "checksum" } else { "NULL" }
    }
}

fn packs_of(found: &mut Found, statement: &mut Statement<'_>, number: i64, packs: i64) -> rusqlite::Result<()> {
    let (first, last) = pack_keys(number).into_inner();
    let mut rows = statement.query([first, last])?;
    let (mut next, mut pieces) = (first, Pieces::default());
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(0)? != next {
            found.problem(format!("lacks its pack {}", next - first));
        }
        next += 1;
        let (mark, body, checksum) = (row.get(1)?, row.get_ref(2)?.as_blob()?, row.get(3)?);
        if goes_on(mark) {
            pieces.add(body, checksum);
        } else if pieces.is_empty() {
            found.add(mark, body, checksum);
        } else {
            let pack = std::mem::take(&mut pieces).end(body, checksum);
            let is_damaged = matches!(pack, Stored::Damaged(_));
            found.add_read(mark, pack.bytes(), !is_damaged);
        }
    }
    if !pieces.is_empty() {
        found.problem("lacks the end of its last pack".into());
    }
    if next - first != packs {
        found.problem(format!("should have {packs} packs, and has {}", next - first));
    }
    Ok(())
}
