//! One lane: a channel of the relay's connection, and the messages that go through it in their order. Where RabbitMQ
//! allows fewer channels than there are lanes, one channel carries several of the store's, each in its order.
//!
//! Sans-io: frames and instants in, bytes and effects out. What happens when something goes wrong:
//!
//! - *nack*: the message steps aside, with all that comes behind it from the same client channel; the others go on. What
//!   that channel has in flight is awaited; then the refused messages are sent again, one at a time with growing pauses,
//!   until RabbitMQ takes them. A copy may be in one of several queues, so it is a possible duplicate; and each try may make
//!   a copy, so their number is bounded: then it becomes a dead letter.
//! - *channel error*: which message caused it is not said. What was in flight steps aside too, and is tried on a connection
//!   of its own ([`super::trial`]); the guilty one becomes a dead letter, and its channel's next messages are tried first for
//!   a while. A message that was alone in flight needs no trial.
//! - *connection error*: the same, for what was in flight on all lanes.
//! - *a transaction of one message* may come before the store has it: see [`lone`].
//! - *lost connection, or no confirm in time*: everything unconfirmed is sent again in order.

mod answered;
mod incoming;
mod lone;
mod stuck;

pub(super) use lone::Lone;

use self::lone::Lones;
use super::aside::Aside;
use super::letters::LETTERS_MAX;
use super::message::{Message, Stretch, Transaction};
use super::outgoing::{Closed, Heard, Outgoing};
use super::status::{VhostStatus, add};
use super::trial::Ruling;
use crate::amqp::frame::Frame;
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::Malformed;
use crate::store::{DeadLetter, ReturnedMessage, Sequence, Stored, Waiter};
use crate::tx::batch;
use crate::tx::id::MessageId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a message is not sent that is not the one that was kept.
const DAMAGED: &str = "INTERNAL_ERROR - damaged in the store: not sent, and it can't be tried again";
/// How far a doubled confirm timeout grows.
const CONFIRM_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// How long RabbitMQ may take to close a channel before the connection counts as sick.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of messages that may be unconfirmed in a lane, whatever their number; a single message may be larger.
const IN_FLIGHT_BYTES_MAX: usize = 4 << 20;

/// What holds for every lane.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    /// Messages that may be unconfirmed.
    pub(super) window: usize,
    /// Pauses before a message that RabbitMQ nacked is sent again; when none is left it becomes a dead letter.
    pub(super) nack_pauses: &'static [Duration],
    /// How long the oldest unconfirmed message may wait.
    pub(super) confirm_timeout: Duration,
    /// Whether a message that is not mandatory and reaches no queue becomes a dead letter.
    pub(super) keep_unroutable: bool,
}

impl Policy {
    /// The pause after so many nacks, from 1; `None` if it has been sent often enough.
    fn nack_pause(&self, nacks: u32) -> Option<Duration> {
        self.nack_pauses.get(nacks.saturating_sub(1) as usize).copied()
    }
}

/// Why the connection has to be made anew.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// A close of the channel that no publish caused.
    #[error("RabbitMQ closed a channel: {0} {1}")]
    Channel(ReplyCode, String),
    /// No channel.close-ok in time.
    #[error("RabbitMQ does not close a channel")]
    NoCloseOk,
    /// Something came that can't stand there.
    #[error("RabbitMQ sent what can't be read")]
    Malformed,
}

