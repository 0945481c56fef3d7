//! Checkers over HTTP: whom they are asked about, and how they answer.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::Refusals;
use super::view::{self, Count};
use super::{Admin, problem::Problem};
use crate::config::{self, Asked};
use crate::roster::LastCheck;

/// Every checker of the configuration.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Checkers {
    items: Vec<Checker>,
}

/// A checker.
#[derive(Debug, Serialize, ToSchema)]
struct Checker {
    name: String,
    kind: Kind,
    /// The URL without its query and password, or the queue.
    target: String,
    /// The virtual host of the queue.
    vhost: Option<String>,
    #[serde(rename = "match")]
    matches: Match,
    /// Open: it is left alone for a while, because it does not answer.
    circuit: Circuit,
    /// Since the proxy started.
    answers: Answers,
    /// Transactions that it never knew about, and that wait for a person.
    exhausted: Count,
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Http,
    Amqp,
    Postgres,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Circuit {
    Closed,
    Open,
}

/// What a transaction must be like; null fits everything.
#[derive(Debug, Serialize, ToSchema)]
struct Match {
    vhost: Option<String>,
    user: Option<String>,
    transaction: Option<String>,
    exchange: Option<String>,
}

/// How many checks came to what.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Answers {
    commit: Count,
    rollback: Count,
    unknown: Count,
    ongoing: Count,
    no_answer: Count,
}

/// The last check.
#[derive(Debug, Serialize, ToSchema)]
struct Last {
    at: String,
    /// `commit`, `rollback`, `unknown`, `ongoing` or `no_answer`.
    result: &'static str,
    /// Why there was no answer.
    reason: Option<String>,
    seconds: f64,
}

#[utoipa::path(
    get,
    path = "/checkers",
    tag = "checkers",
    operation_id = "listCheckers",
    responses(
        (status = 200, body = Checkers, description = "Every checker of the configuration."),
        Refusals,
    ),
)]
pub(super) async fn list(State(admin): State<Admin>) -> Result<Json<Checkers>, Problem> {
    let setup = admin.setup();
    Ok(Json(Checkers { items: setup.checkers.iter().map(|checker| Checker::of(checker, &admin)).collect() }))
}

impl Checker {
    fn of(checker: &config::Checker, admin: &Admin) -> Self {
        let counts = admin.numbers.instruments.checks.checker(&checker.name);
        let (kind, target, vhost) = match checker.asked() {
            Some(Asked::Amqp { vhost, queue }) => (Kind::Amqp, queue.to_owned(), Some(vhost.to_owned())),
            Some(Asked::Http { url, .. }) => (Kind::Http, without_query(&url.to_string()), None),
            Some(Asked::Postgres { url, .. }) => (Kind::Postgres, url.place.address().to_owned(), None),
            // The configuration was checked for this.
            None => (Kind::Http, String::new(), None),
        };
        let config::CheckerMatch { vhost: of_vhost, user, transaction, exchange } = checker.matches.clone();
        Self {
            name: checker.name.clone(),
            kind,
            target,
            vhost,
            matches: Match { vhost: of_vhost, user, transaction, exchange },
            circuit: if counts.circuit_open.get() > 0 { Circuit::Open } else { Circuit::Closed },
            answers: Answers::of(counts.checks.each()),
            exhausted: Count(counts.exhausted.get()),
            last: admin.roster.last_check(&checker.name).map(Last::from),
        }
    }
}

/// A query may hold what is nobody's business.
fn without_query(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_owned()
}

impl Answers {
    fn of(each: impl Iterator<Item = (&'static str, u64)>) -> Self {
        let mut answers = Self::default();
        for (result, count) in each {
            let place = match result {
                "commit" => &mut answers.commit,
                "rollback" => &mut answers.rollback,
                "unknown" => &mut answers.unknown,
                "ongoing" => &mut answers.ongoing,
                _ => &mut answers.no_answer,
            };
            *place = Count(count);
        }
        answers
    }
}

impl From<LastCheck> for Last {
    fn from(last: LastCheck) -> Self {
        Self {
            at: view::time(last.at),
            result: last.answer.map_or("no_answer", |answer| answer.as_str()),
            reason: last.reason,
            seconds: last.took.as_secs_f64(),
        }
    }
}
