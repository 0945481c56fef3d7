//! The producers' own database as a checker. With a barrier the checker's row is written first, and then what stands there
//! is read: so the answer is right while the local transaction runs. A query only reads.
//!
//! Whatever is not one row with one of the words is no answer: an error above all.

use super::ask::{Ask, NoAnswer};
use super::question::Question;
use crate::config::{Absent, Look, PostgresUrl};
use crate::postgres::{Link, Postgres, Text, in_words};
use crate::tx::check_back::Answer;
use crate::tx::decision::Decision;
use crate::tx::id::TransactionId;
use futures_util::{StreamExt, pin_mut};
use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, Kind, ToSql, Type};
use tokio_postgres::{Row, SimpleQueryMessage};

/// How long the barrier waits for the local transaction. It is asked about again: to wait longer only holds up others.
const LOCK_PATIENCE: Duration = Duration::from_millis(250);
/// Transactions of which is known since when they are absent.
const ABSENT_MAX: usize = 100_000;

/// A checker that is a PostgreSQL database. One question at a time goes over its one connection.
pub(super) struct PostgresChecker {
    url: PostgresUrl,
    /// Of a question, and of each statement.
    timeout: Duration,
    looks: Looks,
    link: tokio::sync::Mutex<Option<Link>>,
}

/// What is looked at.
enum Looks {
    Barrier { insert: String, select: String },
    Query { statement: String, absent: Absent, since: Mutex<HashMap<TransactionId, Instant>> },
}

/// Why there is no answer, and whether the connection can be used for another question.
enum Failure {
    Usable(NoAnswer),
    Lost(NoAnswer),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let reason = NoAnswer::new(format_args!("the database: {}", in_words(&error)));
        match error.as_db_error() {
            Some(_) if !error.is_closed() => Failure::Usable(reason),
            _ => Failure::Lost(reason),
        }
    }
}

impl PostgresChecker {
    /// Looks there. Connects with the first question.
    pub(super) fn new(url: PostgresUrl, look: Look<'_>, timeout: Duration) -> Self {
        let looks = match look {
            Look::Barrier(table) => Looks::Barrier { insert: insert(table), select: select(table) },
            Look::Query { statement, absent } => {
                Looks::Query { statement: statement.to_owned(), absent, since: Mutex::default() }
            }
        };
        Self { url, timeout, looks, link: tokio::sync::Mutex::default() }
    }

    async fn dial(&self) -> Result<Link, NoAnswer> {
        let hosts = u32::try_from(self.url.place.hosts.len()).unwrap_or(u32::MAX);
        // Read anew each time: who changes the file of authorities need not tell.
        let database = Postgres::new(self.url.clone(), self.timeout / hosts.max(1)).map_err(NoAnswer::new)?;
        database.connect().await.map_err(|error| NoAnswer::new(format_args!("cannot connect: {error}")))
    }

    async fn ask_over(&self, link: &Link, question: &Question) -> Result<Answer, Failure> {
        match &self.looks {
            Looks::Barrier { insert, select } => self.meet(link, question, insert, select).await,
            Looks::Query { statement, absent, since } => {
                let found = self.find(link, question, statement).await?;
                let mut since = since.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(answer) = found {
                    since.remove(&question.id);
                    return Ok(answer);
                }
                Ok(match absent {
                    Absent::Unknown => Answer::Unknown,
                    Absent::Ongoing => Answer::Ongoing,
                    Absent::RollbackAfter(after) => {
                        if since.len() >= ABSENT_MAX {
                            // Then it is counted anew: later is never wrong.
                            since.clear();
                        }
                        let first = *since.entry(question.id).or_insert_with(Instant::now);
                        if first.elapsed() < *after { Answer::Ongoing } else { Answer::Decision(Decision::RollBack) }
                    }
                })
            }
        }
    }

