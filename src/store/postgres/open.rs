//! Opening the database: will it do, is what is in it ours, does somebody else have it?

use super::PostgresSettings;
use super::book::Me;
use super::sql::{Failed, Sql};
use super::{janitor, life, writer};
use crate::config::{PostgresUrl, Target};
use crate::postgres::Postgres;
use crate::store::clock::{Moment, Reading, Time};
use crate::tx::id::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// Each step takes the schema from the version before it to its own, which is its place here, from 1. It may only add, for the
/// version before may still be running.
const MIGRATIONS: [&str; 1] = [include_str!("schema/0001.sql")];

/// The schema that this program writes.
const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// PostgreSQL 14, as it counts itself.
const SERVER_VERSION_MIN: i64 = 140_000;

/// How long a host may take until a session is ready.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an answer may take before the connection counts as lost. More than a full group takes on a bad day.
const PATIENCE: Duration = Duration::from_secs(20);

/// The same for a beat: who does not hear from the database for longer has to say so.
const BEAT_PATIENCE: Duration = Duration::from_secs(1);

/// Attempts to bring the schema forward while others do the same.
const ATTEMPTS_MAX: usize = 20;

/// Why a store could not be opened. Each names the database.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no session to be had: nobody answers, or the password, the database or the certificate is wrong.
    #[error("{url} can't be used: {reason}{hint}")]
    Unreachable {
        /// The database.
        url: String,
        /// What each host says.
        reason: String,
        /// What may help.
        hint: &'static str,
    },
    /// The server is too old.
    #[error("{url} is PostgreSQL {found}; the store needs 14 or newer")]
    TooOld {
        /// The database.
        url: String,
        /// The server's own version.
        found: String,
    },
    /// The database keeps no Unicode.
    #[error("{url} keeps texts as {found}; the store needs a database made with ENCODING 'UTF8'")]
    Encoding {
        /// The database.
        url: String,
        /// How it keeps texts.
        found: String,
    },
    /// The account may not do what it has to.
    #[error(
        "{url}: {reason}. The account has to own the schema `halfway`, or may CREATE in the database so that it is made"
    )]
    Privileges {
        /// The database.
        url: String,
        /// PostgreSQL's words.
        reason: String,
    },
    /// The schema `halfway` is somebody else's.
    #[error("{url} has a schema `halfway` that is not a store of halfway: {reason}. It was left as it is")]
    NotAStore {
        /// The database.
        url: String,
        /// What it is.
        reason: String,
    },
    /// There is no store, for a command that only reads.
    #[error("{url} has no store yet; the proxy makes it when it starts")]
    Missing {
        /// The database.
        url: String,
    },
    /// A later version of this program has been here.
    #[error("{url} has schema {found}, and this version knows {known} at most; use a later version")]
    Newer {
        /// The database.
        url: String,
        /// Its schema.
        found: i64,
        /// The latest schema that this program knows.
        known: i64,
    },
    /// Another process has the store.
    #[error("{url} is in use by another process, on {host}; one proxy at a time can have the store")]
    InUse {
        /// The database.
        url: String,
        /// Where it runs.
        host: String,
    },
    /// Anything else.
    #[error("{url} could not be opened: {reason}")]
    Failed {
        /// The database.
        url: String,
        /// What happened.
        reason: String,
    },
}

/// A database that is ours, and of this version.
pub(super) struct Opened {
    pub(super) me: Me,
    pub(super) time: Time,
    pub(super) writer: Sql,
    pub(super) janitor: Sql,
    pub(super) beat: Sql,
    /// For the relay, and for everybody else.
    pub(super) readers: [Sql; 2],
}

/// Dials a database for the store.
pub(super) struct Dial {
    url: String,
    dialer: Arc<Postgres>,
}

impl Dial {
    pub(super) fn new(url: &PostgresUrl) -> Result<Self, OpenError> {
        let text = url.place.address().to_owned();
        let failed = |reason| OpenError::Unreachable { url: text.clone(), reason, hint: "" };
        let read_write = PostgresUrl { target: Target::ReadWrite, ..url.clone() };
        let dialer = Postgres::new(read_write, CONNECT_TIMEOUT).map_err(|error| failed(error.to_string()))?;
        Ok(Self { url: text, dialer: Arc::new(dialer) })
    }