impl From<Malformed> for Fault {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is no connection.
    Down,
    Open,
    /// We asked RabbitMQ to close the channel.
    Closing {
        since: Instant,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lane {
    channel: u16,
    policy: Policy,
    status: Arc<VhostStatus>,
    phase: Phase,
    /// Whether RabbitMQ has not answered channel.open yet.
    opening: bool,
    transactions: BTreeMap<Sequence, Transaction>,
    unsent: VecDeque<Stretch>,
    unsent_bytes: usize,
    /// What was sent and is to be sent again, before anything that was not.
    again: BTreeMap<(Sequence, u32), Message>,
    aside: Aside,
    outgoing: Outgoing<Option<Sequence>>,
    lones: Lones,
    confirm_timeout: Duration,
    stalled: bool,
    blocked: bool,
    /// What came back of transactions of which nobody had heard, the youngest first: the commit of one that was read from
    /// the store may be a moment behind.
    unheard: VecDeque<(Sequence, Vec<ReturnedMessage>)>,
    /// Whether RabbitMQ has taken something since this was last looked at.
    pub(super) confirmed: bool,
    /// Transactions that are done with.
    pub(super) delivered: Vec<Sequence>,
    /// For the store; each is answered with [`Lane::dead_letter_kept`].
    pub(super) dead_letters: Vec<DeadLetter>,
}

impl Lane {
    pub(super) fn new(channel: u16, policy: Policy, status: Arc<VhostStatus>) -> Self {
        Self {
            channel,
            confirm_timeout: policy.confirm_timeout,
            policy,
            status,
            phase: Phase::Down,
            opening: false,
            transactions: BTreeMap::new(),
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            again: BTreeMap::new(),
            aside: Aside::default(),
            outgoing: Outgoing::new(channel),
            lones: Lones::default(),
            stalled: false,
            blocked: false,
            unheard: VecDeque::new(),
            confirmed: false,
            delivered: Vec::new(),
            dead_letters: Vec::new(),
        }
    }

    /// Works by this policy from now on; what is in flight beyond a smaller window stays there.
    pub(super) fn change_policy(&mut self, policy: Policy) {
        self.confirm_timeout = policy.confirm_timeout;
        self.policy = policy;
    }

    /// Whether RabbitMQ confirms nothing of what it has.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// What it holds may take long to be confirmed: only those are told of it who have to be.
    pub(super) fn wait_for_nothing(&mut self) {
        for transaction in self.transactions.values_mut() {
            transaction.waiter = transaction.waiter.take().and_then(Waiter::if_mandatory);
        }
        self.lones.wait_for_nothing();
    }

    /// Whether it takes more: see [`Lane::unsent_bytes`] too.
    pub(super) fn has_room(&self) -> bool {
        self.aside.has_room()
    }

    /// Bytes that it holds and did not send yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Messages published and not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.outgoing.len()
    }

    /// Whether nothing is under way: no confirm, no dead letter that the caller has not taken.
    pub(super) fn is_settled(&self) -> bool {
        self.outgoing.is_empty() && self.dead_letters.is_empty() && self.lones.is_settled()
    }

    /// Whether it holds no part of any transaction.
    pub(super) fn is_empty(&self) -> bool {
        self.transactions.is_empty() && self.unsent.is_empty() && self.aside.is_empty() && self.lones.is_empty()
    }

    /// Whether it holds a part of this transaction.
    pub(super) fn holds(&self, sequence: Sequence) -> bool {
        self.transactions.contains_key(&sequence)
    }

    /// Whether it is on no connection.
    pub(super) fn is_down(&self) -> bool {
        self.phase == Phase::Down
    }

    /// Whether RabbitMQ has opened its channel, as far as is known.
    pub(super) fn is_opened(&self) -> bool {
        self.phase != Phase::Down && !self.opening
    }

    /// Takes over what another lane holds; neither is on a connection. The order within each stays, and there is none
    /// between them.
    pub(super) fn take_over(&mut self, mut other: Self) {
        debug_assert!(self.is_down() && other.is_down());
        other.set_stalled(false);
        self.transactions.append(&mut other.transactions);
        self.unsent.append(&mut other.unsent);
        self.unsent_bytes += other.unsent_bytes;
        self.again.append(&mut other.again);
        self.aside.take_over(std::mem::take(&mut other.aside));
        self.lones.take_over(std::mem::take(&mut other.lones));
        self.delivered.append(&mut other.delivered);
        self.dead_letters.append(&mut other.dead_letters);
    }

    /// There is a connection, and something to send: opens the channel.
    pub(super) fn connected(&mut self, out: &mut Vec<u8>) {
        debug_assert!(self.phase == Phase::Down);
        self.open(out);
    }

    /// The connection is gone; `accused`: because of a message that was in flight, here or on another lane.
    pub(super) fn disconnected(&mut self, accused: bool, now: Instant) {
        self.take_back(accused, now);
        self.phase = Phase::Down;
        self.blocked = false;
    }

    /// RabbitMQ stops, or goes on, to take messages from this connection: no confirm is owed meanwhile.
    pub(super) fn set_blocked(&mut self, blocked: bool, now: Instant) {
        self.blocked = blocked;
        self.outgoing.excuse(now);
        if let Phase::Closing { since } = &mut self.phase {
            *since = now;
        }
    }

    /// Appends the frames of messages that may go now, until `out` holds `bytes_max` bytes.
    pub(super) fn fill(&mut self, out: &mut Vec<u8>, bytes_max: usize, frame_bytes_max: u32, now: Instant) {
        while out.len() < bytes_max && self.dead_letters.len() < LETTERS_MAX {
            let Some(message) = self.next_message(now) else { return };
            self.send(message, out, frame_bytes_max, now);
        }
    }

    fn next_message(&mut self, now: Instant) -> Option<Message> {
        if self.phase != Phase::Open || self.blocked {
            return None;
        }
        while !self.is_full() {
            if let Some(message) = self.aside.next_message(now) {
                return Some(message);
            }
            let again = self.again.pop_first().map(|(_, message)| message);
            let message = again.or_else(|| self.cut(now))?;
            let source = message.source;
            if !self.aside.is_suspect(source) && !self.aside.goes_alone(source) {
                return Some(message);
            }
            self.aside.put_back(message, None);
            self.settle(source, now);
        }
        None
    }

    /// Whether as much is in flight as may be.
    fn is_full(&self) -> bool {
        self.outgoing.len() >= self.policy.window || self.outgoing.bytes() >= IN_FLIGHT_BYTES_MAX
    }

    /// Cuts the next message that was never sent.
    fn cut(&mut self, now: Instant) -> Option<Message> {
        loop {
            let stretch = self.unsent.front_mut()?;
            let sequence = stretch.sequence;
            let Some(transaction) = self.transactions.get_mut(&sequence) else {
                self.drop_stretch(now);
                continue;
            };
            let first = batch::iter(&stretch.messages).next().map(|first| first.map(|message| message.stored_bytes()));
            let is_readable = !matches!(first, Some(Err(Malformed)));
            let length = match first {
                Some(Ok(length)) => length,
                // Where the next message begins nobody knows: the rest goes together.
                Some(Err(Malformed)) => stretch.messages.len(),
                None => {
                    transaction.cut |= stretch.last;
                    self.drop_stretch(now);
                    self.finish_if_done(sequence, now);
                    continue;
                }
            };
            let bytes = stretch.messages.split_to(length);
            let id = MessageId { transaction: transaction.id, index: stretch.next_index };
            let Stretch { source, possible_duplicate, damaged, nacks, .. } = *stretch;
            stretch.next_index += 1;
            transaction.cut_to = stretch.next_index;
            transaction.unanswered += 1;
            self.unsent_bytes -= length;
            if stretch.messages.is_empty() {
                transaction.cut |= stretch.last;
                self.drop_stretch(now);
            }
            if is_readable && !damaged {
                return Some(Message { sequence, source, id, bytes, possible_duplicate, nacks, returned: None });
            }
            if !damaged {
                self.tell_of_damage(id.transaction);
            }
            let (message, code) = (Stored::Damaged(bytes), ReplyCode::INTERNAL_ERROR);
            self.keep_letter(sequence, id.index, message, code, DAMAGED.to_owned());
        }
    }

    fn drop_stretch(&mut self, now: Instant) {
        if let Some(stretch) = self.unsent.pop_front() {
            self.unsent_bytes -= stretch.messages.len();
            self.aside.cut(stretch.source, now);
        }
    }

    fn send(&mut self, message: Message, out: &mut Vec<u8>, frame_bytes_max: u32, now: Instant) {
        let (source, sequence) = (message.source, message.sequence);
        match self.outgoing.send(message.placed(Some(sequence)), out, frame_bytes_max, now) {
            Ok(()) => self.aside.sent(source),
            Err((message, unsendable)) => {
                let code = unsendable.reply_code();
                self.bury(message.placed(sequence), code, code.text(&unsendable.to_string()));
                self.settle(source, now);
            }
        }
    }

    /// Takes a frame of this channel.
    pub(super) fn handle_frame(&mut self, frame: Frame<'_>, out: &mut Vec<u8>, now: Instant) -> Result<(), Fault> {
        match self.outgoing.handle_frame(frame, out, now)? {
            Heard::Settled { messages, taken, oldest } => {
                for message in &messages {
                    self.aside.answered(message.source);
                }
                let ruling = if taken { Ruling::Taken } else { Ruling::Nacked };
                for message in messages {
                    self.heard_of(message, ruling.clone(), now);
                }
                if oldest {
                    self.confirm_timeout = self.policy.confirm_timeout;
                    self.set_stalled(false);
                }
            }
            Heard::Opened => self.opening = false,
            Heard::Closed(closed) => self.closed(closed, out, now)?,
            Heard::CloseOk if matches!(self.phase, Phase::Closing { .. }) => {
                self.take_back(false, now);
                self.open(out);
            }
            Heard::CloseOk | Heard::Nothing => {}
        }
        Ok(())
    }

    /// Messages that are to be tried on a connection of their own; each is answered with [`Lane::tried`].
    pub(super) fn take_suspects(&mut self) -> Vec<Message> {
        self.aside.take_suspects()
    }

    /// What came of it.
    pub(super) fn tried(&mut self, message: Message, ruling: Ruling, now: Instant) {
        self.aside.tried(&message);
        self.judged(message, ruling, now);
    }

    /// RabbitMQ's word on a message of this channel.
    fn heard_of(&mut self, message: Message<Option<Sequence>>, ruling: Ruling, now: Instant) {
        let source = message.source;
        match self.lones.resolve(message) {
            Ok(message) => self.judged(message, ruling, now),
            Err(lone) => {
                self.lone_judged(lone, ruling, now);
                self.settle(source, now);
            }
        }
    }

    /// RabbitMQ's word on a message that is in flight no more.
    fn judged(&mut self, message: Message, ruling: Ruling, now: Instant) {
        let source = message.source;
        match ruling {
            Ruling::Taken => {
                add(&self.status.counters.confirmed, 1);
                self.confirmed = true;
                self.aside.taken(source);
                self.answered(message, now);
            }
            Ruling::Nacked => {
                add(&self.status.counters.nacked, 1);
                self.nacked(message, now);
            }
            Ruling::Guilty(code, text) => {
                self.bury(message, code, text);
                self.convict(source, now);
            }
            Ruling::Untried => self.aside.put_back(message, None),
            Ruling::Acquitted => {
                self.aside.put_back(message, None);
                self.aside.acquit(source);
            }
        }
        self.settle(source, now);
    }

    /// RabbitMQ closed the channel.
    fn closed(&mut self, closed: Closed, out: &mut Vec<u8>, now: Instant) -> Result<(), Fault> {
        let Closed { code, text, by_publish } = closed;
        if !by_publish {
            return Err(Fault::Channel(code, text));
        }
        if self.outgoing.len() == 1 {
            for culprit in self.outgoing.take_back() {
                self.aside.answered(culprit.source);
                self.heard_of(culprit, Ruling::Guilty(code, text.clone()), now);
            }
        }
        self.take_back(true, now);
        if self.phase == Phase::Open {
            self.open(out);
        }
        Ok(())
    }

    /// What is in flight has to go again; if one of it is accused of what happened, all of it is tried first.
    fn take_back(&mut self, accused: bool, now: Instant) {
        let messages = self.outgoing.take_back();
        for message in &messages {
            self.aside.answered(message.source);
        }
        let mut rows = Vec::with_capacity(messages.len());
        for message in messages {
            match self.lones.resolve(message) {
                Ok(message) => rows.push(message),
                Err(lone) => self.lone_unknown(lone, accused, now),
            }
        }
        self.put_back(rows, accused, now);
    }

    /// These have to go again, tried first if one of them is accused.
    fn put_back(&mut self, messages: Vec<Message>, accused: bool, now: Instant) {
        if accused {
            for message in &messages {
                self.step_aside(message.source);
                self.aside.suspect(message.source);
            }
        }
        for message in messages {
            let source = message.source;
            if self.aside.contains(source) {
                self.aside.put_back(message, None);
                self.settle(source, now);
            } else {
                self.again.insert(message.place(), message);
            }
        }
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        self.outgoing.open(out);
        self.phase = Phase::Open;
        self.opening = true;
    }

    /// When [`Lane::handle_timeout`] wants to be called, or a message may go that had to wait.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let may_send = self.phase == Phase::Open && !self.blocked && !self.is_full();
        let due = self.aside.deadline().filter(|_| may_send);
        self.patience().into_iter().chain(due).chain(self.lones.deadline()).min()
    }