    /// Writes the checker's row, unless the producer was first, and reads what stands there.
    async fn meet(&self, link: &Link, question: &Question, insert: &str, select: &str) -> Result<Answer, Failure> {
        let key = [&question.vhost, &question.user, question.name.as_str()];
        let [vhost, user, name] = &key.map(|text| Text(Some(text)));
        self.begin(link, "READ COMMITTED").await?;
        match link.execute(insert, &[vhost, user, name]).await {
            Ok(_) => {}
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                link.simple_query("ROLLBACK").await?;
                return Ok(Answer::Ongoing);
            }
            Err(error) => return Err(error.into()),
        }
        link.simple_query("COMMIT").await?;
        self.begin(link, "READ COMMITTED READ ONLY").await?;
        let statement = link.prepare(select).await?;
        let row = one_row(link, &statement, &[vhost, user, name]).await?;
        link.simple_query("COMMIT").await?;
        let Some(row) = row else { return Err(usable("the barrier's row is gone again")) };
        for (column, expected) in key.into_iter().enumerate() {
            if word(&row, column + 1)? != expected {
                return Err(usable(
                    "the barrier's row is another one's: its columns take different texts for the same",
                ));
            }
        }
        match Answer::of(&word(&row, 0)?) {
            Some(answer @ Answer::Decision(_)) => Ok(answer),
            _ => Err(usable("the barrier's row says neither commit nor rollback")),
        }
    }

    /// What the query says; none: there is no row.
    async fn find(&self, link: &Link, question: &Question, query: &str) -> Result<Option<Answer>, Failure> {
        self.begin(link, "READ COMMITTED READ ONLY").await?;
        let statement = link.prepare(query).await?;
        let values = [question.name.as_str(), &question.vhost, &question.user].map(|text| Text(Some(text)));
        let count = statement.params().len();
        if statement.columns().len() != 1 || !(1..=values.len()).contains(&count) {
            return Err(usable("the query must have one column, and $1, or $1 and $2, or $1 to $3"));
        }
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().take(count).map(|value| value as _).collect();
        let row = one_row(link, &statement, &values).await?;
        link.simple_query("COMMIT").await?;
        let Some(row) = row else { return Ok(None) };
        let word = word(&row, 0)?;
        let strange = || usable(format_args!("`{word}` is none of commit, rollback, unknown and ongoing"));
        Answer::of(&word).map(Some).ok_or_else(strange)
    }

    /// Begins a transaction with limits of its own, which holds behind a pooler too, on a server that can know.
    async fn begin(&self, link: &Link, mode: &str) -> Result<(), Failure> {
        let (statement, lock) =
            (self.timeout.as_millis().max(1), LOCK_PATIENCE.min(self.timeout / 2).as_millis().max(1));
        // A marker that a crash of the server forgets would let the producer in after all.
        let begin = format!(
            "BEGIN ISOLATION LEVEL {mode}; SET LOCAL statement_timeout = {statement}; SET LOCAL lock_timeout = {lock}; \
             SET LOCAL synchronous_commit = on; SELECT pg_is_in_recovery(), current_setting('transaction_read_only')"
        );
        let messages = link.simple_query(&begin).await?;
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((row.get(0), row.get(1))),
            _ => None,
        });
        match row {
            Some((Some("f"), Some("off"))) => Ok(()),
            Some((Some("f"), _)) if mode.ends_with("READ ONLY") => Ok(()),
            Some((Some("f"), _)) => Err(usable("the database takes no writes: default_transaction_read_only is on")),
            _ => Err(usable("the server is a standby, which may not know yet")),
        }
    }
}

impl Ask for PostgresChecker {
    async fn ask(&self, question: &Question) -> Result<Answer, NoAnswer> {
        let mut held = self.link.lock().await;
        // Whoever asks may give up at any time: then the connection goes, with all that is under way on it.
        let link = match held.take().filter(|link| !link.is_closed()) {
            Some(link) => link,
            None => self.dial().await?,
        };
        match self.ask_over(&link, question).await {
            Ok(answer) => {
                *held = Some(link);
                Ok(answer)
            }
            Err(Failure::Usable(reason)) => {
                if link.simple_query("ROLLBACK").await.is_ok() {
                    *held = Some(link);
                }
                Err(reason)
            }
            Err(Failure::Lost(reason)) => Err(reason),
        }
    }
}

/// The checker's row. The columns are named, so that a table without such a key is an error, and not a row too much.
fn insert(table: &str) -> String {
    format!(
        "INSERT INTO {table} (vhost, username, name, decision) VALUES ($1, $2, $3, 'rollback') \
         ON CONFLICT (vhost, username, name) DO NOTHING"
    )
}

/// What stands there, and under which key.
fn select(table: &str) -> String {
    format!("SELECT decision, vhost, username, name FROM {table} WHERE vhost = $1 AND username = $2 AND name = $3")
}

/// The only row, if there is one.
async fn one_row(
    link: &Link,
    statement: &tokio_postgres::Statement,
    values: &[&(dyn ToSql + Sync)],
) -> Result<Option<Row>, Failure> {
    let rows = link.query_raw(statement, values.iter().copied()).await?;
    pin_mut!(rows);
    let Some(first) = rows.next().await.transpose()? else { return Ok(None) };
    match rows.next().await.transpose()? {
        None => Ok(Some(first)),
        // There may be a billion.
        Some(_) => Err(Failure::Lost(NoAnswer::new("there is more than one row"))),
    }
}

/// The text in a column.
fn word(row: &Row, column: usize) -> Result<String, Failure> {
    match row.try_get(column) {
        Ok(Some(Word(text))) => Ok(text),
        Ok(None) => Err(usable("the row says NULL")),
        Err(_) => Err(usable(format_args!("the row has a {}, which is no text", row.columns()[column].type_()))),
    }
}

fn usable(reason: impl std::fmt::Display) -> Failure {
    Failure::Usable(NoAnswer::new(reason))
}

/// A text, or a word of an enumeration.
struct Word(String);

impl<'a> FromSql<'a> for Word {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Word(str::from_utf8(raw)?.to_owned()))
    }

    fn accepts(kind: &Type) -> bool {
        let is_text = matches!(*kind, Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN);
        is_text || matches!(kind.kind(), Kind::Enum(_))
    }
}
