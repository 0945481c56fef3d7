//! What RabbitMQ sends to a channel's consumers, as far as others depend on it: which deliveries want an ack, and where
//! one of them ends.

use crate::amqp::frame::{Frame, kind};
use crate::amqp::method::{Consume, id};
use crate::amqp::properties;
use crate::amqp::wire::{Malformed, Reader};
use std::collections::{BTreeMap, VecDeque};

/// Changes without an answer that wait for an answer behind them; the oldest is made past that.
const SILENT_MAX: usize = 100;

/// Consumers of a channel, as far as delivery tags depend on them.
#[derive(Debug, Default)]
pub struct Consumers {
    /// What the client asked for and RabbitMQ has not come to yet, as far as one can know. RabbitMQ answers in this order.
    asked: VecDeque<Change>,
    /// `no_ack` of each consumer whose tag is known.
    modes: BTreeMap<Vec<u8>, bool>,
    /// A no_ack consumer whose tag the server chose and never told: every unknown consumer may be it.
    unnamed_no_ack: bool,
}

#[derive(Debug)]
enum Change {
    /// basic.consume, whose answer tells the tag.
    Consume { no_ack: bool },
    /// basic.consume without an answer.
    ConsumeSilently { tag: Vec<u8>, no_ack: bool },
    /// basic.cancel.
    Cancel,
    /// basic.cancel without an answer: deliveries may still be on their way.
    CancelSilently { tag: Vec<u8> },
}

impl Change {
    fn is_answered(&self) -> bool {
        matches!(self, Self::Consume { .. } | Self::Cancel)
    }
}

impl Consumers {
    /// The client sent basic.consume.
    pub fn asked(&mut self, arguments: &[u8]) -> Result<(), Malformed> {
        match Consume::parse(arguments)? {
            Consume { no_wait: false, no_ack, .. } => self.asked.push_back(Change::Consume { no_ack }),
            Consume { consumer_tag: b"", no_ack, .. } => self.unnamed_no_ack |= no_ack,
            Consume { consumer_tag, no_ack, .. } => {
                let change = Change::ConsumeSilently { tag: consumer_tag.to_vec(), no_ack };
                match self.asked.iter().any(Change::is_answered) {
                    true => self.asked.push_back(change),
                    false => self.make(change, b""),
                }
            }
        }
        Ok(())
    }

    /// The client sent basic.cancel.
    pub fn cancelled(&mut self, arguments: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(arguments);
        let tag = reader.short_string()?.to_vec();
        match reader.u8()? & 1 {
            0 => self.asked.push_back(Change::Cancel),
            _ => self.asked.push_back(Change::CancelSilently { tag }),
        }
        if self.asked.len() > SILENT_MAX
            && let Some(change) = self.next_if(|change| !change.is_answered())
        {
            self.make(change, b"");
        }
        Ok(())
    }

    /// RabbitMQ answered with basic.consume-ok or basic.cancel-ok.
    pub fn answered(&mut self, arguments: &[u8]) {
        let Ok(tag) = Reader::new(arguments).short_string() else { return };
        while let Some(change) = self.asked.pop_front() {
            let is_answered = change.is_answered();
            self.make(change, tag);
            if is_answered {
                break;
            }
        }
        while let Some(change) = self.next_if(|next| matches!(next, Change::ConsumeSilently { .. })) {
            self.make(change, b"");
        }
    }

    fn next_if(&mut self, is: impl FnOnce(&Change) -> bool) -> Option<Change> {
        self.asked.front().is_some_and(is).then(|| self.asked.pop_front())?
    }

    /// RabbitMQ cancelled a consumer, because its queue is gone say.
    pub fn lost(&mut self, arguments: &[u8]) {
        if let Ok(tag) = Reader::new(arguments).short_string() {
            self.modes.remove(tag);
        }
    }

    /// Makes a change; `answer` is the consumer tag in RabbitMQ's answer to it.
    fn make(&mut self, change: Change, answer: &[u8]) {
        match change {
            Change::Consume { no_ack } => drop(self.modes.insert(answer.to_vec(), no_ack)),
            Change::ConsumeSilently { tag, no_ack } => {
                // What was cancelled under this tag is another consumer.
                self.asked.retain(|change| !matches!(change, Change::CancelSilently { tag: old } if *old == tag));
                self.modes.insert(tag, no_ack);
            }
            Change::Cancel => drop(self.modes.remove(answer)),
            Change::CancelSilently { tag } => drop(self.modes.remove(&tag)),
        }
    }

    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.modes.is_empty() && !self.unnamed_no_ack
    }

    /// Whether a delivery to this consumer has to be acknowledged.
    ///
    /// Of one that can't be known it is better to think no: all that depends on it is what "all so far" means, and a message
    /// that is acknowledged too rarely comes again, while an ack of a tag that RabbitMQ doesn't know ends the channel.
    pub fn needs_ack(&self, consumer_tag: &[u8]) -> bool {
        let may_be_unnamed = self.unnamed_no_ack && consumer_tag.starts_with(b"amq.ctag-");
        self.modes.get(consumer_tag).map_or(!may_be_unnamed, |no_ack| !no_ack)
    }
}

