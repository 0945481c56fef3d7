//! What a checker is told about a transaction: one JSON document, the same for every way it is asked.

use crate::amqp::method::Publish;
use crate::amqp::properties::Properties;
use crate::store::{Pack, Summary};
use crate::tx::batch::{self, HalfMessage};
use crate::tx::id::TransactionId;
use crate::tx::name::TransactionName;
use crate::values;
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

/// Bytes of messages, bodies included, that are read from the store for a question; at least one pack.
pub(super) const READ_BYTES_MAX: usize = 1024 * 1024;
/// Messages that a question lists: the first ones.
const MESSAGES_MAX: usize = 100;
/// Bytes of a question; messages that don't fit are not listed.
const QUESTION_BYTES_MAX: usize = 256 * 1024;

/// A question, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// About whom.
    pub(super) id: TransactionId,
    /// The name that its producer gave it.
    pub(super) name: TransactionName,
    /// Where it is.
    pub(super) vhost: Arc<str>,
    /// Whose it is.
    pub(super) user: Arc<str>,
    /// Which attempt it is, from 1.
    pub(super) attempt: u32,
    /// The JSON.
    pub(super) body: Bytes,
}

#[derive(Serialize)]
struct Head<'a> {
    transaction: &'a str,
    id: String,
    vhost: &'a str,
    user: &'a str,
    attempt: u32,
    parked_at: String,
}

#[derive(Serialize)]
struct Message {
    exchange: String,
    routing_key: String,
    message_id: Option<String>,
    headers: Value,
    size: usize,
}

impl Question {
    /// About `transaction`, whose first messages are in `packs`; `None` if it has no name, for then nobody could know.
    pub(super) fn about(transaction: &Summary, packs: &[Pack]) -> Option<Self> {
        let attempt = transaction.attempts.saturating_add(1);
        let name = transaction.name.clone()?;
        let head = Head {
            transaction: name.as_str(),
            id: transaction.id.to_string(),
            vhost: &transaction.vhost,
            user: &transaction.user,
            attempt,
            parked_at: transaction.parked_at.unwrap_or(transaction.created_at).to_string(),
        };
        let mut body = serde_json::to_string(&head).expect("texts and numbers become JSON");
        body.truncate(body.len() - "}".len());
        body.push_str(",\"messages\":[");
        for (number, message) in messages(packs).take(MESSAGES_MAX).enumerate() {
            let message = serde_json::to_string(&Message::of(message)).expect("texts and numbers become JSON");
            if body.len() + message.len() + ",]}".len() > QUESTION_BYTES_MAX {
                break;
            }
            body.push_str(if number == 0 { "" } else { "," });
            body.push_str(&message);
        }
        body.push_str("]}");
        let (vhost, user) = (Arc::clone(&transaction.vhost), Arc::clone(&transaction.user));
        Some(Self { id: transaction.id, name, vhost, user, attempt, body: body.into() })
    }
}

impl Message {
    fn of(message: HalfMessage<'_>) -> Self {
        // What is stored was read before; a store that gives back something else still gets its question.
        let publish = Publish::parse(message.publish).unwrap_or(Publish { exchange: b"", routing_key: b"", flags: 0 });
        let properties = Properties::parse(message.header).ok();
        let headers = properties.as_ref().and_then(Properties::headers);
        Self {
            exchange: values::text(publish.exchange),
            routing_key: values::text(publish.routing_key),
            message_id: properties.as_ref().and_then(|properties| properties.message_id).map(values::text),
            headers: values::object(headers.unwrap_or_default()),
            size: message.body.len(),
        }
    }
}

fn messages(packs: &[Pack]) -> impl Iterator<Item = HalfMessage<'_>> {
    packs.iter().flat_map(|pack| batch::iter(pack.messages.bytes()).map_while(Result::ok))
}