    fn sql(&self, settings: &'static str, patience: Duration) -> Result<Sql, OpenError> {
        Sql::new(Arc::clone(&self.dialer), settings, patience).map_err(|error| self.failed(error.to_string()))
    }

    /// A session on a server that will do.
    pub(super) fn session(&self) -> Result<Sql, OpenError> {
        let sql = self.sql(writer::SETTINGS, PATIENCE)?;
        sql.connect().map_err(|error| {
            let reason = error.to_string();
            OpenError::Unreachable { url: self.url.clone(), hint: hint(&reason), reason }
        })?;
        let shown = |statement| {
            let row = sql.one(statement, &[]).map_err(|error| self.explain(error))?;
            let text = row.map(|row| row.try_get::<_, String>(0)).transpose();
            text.map_err(|error| self.failed(error.to_string())).map(Option::unwrap_or_default)
        };
        let version = shown("SELECT current_setting('server_version_num')")?;
        if version.parse::<i64>().is_ok_and(|version| version < SERVER_VERSION_MIN) {
            let found = shown("SELECT current_setting('server_version')")?;
            return Err(OpenError::TooOld { url: self.url.clone(), found });
        }
        match shown("SELECT current_setting('server_encoding')")? {
            utf8 if utf8 == "UTF8" => Ok(sql),
            found => Err(OpenError::Encoding { url: self.url.clone(), found }),
        }
    }

    pub(super) fn missing(&self) -> OpenError {
        OpenError::Missing { url: self.url.clone() }
    }

    pub(super) fn failed(&self, reason: String) -> OpenError {
        OpenError::Failed { url: self.url.clone(), reason }
    }

    pub(super) fn explain(&self, error: Failed) -> OpenError {
        let (url, reason) = (self.url.clone(), error.to_string());
        match reason.contains("(SQLSTATE 42501)") {
            true => OpenError::Privileges { url, reason },
            false => OpenError::Failed { url, reason },
        }
    }

    /// The version of the schema; none: there is no store.
    ///
    /// # Errors
    /// What is there is not ours, or a later version's.
    pub(super) fn schema_version(&self, sql: &Sql) -> Result<Option<i64>, OpenError> {
        let found = self.found(sql).map_err(|error| self.explain(error))?;
        let url = self.url.clone();
        match found {
            Found::Nothing => Ok(None),
            Found::Strange(reason) => Err(OpenError::NotAStore { url, reason }),
            Found::Version(found) if found > SCHEMA_VERSION => {
                Err(OpenError::Newer { url, found, known: SCHEMA_VERSION })
            }
            Found::Version(version) => Ok(Some(version)),
        }
    }

