//! Dead letters over HTTP: looked at, tried again, discarded.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::access::Operator;
use super::audit::{Action, Line};
use super::body::{self, Reason};
use super::openapi::{Conflict, Refusals, Unknown, Wrong};
use super::problem::Problem;
use super::request::{Letter, Page, PageQuery};
use super::{Admin, DECISION_FAILED, apart, view};
use crate::store::{LetterFilter, LetterId, StoreError};
use crate::tx::decision::Actor;
use crate::tx::id::TransactionId;

type Shown<T> = Result<Json<T>, Problem>;

/// What becomes of a dead letter.
#[derive(Clone, Copy)]
pub(super) enum Fate {
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

#[utoipa::path(
    get,
    path = "/dead-letters",
    tag = "dead letters",
    operation_id = "listDeadLetters",
    params(
        ("vhost" = Option<String>, Query, description = "The virtual host."),
        ("exchange" = Option<String>, Query, description = "The exchange that it was published to."),
        PageQuery,
    ),
    responses(
        (status = 200, body = view::LetterPage, description = "A page, the first that was found out first."),
        Wrong,
        Refusals,
    ),
)]
pub(super) async fn list(State(admin): State<Admin>, page: Page<LetterFilter>) -> Shown<view::LetterPage> {
    let letters = admin.store()?.dead_letters(page.filter, page.after, page.limit).await?;
    Ok(Json(letters.into()))
}

#[utoipa::path(
    get,
    path = "/dead-letters/{id}",
    tag = "dead letters",
    operation_id = "showDeadLetter",
    params(Letter),
    responses(
        (status = 200, body = view::Letter, description = "The dead letter, with its message."),
        Wrong,
        Unknown,
        Refusals,
    ),
)]
pub(super) async fn show(State(admin): State<Admin>, Letter(id): Letter) -> Shown<view::Letter> {
    let store = admin.store()?;
    let letter = store.dead_letter_by_id(id).await?.ok_or_else(unknown)?;
    let message = store.dead_letter_message(id).await?;
    let message = message.and_then(|it| view::Message::first(it.index, &it.message, admin.setup().show_bodies));
    Ok(Json(view::Letter::with_message(letter, message)))
}

#[utoipa::path(
    post,
    path = "/dead-letters/{id}/retry",
    tag = "dead letters",
    operation_id = "retry",
    params(Letter),
    request_body = body::ReasonBody,
    responses(
        (status = 200, body = view::LetterDecided, description = "It is on its way once more."),
        Wrong,
        Unknown,
        Conflict,
        Refusals,
    ),
)]
pub(super) async fn retry(admin: State<Admin>, who: Operator, id: Letter, why: Reason) -> Shown<view::LetterDecided> {
    decide(admin, who, id, Fate::Retry, why).await
}

#[utoipa::path(
    post,
    path = "/dead-letters/{id}/discard",
    tag = "dead letters",
    operation_id = "discard",
    params(Letter),
    request_body = body::ReasonBody,
    responses(
        (status = 200, body = view::LetterDecided, description = "It is gone."),
        Wrong,
        Unknown,
        Conflict,
        Refusals,
    ),
)]
pub(super) async fn discard(admin: State<Admin>, who: Operator, id: Letter, why: Reason) -> Shown<view::LetterDecided> {
    decide(admin, who, id, Fate::Discard, why).await
}

async fn decide(
    State(admin): State<Admin>,
    Operator(who): Operator,
    Letter(id): Letter,
    fate: Fate,
    Reason(reason): Reason,
) -> Shown<view::LetterDecided> {
    let work = async move { settle(&admin, who, id, fate, reason, false)?.await };
    let transaction = apart(work, DECISION_FAILED).await?.ok_or_else(unknown)?;
    Ok(Json(view::LetterDecided::new(id, transaction, fate.as_str())))
}

/// Decides and writes it down, as [`super::decisions::settle`].
pub(super) fn settle(
    admin: &Admin,
    who: Arc<str>,
    id: LetterId,
    fate: Fate,
    reason: Arc<str>,
    bulk: bool,
) -> Result<impl Future<Output = Result<Option<TransactionId>, Problem>> + use<>, Problem> {
    let actor = Actor::Operator(who);
    let reply = match fate {
        Fate::Retry => admin.store()?.retry(id, actor.clone(), reason.to_string()),
        Fate::Discard => admin.store()?.discard(id, actor.clone(), reason.to_string()),
    };
    Ok(async move {
        let done = reply.await;
        audit(&actor, id, fate, &reason, &done, bulk);
        Ok(done?)
    })
}

fn audit(
    actor: &Actor,
    id: LetterId,
    fate: Fate,
    reason: &str,
    done: &Result<Option<TransactionId>, StoreError>,
    bulk: bool,
) {
    let (result, transaction) = match done {
        Ok(Some(transaction)) => ("done".to_owned(), Some(*transaction)),
        Ok(None) => ("refused: unknown".to_owned(), None),
        Err(error) => (format!("failed: {error}"), None),
    };
    let action = match fate {
        Fate::Retry => Action::Retry,
        Fate::Discard => Action::Discard,
    };
    let actor = actor.to_string();
    Line::new(action, &actor).letter(id).about(transaction).because(reason).in_bulk(bulk).write(&result);
}

fn unknown() -> Problem {
    let text = "there is no such dead letter, not any more, or it is on its way to RabbitMQ just now";
    Problem::new(StatusCode::NOT_FOUND, text)
}
