//! One transactional channel: what the client publishes is gathered and probed, acknowledgements are passed on and
//! remembered, and tx.commit goes through its steps.
//!
//! ```text
//! tx.commit ──► Fencing ──────────► Deciding ────────────► Settling ─────────────────────► commit-ok
//!               tx.rollback sent:   the store makes the    recorded acks and tx.commit go to RabbitMQ;
//!               RabbitMQ judges     transaction durable    the relay is waited for, up to a deadline
//!               and drops the probes
//! ```
//!
//! Frames that the client sends behind a commit wait for its end (RabbitMQ answers 504 to some of them; waiting is
//! kinder and just as correct).

use super::command::{Command, Ended, Io};
use super::probe;
use super::transaction::{Transaction, write_native, write_return};
use crate::amqp::frame::{self, Frame, kind};
use crate::amqp::method::{self, CLASS_BASIC, Consume, Publish, Settle, id};
use crate::amqp::properties::{self, Properties};
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::tags::TagSet;
use crate::amqp::wire::{Malformed, Reader};
use crate::tx::id::TransactionId;
use crate::tx::outcome::{Forwarded, StoreError};
use std::collections::{HashSet, VecDeque};
use std::time::Instant;

/// Probes that RabbitMQ may hold for one transaction: each costs it 3 to 6 kB until the next rollback.
const PROBES_MAX: usize = 1_000;
/// Bytes of frames that may wait behind a commit before the client has to wait.
const BEHIND_BYTES_MAX: usize = 1 << 20;
/// Calls to park that may be unanswered before the client has to wait.
const PARKS_MAX: usize = 4;
/// What forwarding adds to a content header at most: `x-half-id` with an index of ten digits (62), then
/// `x-half-possible-duplicate` (28), the length of the table (4), and the frame around it (8). Rounded up.
const HEADER_GROWTH_BYTES: usize = 104;

/// What is to be done with a channel after a frame or an event.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing.
    Stay,
    /// It is closed, or RabbitMQ will close it: from here on it passes through.
    Gone,
    /// The commit is over: frames that waited behind it may go on.
    Released,
    /// The proxy closes the channel, with this text behind the code's name.
    Refuse(ReplyCode, String, (u16, u16)),
    /// The client broke the framing, and what it sent was passed on: RabbitMQ will close the connection.
    Broken,
}

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

    fn needs_ack(&self, consumer_tag: &[u8]) -> bool {
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

/// Who waits for the next tx.rollback-ok or tx.commit-ok from RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// The client: the answer passes.
    Client,
    /// A commit that fences off its probes.
    Fence,
    /// A long transaction that lightens RabbitMQ's memory.
    Trim,
    /// A commit whose acks and native messages take effect.
    Settle,
}

/// A message whose content is on its way from the client.
#[derive(Debug)]
struct Receiving {
    /// The arguments of basic.publish.
    publish: Vec<u8>,
    /// The payload of the content header, once it is there.
    header: Option<Vec<u8>>,
    /// Bytes of body to come.
    remaining: u64,
    /// Where the body goes.
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// To the transaction's batch.
    Parked,
    /// Kept apart, to be published natively.
    Native(Vec<u8>),
    /// Nowhere: the message is too large, which RabbitMQ says when all of it has come.
    TooLarge(u64),
}

/// A commit on its way.
#[derive(Debug)]
struct Commit {
    transaction: Transaction,
    step: Step,
    /// When the client sent tx.commit.
    since: Instant,
    forwarded: Option<Forwarded>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Fencing,
    Fenced,
    Deciding,
    Settling {
        /// RabbitMQ's commit-ok for acks and native messages is due.
        upstream: bool,
        /// The relay is waited for until then.
        relay_until: Option<Instant>,
    },
}

/// A channel in tx mode.
#[derive(Debug, Default)]
pub struct Channel {
    number: u16,
    transaction: Transaction,
    receiving: Option<Receiving>,
    commit: Option<Commit>,
    /// Frames that came behind a commit.
    behind: Vec<u8>,
    answers: VecDeque<Asker>,
    /// Delivery tags that the client holds, of deliveries since tx.select.
    unacked: TagSet,
    /// `no_ack` of each basic.get that waits for its answer.
    gets: VecDeque<bool>,
    consumers: Consumers,
    content: Content,
    /// What the proxy has to say once RabbitMQ's content is through.
    held: Vec<u8>,
    /// Calls to park that the store has not answered.
    parks: Vec<TransactionId>,
    /// Committed transactions whose returns came too late for their commit-ok and still go out.
    late: HashSet<TransactionId>,
}

