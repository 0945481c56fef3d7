//! A connection to PostgreSQL for a thread that waits for each answer: dialed when it is needed, and again when it is lost.

use crate::postgres::{ConnectError, Link, Postgres, in_words};
use bytes::BytesMut;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Row, Statement};

/// A parameter of a statement.
pub(super) type Param<'a> = &'a (dyn ToSql + Sync);

/// What each session begins with. The tables have a schema of their own. A proxy that is stopped in the middle must not hold
/// its locks against the one that takes over.
const SESSION: &str = "SET search_path = halfway; SET idle_in_transaction_session_timeout = '2s'";

/// See the module.
pub(super) struct Sql {
    runtime: Runtime,
    dialer: Arc<Postgres>,
    /// Set at the beginning of each session, behind [`SESSION`].
    settings: &'static str,
    /// How long an answer may take before the connection counts as lost.
    patience: Duration,
    live: RefCell<Option<Live>>,
}

struct Live {
    link: Link,
    statements: HashMap<&'static str, Statement>,
}

/// Why a statement did not go well.
#[derive(Debug)]
pub(super) enum Failed {
    /// The connection is gone, or there was none. What was sent may have taken effect, or may yet.
    Lost(String),
    /// PostgreSQL asks to do all of the SQL transaction once more. Nothing took effect.
    Again(String),
    /// There is no room for it. Nothing took effect.
    Full(String),
    /// The store takes nothing more of this process.
    Fenced,
    /// Something else. Nothing took effect.
    Other(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(text) | Self::Again(text) | Self::Full(text) | Self::Other(text) => f.write_str(text),
            Self::Fenced => f.write_str("another process has taken over"),
        }
    }
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Self {
        let text = in_words(&error);
        let Some(code) = error.code() else {
            // A value of ours that can't be read or sent is no matter of the connection.
            return if error.is_closed() || is_io(&error) { Self::Lost(text) } else { Self::Other(text) };
        };
        match code {
            &SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED => Self::Again(text),
            &SqlState::DISK_FULL | &SqlState::PROGRAM_LIMIT_EXCEEDED | &SqlState::OUT_OF_MEMORY => Self::Full(text),
            // A server that became a standby, and one whose session ends: another will do, or the same a little later.
            &SqlState::READ_ONLY_SQL_TRANSACTION | &SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN => Self::Lost(text),
            code if ["08", "57P", "25P03"].iter().any(|class| code.code().starts_with(class)) => Self::Lost(text),
            _ => Self::Other(text),
        }
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    error.source().is_some_and(|cause| cause.is::<io::Error>())
}

impl Sql {
    /// Dials nobody yet.
    pub(super) fn new(dialer: Arc<Postgres>, settings: &'static str, patience: Duration) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, dialer, settings, patience, live: RefCell::default() })
    }

    /// Dials, if there is no connection.
    pub(super) fn connect(&self) -> Result<(), ConnectError> {
        if self.live.borrow().as_ref().is_some_and(|live| !live.link.is_closed()) {
            return Ok(());
        }
        self.hang_up();
        let link = self.runtime.block_on(self.dialer.connect())?;
        *self.live.borrow_mut() = Some(Live { link, statements: HashMap::new() });
        let begun = self.batch(SESSION).and_then(|()| self.batch(self.settings));
        begun.map_err(|error| {
            self.hang_up();
            ConnectError { tried: vec![("its session".into(), error.to_string())] }
        })
    }

    /// Lets go of the connection.
    pub(super) fn hang_up(&self) {
        if let Some(live) = self.live.borrow_mut().take() {
            // It has to be driven to say goodbye.
            self.runtime.block_on(async {
                drop(live);
                tokio::task::yield_now().await;
            });
        }
    }

    /// Runs statements without parameters, and wants no rows.
    pub(super) fn batch(&self, statements: &str) -> Result<(), Failed> {
        if statements.is_empty() {
            return Ok(());
        }
        self.ask(async |live| live.link.batch_execute(statements).await)
    }

