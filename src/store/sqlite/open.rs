//! Opening the file: is it ours, is it whole, does somebody else have it?

use super::SqliteSettings;
use super::file::{Held, Place};
use crate::store::clock::{Clock, Moment, Reading, Time};
use crate::tx::id::Timestamp;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Says that a SQLite file is a store of ours: "half".
pub(super) const APPLICATION_ID: i32 = 0x6861_6c66;

/// Each step takes the schema from the version before it to its own, which is its place here, from 1.
const MIGRATIONS: [&str; 9] = [
    include_str!("schema/0001.sql"),
    include_str!("schema/0002.sql"),
    include_str!("schema/0003.sql"),
    include_str!("schema/0004.sql"),
    include_str!("schema/0005.sql"),
    include_str!("schema/0006.sql"),
    include_str!("schema/0007.sql"),
    include_str!("schema/0008.sql"),
    include_str!("schema/0009.sql"),
];

/// The schema that this program writes.
pub(super) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Measured: 8 KiB is a quarter faster than 4 KiB when many small rows share a commit.
const PAGE_BYTES: u32 = 8192;

/// Where the log is cut back to when it starts anew after something (a backup, say) has let it grow.
const LOG_BYTES_KEPT: u32 = 64 * 1024 * 1024;

/// Statements that a connection keeps ready: more than there are.
const STATEMENTS_MAX: usize = 64;

/// How long a look at the file's structure may hold up the start.
const CHECK_TIME_MAX: Duration = Duration::from_millis(500);

/// How long to wait for another program's lock on the file, such as somebody's `sqlite3` shell.
const BUSY_TIME_MAX: Duration = Duration::from_secs(5);

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder has the name of the file.
    #[error("{} is a folder; the store needs the name of a file", path.display())]
    Folder {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// There is no folder for the file, or no file for a command that only reads.
    #[error("{} is not there", path.display())]
    Missing {
        /// What is missing.
        path: PathBuf,
    },
    /// The file or its folder can't be written.
    #[error("{} can't be written: {reason}. The store needs to write the file and to make files beside it", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// Another process has the store.
    #[error("{} is in use by another process{}; its lock is {}", path.display(), holder.as_deref().unwrap_or(""), lock.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// The lock file.
        lock: PathBuf,
        /// Who says to have it, as words to put behind "another process".
        holder: Option<String>,
    },
    /// The file is something else.
    #[error("{} is not a store of halfway: {reason}. It was left as it is", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// The file was written by a later version of this program.
    #[error("{} has schema {found}, and this version knows {known} at most; use a later version", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The latest schema that this program knows.
        known: i64,
    },
    /// The file is damaged.
    #[error("{} is damaged: {reason}. Restore a backup, or move it away to start without what it held", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite found.
        reason: String,
    },
    /// Anything else.
    #[error("{} could not be opened: {reason}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
}

impl OpenError {
    pub(super) fn from_sqlite(path: &Path, error: &rusqlite::Error) -> Self {
        let (path, reason) = (path.to_path_buf(), error.to_string());
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotAStore { path, reason },
            Some(ErrorCode::DatabaseCorrupt) => Self::Corrupt { path, reason },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly { path, reason },
            // SQLite calls both by one name.
            Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure) => {
                Self::Failed { path, reason: format!("{reason}. Is the disk full? `halfway doctor` tells") }
            }
            _ => Self::Failed { path, reason },
        }
    }

    pub(super) fn from_io(path: &Path, error: &std::io::Error) -> Self {
        let (path, reason) = (path.to_path_buf(), error.to_string());
        match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path, reason },
            ErrorKind::IsADirectory => Self::Folder { path },
            _ => Self::Failed { path, reason },
        }
    }
}

/// A file that is ours, whole as far as we looked, and of this version.
pub(super) struct Opened {
    pub(super) own: Own,
    /// For the relay, and for everybody else.
    pub(super) readers: [Connection; 2],
}

/// What the writer has.
pub(super) struct Own {
    pub(super) sql: Connection,
    pub(super) time: Time,
    pub(super) place: Place,
    /// As long as the file is ours; dropped last.
    pub(super) held: Held,
}

pub(super) fn open(settings: &SqliteSettings) -> Result<Opened, OpenError> {
    let path = settings.path.as_path();
    if path.is_dir() {
        return Err(OpenError::Folder { path: path.into() });
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(OpenError::Missing { path: folder.into() });
    }
    let held = Held::take(path)?;
    let sql = open_writer(path)?;
    let readers = [open_reader(path)?, open_reader(path)?];
    let time = time(&sql, settings.clock).map_err(|error| OpenError::from_sqlite(path, &error))?;
    let place = Place::of(path).map_err(|error| OpenError::from_io(path, &error))?;
    Ok(Opened { own: Own { sql, time, place, held }, readers })
}

fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let failed = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    // The file is there, and its log and index get the permissions that it has.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut sql = Connection::open_with_flags(path, flags).map_err(failed)?;
    sql.busy_timeout(BUSY_TIME_MAX).map_err(failed)?;
    // SQLite opens a file that it may not write for reading.
    if sql.is_readonly("main").map_err(failed)? {
        return Err(OpenError::ReadOnly { path: path.into(), reason: "permission denied".into() });
    }
    let version = schema_version(&sql, path)?;
    if version == 0 {
        sql.pragma_update(None, "page_size", PAGE_BYTES).map_err(failed)?;
    }
    // Before the first change, so that a file that is ours but damaged stays as it was found.
    quick_check(&mut sql, path)?;
    configure(&sql).map_err(failed)?;
    migrate(&sql, version).map_err(failed)?;
    Ok(sql)
}

