//! One lane: a channel of the relay's connection, and the messages that go through it in their order. Where RabbitMQ
//! allows fewer channels than there are lanes, one channel carries several of the store's, each in its order.
//!
//! Sans-io: frames and instants in, bytes and effects out. What happens when something goes wrong:
//!
//! - *nack*: the message steps aside, with all that comes behind it from the same client channel; the others go on. What
//!   that channel has in flight is awaited; then the refused messages are sent again, one at a time with growing pauses,
//!   until RabbitMQ takes them. A copy may be in one of several queues, so it is a possible duplicate; and each try may make
//!   a copy, so their number is bounded: then it becomes a dead letter.
//! - *channel error*: which message caused it shows only when each is sent alone. That one becomes a dead letter.
//! - *lost connection, or no confirm in time*: everything unconfirmed is sent again in order.

use super::aside::Aside;
use super::forward::{self, Returned, Unsendable};
use super::message::{Message, Source, Stretch, Transaction};
use super::queue::Waiter;
use super::status::{Refused, VhostStatus, add};
use crate::amqp::confirms::Confirms;
use crate::amqp::frame::{self, Frame, kind};
use crate::amqp::method::{self, Close, Settle, id};
use crate::amqp::properties::body_size;
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::{Malformed, Write};
use crate::store::{Committed, Cursor, DeadLetter, Forwarded, Pack, Sequence, Stored};
use crate::tx::batch;
use crate::tx::id::{MessageId, Timestamp, TransactionId};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How far a doubled confirm timeout grows.
/// Why a message is not sent that is not the one that was kept.
const DAMAGED: &str = "INTERNAL_ERROR - damaged in the store: not sent, and it can't be tried again";
const CONFIRM_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// How long RabbitMQ may take to close a channel before the connection counts as sick.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of messages that may be unconfirmed in a lane, whatever their number; a single message may be larger.
const IN_FLIGHT_BYTES_MAX: usize = 4 << 20;
/// Dead letters that may wait for the store before more is sent.
pub(super) const DEAD_LETTERS_WAITING_MAX: usize = 1000;

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