/// The exchange of the first message; `None` if there is no message.
pub(super) fn first_exchange(packs: &[Pack]) -> Option<&[u8]> {
    messages(packs).next().and_then(|message| Publish::parse(message.publish).ok()).map(|publish| publish.exchange)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::amqp::table;
    use crate::amqp::wire::Write;
    use crate::store::{Sequence, Stored, Strand};
    use crate::tx::batch::Batch;
    use crate::tx::id::Timestamp;
    use crate::tx::state::State;
    use serde_json::json;
    use uuid::Uuid;

    /// A transaction in doubt with this number and name.
    pub(in crate::check_back) fn summary(number: u128) -> Summary {
        Summary {
            id: TransactionId(Uuid::from_u128(number)),
            name: TransactionName::new(format!("order-{number}").as_bytes()).ok(),
            vhost: "/".into(),
            user: "guest".into(),
            state: State::InDoubt,
            created_at: Timestamp(1_700_000_000_000),
            parked_at: Some(Timestamp(1_700_000_000_250)),
            decided_at: None,
            decided_by: None,
            messages: 1,
            bytes: 1,
            checker: Some("orders".into()),
            attempts: 0,
            checks_answered: 0,
            next_check_at: Some(Timestamp(0)),
            lane: 0,
        }
    }

    /// A pack of one message to `exchange` with `headers` and a message-id.
    pub(in crate::check_back) fn pack(exchange: &[u8], headers: &[u8], body: &[u8]) -> Pack {
        let mut publish = Vec::new();
        publish.put_u16(0);
        publish.put_short_string(exchange);
        publish.put_short_string(b"key");
        publish.put_u8(0);
        let header = crate::amqp::properties::tests::full(body.len() as u64, headers);
        let mut batch = Batch::default();
        batch.push(HalfMessage { publish: &publish, header: &header, body });
        let id = TransactionId(Uuid::from_u128(1));
        let messages = Stored::Sound(batch.into_bytes().into());
        Pack {
            sequence: Sequence(0),
            id,
            strand: Strand(0),
            number: 0,
            first_index: 0,
            last: true,
            decided_at: None,
            retried: false,
            messages,
        }
    }

    fn json(question: &Question) -> Value {
        serde_json::from_slice(&question.body).expect("JSON")
    }

    #[test]
    fn it_says_what_is_known() {
        let mut headers = Vec::new();
        table::write_string(&mut headers, b"x-half-transaction", b"order-7");
        let question = Question::about(&summary(7), &[pack(b"orders", &headers, b"body")]).expect("a question");
        assert_eq!(
            json(&question),
            json!({
                "transaction": "order-7", "id": "00000000-0000-0000-0000-000000000007", "vhost": "/", "user": "guest",
                "attempt": 1, "parked_at": "2023-11-14T22:13:20.250Z",
                "messages": [{
                    "exchange": "orders", "routing_key": "key", "message_id": "id-1",
                    "headers": {"x-half-transaction": "order-7"}, "size": 4,
                }],
            })
        );
        let unnamed = Summary { name: None, ..summary(7) };
        assert_eq!(Question::about(&unnamed, &[]), None);
    }

    #[test]
    fn it_has_a_bound_in_messages_and_in_bytes() {
        let many = vec![pack(b"orders", b"", b""); 200];
        let question = Question::about(&summary(7), &many).expect("a question");
        assert_eq!(json(&question)["messages"].as_array().map(Vec::len), Some(MESSAGES_MAX));

        let mut headers = Vec::new();
        table::write_string(&mut headers, b"k", &[0xff; 20_000]);
        let large = vec![pack(b"\xff", &headers, b""); 50];
        let question = Question::about(&summary(7), &large).expect("a question");
        assert!(question.body.len() <= QUESTION_BYTES_MAX);
        let listed = json(&question)["messages"].as_array().map(Vec::len).expect("an array");
        assert!((3..=10).contains(&listed), "{listed}");
        assert_eq!(json(&question)["messages"][0]["exchange"], "\u{fffd}");
    }

    #[test]
    fn what_cannot_be_read_does_not_break_it() {
        let mut bad = pack(b"orders", b"", b"");
        bad.messages = Stored::Sound(Bytes::from_static(b"\0\x01\0\0\0\x01\0\0\0\0\0\0\0\0xy"));
        let question = Question::about(&summary(7), &[bad]).expect("a question");
        assert_eq!(json(&question)["messages"][0]["message_id"], Value::Null);
        assert_eq!(first_exchange(&[pack(b"orders", b"", b"")]), Some(&b"orders"[..]));
        assert_eq!(first_exchange(&[]), None);
    }
}
