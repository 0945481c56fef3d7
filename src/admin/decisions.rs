//! Transactions over HTTP: looked at, decided, asked about.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::access::Operator;
use super::audit::{Action, Line};
use super::body::{self, Nothing, Reason};
use super::openapi::{Changed, Conflict, Refusals, Unknown, Wrong};
use super::problem::Problem;
use super::request::{Id, IfMatch, Named, NamedPath, Page, PageQuery};
use super::{Admin, DECISION_FAILED, apart, sessions, view};
use crate::store::{Filter, ForAdmin, StoreError};
use crate::tx::decision::{Actor, Decision, Fate, Target, Verdict};
use crate::tx::id::TransactionId;
use crate::tx::state;

type Shown<T> = Result<Json<T>, Problem>;

impl Admin {
    pub(super) fn store(&self) -> Result<&Arc<dyn ForAdmin>, Problem> {
        let starting = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the store is not open yet: the proxy starts");
        self.store.get().ok_or_else(starting)
    }
}

#[utoipa::path(
    get,
    path = "/transactions",
    tag = "transactions",
    operation_id = "listTransactions",
    params(
        ("state" = Option<String>, Query, pattern = "^(open|in_doubt|committed|delivered|rolled_back|dead_lettered)$", description = "Where they stand."),
        ("vhost" = Option<String>, Query, description = "The virtual host."),
        ("user" = Option<String>, Query, description = "The user who published."),
        ("name" = Option<String>, Query, min_length = 1, max_length = 255, description = "The name; `*` stands for any characters, `?` for one."),
        ("exchange" = Option<String>, Query, description = "The exchange of the first message, of those that have their messages still."),
        ("min_age" = Option<String>, Query, pattern = "^(0|[0-9]{1,6}(s|m|h|d)( [0-9]{1,6}(s|m|h|d)){0,3})$", description = "At least so old, such as `30s`, `5m` or `1h 30m`."),
        PageQuery,
    ),
    responses(
        (status = 200, body = view::Page, description = "A page, in the order in which they came. It may have fewer than `limit`, even none, although there is a next one."),
        Wrong,
        Refusals,
    ),
)]
pub(super) async fn list(State(admin): State<Admin>, page: Page<Filter>) -> Shown<view::Page> {
    let listing = admin.store()?.transactions(page.filter, page.after, page.limit).await?;
    Ok(Json(listing.into()))
}

#[utoipa::path(
    get,
    path = "/transactions/{id}",
    tag = "transactions",
    operation_id = "showTransaction",
    params(Id),
    responses(
        (status = 200, body = view::Transaction, description = "The transaction with its history.", headers(("ETag" = String, description = "Its version."))),
        Wrong,
        Unknown,
        Refusals,
    ),
)]
pub(super) async fn show(State(admin): State<Admin>, Id(id): Id) -> Result<Response, Problem> {
    let (summary, history) = admin.store()?.transaction(id).await?.ok_or_else(Problem::no_such_transaction)?;
    let transaction = view::Transaction::with_history(summary, history);
    let etag = format!("\"{}\"", transaction.version());
    Ok(([(header::ETAG, etag)], Json(transaction)).into_response())
}

#[utoipa::path(
    post,
    path = "/transactions/{id}/commit",
    tag = "transactions",
    operation_id = "commit",
    params(Id, IfMatch),
    request_body = body::ReasonBody,
    responses(
        (status = 200, body = view::Decided, description = "It is decided so, and durable."),
        Wrong,
        Unknown,
        Conflict,
        Changed,
        Refusals,
    ),
)]
pub(super) async fn commit(
    admin: State<Admin>,
    who: Operator,
    Id(id): Id,
    expected: IfMatch,
    reason: Reason,
) -> Shown<view::Decided> {
    expect(&admin, id, &expected).await?;
    decide(admin, who, Target::Id(id), Decision::Commit, reason).await
}