    fn found(&self, sql: &Sql) -> Result<Found, Failed> {
        // Without the right to look into the schema nothing in it is to be seen.
        let is = |statement| Ok::<_, Failed>(sql.number(statement, &[])? > 0);
        if !is("SELECT count(*) FROM pg_namespace WHERE nspname = 'halfway'")? {
            return Ok(Found::Nothing);
        }
        let tables = "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm')
            AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'halfway')";
        if !is(tables)? {
            return Ok(Found::Nothing);
        }
        let columns =
            "SELECT count(*) FROM pg_attribute WHERE attrelid = (SELECT oid FROM pg_class WHERE relname = 'meta'
                AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'halfway'))
            AND attname IN ('schema', 'count', 'wall')";
        if sql.number(columns, &[])? < 3 {
            return Ok(Found::Strange("it has other tables".into()));
        }
        Ok(Found::Version(sql.number("SELECT schema FROM meta", &[])?))
    }

    /// Brings the schema forward, or makes it. Several that start at once do it one after the other.
    fn migrate(&self, sql: &Sql) -> Result<(), OpenError> {
        for attempt in 0.. {
            let from = self.schema_version(sql)?;
            if from == Some(SCHEMA_VERSION) {
                break;
            }
            let made = sql.transaction("BEGIN", || {
                match from {
                    None => {
                        if sql.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'halfway'", &[])? == 0 {
                            sql.batch("CREATE SCHEMA halfway")?;
                        }
                        sql.batch(META)?;
                    }
                    Some(_) => drop(sql.query("SELECT 1 FROM meta FOR UPDATE", &[])?),
                }
                let from = sql.number("SELECT schema FROM meta", &[])?;
                for (step, version) in MIGRATIONS.iter().zip(1..).filter(|(_, version)| *version > from) {
                    sql.batch(step)?;
                    sql.execute("UPDATE meta SET schema = $1", &[&version])?;
                    tracing::info!(version, "the store's schema is new");
                }
                Ok(())
            });
            match made {
                Ok(()) => {}
                // Somebody else made it at the same time: what is there now?
                Err(Failed::Other(why)) if attempt < ATTEMPTS_MAX && is_race(&why) => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(Failed::Again(_)) if attempt < ATTEMPTS_MAX => {}
                Err(error) => return Err(self.explain(error)),
            }
        }
        Ok(())
    }

    fn time(&self, sql: &Sql, settings: &PostgresSettings) -> Result<Time, OpenError> {
        let read = || -> Result<Option<Reading>, Failed> {
            let Some(row) = sql.one("SELECT count, wall FROM meta", &[])? else { return Ok(None) };
            let (count, wall) = (row.try_get::<_, Option<i64>>(0)?, row.try_get::<_, Option<i64>>(1)?);
            Ok(count.zip(wall).map(|(count, wall)| Reading { count: Moment(count), wall: Timestamp(wall) }))
        };
        let left_off = read().map_err(|error| self.explain(error))?;
        Ok(left_off.map_or_else(|| Time::new(settings.clock), |reading| Time::go_on(settings.clock, reading)))
    }
}

/// What belongs to all of the store: one row.
const META: &str = "CREATE TABLE meta (
    one    boolean PRIMARY KEY CHECK (one),
    schema bigint NOT NULL,
    count  bigint, -- the store's count of time, and what the wall clock showed then; null: nobody has counted yet
    wall   bigint
); INSERT INTO meta (one, schema) VALUES (true, 0)";

enum Found {
    Nothing,
    Strange(String),
    Version(i64),
}

pub(super) fn open(settings: &PostgresSettings) -> Result<Opened, OpenError> {
    let dial = Dial::new(&settings.url)?;
    let writer = dial.session()?;
    dial.migrate(&writer)?;
    let me = match life::take(&writer).map_err(|error| dial.explain(error))? {
        Ok(me) => me,
        Err(other) => return Err(OpenError::InUse { url: dial.url, host: other.host }),
    };
    let time = dial.time(&writer, settings)?;
    let janitor = dial.sql(janitor::SETTINGS, PATIENCE)?;
    let beat = dial.sql(life::SETTINGS, BEAT_PATIENCE)?;
    let readers = [dial.sql("", PATIENCE)?, dial.sql("", PATIENCE)?];
    Ok(Opened { me, time, writer, janitor, beat, readers })
}

/// Whether this is what happens when two make the same thing at once.
fn is_race(why: &str) -> bool {
    ["23505", "42P06", "42P07", "42710"].iter().any(|state| why.contains(&format!("(SQLSTATE {state})")))
}

/// What may help who can't get in.
fn hint(reason: &str) -> &'static str {
    let hints = [
        ("(SQLSTATE 28P01)", ". store.password_file has the account's password"),
        ("(SQLSTATE 28000)", ". pg_hba.conf on the server says who may come from where"),
        ("(SQLSTATE 3D000)", ". The database has to be there: CREATE DATABASE"),
        ("takes no writes", ". The store needs the primary"),
        ("is a standby", ". The store needs the primary"),
        (
            "invalid peer certificate",
            ". sslrootcert in store.url names the authority that made the server's certificate",
        ),
    ];
    hints.iter().find(|(sign, _)| reason.contains(sign)).map_or("", |(_, hint)| hint)
}
