//! Transactions over HTTP: looked at, decided, asked about.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::access::Operator;
use super::problem::Problem;
use super::request::{Id, Named, Nothing, Page, Reason};
use super::{Admin, view};
use crate::store::{Store, StoreError};
use crate::tx::decision::{Actor, Decision, Fate, Target, Verdict};
use crate::tx::id::TransactionId;
use crate::tx::state;

type Answer<T> = Result<Json<T>, Problem>;

impl Admin {
    pub(super) fn store(&self) -> Result<&Arc<dyn Store>, Problem> {
        let starting = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the store is not open yet: the proxy starts");
        self.store.get().ok_or_else(starting)
    }
}

pub(super) async fn list(State(admin): State<Admin>, page: Page) -> Answer<view::Page> {
    let listing = admin.store()?.transactions(page.filter, page.after, page.limit).await?;
    Ok(Json(listing.into()))
}

pub(super) async fn show(State(admin): State<Admin>, Id(id): Id) -> Answer<view::Transaction> {
    let (summary, history) = admin.store()?.transaction(id).await?.ok_or_else(unknown)?;
    Ok(Json(view::Transaction::with_history(summary, history)))
}

pub(super) async fn commit(admin: State<Admin>, who: Operator, Id(id): Id, reason: Reason) -> Answer<view::Decided> {
    decide(admin, who, Target::Id(id), Decision::Commit, reason).await
}

pub(super) async fn roll_back(admin: State<Admin>, who: Operator, Id(id): Id, reason: Reason) -> Answer<view::Decided> {
    decide(admin, who, Target::Id(id), Decision::RollBack, reason).await
}

pub(super) async fn commit_named(
    admin: State<Admin>,
    who: Operator,
    Named(named): Named,
    reason: Reason,
) -> Answer<view::Decided> {
    decide(admin, who, Target::Name(named), Decision::Commit, reason).await
}

pub(super) async fn roll_back_named(
    admin: State<Admin>,
    who: Operator,
    Named(named): Named,
    reason: Reason,
) -> Answer<view::Decided> {
    decide(admin, who, Target::Name(named), Decision::RollBack, reason).await
}

async fn decide(
    State(admin): State<Admin>,
    Operator(who): Operator,
    target: Target,
    decision: Decision,
    Reason(reason): Reason,
) -> Answer<view::Decided> {
    let store = Arc::clone(admin.store()?);
    // A task of its own: a caller who hangs up takes nothing back, so it has to be logged and counted all the same.
    let task = tokio::spawn(async move {
        let actor = Actor::Operator(who);
        let verdict = store.decide(target.clone(), decision, actor.clone(), Some(reason.to_string())).await;
        audit(&actor, &target, decision, &reason, &verdict);
        verdict
    });
    let verdict =
        task.await.map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the decision failed; see the log"))?;
    match verdict? {
        Verdict::Decided(fate) => Ok(Json(view::Decided::new(fate, true))),
        Verdict::Before(fate) => Ok(Json(view::Decided::new(fate, false))),
        Verdict::Contradicted(fate) => Err(contradicted(fate)),
        Verdict::Unknown => Err(unknown()),
    }
}

/// Has a transaction in doubt asked about now.
pub(super) async fn check(
    State(admin): State<Admin>,
    Operator(who): Operator,
    Id(id): Id,
    Nothing: Nothing,
) -> Answer<view::Transaction> {
    let store = admin.store()?;
    let asked = store.check_now(id, None).await?;
    tracing::info!(operator = &*who, transaction = %id, asked, "check by hand");
    let (summary, _) = store.transaction(id).await?.ok_or_else(unknown)?;
    if asked {
        return Ok(Json(summary.into()));
    }
    Err(match summary.state {
        state::State::InDoubt => conflict(id, summary.state, "no checker is asked about it: decide it by hand".into()),
        state => conflict(id, state, format!("it is {state}; only what is in doubt is asked about")),
    })
}

fn audit(actor: &Actor, target: &Target, decision: Decision, reason: &str, verdict: &Result<Verdict, StoreError>) {
    let named = match target {
        Target::Name(owned) => Some(owned),
        Target::Id(_) => None,
    };
    let (result, id) = match verdict {
        Ok(Verdict::Decided(fate)) => ("done".to_owned(), Some(fate.id)),
        Ok(Verdict::Before(fate)) => (format!("was so before, by {}", fate.decided_by), Some(fate.id)),
        Ok(Verdict::Contradicted(fate)) => (format!("refused: {} by {}", fate.state, fate.decided_by), Some(fate.id)),
        Ok(Verdict::Unknown) => ("refused: unknown".to_owned(), None),
        Err(error) => (format!("failed: {error}"), None),
    };
    let id = id.or(match target {
        Target::Id(id) => Some(*id),
        Target::Name(_) => None,
    });
    // Names and reasons are others' texts: `?` shows control characters escaped.
    tracing::info!(
        %actor,
        decision = decision.as_str(),
        transaction = id.map(tracing::field::display),
        vhost = named.map(|owned| tracing::field::debug(&owned.vhost)),
        user = named.map(|owned| tracing::field::debug(&owned.user)),
        name = named.map(|owned| tracing::field::debug(owned.name.as_str())),
        ?reason,
        ?result,
        "decision by hand"
    );
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such transaction, or not any more")
}

fn contradicted(fate: Fate) -> Problem {
    let at = view::time(fate.decided_at);
    let text = format!("it was decided before: {} by {} at {at}", fate.state, fate.decided_by);
    conflict(fate.id, fate.state, text).with("decided_at", at).with("decided_by", fate.decided_by)
}

fn conflict(id: TransactionId, state: state::State, text: String) -> Problem {
    Problem::new(StatusCode::CONFLICT, text).with("id", id.to_string()).with("state", state.as_str())
}