    /// Until when RabbitMQ may take with what it owes.
    fn patience(&self) -> Option<Instant> {
        match self.phase {
            _ if self.blocked => None,
            Phase::Closing { since } => Some(since + CLOSE_TIMEOUT),
            Phase::Open => self.outgoing.oldest_since().map(|since| since + self.confirm_timeout),
            Phase::Down => None,
        }
    }

    /// Looks whether something has waited too long.
    pub(super) fn handle_timeout(&mut self, out: &mut Vec<u8>, now: Instant) -> Result<(), Fault> {
        if self.patience().is_none_or(|until| now < until) {
            return Ok(());
        }
        if self.phase != Phase::Open {
            return Err(Fault::NoCloseOk);
        }
        tracing::warn!(
            lane = self.channel - 1,
            waited = ?self.confirm_timeout,
            unconfirmed = self.outgoing.len(),
            "RabbitMQ confirms nothing; the messages are sent again"
        );
        self.set_stalled(true);
        self.confirm_timeout = (self.confirm_timeout * 2).min(CONFIRM_TIMEOUT_MAX.max(self.policy.confirm_timeout));
        self.outgoing.close(out);
        self.phase = Phase::Closing { since: now };
        Ok(())
    }

    fn set_stalled(&mut self, stalled: bool) {
        if std::mem::replace(&mut self.stalled, stalled) != stalled {
            let lanes = &self.status.counters.stalled_lanes;
            if stalled {
                add(lanes, 1);
                self.wait_for_nothing();
            } else {
                lanes.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests;
