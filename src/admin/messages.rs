//! The messages of a transaction over HTTP: where they go, their properties and headers with their types, and, if the
//! configuration lets it, their bodies.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Admin;
use super::openapi::{Refusals, Unknown, Wrong};
use super::problem::Problem;
use super::request::{Id, MessagePage, MessagePageQuery, message_cursor};
use super::view::Message;
use crate::store::Pack;
use crate::tx::batch;

/// Bytes of messages that are read for one page; at least one pack.
const READ_BYTES_MAX: usize = 1 << 20;

/// A page of messages.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Messages {
    items: Vec<Message>,
    next_cursor: Option<String>,
}

/// Messages of a transaction that has them still.
#[utoipa::path(
    get,
    path = "/transactions/{id}/messages",
    tag = "transactions",
    operation_id = "listMessages",
    params(Id, MessagePageQuery),
    responses(
        (status = 200, body = Messages, description = "A page of messages, in the order in which they were published; none if it has them no more."),
        Wrong,
        Unknown,
        Refusals,
    ),
)]
pub(super) async fn list(State(admin): State<Admin>, Id(id): Id, page: MessagePage) -> Result<Json<Messages>, Problem> {
    let store = admin.store()?;
    store.transaction(id).await?.ok_or_else(Problem::no_such_transaction)?;
    let packs = store.messages(id, page.pack, READ_BYTES_MAX).await?;
    Ok(Json(Messages::of(&packs, &page, admin.setup().show_bodies)))
}

impl Messages {
    fn of(packs: &[Pack], page: &MessagePage, show_bodies: bool) -> Self {
        let mut items = Vec::new();
        for pack in packs {
            let skip = if pack.number == page.pack { page.skip } else { 0 };
            let messages = (0..).zip(batch::iter(pack.messages.bytes()).map_while(Result::ok)).skip(skip as usize);
            for (place, message) in messages {
                if items.len() == page.limit {
                    return Self { items, next_cursor: Some(message_cursor(pack.number, place)) };
                }
                items.push(Message::of(pack.first_index + place, message, show_bodies));
            }
        }
        let next = packs.last().filter(|pack| !pack.last).map(|pack| message_cursor(pack.number + 1, 0));
        Self { items, next_cursor: next }
    }
}