/// Where RabbitMQ is within a content that it sends on a channel. Nothing else may stand in between.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Between contents.
    #[default]
    Idle,
    /// Anywhere: contents were not followed while the channel passed through. The next method tells.
    Unknown,
    /// The header is next.
    Header,
    /// So many bytes of body are to come.
    Body(u64),
}

impl Content {
    /// Follows a frame from RabbitMQ.
    pub fn follow(&mut self, frame: &Frame<'_>) {
        *self = match (*self, frame.kind) {
            (_, kind::METHOD) => match frame.method_id() {
                Some(id::BASIC_DELIVER | id::BASIC_GET_OK | id::BASIC_RETURN) => Self::Header,
                _ => Self::Idle,
            },
            (Self::Header, kind::HEADER) => Self::body(properties::body_size(frame.payload).unwrap_or(0)),
            (Self::Body(rest), kind::BODY) => Self::body(rest.saturating_sub(frame.payload.len() as u64)),
            (content, _) => content,
        };
    }

    fn body(rest: u64) -> Self {
        if rest == 0 { Self::Idle } else { Self::Body(rest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::wire::Write;

    fn consume(tag: &[u8], no_ack: bool, no_wait: bool) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u16(0);
        out.put_short_string(b"queue");
        out.put_short_string(tag);
        out.put_u8(u8::from(no_ack) << 1 | u8::from(no_wait) << 3);
        out.put_long_string(b"");
        out
    }

    fn named(tag: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_short_string(tag);
        out
    }

    fn cancel(tag: &[u8], no_wait: bool) -> Vec<u8> {
        [named(tag), vec![no_wait.into()]].concat()
    }

    #[test]
    fn a_tag_that_is_used_again_has_its_new_mode() {
        let mut consumers = Consumers::default();
        consumers.asked(&consume(b"a", true, false)).unwrap();
        consumers.cancelled(&cancel(b"a", false)).unwrap();
        consumers.asked(&consume(b"a", false, true)).unwrap();
        consumers.answered(&named(b"a"));
        assert!(!consumers.needs_ack(b"a"), "what RabbitMQ sends before it cancels is the old one's");
        consumers.answered(&named(b"a"));
        assert!(consumers.needs_ack(b"a"));
        consumers.cancelled(&cancel(b"a", true)).unwrap();
        consumers.asked(&consume(b"a", true, false)).unwrap();
        assert!(consumers.needs_ack(b"a"));
        consumers.answered(&named(b"a"));
        assert!(!consumers.needs_ack(b"a"));
        consumers.lost(&named(b"a"));
        consumers.asked(&consume(b"a", false, true)).unwrap();
        assert!(consumers.needs_ack(b"a"));
    }

    #[test]
    fn a_nameless_consumer_is_not_taken_for_another() {
        let mut consumers = Consumers::default();
        consumers.asked(&consume(b"", true, true)).unwrap();
        consumers.asked(&consume(b"", false, false)).unwrap();
        consumers.answered(&named(b"amq.ctag-acked"));
        assert!(consumers.needs_ack(b"amq.ctag-acked"));
        assert!(!consumers.needs_ack(b"amq.ctag-other"));
        assert!(consumers.needs_ack(b"own"));
    }

    #[test]
    fn consumers_that_are_gone_take_no_memory() {
        let mut consumers = Consumers::default();
        for number in 0..1_000_u32 {
            let (tag, no_ack) = (number.to_be_bytes(), number % 2 == 0);
            consumers.asked(&consume(&tag, no_ack, false)).unwrap();
            consumers.cancelled(&cancel(&tag, false)).unwrap();
            consumers.answered(&named(&tag));
            consumers.answered(&named(&tag));
        }
        assert!(consumers.is_empty(), "{consumers:?}");
        for number in 0..1_000_u32 {
            consumers.asked(&consume(&number.to_be_bytes(), true, true)).unwrap();
            consumers.cancelled(&cancel(&number.to_be_bytes(), true)).unwrap();
        }
        assert!(consumers.asked.len() <= SILENT_MAX && consumers.modes.len() <= SILENT_MAX);
    }
}
