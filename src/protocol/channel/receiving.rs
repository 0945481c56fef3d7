//! A message of the client on its way in: what it is, where its bytes go, and when all of it is there.

use super::{Channel, Room, park};
use crate::amqp::frame::{self, Frame, kind};
use crate::amqp::method::{CLASS_BASIC, Publish, id};
use crate::amqp::properties::{self, Properties};
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::Malformed;
use crate::protocol::command::{Command, Io, Next};
use crate::protocol::half;
use crate::protocol::probe;
use crate::protocol::transaction::write_native;
use crate::tx::decision::Decision;
use crate::tx::name::TransactionName;
use std::sync::Arc;

/// A message whose content is on its way from the client.
#[derive(Debug)]
pub(super) struct Receiving {
    /// The arguments of basic.publish.
    pub(super) publish: Vec<u8>,
    /// The payload of the content header, once it is there.
    pub(super) header: Option<Vec<u8>>,
    /// Bytes of body to come.
    pub(super) remaining: u64,
    /// Where the body goes.
    pub(super) body: Body,
}

impl Receiving {
    /// Bytes that it holds beside those in the batch.
    pub(super) fn held_bytes(&self) -> usize {
        let body = if let Body::Native(body) = &self.body { body.len() } else { 0 };
        self.publish.len() + self.header.as_ref().map_or(0, Vec::len) + body
    }
}

#[derive(Debug)]
pub(super) enum Body {
    /// To the transaction's batch.
    Parked,
    /// Kept apart, to be published natively.
    Native(Vec<u8>),
    /// There is none: the message is a decision about another transaction.
    Decision(Decision, TransactionName),
    /// Nowhere: the store has no room for it, and a rollback stands behind it.
    Dropped,
    /// Nowhere: the message is refused, which RabbitMQ does when all of it has come.
    Wrong(String),
}

impl Channel {
    /// Shows RabbitMQ the front of a message whose rest will not be held back any more.
    pub fn pass_receiving(&mut self, io: &mut Io) {
        let receiving = self.receiving.take();
        self.pass_received(receiving, io);
    }

    pub(super) fn pass_received(&self, receiving: Option<Receiving>, io: &mut Io) {
        let Some(receiving) = receiving else { return };
        frame::write_method(&mut io.to_upstream, self.number, id::BASIC_PUBLISH, |out| out.extend(&receiving.publish));
        if let Some(header) = receiving.header {
            frame::write(&mut io.to_upstream, kind::HEADER, self.number, |out| out.extend(&header));
        }
    }

