//! Dead letters as those see them who look from outside and decide what becomes of them.

use super::NotOfAStore;
use crate::amqp::method::Publish;
use crate::amqp::properties::Properties;
use crate::tx::batch;
use crate::tx::id::{Timestamp, TransactionId};
use bytes::Bytes;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A dead letter's number. Rises, and never names another letter later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LetterId(pub(super) i64);

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LetterId {
    type Err = NotOfAStore;

    fn from_str(text: &str) -> Result<Self, NotOfAStore> {
        let id = text.parse().ok().filter(|id| *id > 0).map(Self);
        // Other spellings (+17, 017) would give one letter several names.
        id.filter(|id| id.to_string() == text).ok_or(NotOfAStore)
    }
}

/// A dead letter that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Its number.
    pub id: LetterId,
    /// The transaction that it is of.
    pub transaction: TransactionId,
    /// The virtual host.
    pub vhost: Arc<str>,
    /// Where it was published to, and under which id.
    pub envelope: Envelope,
    /// RabbitMQ's last reply code.
    pub reply_code: u16,
    /// RabbitMQ's last words.
    pub reply_text: String,
    /// When RabbitMQ refused it first.
    pub since: Timestamp,
    /// How often RabbitMQ refused it.
    pub attempts: u32,
}

/// The message of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterMessage {
    /// Its place in the transaction.
    pub index: u32,
    /// The one message, as a batch.
    pub message: Bytes,
}

/// What tells a message from others without its body. Bytes that are not UTF-8 show as U+FFFD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The exchange; empty: the default exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// The producer's message-id.
    pub message_id: Option<String>,
}

impl Envelope {
    /// Of a dead letter's message. What can't be read, and may be dead for that very reason, is left empty.
    pub(super) fn of(message: &[u8]) -> Self {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let Some(Ok(half)) = batch::iter(message).next() else { return Self::default() };
        let (exchange, routing_key) = Publish::parse(half.publish)
            .map(|publish| (lossy(publish.exchange), lossy(publish.routing_key)))
            .unwrap_or_default();
        let message_id = Properties::parse(half.header).ok().and_then(|properties| properties.message_id.map(lossy));
        Self { exchange, routing_key, message_id }
    }
}

/// Which dead letters to list. A part that is not given fits everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// The virtual host.
    pub vhost: Option<String>,
    /// The exchange.
    pub exchange: Option<String>,
    /// It was found out before this.
    pub since_before: Option<Timestamp>,
}

impl LetterFilter {
    pub(super) fn fits(&self, letter: &Letter) -> bool {
        self.vhost.as_deref().is_none_or(|vhost| *vhost == *letter.vhost)
            && self.exchange.as_deref().is_none_or(|exchange| exchange == letter.envelope.exchange)
            && self.since_before.is_none_or(|before| letter.since < before)
    }
}

/// The text that a history has of something done with the message at this place.
pub(super) fn about(index: u32, text: &str) -> String {
    format!("message {index}: {text}")
}

/// Why a dead letter of a transaction in state `committed` can't be decided about yet.
pub(super) const STILL_FORWARDED: &str = "committed, and others of its messages are still on their way";