#[utoipa::path(
    post,
    path = "/transactions/{id}/rollback",
    tag = "transactions",
    operation_id = "rollBack",
    params(Id, IfMatch),
    request_body = body::ReasonBody,
    responses(
        (status = 200, body = view::Decided, description = "It is decided so, and durable."),
        Wrong,
        Unknown,
        Conflict,
        Changed,
        Refusals,
    ),
)]
pub(super) async fn roll_back(
    admin: State<Admin>,
    who: Operator,
    Id(id): Id,
    expected: IfMatch,
    reason: Reason,
) -> Shown<view::Decided> {
    expect(&admin, id, &expected).await?;
    decide(admin, who, Target::Id(id), Decision::RollBack, reason).await
}

#[utoipa::path(
    post,
    path = "/vhosts/{vhost}/users/{user}/transactions/{name}/commit",
    tag = "transactions",
    operation_id = "commitNamed",
    params(NamedPath),
    request_body = body::ReasonBody,
    responses(
        (status = 200, body = view::Decided, description = "It is decided so, and durable."),
        Wrong,
        Unknown,
        Conflict,
        Refusals,
    ),
)]
pub(super) async fn commit_named(
    admin: State<Admin>,
    who: Operator,
    Named(named): Named,
    reason: Reason,
) -> Shown<view::Decided> {
    decide(admin, who, Target::Name(named), Decision::Commit, reason).await
}

#[utoipa::path(
    post,
    path = "/vhosts/{vhost}/users/{user}/transactions/{name}/rollback",
    tag = "transactions",
    operation_id = "rollBackNamed",
    params(NamedPath),
    request_body = body::ReasonBody,
    responses(
        (status = 200, body = view::Decided, description = "It is decided so, and durable."),
        Wrong,
        Unknown,
        Conflict,
        Refusals,
    ),
)]
pub(super) async fn roll_back_named(
    admin: State<Admin>,
    who: Operator,
    Named(named): Named,
    reason: Reason,
) -> Shown<view::Decided> {
    decide(admin, who, Target::Name(named), Decision::RollBack, reason).await
}

/// Refuses what was asked for on the strength of something that is so no more. It spares people surprises; that two don't
/// decide differently, the store sees to.
async fn expect(admin: &Admin, id: TransactionId, expected: &IfMatch) -> Result<(), Problem> {
    if !expected.is_given() {
        return Ok(());
    }
    let (summary, _) = admin.store()?.transaction(id).await?.ok_or_else(Problem::no_such_transaction)?;
    let (version, state) = (view::version(&summary), summary.state);
    if expected.fits(&version) {
        return Ok(());
    }
    let text = format!("it changed since: it is {state} now, in version {version}");
    let problem = Problem::new(StatusCode::PRECONDITION_FAILED, text).with("field", "If-Match");
    Err(problem.with("id", id.to_string()).with("state", state.as_str()).with("version", version))
}

async fn decide(
    State(admin): State<Admin>,
    Operator(who): Operator,
    target: Target,
    decision: Decision,
    Reason(reason): Reason,
) -> Shown<view::Decided> {
    let work = async move { settle(&admin, who, target, decision, reason, false)?.await };
    match apart(work, DECISION_FAILED).await? {
        Verdict::Decided(fate) => Ok(Json(view::Decided::new(fate, true))),
        Verdict::Before(fate) => Ok(Json(view::Decided::new(fate, false))),
        Verdict::Contradicted(fate) => Err(contradicted(fate)),
        Verdict::Unknown => Err(Problem::no_such_transaction()),
    }
}

