//! A channel in confirm mode, and what is in flight on it. Sans-io.

use super::forward::{self, Returned, Unsendable};
use super::message::Message;
use crate::amqp::confirms::Confirms;
use crate::amqp::frame::{self, Frame, kind};
use crate::amqp::method::{self, Close, Settle, id};
use crate::amqp::properties::body_size;
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::{Malformed, Write};
use crate::store::Sequence;
use bytes::Bytes;
use std::time::Instant;

/// See the module.
#[derive(Debug)]
pub(super) struct Outgoing<P = Sequence> {
    channel: u16,
    confirms: Confirms<Message<P>>,
    bytes: usize,
    returning: Option<Returning>,
    /// Returns come in the order of publishing: where to look for the next.
    return_tag: u64,
    /// Since when the oldest unconfirmed message is the oldest.
    oldest_since: Option<Instant>,
}

/// A message on its way back to us: basic.return, content header, body.
#[derive(Debug)]
struct Returning {
    arguments: Bytes,
    header: Option<Bytes>,
    body_bytes_to_come: u64,
}

/// What a frame of RabbitMQ's says.
#[derive(Debug)]
pub(super) enum Heard<P = Sequence> {
    /// These are answered: taken, or nacked; and whether another one is the oldest now.
    Settled {
        messages: Vec<Message<P>>,
        taken: bool,
        oldest: bool,
    },
    /// The channel is open.
    Opened,
    /// RabbitMQ closed the channel, and has our close-ok. What is in flight is to be taken back.
    Closed(Closed),
    /// It closed the channel because we wanted it.
    CloseOk,
    Nothing,
}

/// Why a channel was closed.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) code: ReplyCode,
    pub(super) text: String,
    pub(super) by_publish: bool,
}

impl<P> Outgoing<P> {
    pub(super) fn new(channel: u16) -> Self {
        Self { channel, confirms: Confirms::default(), bytes: 0, returning: None, return_tag: 0, oldest_since: None }
    }

    /// Opens the channel in confirm mode. Publishes may follow at once: RabbitMQ takes them in order.
    pub(super) fn open(&mut self, out: &mut Vec<u8>) {
        debug_assert!(self.is_empty());
        frame::write_method(out, self.channel, id::CHANNEL_OPEN, |out| out.put_short_string(b""));
        frame::write_method(out, self.channel, id::CONFIRM_SELECT, |out| out.put_u8(0));
    }

    /// Asks RabbitMQ to close the channel.
    pub(super) fn close(&mut self, out: &mut Vec<u8>) {
        let close = Close { code: ReplyCode::SUCCESS, text: b"no confirm in time", method: (0, 0) };
        close.write(out, self.channel);
    }

    /// Appends the frames of a message.
    ///
    /// # Errors
    /// It can't be sent at all.
    pub(super) fn send(
        &mut self,
        message: Message<P>,
        out: &mut Vec<u8>,
        frame_bytes_max: u32,
        now: Instant,
    ) -> Result<(), (Message<P>, Unsendable)> {
        let Message { id, possible_duplicate, .. } = message;
        match forward::write(out, self.channel, message.parse(), id, possible_duplicate, frame_bytes_max) {
            Ok(()) => {
                self.oldest_since.get_or_insert(now);
                self.bytes += message.bytes.len();
                self.confirms.push(message);
                Ok(())
            }
            Err(unsendable) => Err((message, unsendable)),
        }
    }

