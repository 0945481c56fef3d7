//! `[[checker]]`: who is asked what became of a transaction in doubt.

use super::{HttpUrl, PostgresUrl, Secret, value};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// One `[[checker]]`, as written; [`Checker::asked`] is what inner code uses.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Checker {
    /// Its name: what `x-half-checker` picks it by. Unique.
    pub name: String,
    /// Where an HTTP checker answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<HttpUrl>,
    /// The queue that an AMQP checker consumes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// The virtual host of `queue`; none: `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost: Option<String>,
    /// The producers' own PostgreSQL database, where Halfway looks by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresUrl>,
    /// The file that the password of the database was read from.
    #[serde(skip_serializing_if = "no_path", with = "value::optional_path")]
    pub password_file: Option<PathBuf>,
    /// The table in which producer and checker meet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub barrier: Option<String>,
    /// The statement that is asked instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// What it means that `query` finds no row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absent: Option<AbsentMeans>,
    /// The promise that no local transaction lives longer.
    #[serde(skip_serializing_if = "Option::is_none", with = "value::optional_duration")]
    pub absent_is_rollback_after: Option<Duration>,
    /// Which transactions it knows about.
    #[serde(rename = "match")]
    pub matches: CheckerMatch,
    /// From the moment a transaction is in doubt to the first check.
    #[serde(with = "value::duration")]
    pub first_after: Duration,
    /// From an answer that decides nothing to the next check; it doubles each time.
    #[serde(with = "value::duration")]
    pub interval: Duration,
    /// The longest it gets by doubling.
    #[serde(with = "value::duration")]
    pub max_interval: Duration,
    /// Answers `unknown` after which `when_exhausted` holds.
    pub max_checks: u32,
    /// What becomes of a transaction whose checker never knows.
    pub when_exhausted: WhenExhausted,
    /// One check, from its start to the last byte of its answer.
    #[serde(with = "value::duration")]
    pub timeout: Duration,
    /// Checks at one time.
    pub concurrency: u32,
    /// Checks a second.
    pub rate: u32,
    /// The key that requests to `url` are signed with, from here, from `secret_file`, or from a variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// The file that the secret was read from; when set, it wins over `secret`.
    #[serde(skip_serializing_if = "no_path", with = "value::optional_path")]
    pub secret_file: Option<PathBuf>,
}

/// `match = { … }`: what a transaction must be like. A part that is not given fits everything.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct CheckerMatch {
    /// Its virtual host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost: Option<String>,
    /// The login name of its producer; `*` stands for any characters, `?` for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its name; `*` stands for any characters, `?` for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
    /// The exchange of its first message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange: Option<String>,
}

/// What becomes of a transaction about which a checker gave `max_checks` answers and knew nothing.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenExhausted {
    /// It stays in doubt and waits for a person.
    #[default]
    Hold,
    /// It is rolled back.
    #[serde(rename = "rollback")]
    RollBack,
    /// It is committed.
    Commit,
}

/// What it means that a query finds no row.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AbsentMeans {
    /// Nothing.
    Unknown,
    /// That the producer still works on it.
    Ongoing,
}

/// How a checker is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Asked<'a> {
    /// By a POST.
    Http {
        /// Where to.
        url: &'a HttpUrl,
        /// What the request is signed with; none: it isn't.
        secret: Option<&'a Secret>,
    },
    /// By a message.
    Amqp {
        /// The virtual host of the queue.
        vhost: &'a str,
        /// The queue.
        queue: &'a str,
    },
    /// By statements in the producers' database.
    Postgres {
        /// Where it is.
        url: &'a PostgresUrl,
        /// What is looked at.
        look: Look<'a>,
    },
}

/// What is looked at in a database.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Look<'a> {
    /// A table, into which a row is written first: so the answer is right while the local transaction runs.
    Barrier(&'a str),
    /// What a statement finds.
    Query {
        /// The statement.
        statement: &'a str,
        /// What it means that it finds no row.
        absent: Absent,
    },
}

/// What it means that there is no row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Absent {
    /// Nothing.
    Unknown,
    /// That the producer still works on it.
    Ongoing,
    /// The same, and after this long that the local transaction never was.
    RollbackAfter(Duration),
}

impl Checker {
    /// How it is asked. Validation has seen to it that there is exactly one way.
    pub fn asked(&self) -> Option<Asked<'_>> {
        match (&self.url, &self.queue, &self.postgres) {
            (Some(url), None, None) => Some(Asked::Http { url, secret: self.secret.as_ref() }),
            (None, Some(queue), None) => Some(Asked::Amqp { vhost: self.vhost.as_deref().unwrap_or("/"), queue }),
            (None, None, Some(url)) => Some(Asked::Postgres { url, look: self.look()? }),
            _ => None,
        }
    }

    fn look(&self) -> Option<Look<'_>> {
        match (&self.barrier, &self.query) {
            (Some(table), None) => Some(Look::Barrier(table)),
            (None, Some(statement)) => {
                let absent = match (self.absent_is_rollback_after, self.absent) {
                    (Some(after), _) => Absent::RollbackAfter(after),
                    (None, Some(AbsentMeans::Ongoing)) => Absent::Ongoing,
                    (None, _) => Absent::Unknown,
                };
                Some(Look::Query { statement, absent })
            }
            _ => None,
        }
    }

    /// A checker with every key set, so that every key has a name to be known by.
    pub(super) fn with_every_key() -> Self {
        let text = || Some(String::from("x"));
        Checker {
            url: HttpUrl::try_from("http://localhost/".to_owned()).ok(),
            queue: text(),
            vhost: text(),
            postgres: PostgresUrl::try_from("postgres://x@localhost/x".to_owned()).ok(),
            password_file: Some("x".into()),
            barrier: text(),
            query: text(),
            absent: Some(AbsentMeans::Unknown),
            absent_is_rollback_after: Some(Duration::from_secs(1)),
            matches: CheckerMatch { vhost: text(), user: text(), transaction: text(), exchange: text() },
            secret: Some(Secret::new("x")),
            secret_file: Some("x".into()),
            ..Checker::default()
        }
    }
}

impl CheckerMatch {
    /// Whether every transaction that fits `other` fits this too, as far as that can be seen: of two patterns, only
    /// equal ones and `*` are compared.
    pub(super) fn covers(&self, other: &CheckerMatch) -> bool {
        let part = |own: &Option<String>, other: &Option<String>| own.is_none() || own == other;
        let pattern = |own: &Option<String>, other: &Option<String>| {
            let is_any = own.as_deref().is_some_and(|own| !own.is_empty() && own.chars().all(|c| c == '*'));
            is_any || part(own, other)
        };
        part(&self.vhost, &other.vhost)
            && pattern(&self.user, &other.user)
            && pattern(&self.transaction, &other.transaction)
            && part(&self.exchange, &other.exchange)
    }
}

impl Default for Checker {
    fn default() -> Self {
        Checker {
            name: String::new(),
            url: None,
            queue: None,
            vhost: None,
            postgres: None,
            password_file: None,
            barrier: None,
            query: None,
            absent: None,
            absent_is_rollback_after: None,
            matches: CheckerMatch::default(),
            first_after: Duration::from_secs(6),
            interval: Duration::from_secs(30),
            max_interval: Duration::from_secs(10 * 60),
            max_checks: 15,
            when_exhausted: WhenExhausted::Hold,
            timeout: Duration::from_secs(5),
            concurrency: 8,
            rate: 50,
            secret: None,
            secret_file: None,
        }
    }
}

fn no_path(path: &Option<PathBuf>) -> bool {
    path.is_none()
}