/// Decides, and writes it down. The decision has taken its place in the order of decisions when this returns;
/// the future is to be awaited whatever happens.
pub(super) fn settle(
    admin: &Admin,
    who: Arc<str>,
    target: Target,
    decision: Decision,
    reason: Arc<str>,
    bulk: bool,
) -> Result<impl Future<Output = Result<Verdict, Problem>> + use<>, Problem> {
    let actor = Actor::Operator(who);
    let reply = admin.store()?.decide(target.clone(), decision, actor.clone(), Some(reason.to_string()));
    Ok(async move {
        let verdict = reply.await;
        audit(&actor, &target, decision, &reason, &verdict, bulk);
        Ok(verdict?)
    })
}

/// Has a transaction in doubt asked about now.
#[utoipa::path(
    post,
    path = "/transactions/{id}/check",
    tag = "transactions",
    operation_id = "check",
    params(Id),
    request_body = body::NothingBody,
    responses(
        (status = 200, body = view::Transaction, description = "Its checker is asked now."),
        Wrong,
        Unknown,
        Conflict,
        Refusals,
    ),
)]
pub(super) async fn check(
    State(admin): State<Admin>,
    Operator(who): Operator,
    Id(id): Id,
    Nothing: Nothing,
) -> Shown<view::Transaction> {
    let asked = check_now(&admin, &who, id, None).await?;
    let (summary, _) = admin.store()?.transaction(id).await?.ok_or_else(Problem::no_such_transaction)?;
    if asked {
        return Ok(Json(summary.into()));
    }
    Err(match summary.state {
        state::State::InDoubt => conflict(id, summary.state, NO_CHECKER.into()),
        state => conflict(id, state, format!("it is {state}; only what is in doubt is asked about")),
    })
}

/// Why a transaction in doubt is not asked about.
pub(super) const NO_CHECKER: &str = "no checker is asked about it: decide it by hand";

/// Has it asked about, and writes that down. `reason`: where it is one of many.
pub(super) async fn check_now(
    admin: &Admin,
    who: &Arc<str>,
    id: TransactionId,
    reason: Option<&str>,
) -> Result<bool, Problem> {
    let asked = admin.store()?.check_now(id, None).await;
    if matches!(asked, Ok(true)) {
        admin.roster.hurry_checkers();
    }
    let result = match &asked {
        Ok(true) => "done".to_owned(),
        Ok(false) => "refused: not in doubt, or without a checker".to_owned(),
        Err(error) => format!("failed: {error}"),
    };
    let actor = sessions::actor(who);
    let line = Line::new(Action::Check, &actor).about(Some(id)).in_bulk(reason.is_some());
    reason.into_iter().fold(line, Line::because).write(&result);
    Ok(asked?)
}

fn audit(
    actor: &Actor,
    target: &Target,
    decision: Decision,
    reason: &str,
    verdict: &Result<Verdict, StoreError>,
    bulk: bool,
) {
    let (result, id) = match verdict {
        Ok(Verdict::Decided(fate)) => ("done".to_owned(), Some(fate.id)),
        Ok(Verdict::Before(fate)) => (format!("was so before, by {}", fate.decided_by), Some(fate.id)),
        Ok(Verdict::Contradicted(fate)) => (format!("refused: {} by {}", fate.state, fate.decided_by), Some(fate.id)),
        Ok(Verdict::Unknown) => ("refused: unknown".to_owned(), None),
        Err(error) => (format!("failed: {error}"), None),
    };
    let action = match decision {
        Decision::Commit => Action::Commit,
        Decision::RollBack => Action::RollBack,
    };
    Line::new(action, &actor.to_string()).to(target).about(id).because(reason).in_bulk(bulk).write(&result);
}

fn contradicted(fate: Fate) -> Problem {
    let at = view::time(fate.decided_at);
    let text = format!("it was decided before: {} by {} at {at}", fate.state, fate.decided_by);
    conflict(fate.id, fate.state, text).with("decided_at", at).with("decided_by", fate.decided_by)
}

fn conflict(id: TransactionId, state: state::State, text: String) -> Problem {
    Problem::new(StatusCode::CONFLICT, text).with("id", id.to_string()).with("state", state.as_str())
}
