//! The consuming side of a channel in tx mode: which deliveries the client holds, as its acks take effect with the
//! transaction and come again if RabbitMQ is asked about the messages meanwhile.

use crate::amqp::method::{self, id};
use crate::amqp::tags::TagSet;
use crate::amqp::wire::{Malformed, Reader};
use crate::protocol::deliveries::Consumers;
use std::collections::VecDeque;

/// What is followed of it.
#[derive(Debug, Default)]
pub(super) struct Consuming {
    consumers: Consumers,
    /// `no_ack` of each basic.get that waits for its answer.
    gets: VecDeque<bool>,
    /// Delivery tags that the client holds, of deliveries since tx.select.
    pub(super) unacked: TagSet,
}

/// What RabbitMQ has done to the deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    /// One more, under this tag, is the client's.
    Delivered(u64),
    /// It delivers all of them again.
    Recovered,
}

impl Consuming {
    /// With the consumers that were there before.
    pub(super) fn new(consumers: Consumers) -> Self {
        Self { consumers, ..Self::default() }
    }

    /// The client asks for deliveries, or for no more.
    pub(super) fn asked(&mut self, method: (u16, u16), arguments: &[u8]) -> Result<(), Malformed> {
        match method {
            id::BASIC_GET => self.gets.push_back(method::get_no_ack(arguments)?),
            id::BASIC_CONSUME => self.consumers.asked(arguments)?,
            id::BASIC_CANCEL => self.consumers.cancelled(arguments)?,
            _ => {}
        }
        Ok(())
    }

    /// A method from RabbitMQ.
    pub(super) fn note(&mut self, method: (u16, u16), arguments: &[u8]) -> Option<Noted> {
        let tag = match method {
            id::BASIC_DELIVER => {
                let (consumer, tag) = method::deliver_tags(arguments).ok()?;
                self.consumers.needs_ack(consumer).then_some(tag)?
            }
            id::BASIC_GET_OK if self.gets.pop_front() == Some(false) => Reader::new(arguments).u64().ok()?,
            id::BASIC_GET_EMPTY => {
                self.gets.pop_front();
                return None;
            }
            id::BASIC_CONSUME_OK | id::BASIC_CANCEL_OK => {
                self.consumers.answered(arguments);
                return None;
            }
            id::BASIC_CANCEL => {
                self.consumers.lost(arguments);
                return None;
            }
            id::BASIC_RECOVER_OK => return Some(Noted::Recovered),
            _ => return None,
        };
        self.unacked.insert(tag);
        Some(Noted::Delivered(tag))
    }
}