fn configure(sql: &Connection) -> rusqlite::Result<()> {
    sql.pragma_update(None, "journal_mode", "wal")?;
    // An answered commit has been synced. NORMAL would sync at checkpoints only.
    sql.pragma_update(None, "synchronous", "full")?;
    // The writer moves the log into the file itself, when nobody waits for an answer.
    sql.pragma_update(None, "wal_autocheckpoint", 0)?;
    sql.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
    // What refers to what is written in one place, `rows.rs`, and verified by `halfway store check`. Asking at every
    // insert and delete would be paid by every commit.
    sql.pragma_update(None, "foreign_keys", false)?;
    keep_statements(sql)
}

/// Has a statement parsed and planned once in a connection's life. Without the stable planner SQLite does it anew each
/// time that a value is bound which it compared with a partial index's condition; that cost more than the rest of a named
/// commit.
fn keep_statements(sql: &Connection) -> rusqlite::Result<()> {
    sql.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    sql.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// The version of a file's schema, 0 for a file that is new.
///
/// # Errors
/// The file is not a store, or from a later version.
pub(super) fn schema_version(sql: &Connection, path: &Path) -> Result<i64, OpenError> {
    let failed = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    let number = |pragma: &str| sql.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map_err(failed);
    let (version, application) = (number("user_version")?, number("application_id")?);
    if application != i64::from(APPLICATION_ID) {
        // A start that was cut off before its first migration leaves a file with a header and nothing in it.
        let tables = sql.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
        return if application == 0 && version == 0 && tables.map_err(failed)? == 0 {
            Ok(0)
        } else {
            Err(OpenError::NotAStore { path: path.into(), reason: "it is another program's SQLite file".into() })
        };
    }
    if version > SCHEMA_VERSION {
        return Err(OpenError::Newer { path: path.into(), found: version, known: SCHEMA_VERSION });
    }
    Ok(version)
}

/// Looks at the file's structure for as long as a start may be held up. `halfway store check` looks at all of it.
fn quick_check(sql: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    let deadline = Instant::now() + CHECK_TIME_MAX;
    sql.progress_handler(1000, Some(move || Instant::now() > deadline)).map_err(failed)?;
    let found = sql.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    sql.progress_handler(0, None::<fn() -> bool>).map_err(failed)?;
    match found {
        Ok(word) if word == "ok" => Ok(()),
        Ok(reason) => Err(OpenError::Corrupt { path: path.into(), reason }),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            tracing::info!(?path, limit = ?CHECK_TIME_MAX, "checked a part of the store; it is too large for all of it");
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

/// Brings the schema forward, a version at a time, each in a transaction of its own.
fn migrate(sql: &Connection, from: i64) -> rusqlite::Result<()> {
    for (step, version) in MIGRATIONS.iter().zip(1..).filter(|(_, version)| *version > from) {
        let sql_tx = Transaction::new_unchecked(sql, TransactionBehavior::Immediate)?;
        sql_tx.execute_batch(step)?;
        sql_tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        sql_tx.pragma_update(None, "user_version", version)?;
        sql_tx.commit()?;
        tracing::info!(version, "the store's schema is new");
    }
    Ok(())
}

/// Goes on with the count of time that the file tells of.
fn time(sql: &Connection, clock: Clock) -> rusqlite::Result<Time> {
    let left_off = sql.query_row("SELECT count, wall FROM store", [], |row| {
        let (count, wall) = (row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?);
        Ok(count.zip(wall))
    })?;
    if let Some((count, wall)) = left_off {
        return Ok(Time::go_on(clock, Reading { count: Moment(count), wall: Timestamp(wall) }));
    }
    let time = Time::new(clock);
    // An earlier version took due times from the wall clock, which was fast if these have not come to be in doubt yet.
    sql.execute(
        "UPDATE transactions INDEXED BY doubt_age SET next_check_at = min(next_check_at, ?1)
         WHERE state = 'in_doubt' AND in_doubt_at > ?1",
        [time.now().0],
    )?;
    Ok(time)
}

/// A connection that can only read, for a file that is there.
pub(super) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let failed = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    let sql = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(failed)?;
    sql.busy_timeout(BUSY_TIME_MAX).map_err(failed)?;
    keep_statements(&sql).map_err(failed)?;
    // SQLite would put off opening the log to the first question, and it might be gone by then.
    sql.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(failed)?;
    Ok(sql)
}

#[cfg(test)]
mod tests {
    use super::super::tools::backup;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_the_store_makes_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("halfway.db");
        let held = Held::take(&path).expect("locked");
        let sql = open_writer(&path).expect("opened");
        backup(&path, &folder.path().join("copy.db")).expect("a backup");
        let mut seen = 0;
        for file in std::fs::read_dir(folder.path()).expect("files") {
            let file = file.expect("a file");
            seen += 1;
            let mode = file.metadata().expect("there").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", file.path().display());
        }
        assert!(seen >= 4, "the store, its log, its lock and the copy, not {seen}");
        drop(sql);
        held.release();
    }

    #[test]
    fn a_disk_that_is_full_at_the_start_is_suspected() {
        for code in [rusqlite::ffi::SQLITE_IOERR_SHMSIZE, rusqlite::ffi::SQLITE_FULL] {
            let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
            let text = OpenError::from_sqlite(Path::new("/data/halfway.db"), &error).to_string();
            assert!(text.starts_with("/data/halfway.db") && text.ends_with("`halfway doctor` tells"), "{text}");
        }
    }
}
