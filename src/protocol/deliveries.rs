//! What RabbitMQ sends to a channel's consumers, as far as others depend on it: which deliveries want an ack, and where
//! one of them ends.

use crate::amqp::frame::{Frame, kind};
use crate::amqp::method::{Consume, id};
use crate::amqp::properties;
use crate::amqp::wire::{Malformed, Reader};
use std::collections::{HashSet, VecDeque};

/// Consumers of a channel, as far as delivery tags depend on them.
#[derive(Debug, Default)]
pub struct Consumers {
    /// `no_ack` of each basic.consume that waits for its consume-ok.
    asked: VecDeque<bool>,
    /// Consumer tags whose deliveries need no ack.
    no_ack: HashSet<Vec<u8>>,
    /// A no_ack consumer whose tag the server chose and never told: every unknown consumer may be it.
    unnamed_no_ack: bool,
}

impl Consumers {
    /// The client sent basic.consume.
    pub fn asked(&mut self, arguments: &[u8]) -> Result<(), Malformed> {
        let consume = Consume::parse(arguments)?;
        match consume {
            Consume { no_wait: false, no_ack, .. } => self.asked.push_back(no_ack),
            Consume { no_ack: true, consumer_tag: b"", .. } => self.unnamed_no_ack = true,
            Consume { no_ack: true, consumer_tag, .. } => drop(self.no_ack.insert(consumer_tag.to_vec())),
            Consume { .. } => {}
        }
        Ok(())
    }

    /// RabbitMQ answered with basic.consume-ok.
    pub fn accepted(&mut self, arguments: &[u8]) {
        if self.asked.pop_front() == Some(true)
            && let Ok(tag) = Reader::new(arguments).short_string()
        {
            self.no_ack.insert(tag.to_vec());
        }
    }

    /// Whether a delivery to this consumer has to be acknowledged.
    pub fn needs_ack(&self, consumer_tag: &[u8]) -> bool {
        let may_be_unnamed = self.unnamed_no_ack && consumer_tag.starts_with(b"amq.ctag-");
        !self.no_ack.contains(consumer_tag) && !may_be_unnamed
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
