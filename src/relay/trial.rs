//! Messages of which one made RabbitMQ close a channel, or the whole connection: which one, shows when it is sent alone.
//! That is done on a connection of its own, so that nobody else pays for it.
//!
//! Sans-io. Several are sent at once as long as RabbitMQ takes them, ever more; when it closes, the guilty one is among
//! them, and is looked for by halves. One that was alone when RabbitMQ closed the channel is guilty; one that was alone when
//! it closed the connection is, if that happens again. What others do to the connection says nothing.

mod connection;

pub(super) use connection::start;

use super::lane::Fault;
use super::message::{Message, Source};
use super::outgoing::{Closed, Heard, Outgoing};
use crate::amqp::frame::Frame;
use crate::amqp::reply_code::ReplyCode;
use crate::store::Sequence;
use std::collections::BTreeMap;
use std::time::Instant;

/// Messages that are sent at once, and their bytes; a single one may be larger.
const WIDTH_MAX: usize = 512;
const BYTES_MAX: usize = 1 << 20;
/// How often a message that is alone must cost the connection.
const STRIKES: u32 = 2;

/// What came of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ruling {
    /// RabbitMQ has it.
    Taken,
    /// RabbitMQ nacked it.
    Nacked,
    /// It alone made RabbitMQ close, with this code and text.
    Guilty(ReplyCode, String),
    /// Nothing: one before it from the same client channel was nacked.
    Untried,
    /// RabbitMQ says nothing to it, and closes nothing either.
    Acquitted,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Trial {
    outgoing: Outgoing,
    waiting: BTreeMap<(Sequence, u32), Message>,
    is_open: bool,
    /// How many are sent at once, as long as nothing happens.
    width: usize,
    /// Among so many that come next one is guilty.
    guilty_among: Option<usize>,
    /// What cost the connection when it was alone, and how often.
    struck: Option<((Sequence, u32), u32)>,
    /// How many answers there were.
    answers: u64,
    pub(super) rulings: Vec<(Message, Ruling)>,
}

impl Trial {
    pub(super) fn new() -> Self {
        Self {
            outgoing: Outgoing::new(1),
            waiting: BTreeMap::new(),
            is_open: false,
            width: 1,
            guilty_among: None,
            struck: None,
            answers: 0,
            rulings: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, messages: Vec<Message>) {
        self.waiting.extend(messages.into_iter().map(|message| (message.place(), message)));
    }

    /// Whether there is nothing to try.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.outgoing.is_empty()
    }

    /// Since when RabbitMQ owes an answer.
    pub(super) fn oldest_since(&self) -> Option<Instant> {
        self.outgoing.oldest_since()
    }

    /// RabbitMQ owed none until now.
    pub(super) fn excuse(&mut self, now: Instant) {
        self.outgoing.excuse(now);
    }

    /// There is a connection.
    pub(super) fn connected(&mut self, out: &mut Vec<u8>) {
        self.outgoing.open(out);
        self.is_open = true;
    }

    /// Sends what comes next, once what was sent is answered.
    pub(super) fn fill(&mut self, out: &mut Vec<u8>, frame_bytes_max: u32, now: Instant) {
        if !self.is_open || !self.outgoing.is_empty() {
            return;
        }
        let width = self.guilty_among.map_or(self.width, |among| (among / 2).max(1));
        while self.outgoing.len() < width
            && self.outgoing.bytes() < BYTES_MAX
            && let Some((_, message)) = self.waiting.pop_first()
        {
            if let Err((message, unsendable)) = self.outgoing.send(message, out, frame_bytes_max, now) {
                let code = unsendable.reply_code();
                self.rulings.push((message, Ruling::Guilty(code, code.text(&unsendable.to_string()))));
            }
        }
    }

    pub(super) fn handle_frame(&mut self, frame: Frame<'_>, out: &mut Vec<u8>, now: Instant) -> Result<(), Fault> {
        match self.outgoing.handle_frame(frame, out, now)? {
            Heard::Settled { messages, taken, .. } => {
                self.answers += messages.len() as u64;
                self.guilty_among =
                    self.guilty_among.map(|among| among.saturating_sub(messages.len())).filter(|among| *among > 0);
                for message in messages {
                    if !taken {
                        self.leave_untried(message.source);
                    }
                    self.rulings.push((message, if taken { Ruling::Taken } else { Ruling::Nacked }));
                }
                if self.outgoing.is_empty() && self.guilty_among.is_none() {
                    self.width = (self.width * 2).min(WIDTH_MAX);
                }
            }
            Heard::Closed(Closed { code, text, by_publish }) => {
                if !by_publish {
                    return Err(Fault::Channel(code, text));
                }
                self.accuse(1, code, &text);
                self.take_back();
                self.outgoing.open(out);
            }
            Heard::Opened | Heard::CloseOk | Heard::Nothing => {}
        }
        Ok(())
    }

    /// RabbitMQ closed the connection because of what it got.
    pub(super) fn closed(&mut self, code: ReplyCode, text: &str) {
        self.accuse(STRIKES, code, text);
        self.disconnected();
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self) {
        self.take_back();
        self.is_open = false;
    }

    /// RabbitMQ does not answer: what is in flight closes nothing. The connection has to be made anew.
    pub(super) fn acquit(&mut self) {
        let messages = self.outgoing.take_back();
        self.rulings.extend(messages.into_iter().map(|message| (message, Ruling::Acquitted)));
        self.guilty_among = None;
    }

    fn accuse(&mut self, strikes_needed: u32, code: ReplyCode, text: &str) {
        let in_flight = self.outgoing.len();
        if in_flight > 1 {
            self.guilty_among = Some(in_flight);
            return;
        }
        let Some(place) = self.outgoing.iter().next().map(Message::place) else { return };
        (self.guilty_among, self.width) = (Some(1), 1);
        let before = self.struck.filter(|(struck, _)| *struck == place).map_or(0, |(_, strikes)| strikes);
        self.struck = Some((place, before + 1));
        if before + 1 >= strikes_needed {
            let culprits = self.outgoing.take_back();
            let ruling = Ruling::Guilty(code, text.to_owned());
            self.rulings.extend(culprits.into_iter().map(|message| (message, ruling.clone())));
            (self.guilty_among, self.struck) = (None, None);
        }
    }

    /// What is behind a message of this source that was nacked goes back, to wait for it.
    fn leave_untried(&mut self, source: Source) {
        let behind: Vec<_> =
            self.waiting.iter().filter(|(_, it)| it.source == source).map(|(place, _)| *place).collect();
        let behind = behind.iter().filter_map(|place| self.waiting.remove(place));
        self.rulings.extend(behind.map(|message| (message, Ruling::Untried)));
    }

    fn take_back(&mut self) {
        let messages = self.outgoing.take_back();
        self.add(messages);
    }
}

#[cfg(test)]
pub(super) mod tests;
