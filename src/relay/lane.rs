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
//! - *lost connection, or no confirm in time*: everything unconfirmed is sent again in order.

use super::aside::Aside;
use super::forward;
use super::message::{Message, Source, Stretch, Transaction};
use super::outgoing::{Closed, Heard, Outgoing};
use super::status::{Refused, VhostStatus, add};
use super::trial::Verdict;
use crate::amqp::frame::Frame;
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::Malformed;
use crate::store::{Committed, Cursor, DeadLetter, Forwarded, Pack, ReturnedMessage, Sequence, Stored, Waiter};
use crate::tx::batch;
use crate::tx::id::{MessageId, Timestamp, TransactionId};
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
/// How long the messages of a client channel are tried first, from the last one on that was guilty.
const PROBATION: Duration = Duration::from_secs(60);
/// Transactions of which nobody has heard whose returned messages are kept for a moment.
const UNHEARD_MAX: usize = 16;
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
    outgoing: Outgoing,
    confirm_timeout: Duration,
    stalled: bool,
    blocked: bool,
    /// What came back of transactions of which nobody had heard, the youngest first: the commit of one that was read from
    /// the store may be a moment behind.
    unheard: VecDeque<(Sequence, Vec<ReturnedMessage>)>,
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
            stalled: false,
            blocked: false,
            unheard: VecDeque::new(),
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

    /// Whether RabbitMQ confirms nothing of what it has.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// What it holds may take long to be confirmed: only those are told of it who have to be.
    pub(super) fn wait_for_nothing(&mut self) {
        for transaction in self.transactions.values_mut() {
            transaction.waiter = transaction.waiter.take().and_then(Waiter::if_mandatory);
        }
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
            None => {
                let place = self.unheard.iter().position(|(unheard, _)| *unheard == sequence);
                let returned = place.and_then(|place| self.unheard.remove(place)).map(|(_, returned)| returned);
                waiter.tell(Forwarded { returned: returned.unwrap_or_default() });
            }
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
        let waiter = if self.stalled { waiter.and_then(Waiter::if_mandatory) } else { waiter };
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
        self.outgoing.len()
    }

    /// Whether nothing is under way: no confirm, no dead letter that the caller has not taken.
    pub(super) fn is_settled(&self) -> bool {
        self.outgoing.is_empty() && self.dead_letters.is_empty()
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
        while out.len() < bytes_max && self.dead_letters.len() < DEAD_LETTERS_WAITING_MAX {
            let Some(message) = self.next_message(now) else { return };
            self.send(message, out, frame_bytes_max, now);
        }
    }

    fn next_message(&mut self, now: Instant) -> Option<Message> {
        if self.phase != Phase::Open || self.blocked {
            return None;
        }
        while !self.is_full() {
            let again = |lane: &mut Self| lane.again.pop_first().map(|(_, message)| message);
            let message = self.aside.next_message(now).or_else(|| again(self)).or_else(|| self.cut(now))?;
            if !self.aside.is_suspect(message.source) {
                return Some(message);
            }
            let source = message.source;
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
        let source = message.source;
        match self.outgoing.send(message, out, frame_bytes_max, now) {
            Ok(()) => self.aside.sent(source),
            Err((message, unsendable)) => {
                let code = unsendable.reply_code();
                self.bury(message, code, code.text(&unsendable.to_string()));
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
                let verdict = if taken { Verdict::Taken } else { Verdict::Nacked };
                for message in messages {
                    self.judged(message, verdict.clone(), now);
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
    pub(super) fn tried(&mut self, message: Message, verdict: Verdict, now: Instant) {
        self.aside.tried(&message);
        self.judged(message, verdict, now);
    }

    /// RabbitMQ's word on a message that is in flight no more.
    fn judged(&mut self, message: Message, verdict: Verdict, now: Instant) {
        let source = message.source;
        match verdict {
            Verdict::Taken => {
                add(&self.status.counters.confirmed, 1);
                self.answered(message, now);
            }
            Verdict::Nacked => {
                add(&self.status.counters.nacked, 1);
                self.nacked(message, now);
            }
            Verdict::Guilty(code, text) => {
                self.bury(message, code, text);
                self.convict(source, now);
            }
            Verdict::Untried => self.aside.put_back(message, None),
            Verdict::Acquitted => {
                self.aside.put_back(message, None);
                self.aside.acquit(source);
            }
        }
        self.settle(source, now);
    }

    /// A message of this source made RabbitMQ close its channel, or its connection: the next ones are tried first.
    fn convict(&mut self, source: Source, now: Instant) {
        self.step_aside(source);
        self.aside.convict(source, now + PROBATION);
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
        let again: Vec<_> =
            self.again.iter().filter(|(_, message)| message.source == source).map(|(place, _)| *place).collect();
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
            // Nobody waits for what may take long.
            transaction.waiter = transaction.waiter.take().and_then(Waiter::if_mandatory);
            let begun = transaction.cut || transaction.cut_to > 0;
            if !begun {
                waiters.extend(transaction.waiter.take().map(|waiter| (*sequence, waiter)));
            }
            begun
        });
        self.unsent.retain(|stretch| stretch.source != source);
        self.unsent_bytes = self.unsent.iter().map(|stretch| stretch.messages.len()).sum();
        let in_flight = self.outgoing.iter().filter(|message| message.source == source).count();
        self.aside.step(source, in_flight, held, unsent);
        for message in again.iter().filter_map(|place| self.again.remove(place)) {
            self.aside.put_back(message, None);
        }
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
            transaction.waiter.as_ref().map(Waiter::answered);
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
            transaction.returned.sort_unstable_by_key(|(index, _)| *index);
            let returned: Vec<_> = transaction.returned.into_iter().map(|(_, message)| message).collect();
            if let Some(waiter) = transaction.waiter {
                waiter.tell(Forwarded { returned });
            } else if !returned.is_empty() {
                self.unheard.truncate(UNHEARD_MAX - 1);
                self.unheard.push_front((sequence, returned));
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

    /// RabbitMQ closed the channel.
    fn closed(&mut self, closed: Closed, out: &mut Vec<u8>, now: Instant) -> Result<(), Fault> {
        let Closed { code, text, by_publish } = closed;
        if !by_publish {
            return Err(Fault::Channel(code, text));
        }
        if self.outgoing.len() == 1 {
            for culprit in self.outgoing.take_back() {
                self.aside.answered(culprit.source);
                self.judged(culprit, Verdict::Guilty(code, text.clone()), now);
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
        self.patience().into_iter().chain(due).min()
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
