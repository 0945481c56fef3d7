//! Dead letters over HTTP: looked at, tried again, discarded.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::access::Operator;
use super::problem::Problem;
use super::request::{Letter, LetterPage, Reason};
use super::{Admin, view};
use crate::store::{LetterId, StoreError};
use crate::tx::decision::Actor;
use crate::tx::id::TransactionId;

type Answer<T> = Result<Json<T>, Problem>;

/// What becomes of a dead letter.
#[derive(Clone, Copy)]
enum Fate {
    Retry,
    Discard,
}

impl Fate {
    fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }
}

pub(super) async fn list(State(admin): State<Admin>, page: LetterPage) -> Answer<view::LetterPage> {
    let letters = admin.store()?.dead_letters(page.filter, page.after, page.limit).await?;
    Ok(Json(letters.into()))
}

pub(super) async fn show(State(admin): State<Admin>, Letter(id): Letter) -> Answer<view::Letter> {
    let letter = admin.store()?.dead_letter_by_id(id).await?.ok_or_else(unknown)?;
    Ok(Json(letter.into()))
}

pub(super) async fn retry(admin: State<Admin>, who: Operator, id: Letter, why: Reason) -> Answer<view::LetterDecided> {
    decide(admin, who, id, Fate::Retry, why).await
}

pub(super) async fn discard(
    admin: State<Admin>,
    who: Operator,
    id: Letter,
    why: Reason,
) -> Answer<view::LetterDecided> {
    decide(admin, who, id, Fate::Discard, why).await
}

async fn decide(
    State(admin): State<Admin>,
    Operator(who): Operator,
    Letter(id): Letter,
    fate: Fate,
    Reason(reason): Reason,
) -> Answer<view::LetterDecided> {
    let store = Arc::clone(admin.store()?);
    // A task of its own: a caller who hangs up takes nothing back, so it has to be logged all the same.
    let task = tokio::spawn(async move {
        let actor = Actor::Operator(who);
        let done = match fate {
            Fate::Retry => store.retry(id, actor.clone(), reason.to_string()).await,
            Fate::Discard => store.discard(id, actor.clone(), reason.to_string()).await,
        };
        audit(&actor, id, fate, &reason, &done);
        done
    });
    let failed = |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the decision failed; see the log");
    let transaction = task.await.map_err(failed)??.ok_or_else(unknown)?;
    Ok(Json(view::LetterDecided::new(id, transaction, fate.as_str())))
}

fn audit(actor: &Actor, id: LetterId, fate: Fate, reason: &str, done: &Result<Option<TransactionId>, StoreError>) {
    let (result, transaction) = match done {
        Ok(Some(transaction)) => ("done".to_owned(), Some(*transaction)),
        Ok(None) => ("refused: unknown".to_owned(), None),
        Err(error) => (format!("failed: {error}"), None),
    };
    tracing::info!(
        %actor,
        decision = fate.as_str(),
        letter = id.0,
        transaction = transaction.map(tracing::field::display),
        ?reason,
        ?result,
        "dead letter by hand"
    );
}

fn unknown() -> Problem {
    let text = "there is no such dead letter, not any more, or it is on its way to RabbitMQ just now";
    Problem::new(StatusCode::NOT_FOUND, text)
}