    pub(super) fn handle_header(
        &mut self,
        mut receiving: Receiving,
        frame: &Frame<'_>,
        io: &mut Io,
    ) -> Result<Next, Malformed> {
        let [class, weight] = [0, 2].map(|at| frame.payload.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]])));
        let (Some(CLASS_BASIC), Some(0), Ok(body_bytes)) = (class, weight, properties::body_size(frame.payload)) else {
            self.pass_received(Some(receiving), io);
            return Err(Malformed);
        };
        let publish = Publish::parse(&receiving.publish)?;
        receiving.body = self.look(&publish, frame.payload, body_bytes, io);
        if matches!(receiving.body, Body::Parked) {
            io.published = true;
            match self.room {
                Room::Dropped => receiving.body = Body::Dropped,
                _ if io.no_room.is_none() => {}
                _ if self.may_not_wait() => {
                    return Ok(io.refuse_full("this transaction can't wait for room, which its end may make"));
                }
                _ => {
                    self.receiving = Some(receiving);
                    return Ok(self.await_room(frame));
                }
            }
        }
        if matches!(receiving.body, Body::Parked) {
            self.transaction.batch.begin(&receiving.publish, frame.payload, body_bytes);
        }
        receiving.header = Some(frame.payload.to_vec());
        receiving.remaining = body_bytes;
        Ok(self.proceed(receiving, io))
    }

    /// What is to be done with a message, as far as its properties tell.
    fn look(&mut self, publish: &Publish<'_>, header: &[u8], body_bytes: u64, io: &Io) -> Body {
        let properties = Properties::parse(header);
        if let (true, Ok(properties)) = (publish.exchange == io.settings.control_exchange.as_bytes(), &properties) {
            return match half::read_control(publish, properties, body_bytes) {
                Ok((decision, name)) => Body::Decision(decision, name),
                Err(text) => Body::Wrong(text),
            };
        }
        if let Some(text) = half::too_large(header.len(), body_bytes, self.transaction.settings(io), io) {
            return Body::Wrong(text);
        }
        // What can't be read goes as it is, for RabbitMQ to judge.
        let Ok(properties) = properties else { return Body::Native(Vec::new()) };
        if probe::is_native(publish, &properties) {
            return match half::is_named(&properties) {
                true => Body::Wrong(half::NATIVE.into()),
                false => Body::Native(Vec::new()),
            };
        }
        let named = half::read(publish, &properties, true, io);
        match named.and_then(|named| named.map_or(Ok(()), |named| self.transaction.take_name(named))) {
            Ok(()) => Body::Parked,
            Err(text) => Body::Wrong(text),
        }
    }

    pub(super) fn handle_body(
        &mut self,
        mut receiving: Receiving,
        frame: &Frame<'_>,
        io: &mut Io,
    ) -> Result<Next, Malformed> {
        let Some(remaining) = receiving.remaining.checked_sub(frame.payload.len() as u64) else {
            self.pass_received(Some(receiving), io);
            return Err(Malformed);
        };
        receiving.remaining = remaining;
        match &mut receiving.body {
            Body::Parked => self.transaction.batch.extend_body(frame.payload),
            Body::Native(body) => body.extend_from_slice(frame.payload),
            Body::Decision(..) | Body::Dropped | Body::Wrong(_) => {}
        }
        Ok(self.proceed(receiving, io))
    }

    /// Goes on receiving, or takes the message if all of it is there.
    fn proceed(&mut self, receiving: Receiving, io: &mut Io) -> Next {
        if receiving.remaining > 0 {
            self.receiving = Some(receiving);
            return Next::Nothing;
        }
        let refuse = |text| Next::Refuse(ReplyCode::PRECONDITION_FAILED, text, id::BASIC_PUBLISH);
        if let Body::Wrong(text) = receiving.body {
            return refuse(text);
        }
        let (publish, header) = (receiving.publish, receiving.header.unwrap_or_default());
        if matches!(receiving.body, Body::Dropped) {
            // RabbitMQ may still have something against it.
            return self.send_probe(&publish, &header, io);
        }
        if self.transaction.has_no_message() {
            io.commands.push_back(Command::Began);
            self.transaction.settings = Some(Arc::clone(&io.settings));
            self.transaction.since = Some(io.now);
            io.open.insert((io.now, self.number));
        }
        if let Body::Decision(decision, name) = receiving.body {
            self.transaction.decisions.push((decision, name));
            let max = self.transaction.settings(io).limits.messages_max;
            if self.transaction.decisions.len() as u64 > max {
                return refuse(format!("transaction of more than {max} decisions (transaction.max_messages)"));
            }
            // Messages before it may have waited for its end.
            self.have_judged(io);
            return Next::Nothing;
        }
        let asked = self.send_probe(&publish, &header, io);
        if matches!(asked, Next::Refuse(..)) {
            return asked;
        }
        match receiving.body {
            Body::Native(body) => {
                let frame_max = io.frame_max;
                write_native(&mut self.transaction.native, self.number, &publish, &header, &body, frame_max);
            }
            Body::Parked | Body::Decision(..) | Body::Dropped | Body::Wrong(_) => {
                self.transaction.batch.finish();
                self.transaction.messages += 1;
                self.transaction.mandatory |= Publish::parse(&publish).is_ok_and(|publish| publish.mandatory());
            }
        }
        let limits = self.transaction.settings(io).limits;
        let native_bytes = self.transaction.native.len() as u64;
        let held_bytes = self.transaction.bytes + self.transaction.batch.bytes() as u64 + native_bytes;
        if self.transaction.messages > limits.messages_max {
            return refuse(format!(
                "transaction of more than {} messages (transaction.max_messages)",
                limits.messages_max
            ));
        }
        if held_bytes > limits.bytes_max {
            return refuse(format!("transaction of more than {} bytes (transaction.max_size)", limits.bytes_max));
        }
        if self.transaction.named.is_some() {
            self.have_judged(io);
        } else if self.transaction.batch.bytes() > limits.memory_bytes_max {
            let batch = std::mem::take(&mut self.transaction.batch);
            park(&mut self.transaction, batch, self.number, &mut self.parks, io);
        }
        asked
    }
}
