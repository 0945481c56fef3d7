//! One lane: a channel of the relay's connection, and the messages that go through it in their order. Where RabbitMQ
//! allows fewer channels than there are lanes, one channel carries several of the store's, each in its order.
//!
//! Sans-io: frames and instants in, bytes and effects out. What happens when something goes wrong:
//!
//! - *nack*: the rest of what is in flight is awaited; then the refused messages are sent again, one at a time with
//!   growing pauses, until RabbitMQ takes them. A copy may be in one of several queues, so it is a possible duplicate; and
//!   each try may make a copy, so their number is bounded: then it becomes a dead letter.
//! - *channel error*: which message caused it shows only when each is sent alone. That one becomes a dead letter.
//! - *lost connection, or no confirm in time*: everything unconfirmed is sent again in order.

use super::forward::{self, Returned, Unsendable};
use super::queue::Waiter;
use super::status::{Refused, VhostStatus, add};
use crate::amqp::confirms::Confirms;
use crate::amqp::frame::{self, Frame, kind};
use crate::amqp::method::{self, Close, Publish, Settle, id};
use crate::amqp::properties::body_size;
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::{Malformed, Write};
use crate::store::{Committed, DeadLetter, Forwarded, Pack, ReturnedMessage, Sequence};
use crate::tx::batch::{self, HalfMessage};
use crate::tx::id::{MessageId, Timestamp, TransactionId};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How far a doubled confirm timeout grows.
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

/// A transaction of which RabbitMQ has not answered for every message.
#[derive(Debug)]
struct Transaction {
    id: TransactionId,
    decided: Instant,
    waiter: Option<Waiter>,
    /// Messages that were cut from it and have neither an answer nor a durable dead letter.
    unanswered: usize,
    /// Whether its last message was cut.
    cut: bool,
    returned: Vec<(u32, ReturnedMessage)>,
}

/// Messages of one transaction that were not sent yet.
#[derive(Debug)]
struct Stretch {
    sequence: Sequence,
    next_index: u32,
    last: bool,
    messages: Bytes,
    /// Whether an earlier process may have sent them.
    possible_duplicate: bool,
}

#[derive(Debug)]
struct Message {
    sequence: Sequence,
    id: MessageId,
    /// As the store keeps it.
    bytes: Bytes,
    possible_duplicate: bool,
    /// How often RabbitMQ nacked it.
    nacks: u32,
    returned: Option<Box<Returned>>,
}

impl Message {
    fn parse(&self) -> HalfMessage<'_> {
        batch::iter(&self.bytes).find_map(Result::ok).expect("it was read when it was cut")
    }

    /// Exchange and routing key, for people.
    fn destination(&self) -> (String, String) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let publish = Publish::parse(self.parse().publish);
        publish.map(|publish| (text(publish.exchange), text(publish.routing_key))).unwrap_or_default()
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
    /// Nothing is sent until everything in flight has its answer; then one by one.
    Settling,
    /// What is to be sent again goes one by one.
    OneByOne {
        not_before: Option<Instant>,
    },
}