    /// Runs a statement, and says how many rows it changed.
    pub(super) fn execute(&self, statement: &'static str, values: &[Param<'_>]) -> Result<u64, Failed> {
        self.ask(async |live| {
            let statement = live.prepare(statement).await?;
            live.link.execute(&statement, values).await
        })
    }

    /// Runs a statement, and gives its rows.
    pub(super) fn query(&self, statement: &'static str, values: &[Param<'_>]) -> Result<Vec<Row>, Failed> {
        self.ask(async |live| {
            let statement = live.prepare(statement).await?;
            live.link.query(&statement, values).await
        })
    }

    /// Runs a statement that gives one row at most.
    pub(super) fn one(&self, statement: &'static str, values: &[Param<'_>]) -> Result<Option<Row>, Failed> {
        Ok(self.query(statement, values)?.into_iter().next())
    }

    /// Runs a statement that gives one number.
    pub(super) fn number(&self, statement: &'static str, values: &[Param<'_>]) -> Result<i64, Failed> {
        let row = self.one(statement, values)?.ok_or_else(|| Failed::Other("no row where there is one".into()))?;
        Ok(row.try_get::<_, Option<i64>>(0)?.unwrap_or_default())
    }

    /// Does all of `work` in one SQL transaction that `begin` begins.
    pub(super) fn transaction<T>(&self, begin: &str, work: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
        self.batch(begin)?;
        let done = work().and_then(|done| self.batch("COMMIT").map(|()| done));
        if done.is_err() {
            // On a connection that is lost there is nothing to roll back; one on which it fails is lost.
            let _ = self.batch("ROLLBACK");
        }
        done
    }

    fn ask<T>(&self, question: impl AsyncFnOnce(&mut Live) -> Result<T, tokio_postgres::Error>) -> Result<T, Failed> {
        let mut held = self.live.borrow_mut();
        let Some(live) = held.as_mut() else { return Err(Failed::Lost("there is no connection".into())) };
        let answer = self.runtime.block_on(async { timeout(self.patience, question(live)).await });
        let answer = match answer {
            Ok(answer) => answer.map_err(Failed::from),
            Err(_) => Err(Failed::Lost("no answer in time".into())),
        };
        drop(held);
        if matches!(answer, Err(Failed::Lost(_))) {
            self.hang_up();
        }
        answer
    }
}

impl Live {
    /// Has a statement parsed once in a connection's life.
    async fn prepare(&mut self, text: &'static str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(known) = self.statements.get(text) {
            return Ok(known.clone());
        }
        let statement = self.link.prepare(text).await?;
        self.statements.insert(text, statement.clone());
        Ok(statement)
    }
}

/// A text as a column keeps it: PostgreSQL's have no NUL, and clients' may.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a>(pub(super) &'a str);

impl ToSql for Words<'_> {
    fn to_sql(&self, of: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        escape(self.0).as_ref().to_sql(of, out)
    }

    fn accepts(of: &Type) -> bool {
        <&str as ToSql>::accepts(of)
    }

    to_sql_checked!();
}

/// The text in a column, as it was before it was kept.
pub(super) fn words(row: &Row, column: usize) -> Result<String, Failed> {
    Ok(unescape(row.try_get::<_, &str>(column)?))
}

/// The same of one that may be null.
pub(super) fn words_if_any(row: &Row, column: usize) -> Result<Option<String>, Failed> {
    Ok(row.try_get::<_, Option<&str>>(column)?.map(unescape))
}

/// The number in a column, if it fits.
pub(super) fn number<T: TryFrom<i64>>(row: &Row, column: usize) -> Result<T, Failed> {
    let number: i64 = row.try_get(column)?;
    T::try_from(number).map_err(|_| Failed::Other(format!("column {column} has {number}, which can't be")))
}

fn escape(text: &str) -> Cow<'_, str> {
    match text.contains(['\0', '\\']) {
        true => text.replace('\\', "\\\\").replace('\0', "\\0").into(),
        false => text.into(),
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(char) = rest.next() {
        out.push(match char {
            '\\' if rest.next() == Some('0') => '\0',
            other => other,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_read_as_it_was_written() {
        for text in ["", "plain", "a\0b", "\\", "\\0", "\\\\0\0\\", "\0", "🦀\\0"] {
            let kept = escape(text);
            assert!(!kept.contains('\0'));
            assert_eq!(unescape(&kept), text);
        }
        assert_ne!(escape("\0"), escape("\\0"));
    }
}
