//! The messages of a transaction over HTTP: where they go, their properties and headers with their types, and, if the
//! configuration lets it, their bodies.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde::de::IgnoredAny;
use utoipa::ToSchema;

use super::openapi::{Refusals, Unknown, Wrong};
use super::problem::Problem;
use super::request::{Id, MessagePage, MessagePageQuery, message_cursor};
use super::view::Count;
use super::{Admin, decisions};
use crate::amqp::method::Publish;
use crate::amqp::properties::Properties;
use crate::store::Pack;
use crate::tx::batch::{self, HalfMessage};
use crate::values::{self, Typed};

/// Bytes of a body that are shown.
const BODY_BYTES_MAX: usize = 50_000;
/// Bytes of messages that are read for one page; at least one pack.
const READ_BYTES_MAX: usize = 1 << 20;

/// A page of messages.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Messages {
    items: Vec<Message>,
    next_cursor: Option<String>,
}

/// A message as it was published.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Message {
    /// Its place in the transaction, from 0.
    index: u32,
    exchange: String,
    routing_key: String,
    mandatory: bool,
    /// Of the body.
    bytes: Count,
    properties: Vec<Typed>,
    headers: Vec<Typed>,
    /// Null: bodies are not shown.
    body: Option<Body>,
}

/// What a message holds, or the first of it.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
struct Body {
    form: Form,
    text: String,
    truncated: bool,
}

/// What kind of text stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Form {
    Json,
    Text,
    Hex,
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
    store.transaction(id).await?.ok_or_else(decisions::unknown)?;
    let packs = store.messages(id, page.pack, READ_BYTES_MAX).await?;
    Ok(Json(Messages::of(&packs, &page, admin.setup().show_bodies)))
}

impl Messages {
    fn of(packs: &[Pack], page: &MessagePage, show_bodies: bool) -> Self {
        let mut items = Vec::new();
        for pack in packs {
            let skip = if pack.number == page.pack { page.skip } else { 0 };
            let messages = (0..).zip(batch::iter(&pack.messages).map_while(Result::ok)).skip(skip as usize);
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

impl Message {
    /// The first of a batch; none if it can't be read.
    pub(super) fn first(index: u32, batch: &[u8], show_body: bool) -> Option<Self> {
        Some(Self::of(index, batch::iter(batch).next()?.ok()?, show_body))
    }

    fn of(index: u32, message: HalfMessage<'_>, show_body: bool) -> Self {
        // What is stored was read before; a store that gives back something else still shows what it has.
        let publish = Publish::parse(message.publish).unwrap_or(Publish { exchange: b"", routing_key: b"", flags: 0 });
        let properties = Properties::parse(message.header).ok();
        let each = properties.iter().flat_map(Properties::each);
        Self {
            index,
            exchange: values::text(publish.exchange),
            routing_key: values::text(publish.routing_key),
            mandatory: publish.mandatory(),
            bytes: Count(message.body.len() as u64),
            properties: each.map(|(name, property)| values::property(name, property)).collect(),
            headers: values::typed(properties.as_ref().and_then(Properties::headers).unwrap_or_default()),
            body: show_body.then(|| Body::of(message.body)),
        }
    }
}

impl Body {
    fn of(body: &[u8]) -> Self {
        let truncated = body.len() > BODY_BYTES_MAX;
        let shown = &body[..body.len().min(BODY_BYTES_MAX)];
        let text = match std::str::from_utf8(shown) {
            Ok(text) => Some(text),
            // The cut may go through a character.
            Err(error) if truncated && error.error_len().is_none() => {
                std::str::from_utf8(&shown[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        match text.filter(|text| !text.chars().any(|c| c.is_control() && !c.is_ascii_whitespace())) {
            None => Self { form: Form::Hex, text: values::hex(shown), truncated },
            Some(text) => {
                let is_json = text.trim_start().starts_with(['{', '['])
                    && !truncated
                    && serde_json::from_str::<IgnoredAny>(text).is_ok();
                Self { form: if is_json { Form::Json } else { Form::Text }, text: text.to_owned(), truncated }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_shown_as_what_it_is() {
        let shown = |body: &[u8]| Body::of(body);
        let body = |form, text: &str| Body { form, text: text.into(), truncated: false };
        assert_eq!(shown(b""), body(Form::Text, ""));
        assert_eq!(shown("gr\u{fc}n\n".as_bytes()), body(Form::Text, "gr\u{fc}n\n"));
        assert_eq!(shown(b" {\"a\": [1]}"), body(Form::Json, " {\"a\": [1]}"));
        assert_eq!(shown(b"{\"a\": 1"), body(Form::Text, "{\"a\": 1"));
        assert_eq!(shown(&b"[".repeat(10_000)).form, Form::Text, "too deep to be told");
        assert_eq!(shown(b"\xff\0"), body(Form::Hex, "ff00"));
        assert_eq!(shown(b"a\x1b[2J"), body(Form::Hex, "611b5b324a"));
    }

    #[test]
    fn a_long_body_is_cut_between_characters() {
        let long = "\u{fc}".repeat(BODY_BYTES_MAX);
        let shown = Body::of(&[b"a", long.as_bytes()].concat());
        assert_eq!((shown.form, shown.text.len(), shown.truncated), (Form::Text, BODY_BYTES_MAX - 1, true));
        let hex = Body::of(&vec![0xff; BODY_BYTES_MAX + 1]);
        assert_eq!((hex.form, hex.text.len(), hex.truncated), (Form::Hex, 2 * BODY_BYTES_MAX, true));
        let exact = Body::of(&vec![b'a'; BODY_BYTES_MAX]);
        assert!(!exact.truncated);
    }
}
