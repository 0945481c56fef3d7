//! What a lane holds: transactions, and their messages on their way.

use super::forward::Returned;
use crate::amqp::method::Publish;
use crate::store::{ReturnedMessage, Sequence, Strand, Waiter};
use crate::tx::batch::{self, HalfMessage};
use crate::tx::id::{MessageId, TransactionId};
use bytes::Bytes;
use std::time::Instant;

/// What order binds: a client channel, in one of the store's lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Source {
    pub(super) lane: u16,
    pub(super) strand: Strand,
}

/// A transaction of which RabbitMQ has not answered for every message.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) id: TransactionId,
    pub(super) source: Source,
    pub(super) decided: Instant,
    pub(super) waiter: Option<Waiter>,
    /// Messages that were cut from it and have neither an answer nor a durable dead letter.
    pub(super) unanswered: usize,
    /// Those of them for which a dead letter is on its way to the store.
    pub(super) burying: usize,
    /// The index behind the last message that was cut.
    pub(super) cut_to: u32,
    /// Whether its last message was cut.
    pub(super) cut: bool,
    /// The number of the pack that comes next.
    pub(super) next_pack: u32,
    pub(super) returned: Vec<(u32, ReturnedMessage)>,
}

/// Messages of one transaction that were not sent yet.
#[derive(Debug)]
pub(super) struct Stretch {
    pub(super) sequence: Sequence,
    pub(super) source: Source,
    pub(super) next_index: u32,
    pub(super) last: bool,
    pub(super) messages: Bytes,
    /// Whether they are not what the store was given: none of them must be sent.
    pub(super) damaged: bool,
    /// Whether they may have been sent before.
    pub(super) possible_duplicate: bool,
    /// How often RabbitMQ nacked them, as far as is remembered.
    pub(super) nacks: u32,
}

impl Stretch {
    /// Leaves out what comes before this index.
    pub(super) fn skip_to(&mut self, index: u32) {
        while self.next_index < index {
            let first = batch::iter(&self.messages).find_map(Result::ok);
            // What can't be read goes together.
            let length = first.map_or(self.messages.len(), |message| message.stored_bytes());
            drop(self.messages.split_to(length));
            self.next_index += 1;
        }
    }
}

/// A message that is in flight, or has to go again. `P` is its transaction's place in the order of commits, or none as long
/// as the store has not told it.
#[derive(Debug)]
pub(super) struct Message<P = Sequence> {
    pub(super) sequence: P,
    pub(super) source: Source,
    pub(super) id: MessageId,
    /// As the store keeps it.
    pub(super) bytes: Bytes,
    pub(super) possible_duplicate: bool,
    /// How often RabbitMQ nacked it.
    pub(super) nacks: u32,
    pub(super) returned: Option<Box<Returned>>,
}

impl Message {
    /// Its place in the order of its source.
    pub(super) fn place(&self) -> (Sequence, u32) {
        (self.sequence, self.id.index)
    }
}

impl<P> Message<P> {
    /// The same, of a transaction at this place.
    pub(super) fn placed<Q>(self, sequence: Q) -> Message<Q> {
        let Self { source, id, bytes, possible_duplicate, nacks, returned, .. } = self;
        Message { sequence, source, id, bytes, possible_duplicate, nacks, returned }
    }

    pub(super) fn parse(&self) -> HalfMessage<'_> {
        batch::iter(&self.bytes).find_map(Result::ok).expect("it was read when it was cut")
    }

    /// Exchange and routing key, for people.
    pub(super) fn destination(&self) -> (String, String) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let publish = Publish::parse(self.parse().publish);
        publish.map(|publish| (text(publish.exchange), text(publish.routing_key))).unwrap_or_default()
    }
}