    /// Takes a frame of this channel.
    pub(super) fn handle_frame(
        &mut self,
        frame: Frame<'_>,
        out: &mut Vec<u8>,
        now: Instant,
    ) -> Result<Heard<P>, Malformed> {
        match (frame.kind, frame.method_id()) {
            (_, Some(id::BASIC_ACK)) => return Ok(self.settled(Settle::parse(frame.arguments())?, true, now)),
            (_, Some(id::BASIC_NACK)) => return Ok(self.settled(Settle::parse(frame.arguments())?, false, now)),
            (_, Some(id::BASIC_RETURN)) => {
                let arguments = Bytes::copy_from_slice(frame.arguments());
                self.returning = Some(Returning { arguments, header: None, body_bytes_to_come: 0 });
            }
            (kind::HEADER, _) => {
                let returning = self.returning.as_mut().ok_or(Malformed)?;
                returning.body_bytes_to_come = body_size(frame.payload)?;
                returning.header = Some(Bytes::copy_from_slice(frame.payload));
                self.returned_if_whole();
            }
            (kind::BODY, _) => {
                let returning = self.returning.as_mut().ok_or(Malformed)?;
                let rest = returning.body_bytes_to_come.checked_sub(frame.payload.len() as u64);
                returning.body_bytes_to_come = rest.ok_or(Malformed)?;
                self.returned_if_whole();
            }
            (_, Some(id::CHANNEL_OPEN_OK)) => return Ok(Heard::Opened),
            (_, Some(id::CHANNEL_CLOSE)) => {
                let close = Close::parse(frame.arguments())?;
                // It reads nothing on the channel until this.
                method::write_bare(out, self.channel, id::CHANNEL_CLOSE_OK);
                return Ok(Heard::Closed(Closed {
                    code: close.code,
                    text: String::from_utf8_lossy(close.text).into_owned(),
                    by_publish: close.method == id::BASIC_PUBLISH,
                }));
            }
            (_, Some(id::CHANNEL_CLOSE_OK)) => return Ok(Heard::CloseOk),
            _ => {}
        }
        Ok(Heard::Nothing)
    }

    fn settled(&mut self, Settle { tag, multiple }: Settle, taken: bool, now: Instant) -> Heard<P> {
        let oldest = self.confirms.oldest();
        let messages: Vec<Message<P>> = self.confirms.take(tag, multiple).collect();
        if messages.is_empty() {
            return Heard::Nothing;
        }
        self.bytes -= messages.iter().map(|message| message.bytes.len()).sum::<usize>();
        let oldest = self.confirms.oldest() != oldest;
        if oldest {
            self.oldest_since = (!self.is_empty()).then_some(now);
        }
        Heard::Settled { messages, taken, oldest }
    }

    fn returned_if_whole(&mut self) {
        let whole = |it: &mut Returning| it.header.is_some() && it.body_bytes_to_come == 0;
        let Some(Returning { arguments, header: Some(header), .. }) = self.returning.take_if(whole) else { return };
        let Some(id) = forward::read_id(&header) else { return };
        let returned = Some(Box::new(Returned { arguments, header }));
        // From the last one on; from the start only if that fails, which it does not as long as RabbitMQ keeps its order.
        for tag in [self.return_tag, 0] {
            if let Some((tag, message)) = self.confirms.from_tag(tag).find(|(_, message)| message.id == id) {
                message.returned = returned;
                self.return_tag = tag;
                return;
            }
        }
    }

    /// Everything unconfirmed may be there or not: it has to be sent again. The channel is closed, or gone.
    pub(super) fn take_back(&mut self) -> Vec<Message<P>> {
        let mut messages: Vec<Message<P>> = self.confirms.restart().collect();
        for message in &mut messages {
            message.possible_duplicate = true;
            message.returned = None;
        }
        *self = Self::new(self.channel);
        messages
    }

    /// RabbitMQ owed no answer until now.
    pub(super) fn excuse(&mut self, now: Instant) {
        self.oldest_since = self.oldest_since.map(|_| now);
    }

    /// Since when the oldest message waits for its answer.
    pub(super) fn oldest_since(&self) -> Option<Instant> {
        self.oldest_since
    }

    /// Messages in flight.
    pub(super) fn len(&self) -> usize {
        self.confirms.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.confirms.is_empty()
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The tag under which a message is in flight.
    #[cfg(test)]
    pub(super) fn tag_of(&mut self, id: crate::tx::id::MessageId) -> Option<u64> {
        self.confirms.from_tag(0).find(|(_, message)| message.id == id).map(|(tag, _)| tag)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Message<P>> {
        self.confirms.iter()
    }
}