const ONE_BY_ONE: Pace = Pace::OneByOne { not_before: None };

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
        let Committed { sequence, id, decided, messages, forwarded: waiter, .. } = committed;
        let messages = messages.expect("a transaction without its messages is read from the store");
        self.begin(sequence, id, decided, waiter);
        self.add_stretch(Stretch { sequence, next_index: 0, last: true, messages, possible_duplicate: false });
    }

    /// Takes a part of a transaction that was decided at `decided`, read from the store.
    pub(super) fn add_pack(&mut self, pack: Pack, possible_duplicate: bool, decided: Instant) {
        let Pack { sequence, id, number, first_index, last, retried, messages, .. } = pack;
        let possible_duplicate = possible_duplicate || retried;
        if number == 0 {
            self.begin(sequence, id, decided, None);
        }
        // The rest of a transaction that can't be read is passed over.
        if self.transactions.contains_key(&sequence) {
            self.add_stretch(Stretch { sequence, next_index: first_index, last, messages, possible_duplicate });
        }
    }

    /// Someone waits for a transaction that was read from the store.
    pub(super) fn attach(&mut self, sequence: Sequence, waiter: Waiter) {
        match self.transactions.get_mut(&sequence) {
            Some(transaction) => transaction.waiter = Some(waiter),
            // It was read from the store, and confirmed, before the commit was heard of.
            None => drop(waiter.send(Forwarded::default())),
        }
    }

    fn begin(&mut self, sequence: Sequence, id: TransactionId, decided: Instant, waiter: Option<Waiter>) {
        let transaction = Transaction { id, decided, waiter, unanswered: 0, cut: false, returned: Vec::new() };
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
        self.transactions.is_empty() && self.unsent.is_empty()
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
    pub(super) fn disconnected(&mut self) {
        self.take_back();
        self.phase = Phase::Down;
        self.blocked = false;
        self.pace = match self.pace {
            Pace::Pipelined => Pace::Pipelined,
            Pace::Settling | Pace::OneByOne { .. } => ONE_BY_ONE,
        };
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
    pub(super) fn give_up(&mut self, message: (Sequence, u32), code: ReplyCode, text: String) {
        if let Some(message) = self.again.remove(&message) {
            self.bury(message, code, text);
        }
    }

    fn next_message(&mut self, now: Instant) -> Option<Message> {
        if self.phase != Phase::Open || self.blocked {
            return None;
        }
        if self.pace == Pace::Settling && self.confirms.is_empty() {
            let pause = self.again.values().next().and_then(|first| self.policy.nack_pause(first.nacks));
            self.pace = Pace::OneByOne { not_before: pause.map(|pause| now + pause) };
        }
        if let Pace::OneByOne { not_before } = self.pace {
            let wait = not_before.is_some_and(|not_before| now < not_before);
            if !self.confirms.is_empty() || wait {
                return None;
            }
            match self.again.pop_first() {
                Some((_, message)) => return Some(message),
                None => self.pace = Pace::Pipelined,
            }
        }
        let full = self.confirms.len() >= self.policy.window || self.in_flight_bytes >= IN_FLIGHT_BYTES_MAX;
        if self.pace == Pace::Settling || full {
            return None;
        }
        self.again.pop_first().map(|(_, message)| message).or_else(|| self.cut(now))
    }

    /// Cuts the next message that was never sent.
    fn cut(&mut self, now: Instant) -> Option<Message> {
        loop {
            let stretch = self.unsent.front_mut()?;
            let sequence = stretch.sequence;
            let Some(transaction) = self.transactions.get_mut(&sequence) else {
                self.drop_stretch();
                continue;
            };
            let first = batch::iter(&stretch.messages).next().map(|first| first.map(|message| message.stored_bytes()));
            let length = match first {
                Some(Ok(length)) => length,
                Some(Err(Malformed)) => {
                    tracing::error!(transaction = %transaction.id, "the store gave messages that can't be read; the transaction stays as it is, the lane goes on without it");
                    add(&self.status.counters.unreadable, 1);
                    self.transactions.remove(&sequence);
                    continue;
                }
                None => {
                    transaction.cut |= stretch.last;
                    self.drop_stretch();
                    self.finish_if_done(sequence, now);
                    continue;
                }
            };
            let bytes = stretch.messages.split_to(length);
            let id = MessageId { transaction: transaction.id, index: stretch.next_index };
            let possible_duplicate = stretch.possible_duplicate;
            stretch.next_index += 1;
            transaction.unanswered += 1;
            self.unsent_bytes -= length;
            if stretch.messages.is_empty() {
                transaction.cut |= stretch.last;
                self.drop_stretch();
            }
            return Some(Message { sequence, id, bytes, possible_duplicate, nacks: 0, returned: None });
        }
    }

    fn drop_stretch(&mut self) {
        let stretch = self.unsent.pop_front();
        self.unsent_bytes -= stretch.map_or(0, |stretch| stretch.messages.len());
    }

    fn send(&mut self, message: Message, out: &mut Vec<u8>, frame_bytes_max: u32, now: Instant) {
        let Message { id, possible_duplicate, .. } = message;
        match forward::write(out, self.channel, message.parse(), id, possible_duplicate, frame_bytes_max) {
            Ok(()) => {
                self.oldest_since.get_or_insert(now);
                self.in_flight_bytes += message.bytes.len();
                self.confirms.push(message);
            }
            Err(unsendable @ (Unsendable::Malformed | Unsendable::HeaderTooLarge)) => {
                let code = unsendable.reply_code();
                self.bury(message, code, code.text(&unsendable.to_string()));
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
            (_, Some(id::CHANNEL_CLOSE)) => self.closed(&Close::parse(frame.arguments())?, out)?,
            (_, Some(id::CHANNEL_CLOSE_OK)) if matches!(self.phase, Phase::Closing { .. }) => {
                self.take_back();
                self.open(out);
            }
            _ => {}
        }
        Ok(())
    }

    fn confirmed(&mut self, Settle { tag, multiple }: Settle, taken: bool, now: Instant) {
        let oldest = self.confirms.oldest();
        let mut confirms = std::mem::take(&mut self.confirms);
        let mut count = 0;
        let mut not_before = None;
        for message in confirms.take(tag, multiple) {
            count += 1;
            self.in_flight_bytes -= message.bytes.len();
            if taken {
                self.answered(message, now);
            } else {
                not_before = self.nacked(message, now);
            }
        }
        self.confirms = confirms;
        if count == 0 {
            return;
        }
        let counters = &self.status.counters;
        add(if taken { &counters.confirmed } else { &counters.nacked }, count);
        if self.confirms.oldest() != oldest {
            self.oldest_since = (!self.confirms.is_empty()).then_some(now);
            self.confirm_timeout = self.policy.confirm_timeout;
            self.set_stalled(false);
        }
        self.pace = match self.pace {
            Pace::OneByOne { .. } => Pace::OneByOne { not_before },
            pace => pace,
        };
    }

    /// RabbitMQ did not take a message: it goes again, but not before the time that is returned; or it has gone too often.
    fn nacked(&mut self, message: Message, now: Instant) -> Option<Instant> {
        let message = Message { nacks: message.nacks + 1, possible_duplicate: true, returned: None, ..message };
        let nacks = message.nacks;
        let Some(pause) = self.policy.nack_pause(nacks) else {
            let code = ReplyCode::PRECONDITION_FAILED;
            let text = format!("RabbitMQ nacked it {nacks} times: a queue that it goes to is full, or fails");
            self.bury(message, code, code.text(&text));
            return None;
        };
        if self.pace != Pace::Settling {
            let (exchange, routing_key) = message.destination();
            tracing::warn!(message = %message.id, exchange, routing_key, nacks, ?pause, "RabbitMQ nacks a committed message; its lane waits and sends it again");
        }
        if self.pace == Pace::Pipelined {
            self.pace = Pace::Settling;
        }
        self.again.insert((message.sequence, message.id.index), message);
        Some(now + pause)
    }

    /// What RabbitMQ nacked and has not taken since: how many messages, and the first.
    pub(super) fn refused(&self) -> Option<Refused> {
        let mut refused = self.again.values().chain(self.confirms.only()).filter(|message| message.nacks > 0);
        let first = refused.next()?;
        let (exchange, routing_key) = first.destination();
        Some(Refused { messages: 1 + refused.count() as u64, nacks: first.nacks, exchange, routing_key })
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
        add(&self.status.counters.dead_lettered, 1);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.dead_letters.push(DeadLetter {
            sequence: message.sequence,
            index: message.id.index,
            message: message.bytes,
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
        self.message_done(sequence, now);
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
    fn closed(&mut self, close: &Close<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
        method::write_bare(out, self.channel, id::CHANNEL_CLOSE_OK);
        let text = String::from_utf8_lossy(close.text).into_owned();
        if close.method != id::BASIC_PUBLISH {
            return Err(Fault::Channel(close.code, text));
        }
        let culprit = if self.confirms.len() == 1 { self.confirms.restart().next() } else { None };
        match culprit {
            Some(culprit) => self.bury(culprit, close.code, text),
            None => self.pace = ONE_BY_ONE,
        }
        self.take_back();
        if self.phase == Phase::Open {
            self.open(out);
        }
        Ok(())
    }

    /// Everything unconfirmed may be there or not: it has to be sent again.
    fn take_back(&mut self) {
        for mut message in self.confirms.restart() {
            message.possible_duplicate = true;
            message.returned = None;
            self.again.insert((message.sequence, message.id.index), message);
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
        if self.blocked {
            return None;
        }
        match (self.phase, self.pace) {
            (Phase::Closing { since }, _) => Some(since + CLOSE_TIMEOUT),
            (Phase::Open, Pace::OneByOne { not_before }) if self.confirms.is_empty() => not_before,
            (Phase::Open, _) => self.oldest_since.map(|since| since + self.confirm_timeout),
            (Phase::Down, _) => None,
        }
    }

    /// Looks whether something has waited too long.
    pub(super) fn handle_timeout(&mut self, out: &mut Vec<u8>, now: Instant) -> Result<(), Fault> {
        if self.deadline().is_none_or(|deadline| now < deadline)
            || (self.phase == Phase::Open && self.confirms.is_empty())
        {
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