impl Channel {
    /// A channel whose client has just sent tx.select.
    pub fn new(number: u16, consumers: Consumers) -> Self {
        Self { number, consumers, content: Content::Unknown, ..Self::default() }
    }

    /// Whether a commit is on its way.
    pub fn is_committing(&self) -> bool {
        self.commit.is_some()
    }

    /// Whether the client has to wait before it may send more.
    pub fn is_congested(&self) -> bool {
        self.behind.len() > BEHIND_BYTES_MAX || self.parks.len() > PARKS_MAX
    }

    /// Frames that waited behind a commit; they are the client's next ones.
    pub fn take_behind(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.behind)
    }

    /// Where RabbitMQ is within a content on this channel.
    pub fn content(&self) -> Content {
        self.content
    }

    /// A frame from the client.
    pub fn handle_client(&mut self, frame: &Frame<'_>, io: &mut Io) -> Outcome {
        if self.commit.is_some() {
            self.behind.extend_from_slice(frame.raw);
            return Outcome::Stay;
        }
        let outcome = match (frame.kind, self.receiving.take()) {
            (kind::METHOD, None) => self.handle_method(frame, io),
            (kind::HEADER, Some(receiving)) if receiving.header.is_none() => self.handle_header(receiving, frame, io),
            (kind::BODY, Some(receiving)) if receiving.header.is_some() => self.handle_body(receiving, frame, io),
            (_, receiving) => {
                // A frame that may not stand here. RabbitMQ is shown what came, and says what it says to that.
                self.pass_received(receiving, io);
                Err(Malformed)
            }
        };
        outcome.unwrap_or_else(|Malformed| {
            io.to_upstream.extend_from_slice(frame.raw);
            Outcome::Broken
        })
    }

    /// Shows RabbitMQ the front of a message whose rest will not be held back any more.
    pub fn pass_receiving(&mut self, io: &mut Io) {
        let receiving = self.receiving.take();
        self.pass_received(receiving, io);
    }

    fn pass_received(&self, receiving: Option<Receiving>, io: &mut Io) {
        let Some(receiving) = receiving else { return };
        frame::write_method(&mut io.to_upstream, self.number, id::BASIC_PUBLISH, |out| out.extend(&receiving.publish));
        if let Some(header) = receiving.header {
            frame::write(&mut io.to_upstream, kind::HEADER, self.number, |out| out.extend(&header));
        }
    }

    fn handle_method(&mut self, frame: &Frame<'_>, io: &mut Io) -> Result<Outcome, Malformed> {
        let method = frame.method_id().ok_or(Malformed)?;
        match method {
            id::BASIC_PUBLISH => {
                Publish::parse(frame.arguments())?;
                let publish = frame.arguments().to_vec();
                self.receiving = Some(Receiving { publish, header: None, remaining: 0, body: Body::Parked });
                return Ok(Outcome::Stay);
            }
            id::TX_COMMIT if frame.arguments().is_empty() => return Ok(self.begin_commit(frame, io)),
            id::TX_ROLLBACK if frame.arguments().is_empty() => self.roll_back(io),
            id::BASIC_ACK | id::BASIC_NACK => {
                let settle = Settle::parse(frame.arguments())?;
                self.transaction.settle(settle, frame.raw, &mut self.unacked);
            }
            id::BASIC_REJECT => {
                let settle = Settle::parse_reject(frame.arguments())?;
                self.transaction.settle(settle, frame.raw, &mut self.unacked);
            }
            id::BASIC_GET => self.gets.push_back(method::get_no_ack(frame.arguments())?),
            id::BASIC_CONSUME => self.consumers.asked(frame.arguments())?,
            id::BASIC_RECOVER_ASYNC => self.recovered(),
            id::CHANNEL_CLOSE => {
                self.abandon(Ended::RolledBack, io);
                io.to_upstream.extend_from_slice(frame.raw);
                return Ok(Outcome::Gone);
            }
            _ => self.transaction.forget_judgements(),
        }
        io.to_upstream.extend_from_slice(frame.raw);
        Ok(Outcome::Stay)
    }

    fn handle_header(
        &mut self,
        mut receiving: Receiving,
        frame: &Frame<'_>,
        io: &mut Io,
    ) -> Result<Outcome, Malformed> {
        let [class, weight] = [0, 2].map(|at| frame.payload.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]])));
        let (Some(CLASS_BASIC), Some(0), Ok(body_bytes)) = (class, weight, properties::body_size(frame.payload)) else {
            self.pass_received(Some(receiving), io);
            return Err(Malformed);
        };
        io.published = true;
        let publish = Publish::parse(&receiving.publish)?;
        receiving.body = if body_bytes > io.settings.message_bytes_max {
            Body::TooLarge(body_bytes)
        } else if Properties::parse(frame.payload).is_ok_and(|read| !probe::is_native(&publish, &read)) {
            self.transaction.batch.begin(&receiving.publish, frame.payload, body_bytes);
            Body::Parked
        } else {
            Body::Native(Vec::new())
        };
        receiving.header = Some(frame.payload.to_vec());
        receiving.remaining = body_bytes;
        Ok(self.proceed(receiving, io))
    }

    fn handle_body(&mut self, mut receiving: Receiving, frame: &Frame<'_>, io: &mut Io) -> Result<Outcome, Malformed> {
        let Some(remaining) = receiving.remaining.checked_sub(frame.payload.len() as u64) else {
            self.pass_received(Some(receiving), io);
            return Err(Malformed);
        };
        receiving.remaining = remaining;
        match &mut receiving.body {
            Body::Parked => self.transaction.batch.extend_body(frame.payload),
            Body::Native(body) => body.extend_from_slice(frame.payload),
            Body::TooLarge(_) => {}
        }
        Ok(self.proceed(receiving, io))
    }

    /// Goes on receiving, or takes the message if all of it is there.
    fn proceed(&mut self, receiving: Receiving, io: &mut Io) -> Outcome {
        if receiving.remaining > 0 {
            self.receiving = Some(receiving);
            return Outcome::Stay;
        }
        let refuse = |text| Outcome::Refuse(ReplyCode::PRECONDITION_FAILED, text, id::BASIC_PUBLISH);
        if let Body::TooLarge(size) = receiving.body {
            let max = io.settings.message_bytes_max;
            return refuse(format!("message size {size} is larger than configured max size {max}"));
        }
        let (publish, header) = (receiving.publish, receiving.header.unwrap_or_default());
        let frame_bytes_max = io.server_frame_max as usize;
        if frame_bytes_max != 0 && header.len() + HEADER_GROWTH_BYTES > frame_bytes_max {
            return refuse(format!(
                "message properties of {} bytes leave no room for x-half-id in a frame of {frame_bytes_max}",
                header.len()
            ));
        }
        if self.transaction.has_no_message() {
            io.commands.push_back(Command::Began);
        }
        self.send_probe(&publish, &header, io);
        match receiving.body {
            Body::Native(body) => {
                let frame_max = io.frame_max;
                write_native(&mut self.transaction.native, self.number, &publish, &header, &body, frame_max);
            }
            Body::Parked | Body::TooLarge(_) => {
                self.transaction.batch.finish();
                self.transaction.messages += 1;
                self.transaction.mandatory |= Publish::parse(&publish).is_ok_and(|publish| publish.mandatory());
            }
        }
        let limits = &io.settings;
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
        if self.transaction.batch.bytes() > limits.memory_bytes_max {
            self.park(io);
        }
        Outcome::Stay
    }

    fn send_probe(&mut self, publish: &[u8], header: &[u8], io: &mut Io) {
        let Ok(publish) = Publish::parse(publish) else { return };
        match Properties::parse(header) {
            Ok(properties) => {
                if self.transaction.needs_probe(probe::key(&publish, &properties)) {
                    probe::write(&mut io.to_upstream, self.number, &publish, &properties);
                }
            }
            Err(Malformed) => {
                self.transaction.needs_probe(None);
                probe::write_unreadable(&mut io.to_upstream, self.number, &publish, header);
            }
        }
        if self.transaction.probes >= PROBES_MAX {
            self.transaction.probes = 0;
            self.answers.push_back(Asker::Trim);
            method::write_bare(&mut io.to_upstream, self.number, id::TX_ROLLBACK);
            io.to_upstream.extend_from_slice(self.transaction.settlements());
        }
    }

    /// Hands what is in memory to the store.
    fn park(&mut self, io: &mut Io) {
        let transaction = *self.transaction.id.get_or_insert_with(io.settings.new_id);
        let batch = std::mem::take(&mut self.transaction.batch);
        self.transaction.bytes += batch.bytes() as u64;
        self.transaction.parked = true;
        self.parks.push(transaction);
        io.commands.push_back(Command::Park { channel: self.number, transaction, batch });
    }

    /// The store has kept, or not kept, what was parked.
    pub fn handle_parked(&mut self, id: TransactionId, result: Result<(), StoreError>, io: &mut Io) -> Outcome {
        let Some(at) = self.parks.iter().position(|parked| *parked == id) else { return Outcome::Stay };
        self.parks.swap_remove(at);
        let committing = self.commit.as_ref().map(|commit| commit.transaction.id);
        match result {
            Err(error) if [committing, Some(self.transaction.id)].contains(&Some(Some(id))) => {
                refuse_store(&error, method::id::BASIC_PUBLISH)
            }
            _ => self.decide(io),
        }
    }

    fn roll_back(&mut self, io: &mut Io) {
        self.answers.push_back(Asker::Client);
        let mut transaction = std::mem::take(&mut self.transaction);
        if let Some(unacked) = transaction.take_unsettled() {
            self.unacked = unacked;
        }
        discard(&transaction, Ended::RolledBack, io);
    }

    fn begin_commit(&mut self, frame: &Frame<'_>, io: &mut Io) -> Outcome {
        let transaction = std::mem::take(&mut self.transaction);
        if transaction.has_no_message() {
            // Only acks, which are in RabbitMQ's own transaction already: this commit is its business.
            self.answers.push_back(Asker::Client);
            io.to_upstream.extend_from_slice(frame.raw);
            return Outcome::Stay;
        }
        self.answers.push_back(Asker::Fence);
        method::write_bare(&mut io.to_upstream, self.number, id::TX_ROLLBACK);
        self.commit = Some(Commit { transaction, step: Step::Fencing, since: io.now, forwarded: None });
        io.committing += 1;
        Outcome::Stay
    }

    /// RabbitMQ has judged every probe and dropped them.
    fn fenced(&mut self, io: &mut Io) -> Outcome {
        let Some(commit) = &mut self.commit else { return Outcome::Stay };
        if commit.transaction.messages == 0 {
            return self.settle(None, io);
        }
        commit.step = Step::Fenced;
        self.decide(io)
    }

    /// Asks the store to decide, once RabbitMQ has judged and all that was parked before is known to be kept.
    fn decide(&mut self, io: &mut Io) -> Outcome {
        let Some(commit) = self.commit.as_mut().filter(|commit| commit.step == Step::Fenced) else {
            return Outcome::Stay;
        };
        if commit.transaction.id.is_some_and(|id| self.parks.contains(&id)) {
            return Outcome::Stay;
        }
        commit.step = Step::Deciding;
        let transaction = &mut commit.transaction;
        let id = *transaction.id.get_or_insert_with(io.settings.new_id);
        io.commands.push_back(Command::Commit {
            channel: self.number,
            transaction: id,
            batch: std::mem::take(&mut transaction.batch),
            parked: transaction.parked,
            wait: transaction.mandatory || !io.settings.forward_wait.is_zero(),
        });
        Outcome::Stay
    }

    /// The store has decided, or could not.
    pub fn handle_committed(&mut self, id: TransactionId, result: Result<(), StoreError>, io: &mut Io) -> Outcome {
        let Some(commit) = self.commit.as_ref().filter(|commit| commit.transaction.id == Some(id)) else {
            return Outcome::Stay;
        };
        if let Err(error) = result {
            return refuse_store(&error, id::TX_COMMIT);
        }
        let wait = match (commit.transaction.mandatory, io.hurried) {
            (_, true) => None,
            (true, false) => Some(io.settings.mandatory_wait),
            (false, false) => Some(io.settings.forward_wait).filter(|wait| !wait.is_zero()),
        };
        let until = wait.filter(|_| commit.forwarded.is_none()).map(|wait| io.now + wait);
        self.settle(until, io)
    }

    /// Lets acks and native messages take effect, and waits for the relay if there is something to wait for.
    fn settle(&mut self, relay_until: Option<Instant>, io: &mut Io) -> Outcome {
        let Some(commit) = &mut self.commit else { return Outcome::Stay };
        let (settlements, native) = (commit.transaction.settlements(), &commit.transaction.native);
        let upstream = (!settlements.is_empty() || !native.is_empty()) && !io.upstream_lost;
        if upstream {
            io.to_upstream.extend_from_slice(settlements);
            io.to_upstream.extend_from_slice(native);
            method::write_bare(&mut io.to_upstream, self.number, id::TX_COMMIT);
            self.answers.push_back(Asker::Settle);
        }
        if let Some(until) = relay_until {
            io.timers.insert((until, self.number));
        }
        commit.step = Step::Settling { upstream, relay_until };
        self.finish_commit(io)
    }

    /// The relay has an answer of RabbitMQ for every message.
    pub fn handle_forwarded(&mut self, id: TransactionId, forwarded: Forwarded, io: &mut Io) -> Outcome {
        match &mut self.commit {
            Some(commit) if commit.transaction.id == Some(id) => {
                commit.forwarded = Some(forwarded);
                self.stop_waiting(io)
            }
            _ => {
                if self.late.remove(&id) {
                    self.say_returns(&forwarded, io);
                }
                Outcome::Stay
            }
        }
    }

    /// Waits for the relay no longer, if it does: the time is up, the answer is there, or the session ends.
    pub fn stop_waiting(&mut self, io: &mut Io) -> Outcome {
        if let Some(Commit { step: Step::Settling { relay_until, .. }, .. }) = &mut self.commit {
            if let Some(until) = relay_until.take() {
                io.timers.remove(&(until, self.number));
            }
            return self.finish_commit(io);
        }
        Outcome::Stay
    }

    /// Answers the client if nothing more is waited for.
    fn finish_commit(&mut self, io: &mut Io) -> Outcome {
        let done = |commit: &mut Commit| commit.step == Step::Settling { upstream: false, relay_until: None };
        let Some(commit) = self.commit.take_if(done) else { return Outcome::Stay };
        io.commands.push_back(Command::Ended(Ended::Committed(io.now - commit.since)));
        match (commit.forwarded, commit.transaction.id) {
            (Some(forwarded), _) => self.say_returns(&forwarded, io),
            (None, Some(id)) if commit.transaction.mandatory => drop(self.late.insert(id)),
            _ => {}
        }
        let mut answer = Vec::new();
        method::write_bare(&mut answer, self.number, id::TX_COMMIT_OK);
        self.say(&answer, io);
        io.committing -= 1;
        Outcome::Released
    }

    fn say_returns(&mut self, forwarded: &Forwarded, io: &mut Io) {
        let mut out = Vec::new();
        for returned in &forwarded.returned {
            let (arguments, header) = (&returned.arguments, &returned.header);
            write_return(&mut out, self.number, arguments, header, &returned.body, io.frame_max);
        }
        self.say(&out, io);
    }

    /// Speaks to the client, never into the middle of a content.
    fn say(&mut self, frames: &[u8], io: &mut Io) {
        match self.content {
            Content::Idle => io.to_client.extend_from_slice(frames),
            Content::Unknown | Content::Header | Content::Body(_) => self.held.extend_from_slice(frames),
        }
    }

    /// A frame from RabbitMQ.
    pub fn handle_upstream(&mut self, frame: &Frame<'_>, io: &mut Io) -> Outcome {
        let outcome = match frame.method_id() {
            Some(id::TX_ROLLBACK_OK | id::TX_COMMIT_OK) => match self.answers.pop_front() {
                Some(Asker::Client) | None => Outcome::Stay,
                Some(Asker::Trim) => return Outcome::Stay,
                Some(Asker::Fence) => return self.fenced(io),
                Some(Asker::Settle) => return self.settled(io),
            },
            Some(id::CHANNEL_CLOSE) => {
                self.abandon(Ended::Refused, io);
                Outcome::Gone
            }
            Some(method) => {
                self.note_method(method, frame.arguments());
                Outcome::Stay
            }
            None => Outcome::Stay,
        };
        io.to_client.extend_from_slice(frame.raw);
        self.content.follow(frame);
        if self.content == Content::Idle {
            io.to_client.append(&mut self.held);
        }
        outcome
    }

    fn settled(&mut self, io: &mut Io) -> Outcome {
        if let Some(Commit { step: Step::Settling { upstream, .. }, .. }) = &mut self.commit {
            *upstream = false;
        }
        self.finish_commit(io)
    }

    /// Keeps account of delivery tags.
    fn note_method(&mut self, method: (u16, u16), arguments: &[u8]) {
        let tag = match method {
            id::BASIC_DELIVER => method::deliver_tags(arguments)
                .ok()
                .filter(|(consumer, _)| self.consumers.needs_ack(consumer))
                .map(|t| t.1),
            id::BASIC_GET_OK if self.gets.pop_front() == Some(false) => Reader::new(arguments).u64().ok(),
            id::BASIC_GET_EMPTY => {
                self.gets.pop_front();
                None
            }
            id::BASIC_CONSUME_OK => {
                self.consumers.accepted(arguments);
                None
            }
            id::BASIC_RECOVER_OK => {
                self.recovered();
                None
            }
            _ => None,
        };
        if let Some(tag) = tag {
            self.unacked.insert(tag);
            self.transaction.delivered(tag);
        }
    }

    fn recovered(&mut self) {
        self.transaction.recovered(&self.unacked);
        self.unacked.clear();
    }

    /// RabbitMQ is gone, and with it every answer that it owed. What the store is deciding goes on.
    pub fn lose_upstream(&mut self, io: &mut Io) -> Outcome {
        match &mut self.commit {
            None => Outcome::Stay,
            Some(Commit { step: Step::Fencing | Step::Fenced, .. }) => {
                self.abandon(Ended::RolledBack, io);
                Outcome::Stay
            }
            Some(Commit { step: Step::Deciding, .. }) => Outcome::Stay,
            Some(Commit { step: Step::Settling { upstream, .. }, .. }) => {
                // Acks that were not settled come again: RabbitMQ redelivers, and nothing is lost.
                *upstream = false;
                self.stop_waiting(io)
            }
        }
    }

    /// Lets go of everything undecided: the channel is over. A decision that is being made goes on without it.
    pub fn abandon(&mut self, ended: Ended, io: &mut Io) {
        discard(&std::mem::take(&mut self.transaction), ended, io);
        if let Some(commit) = self.commit.take() {
            io.committing -= 1;
            match (commit.step, ended) {
                (Step::Fencing | Step::Fenced, _) | (Step::Deciding, Ended::Failed) => {
                    discard(&commit.transaction, ended, io);
                }
                (Step::Deciding | Step::Settling { .. }, _) => {
                    if let Step::Settling { relay_until: Some(until), .. } = commit.step {
                        io.timers.remove(&(until, self.number));
                    }
                    io.commands.push_back(Command::Ended(Ended::Committed(io.now - commit.since)));
                }
            }
        }
    }
}

/// Forgets an undecided transaction, in the store too.
fn discard(transaction: &Transaction, ended: Ended, io: &mut Io) {
    if !transaction.has_no_message() {
        io.commands.push_back(Command::Ended(ended));
    }
    if let Some(transaction) = transaction.id.filter(|_| transaction.parked) {
        io.commands.push_back(Command::RollBack { transaction });
    }
}

fn refuse_store(error: &StoreError, method: (u16, u16)) -> Outcome {
    let code = match error {
        StoreError::Full(_) => ReplyCode::RESOURCE_ERROR,
        StoreError::Conflict(_) => ReplyCode::PRECONDITION_FAILED,
        StoreError::Locked(_) => ReplyCode::RESOURCE_LOCKED,
        StoreError::Io(_) | StoreError::Closed => ReplyCode::INTERNAL_ERROR,
    };
    Outcome::Refuse(code, error.to_string(), method)
}