/// A message on its way back to us: basic.return, content header, body.
#[derive(Debug)]
struct Returning {
    arguments: Bytes,
    header: Option<Bytes>,
    body_bytes_to_come: u64,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Pipelined,
    /// What is to be sent again goes one by one.
    OneByOne,
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
    pace: Pace,
    transactions: BTreeMap<Sequence, Transaction>,
    unsent: VecDeque<Stretch>,
    unsent_bytes: usize,
    /// What was sent and is to be sent again, before anything that was not.
    again: BTreeMap<(Sequence, u32), Message>,
    aside: Aside,
    /// Sources beside the lane that had something in flight when RabbitMQ closed the channel.
    suspects: Vec<Source>,
    confirms: Confirms<Message>,
    in_flight_bytes: usize,
    returning: Option<Returning>,
    /// Returns come in the order of publishing: where to look for the next.
    return_tag: u64,
    /// Since when the oldest unconfirmed message is the oldest.
    oldest_since: Option<Instant>,
    confirm_timeout: Duration,
    stalled: bool,
    blocked: bool,
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
            pace: Pace::Pipelined,
            transactions: BTreeMap::new(),
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            again: BTreeMap::new(),
            aside: Aside::default(),
            suspects: Vec::new(),
            confirms: Confirms::default(),
            in_flight_bytes: 0,
            returning: None,
            return_tag: 0,
            oldest_since: None,
            stalled: false,
            blocked: false,
            delivered: Vec::new(),
            dead_letters: Vec::new(),
        }
    }

    /// Works by this policy from now on; what is in flight beyond a smaller window stays there.
    pub(super) fn change_policy(&mut self, policy: Policy) {
        self.confirm_timeout = policy.confirm_timeout;
        self.policy = policy;
    }

    /// Takes a transaction that never left this process. Sequences rise.
    pub(super) fn add_committed(&mut self, committed: Committed) {
        let Committed { sequence, id, decided, messages, forwarded: waiter, lane, strand } = committed;
        let source = Source { lane: lane.number, strand };
        if self.aside.contains(source) {
            return self.aside.leave(source, sequence, waiter);
        }
        let messages = messages.expect("a transaction without its messages is read from the store");
        self.begin(sequence, id, source, decided, waiter);
        let (possible_duplicate, damaged, nacks) = (false, false, 0);
        let (next_index, last) = (0, true);
        self.add_stretch(Stretch { sequence, source, next_index, last, messages, damaged, possible_duplicate, nacks });
    }

    /// Takes a part of a transaction of this lane of the store's that was decided at `decided`, read from the store.
    pub(super) fn add_pack(&mut self, lane: u16, pack: Pack, possible_duplicate: bool, decided: Instant) {
        let source = Source { lane, strand: pack.strand };
        if !self.aside.contains(source) {
            self.take_pack(source, pack, possible_duplicate, decided);
        } else if pack.number == 0 {
            self.aside.leave(source, pack.sequence, None);
        }
    }

    fn take_pack(&mut self, source: Source, pack: Pack, possible_duplicate: bool, decided: Instant) {
        let Pack { sequence, id, number, first_index, last, retried, messages, .. } = pack;
        let forgotten = self.aside.forgotten(source, sequence);
        let possible_duplicate = possible_duplicate || retried || forgotten.is_some();
        if number == 0 && !self.transactions.contains_key(&sequence) {
            let waiter = self.aside.take_waiter(source, sequence);
            self.begin(sequence, id, source, decided, waiter);
        }
        let (messages, damaged) = match messages {
            Stored::Sound(messages) => (messages, false),
            Stored::Damaged(messages) => (messages, true),
        };
        // What comes behind a last pack, from a store that miscounts, is passed over; so is what came before.
        if let Some(transaction) = self.transactions.get_mut(&sequence).filter(|it| it.next_pack == number) {
            transaction.next_pack += 1;
            let (next_index, nacks) = (first_index, forgotten.unwrap_or(0));
            let mut stretch =
                Stretch { sequence, source, next_index, last, messages, damaged, possible_duplicate, nacks };
            stretch.skip_to(transaction.cut_to);
            if damaged && !stretch.messages.is_empty() {
                self.tell_of_damage(id);
            }
            self.aside.given(source);
            self.add_stretch(stretch);
        }
    }

    /// An earlier process left something of this source beside the lane.
    pub(super) fn found_aside(&mut self, source: Source, now: Instant) {
        self.aside.found(source, now);
    }

    /// What the store is to be asked for, of what waits beside the lane.
    pub(super) fn next_page(&mut self) -> Option<(Source, Option<Cursor>)> {
        self.aside.next_page()
    }

    /// The store has answered, or failed to. Says whether the lane is to be given the packs with [`Lane::add_aside`].
    pub(super) fn page(&mut self, source: Source, after: Option<Cursor>, packs: Option<&[Pack]>, now: Instant) -> bool {
        let cursor = |pack: &Pack| Cursor { sequence: pack.sequence, pack: pack.number };
        self.aside.page(source, after, packs.map(|packs| packs.last().map(cursor)), now)
    }

    /// As [`Lane::add_pack`], of what waited beside the lane.
    pub(super) fn add_aside(&mut self, source: Source, pack: Pack, possible_duplicate: bool, decided: Instant) {
        self.take_pack(source, pack, possible_duplicate, decided);
    }

    /// What the store is to keep beside the lane; each is answered with [`Lane::marked`].
    pub(super) fn next_marks(&mut self) -> Option<(Source, Vec<Sequence>)> {
        self.aside.next_marks()
    }

    /// The store keeps it there.
    pub(super) fn marked(&mut self, source: Source, now: Instant) {
        self.aside.marked(source, now);
    }

    /// Whether it takes more: see [`Lane::unsent_bytes`] too.
    pub(super) fn has_room(&self) -> bool {
        self.aside.has_room()
    }

    /// Someone waits for a transaction that was read from the store.
    pub(super) fn attach(&mut self, sequence: Sequence, source: Source, waiter: Waiter) {
        match self.transactions.get_mut(&sequence) {
            Some(transaction) => transaction.waiter = Some(waiter),
            None if self.aside.contains(source) => self.aside.wait(source, sequence, Some(waiter)),
            // It was read from the store, and confirmed, before the commit was heard of.
            None => drop(waiter.send(Forwarded::default())),
        }
    }

    fn begin(
        &mut self,
        sequence: Sequence,
        id: TransactionId,
        source: Source,
        decided: Instant,
        waiter: Option<Waiter>,
    ) {
        let transaction = Transaction {
            id,
            source,
            decided,
            waiter,
            unanswered: 0,
            burying: 0,
            cut_to: 0,
            cut: false,
            next_pack: 0,
            returned: Vec::new(),
        };
        self.transactions.insert(sequence, transaction);
    }

    fn add_stretch(&mut self, stretch: Stretch) {
        self.unsent_bytes += stretch.messages.len();
        self.unsent.push_back(stretch);
    }

    /// Bytes that it holds and did not send yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Messages published and not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.confirms.len()
    }

    /// Whether nothing is under way: no confirm, no dead letter that the caller has not taken.
    pub(super) fn is_settled(&self) -> bool {
        self.confirms.is_empty() && self.dead_letters.is_empty()
    }

    /// Whether it holds no part of any transaction.
    pub(super) fn is_empty(&self) -> bool {
        self.transactions.is_empty() && self.unsent.is_empty() && self.aside.is_empty()
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
        self.delivered.append(&mut other.delivered);
        self.dead_letters.append(&mut other.dead_letters);
        if self.pace == Pace::Pipelined {
            self.pace = other.pace;
        }
    }

    /// There is a connection: opens the channel.
    pub(super) fn connected(&mut self, out: &mut Vec<u8>) {
        debug_assert!(self.confirms.is_empty() && self.phase == Phase::Down);
        self.open(out);
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self, now: Instant) {
        self.take_back(now);
        self.phase = Phase::Down;
        self.blocked = false;
    }

    /// RabbitMQ stops, or goes on, to take messages from this connection: no confirm is owed meanwhile.
    pub(super) fn set_blocked(&mut self, blocked: bool, now: Instant) {
        self.blocked = blocked;
        self.oldest_since = self.oldest_since.map(|_| now);
        if let Phase::Closing { since } = &mut self.phase {
            *since = now;
        }
    }

    /// Appends the frames of messages that may go now, until `out` holds `bytes_max` bytes.
    pub(super) fn fill(&mut self, out: &mut Vec<u8>, bytes_max: usize, frame_bytes_max: u32, now: Instant) {
        while out.len() < bytes_max && self.dead_letters.len() < DEAD_LETTERS_WAITING_MAX {
            let Some(message) = self.next_message(now) else { return };
            self.send(message, out, frame_bytes_max, now);
        }
    }

    /// Sends the next message that has to go again, and nothing else; says whether there was one that may go.
    pub(super) fn send_again(&mut self, out: &mut Vec<u8>, frame_bytes_max: u32, now: Instant) -> bool {
        let message = if self.again.is_empty() { None } else { self.next_message(now) };
        message.map(|message| self.send(message, out, frame_bytes_max, now)).is_some()
    }

    /// Whether something has to go again.
    pub(super) fn owes(&self) -> bool {
        !self.again.is_empty()
    }

    /// The one message in flight, if it is the only one.
    pub(super) fn lone_message(&self) -> Option<(Sequence, u32)> {
        self.confirms.only().map(|message| (message.sequence, message.id.index))
    }

    /// Gives up a message that has to go again: it makes RabbitMQ close the connection.
    pub(super) fn give_up(&mut self, message: (Sequence, u32), code: ReplyCode, text: String, now: Instant) {
        if let Some(message) = self.again.remove(&message).or_else(|| self.aside.take(message, now)) {
            self.bury(message, code, text);
        }
    }

    fn next_message(&mut self, now: Instant) -> Option<Message> {
        if self.phase != Phase::Open || self.blocked {
            return None;
        }
        if self.pace == Pace::OneByOne {
            if !self.confirms.is_empty() {
                return None;
            }
            if let Some((_, message)) = self.again.pop_first() {
                return Some(message);
            }
            while let Some(suspect) = self.suspects.pop() {
                if let Some(message) = self.aside.first_of(suspect) {
                    return Some(message);
                }
            }
            self.pace = Pace::Pipelined;
        }
        if self.is_full() {
            return None;
        }
        let again = |lane: &mut Self| lane.again.pop_first().map(|(_, message)| message);
        self.aside.next_message(now).or_else(|| again(self)).or_else(|| self.cut(now))
    }

    /// Whether as much is in flight as may be.
    fn is_full(&self) -> bool {
        self.confirms.len() >= self.policy.window || self.in_flight_bytes >= IN_FLIGHT_BYTES_MAX
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
        let Message { id, source, possible_duplicate, .. } = message;
        match forward::write(out, self.channel, message.parse(), id, possible_duplicate, frame_bytes_max) {
            Ok(()) => {
                self.oldest_since.get_or_insert(now);
                self.in_flight_bytes += message.bytes.len();
                self.aside.sent(source);
                self.confirms.push(message);
            }
            Err(unsendable @ (Unsendable::Malformed | Unsendable::HeaderTooLarge)) => {
                let code = unsendable.reply_code();
                self.bury(message, code, code.text(&unsendable.to_string()));
                self.settle(source, now);
            }
        }
    }

    /// Takes a frame of this channel.
    pub(super) fn handle_frame(&mut self, frame: Frame<'_>, out: &mut Vec<u8>, now: Instant) -> Result<(), Fault> {
        match (frame.kind, frame.method_id()) {
            (_, Some(id::BASIC_ACK)) => self.confirmed(Settle::parse(frame.arguments())?, true, now),
            (_, Some(id::BASIC_NACK)) => self.confirmed(Settle::parse(frame.arguments())?, false, now),
            (_, Some(id::BASIC_RETURN)) => {
                let arguments = Bytes::copy_from_slice(frame.arguments());
                self.returning = Some(Returning { arguments, header: None, body_bytes_to_come: 0 });
            }
            (kind::HEADER, _) => {
                let returning = self.returning.as_mut().ok_or(Fault::Malformed)?;
                returning.body_bytes_to_come = body_size(frame.payload)?;
                returning.header = Some(Bytes::copy_from_slice(frame.payload));
                self.returned_if_whole();
            }
            (kind::BODY, _) => {
                let returning = self.returning.as_mut().ok_or(Fault::Malformed)?;
                let rest = returning.body_bytes_to_come.checked_sub(frame.payload.len() as u64);
                returning.body_bytes_to_come = rest.ok_or(Fault::Malformed)?;
                self.returned_if_whole();
            }
            (_, Some(id::CHANNEL_OPEN_OK)) => self.opening = false,
            (_, Some(id::CHANNEL_CLOSE)) => self.closed(&Close::parse(frame.arguments())?, out, now)?,
            (_, Some(id::CHANNEL_CLOSE_OK)) if matches!(self.phase, Phase::Closing { .. }) => {
                self.take_back(now);
                self.open(out);
            }
            _ => {}
        }
        Ok(())
    }

    fn confirmed(&mut self, Settle { tag, multiple }: Settle, taken: bool, now: Instant) {
        let oldest = self.confirms.oldest();
        let settled: Vec<Message> = self.confirms.take(tag, multiple).collect();
        if settled.is_empty() {
            return;
        }
        let counters = &self.status.counters;
        add(if taken { &counters.confirmed } else { &counters.nacked }, settled.len() as u64);
        for message in &settled {
            self.in_flight_bytes -= message.bytes.len();
            self.aside.answered(message.source);
        }
        for message in settled {
            let source = message.source;
            if taken {
                self.answered(message, now);
            } else {
                self.nacked(message, now);
            }
            self.settle(source, now);
        }
        if self.confirms.oldest() != oldest {
            self.oldest_since = (!self.confirms.is_empty()).then_some(now);
            self.confirm_timeout = self.policy.confirm_timeout;
            self.set_stalled(false);
        }
    }

    /// RabbitMQ did not take a message: it goes again, beside the lane; or it has gone too often.
    fn nacked(&mut self, message: Message, now: Instant) {
        let message = Message { nacks: message.nacks + 1, possible_duplicate: true, returned: None, ..message };
        let (nacks, source) = (message.nacks, message.source);
        let Some(pause) = self.policy.nack_pause(nacks) else {
            let code = ReplyCode::PRECONDITION_FAILED;
            let text = format!("RabbitMQ nacked it {nacks} times: a queue that it goes to is full, or fails");
            return self.bury(message, code, code.text(&text));
        };
        if !self.aside.contains(source) || nacks > 1 {
            let (exchange, routing_key) = message.destination();
            tracing::warn!(message = %message.id, exchange, routing_key, nacks, ?pause, "RabbitMQ nacks a committed message; it is sent again, and its channel's messages wait");
        }
        self.step_aside(source);
        self.aside.put_back(message, Some(now + pause));
    }

    /// What was not sent of a source is left to the store, and what it has in flight is awaited.
    fn step_aside(&mut self, source: Source) {
        if !self.aside.flows(source) {
            return;
        }
        let (mut held, mut unsent, mut waiters) = (Vec::new(), None, Vec::new());
        self.transactions.retain(|sequence, transaction| {
            if transaction.source != source {
                return true;
            }
            held.push(*sequence);
            if !transaction.cut {
                unsent.get_or_insert(*sequence);
                transaction.next_pack = 0;
            }
            let begun = transaction.cut || transaction.cut_to > 0;
            if !begun {
                waiters.extend(transaction.waiter.take().map(|waiter| (*sequence, waiter)));
            }
            begun
        });
        self.unsent.retain(|stretch| stretch.source != source);
        self.unsent_bytes = self.unsent.iter().map(|stretch| stretch.messages.len()).sum();
        let in_flight = self.confirms.iter().filter(|message| message.source == source).count();
        self.aside.step(source, in_flight, held, unsent);
        for (sequence, waiter) in waiters {
            self.aside.wait(source, sequence, Some(waiter));
        }
    }

    /// Looks what a source waits for now. What memory has no room for is forgotten, but not while something is under way
    /// that would be counted to it when it is here again.
    fn settle(&mut self, source: Source, now: Instant) {
        if !self.aside.contains(source) {
            return;
        }
        if self.aside.is_too_much(source) {
            let of_source = self.transactions.iter().filter(|(_, transaction)| transaction.source == source);
            let last = of_source.clone().next_back().map(|(sequence, _)| *sequence);
            if let Some(last) = last
                && of_source.clone().all(|(_, transaction)| transaction.burying == 0)
            {
                self.transactions.retain(|_, transaction| transaction.source != source);
                self.aside.forget(source, last);
            }
        }
        self.aside.settle(source, now);
    }

    /// What RabbitMQ nacked and has not taken since: how many messages, and the first.
    pub(super) fn refused(&self) -> Option<Refused> {
        self.aside.refused()
    }

    /// RabbitMQ has confirmed a message; perhaps it gave it back before.
    fn answered(&mut self, mut message: Message, now: Instant) {
        if let Some(returned) = message.returned.take() {
            let half = message.parse();
            let mandatory = forward::is_mandatory(half);
            let transaction = self.transactions.get_mut(&message.sequence);
            let heard = transaction.as_ref().is_some_and(|it| it.waiter.as_ref().is_some_and(|it| !it.is_closed()));
            if mandatory && let Some(transaction) = transaction {
                let body = message.bytes.slice(message.bytes.len() - half.body.len()..);
                let back = forward::for_publisher(&returned, half, body);
                transaction.returned.push((message.id.index, back));
                add(&self.status.counters.returned, 1);
            } else {
                add(&self.status.counters.unroutable, 1);
            }
            // Where nobody hears that it came back, it is kept like any other that reaches no queue.
            if self.policy.keep_unroutable && !(mandatory && heard) {
                let (code, text) = returned.reason();
                return self.bury(message, code, text);
            }
        }
        self.message_done(message.sequence, now);
    }

    fn message_done(&mut self, sequence: Sequence, now: Instant) {
        if let Some(transaction) = self.transactions.get_mut(&sequence) {
            transaction.unanswered -= 1;
            self.finish_if_done(sequence, now);
        }
    }

    fn finish_if_done(&mut self, sequence: Sequence, now: Instant) {
        let done = |transaction: &Transaction| transaction.cut && transaction.unanswered == 0;
        if self.transactions.get(&sequence).is_some_and(done)
            && let Some(mut transaction) = self.transactions.remove(&sequence)
        {
            self.delivered.push(sequence);
            self.status.forwarded.observe(now.saturating_duration_since(transaction.decided));
            if let Some(waiter) = transaction.waiter {
                transaction.returned.sort_unstable_by_key(|(index, _)| *index);
                let returned = transaction.returned.into_iter().map(|(_, message)| message).collect();
                // Nobody listens any more when the channel went on without it.
                let _ = waiter.send(Forwarded { returned });
            }
        }
    }

    /// Makes a message that RabbitMQ can't take a dead letter.
    fn bury(&mut self, message: Message, code: ReplyCode, reply_text: String) {
        tracing::warn!(message = %message.id, code = code.0, reason = %reply_text, "RabbitMQ can't take a committed message; it becomes a dead letter");
        self.keep_letter(message.sequence, message.id.index, Stored::Sound(message.bytes), code, reply_text);
    }

    fn tell_of_damage(&self, transaction: TransactionId) {
        tracing::error!(%transaction, "the store gave other bytes than it was given; they become dead letters");
        add(&self.status.counters.unreadable, 1);
    }

    fn keep_letter(&mut self, sequence: Sequence, index: u32, message: Stored, code: ReplyCode, reply_text: String) {
        add(&self.status.counters.dead_lettered, 1);
        if let Some(transaction) = self.transactions.get_mut(&sequence) {
            transaction.burying += 1;
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.dead_letters.push(DeadLetter {
            sequence,
            index,
            message,
            reply_code: code.0,
            reply_text,
            since: Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
        });
    }

    /// The caller has given these to the store.
    pub(super) fn take_dead_letters(&mut self) -> Vec<DeadLetter> {
        std::mem::take(&mut self.dead_letters)
    }

    /// The store keeps a dead letter of this transaction.
    pub(super) fn dead_letter_kept(&mut self, sequence: Sequence, now: Instant) {
        let Some(transaction) = self.transactions.get_mut(&sequence) else { return };
        transaction.burying -= 1;
        let source = transaction.source;
        self.message_done(sequence, now);
        self.settle(source, now);
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

    /// RabbitMQ closed the channel; it reads nothing on it until our close-ok.
    fn closed(&mut self, close: &Close<'_>, out: &mut Vec<u8>, now: Instant) -> Result<(), Fault> {
        method::write_bare(out, self.channel, id::CHANNEL_CLOSE_OK);
        let text = String::from_utf8_lossy(close.text).into_owned();
        if close.method != id::BASIC_PUBLISH {
            return Err(Fault::Channel(close.code, text));
        }
        let culprit = if self.confirms.len() == 1 { self.confirms.restart().next() } else { None };
        match culprit {
            Some(culprit) => {
                let source = culprit.source;
                self.aside.answered(source);
                self.bury(culprit, close.code, text);
                self.settle(source, now);
            }
            None => self.pace = Pace::OneByOne,
        }
        self.take_back(now);
        if self.phase == Phase::Open {
            self.open(out);
        }
        Ok(())
    }

    /// Everything unconfirmed may be there or not: it has to be sent again.
    fn take_back(&mut self, now: Instant) {
        for mut message in self.confirms.restart() {
            message.possible_duplicate = true;
            message.returned = None;
            let source = message.source;
            if self.aside.contains(source) {
                self.aside.answered(source);
                self.aside.put_back(message, None);
                self.aside.settle(source, now);
                if self.suspects.last() != Some(&source) {
                    self.suspects.push(source);
                }
            } else {
                self.again.insert(message.place(), message);
            }
        }
        self.in_flight_bytes = 0;
        self.returning = None;
        self.return_tag = 0;
        self.oldest_since = None;
    }

    /// Opens the channel in confirm mode. Publishes may follow at once: RabbitMQ takes them in order.
    fn open(&mut self, out: &mut Vec<u8>) {
        frame::write_method(out, self.channel, id::CHANNEL_OPEN, |out| out.put_short_string(b""));
        frame::write_method(out, self.channel, id::CONFIRM_SELECT, |out| out.put_u8(0));
        self.phase = Phase::Open;
        self.opening = true;
    }

    /// When [`Lane::handle_timeout`] wants to be called, or a message may go that had to wait.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let may_send = self.phase == Phase::Open && !self.blocked && self.pace == Pace::Pipelined && !self.is_full();
        let due = self.aside.deadline().filter(|_| may_send);
        self.patience().into_iter().chain(due).min()
    }

    /// Until when RabbitMQ may take with what it owes.
    fn patience(&self) -> Option<Instant> {
        match self.phase {
            _ if self.blocked => None,
            Phase::Closing { since } => Some(since + CLOSE_TIMEOUT),
            Phase::Open => self.oldest_since.map(|since| since + self.confirm_timeout),
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
            unconfirmed = self.confirms.len(),
            "RabbitMQ confirms nothing; the messages are sent again"
        );
        self.set_stalled(true);
        self.confirm_timeout = (self.confirm_timeout * 2).min(CONFIRM_TIMEOUT_MAX.max(self.policy.confirm_timeout));
        let close = Close { code: ReplyCode::SUCCESS, text: b"no confirm in time", method: (0, 0) };
        close.write(out, self.channel);
        self.phase = Phase::Closing { since: now };
        Ok(())
    }

    fn set_stalled(&mut self, stalled: bool) {
        if std::mem::replace(&mut self.stalled, stalled) != stalled {
            let lanes = &self.status.counters.stalled_lanes;
            if stalled {
                add(lanes, 1);
            } else {
                lanes.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests;
