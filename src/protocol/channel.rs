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

mod judgement;

#[cfg(test)]
pub(super) use self::judgement::PROBES_MAX;
use super::command::{Command, Ended, Io, Ticket};
use super::deliveries::{Consumers, Content};
use super::half;
use super::judge::Judgement;
use super::probe;
use super::transaction::{Transaction, write_native, write_return};
use crate::amqp::frame::{self, Frame, kind};
use crate::amqp::method::{self, CLASS_BASIC, Close, Publish, Settle, id};
use crate::amqp::properties::{self, Properties};
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::tags::TagSet;
use crate::amqp::wire::{Malformed, Reader};
use crate::tx::batch::Batch;
use crate::tx::decision::{Decision, Verdict};
use crate::tx::id::TransactionId;
use crate::tx::name::TransactionName;
use crate::tx::outcome::{Forwarded, StoreError};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Bytes of frames that may wait behind a commit before the client has to wait.
const BEHIND_BYTES_MAX: usize = 1 << 20;
/// Calls to park that may be unanswered before the client has to wait.
const PARKS_MAX: usize = 4;
/// What is to be done with a channel after a frame or an event.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing.
    Stay,
    /// It is closed, or RabbitMQ will close it: from here on it passes through.
    Gone,
    /// The commit is over: frames that waited behind it may go on.
    Released,
    /// RabbitMQ is to be asked about this probe.
    Ask(Ticket, Vec<u8>),
    /// The proxy closes the channel, with this text behind the code's name.
    Refuse(ReplyCode, String, (u16, u16)),
    /// The client broke the framing, and what it sent was passed on: RabbitMQ will close the connection.
    Broken,
}

/// Who waits for the next tx.rollback-ok or tx.commit-ok from RabbitMQ.
#[derive(Debug)]
enum Asker {
    /// The client: the answer passes.
    Client,
    /// The client, whose rollback the store has to keep as well: the answer waits for that.
    RollBack,
    /// A commit that fences off its probes.
    Fence,
    /// Half messages of this named transaction, to be parked if RabbitMQ has nothing against them.
    Judge(TransactionId, Batch),
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
    /// There is none: the message is a decision about another transaction.
    Decision(Decision, TransactionName),
    /// Nowhere: the message is refused, which RabbitMQ does when all of it has come.
    Wrong(String),
}

/// The client's rollback of a named transaction that is in the store. It is answered when both have happened: before,
/// a crash would leave in doubt what the client knows to be rolled back.
#[derive(Debug)]
struct RollingBack {
    transaction: TransactionId,
    /// RabbitMQ has answered.
    answered: bool,
    /// The store has kept it.
    durable: bool,
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
    /// RabbitMQ is asked whether the client is who it says, to whom the decisions about other transactions belong.
    Confirming(Ticket),
    /// So many decisions about other transactions are being made.
    DecidingOthers(usize),
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
    /// The prepare barrier: a repeated tx.select in a named transaction; and whether RabbitMQ has answered it.
    barrier: Option<bool>,
    /// Whether the client has asked RabbitMQ something behind which nobody has asked since, so that the answer to a
    /// commit could overtake that to it.
    asked: bool,
    /// Decisions about other transactions that the store has not answered.
    deciding: Vec<Ticket>,
    /// How often the client said tx.select that is no barrier, and RabbitMQ has not answered.
    selects: usize,
    rolling_back: Option<RollingBack>,
    /// Frames that came behind a commit, a barrier or a rollback.
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
    /// The client has closed it. Answers to what the proxy asked may still come before RabbitMQ's close-ok.
    closing: bool,
}

impl Channel {
    /// A channel whose client has just sent tx.select.
    pub fn new(number: u16, consumers: Consumers) -> Self {
        Self { number, consumers, selects: 1, content: Content::Unknown, ..Self::default() }
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
        if self.closing {
            // Nothing may come here; RabbitMQ says so.
            io.to_upstream.extend_from_slice(frame.raw);
            return Outcome::Stay;
        }
        if self.commit.is_some() || self.barrier.is_some() || self.rolling_back.is_some() {
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
            id::BASIC_CANCEL => self.consumers.cancelled(frame.arguments())?,
            id::BASIC_RECOVER => self.redo_acks(io),
            id::BASIC_RECOVER_ASYNC => {
                self.redo_acks(io);
                self.recovered();
            }
            id::TX_SELECT if self.transaction.named.is_some() => self.barrier = Some(false),
            id::TX_SELECT => self.selects += 1,
            id::CHANNEL_CLOSE => {
                self.leave(io);
                self.late.clear();
                self.closing = true;
            }
            _ => self.transaction.forget_judgements(),
        }
        if !matches!(method, id::BASIC_ACK | id::BASIC_NACK | id::BASIC_REJECT) {
            self.asked = self.barrier.is_none();
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
        receiving.body = self.look(&publish, frame.payload, body_bytes, io);
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

    fn handle_body(&mut self, mut receiving: Receiving, frame: &Frame<'_>, io: &mut Io) -> Result<Outcome, Malformed> {
        let Some(remaining) = receiving.remaining.checked_sub(frame.payload.len() as u64) else {
            self.pass_received(Some(receiving), io);
            return Err(Malformed);
        };
        receiving.remaining = remaining;
        match &mut receiving.body {
            Body::Parked => self.transaction.batch.extend_body(frame.payload),
            Body::Native(body) => body.extend_from_slice(frame.payload),
            Body::Decision(..) | Body::Wrong(_) => {}
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
        if let Body::Wrong(text) = receiving.body {
            return refuse(text);
        }
        let (publish, header) = (receiving.publish, receiving.header.unwrap_or_default());
        if self.transaction.has_no_message() {
            io.commands.push_back(Command::Began);
            self.transaction.settings = Some(Arc::clone(&io.settings));
        }
        if let Body::Decision(decision, name) = receiving.body {
            self.transaction.decisions.push((decision, name));
            // Messages before it may have waited for its end.
            self.judge(io);
            return Outcome::Stay;
        }
        self.send_probe(&publish, &header, io);
        match receiving.body {
            Body::Native(body) => {
                let frame_max = io.frame_max;
                write_native(&mut self.transaction.native, self.number, &publish, &header, &body, frame_max);
            }
            Body::Parked | Body::Decision(..) | Body::Wrong(_) => {
                self.transaction.batch.finish();
                self.transaction.messages += 1;
                self.transaction.mandatory |= Publish::parse(&publish).is_ok_and(|publish| publish.mandatory());
            }
        }
        let limits = self.transaction.settings(io);
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
            self.judge(io);
        } else if self.transaction.batch.bytes() > limits.memory_bytes_max {
            let batch = std::mem::take(&mut self.transaction.batch);
            park(&mut self.transaction, batch, self.number, &mut self.parks, io);
        }
        Outcome::Stay
    }

    /// Answers the prepare barrier if everything before it is durable.
    fn pass_barrier(&mut self, io: &mut Io) -> Outcome {
        let is_durable = self.transaction.is_parked() && self.transaction.id.is_none_or(|id| !self.parks.contains(&id));
        if self.barrier != Some(true) || !is_durable {
            return Outcome::Stay;
        }
        self.barrier = None;
        let mut answer = Vec::new();
        method::write_bare(&mut answer, self.number, id::TX_SELECT_OK);
        self.say(&answer, io);
        Outcome::Released
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
            _ => match self.pass_barrier(io) {
                Outcome::Stay => self.decide(io),
                released => released,
            },
        }
    }

    fn roll_back(&mut self, io: &mut Io) {
        let mut transaction = std::mem::take(&mut self.transaction);
        if let Some(unacked) = transaction.take_unsettled() {
            self.unacked = unacked;
        }
        // One without a name is rolled back by the next start, whatever the store has kept.
        let stored = transaction.id.filter(|_| transaction.parked && transaction.named.is_some());
        self.rolling_back = stored.map(|transaction| RollingBack { transaction, answered: false, durable: false });
        self.answers.push_back(if stored.is_some() { Asker::RollBack } else { Asker::Client });
        roll_back(&transaction, self.number, Ended::RolledBack, None, io);
    }

    /// The store has, or has not, kept that a transaction is rolled back.
    pub fn handle_rolled_back(
        &mut self,
        transaction: TransactionId,
        result: Result<(), StoreError>,
        io: &mut Io,
    ) -> Outcome {
        let Some(own) = self.rolling_back.as_mut().filter(|own| own.transaction == transaction) else {
            return Outcome::Stay;
        };
        match result {
            Ok(()) => {
                own.durable = true;
                self.pass_rollback(io)
            }
            Err(error) => refuse_store(&error, id::TX_ROLLBACK),
        }
    }

    /// Answers the client's rollback if RabbitMQ and the store have both done it.
    fn pass_rollback(&mut self, io: &mut Io) -> Outcome {
        if self.rolling_back.take_if(|own| own.answered && own.durable).is_none() {
            return Outcome::Stay;
        }
        let mut answer = Vec::new();
        method::write_bare(&mut answer, self.number, id::TX_ROLLBACK_OK);
        self.say(&answer, io);
        Outcome::Released
    }

    fn begin_commit(&mut self, frame: &Frame<'_>, io: &mut Io) -> Outcome {
        self.ask_again(io);
        // RabbitMQ has to find them right before anything is decided.
        self.redo_acks(io);
        let transaction = std::mem::take(&mut self.transaction);
        if transaction.has_no_message() {
            // Only acks, which are in RabbitMQ's own transaction already: this commit is its business.
            self.answers.push_back(Asker::Client);
            io.to_upstream.extend_from_slice(frame.raw);
            return Outcome::Stay;
        }
        let is_prepared = transaction.is_prepared() && !self.asked;
        self.commit = Some(Commit { transaction, step: Step::Fencing, since: io.now, forwarded: None });
        io.committing += 1;
        if is_prepared {
            return self.fenced(io);
        }
        self.answers.push_back(Asker::Fence);
        method::write_bare(&mut io.to_upstream, self.number, id::TX_ROLLBACK);
        Outcome::Stay
    }

    /// RabbitMQ has judged every probe and dropped them.
    fn fenced(&mut self, io: &mut Io) -> Outcome {
        let Some(commit) = &mut self.commit else { return Outcome::Stay };
        let transaction = &mut commit.transaction;
        if transaction.named.is_some() && !transaction.batch.is_empty() {
            let batch = std::mem::take(&mut transaction.batch);
            park(transaction, batch, self.number, &mut self.parks, io);
        }
        io.user_confirmed |= transaction.claimed;
        if !transaction.decisions.is_empty() && !io.user_confirmed {
            let (ticket, mut probe) = (io.next_ticket(), Vec::new());
            probe::write_claim_anywhere(&mut probe, self.number, io.user());
            commit.step = Step::Confirming(ticket);
            return Outcome::Ask(ticket, probe);
        }
        self.decide_others(io)
    }

    /// What RabbitMQ says of the client's name.
    pub fn handle_judged(&mut self, ticket: Ticket, judgement: Judgement, io: &mut Io) -> Outcome {
        if self.commit.as_ref().is_none_or(|commit| commit.step != Step::Confirming(ticket)) {
            return Outcome::Stay;
        }
        match judgement.confirms(io.user(), io.vhost()) {
            Ok(()) => {
                io.user_confirmed = true;
                self.decide_others(io)
            }
            Err(text) => Outcome::Refuse(ReplyCode::PRECONDITION_FAILED, text, id::TX_COMMIT),
        }
    }

    /// First what is decided about others: if that can't be, nothing of this transaction is.
    fn decide_others(&mut self, io: &mut Io) -> Outcome {
        let Some(commit) = &mut self.commit else { return Outcome::Stay };
        let decisions = commit.transaction.decisions.clone();
        commit.step = if decisions.is_empty() { Step::Fenced } else { Step::DecidingOthers(decisions.len()) };
        for (decision, name) in decisions {
            let ticket = io.next_ticket();
            self.deciding.push(ticket);
            io.commands.push_back(Command::Decide { channel: self.number, ticket, decision, name });
        }
        self.decide(io)
    }

    /// The store's answer to a decision about another transaction.
    pub fn handle_decided(
        &mut self,
        ticket: Ticket,
        name: &TransactionName,
        result: Result<Verdict, StoreError>,
        io: &mut Io,
    ) -> Outcome {
        let Some(at) = self.deciding.iter().position(|deciding| *deciding == ticket) else { return Outcome::Stay };
        self.deciding.swap_remove(at);
        let Some(Commit { step: Step::DecidingOthers(left), .. }) = &mut self.commit else { return Outcome::Stay };
        if let Err((code, text)) = half::check_verdict(name, result) {
            return Outcome::Refuse(code, text, id::TX_COMMIT);
        }
        *left -= 1;
        if *left == 0
            && let Some(commit) = &mut self.commit
        {
            commit.step = Step::Fenced;
        }
        self.decide(io)
    }

    /// Asks the store to decide, once RabbitMQ has judged and all that was parked before is known to be kept.
    fn decide(&mut self, io: &mut Io) -> Outcome {
        let Some(commit) = self.commit.as_mut().filter(|commit| commit.step == Step::Fenced) else {
            return Outcome::Stay;
        };
        if commit.transaction.messages == 0 {
            return self.settle(None, io);
        }
        if commit.transaction.id.is_some_and(|id| self.parks.contains(&id)) {
            return Outcome::Stay;
        }
        commit.step = Step::Deciding;
        let transaction = &mut commit.transaction;
        let id = *transaction.id.get_or_insert_with(io.settings.new_id);
        io.commands.push_back(Command::Commit {
            channel: self.number,
            transaction: id,
            named: transaction.named.clone(),
            batch: std::mem::take(&mut transaction.batch),
            parked: transaction.parked,
            wait: transaction.mandatory || !transaction.settings(io).forward_wait.is_zero(),
        });
        Outcome::Stay
    }

    /// The store has decided, or could not; `true`: just now, so that the messages are on their way.
    pub fn handle_committed(&mut self, id: TransactionId, result: Result<bool, StoreError>, io: &mut Io) -> Outcome {
        let Some(commit) = self.commit.as_ref().filter(|commit| commit.transaction.id == Some(id)) else {
            return Outcome::Stay;
        };
        let is_new = match result {
            Ok(is_new) => is_new,
            Err(error) => return refuse_store(&error, id::TX_COMMIT),
        };
        let settings = commit.transaction.settings(io);
        let wait = match (commit.transaction.mandatory, io.hurried || !is_new) {
            (_, true) => None,
            (true, false) => Some(settings.mandatory_wait),
            (false, false) => Some(settings.forward_wait).filter(|wait| !wait.is_zero()),
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
                Some(Asker::RollBack) => {
                    if let Some(own) = &mut self.rolling_back {
                        own.answered = true;
                    }
                    return self.pass_rollback(io);
                }
                Some(Asker::Trim) => return Outcome::Stay,
                Some(Asker::Judge(id, batch)) => return self.judged(id, batch, io),
                Some(Asker::Fence) => return self.fenced(io),
                Some(Asker::Settle) => return self.settled(io),
            },
            Some(id::TX_SELECT_OK) if self.selects > 0 => {
                self.selects -= 1;
                Outcome::Stay
            }
            Some(id::TX_SELECT_OK) if self.barrier == Some(false) => {
                self.barrier = Some(true);
                return self.pass_barrier(io);
            }
            Some(id::CHANNEL_CLOSE_OK) if self.closing => Outcome::Gone,
            Some(id::CHANNEL_CLOSE) => {
                match Close::parse(frame.arguments()) {
                    // A refused publish decides its transaction: nobody may release half of it later.
                    Ok(Close { code, text, method: id::BASIC_PUBLISH }) => {
                        let text = String::from_utf8_lossy(text);
                        self.abandon(Ended::Refused, Some(format!("refused by RabbitMQ: {code} {text}")), io);
                    }
                    _ => self.leave(io),
                }
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
            id::BASIC_CONSUME_OK | id::BASIC_CANCEL_OK => {
                self.consumers.answered(arguments);
                None
            }
            id::BASIC_CANCEL => {
                self.consumers.lost(arguments);
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
            Some(Commit { step: Step::Fencing | Step::Confirming(_) | Step::Fenced, .. }) => {
                self.leave(io);
                Outcome::Stay
            }
            Some(Commit { step: Step::Deciding | Step::DecidingOthers(_), .. }) => Outcome::Stay,
            Some(Commit { step: Step::Settling { upstream, .. }, .. }) => {
                // Acks that were not settled come again: RabbitMQ redelivers, and nothing is lost.
                *upstream = false;
                self.stop_waiting(io)
            }
        }
    }

    /// The channel is over, and nobody has said what becomes of its transaction: a named one is in doubt, any other is
    /// rolled back. A decision that is being made goes on without it.
    pub fn leave(&mut self, io: &mut Io) {
        leave(&std::mem::take(&mut self.transaction), self.number, Ended::RolledBack, io);
        self.leave_commit(None, None, io);
    }

    /// The channel is over because something was refused, or failed: what is undecided is rolled back, for `reason`. A
    /// decision that is being made goes on without it; one that failed leaves a named transaction in doubt.
    pub fn abandon(&mut self, ended: Ended, reason: Option<String>, io: &mut Io) {
        roll_back(&std::mem::take(&mut self.transaction), self.number, ended, reason.clone(), io);
        self.leave_commit(Some(ended), reason, io);
    }

    fn leave_commit(&mut self, ended: Option<Ended>, reason: Option<String>, io: &mut Io) {
        let Some(commit) = self.commit.take() else { return };
        io.committing -= 1;
        match (commit.step, ended) {
            // A message of it was refused, or could not be kept: it is incomplete, and nobody may release the rest.
            (Step::Fencing | Step::Confirming(_) | Step::Fenced | Step::DecidingOthers(_), Some(ended))
                if reason.is_some() =>
            {
                roll_back(&commit.transaction, self.number, ended, reason, io);
            }
            (Step::Fencing | Step::Confirming(_) | Step::Fenced | Step::DecidingOthers(_), _)
            | (Step::Deciding, Some(Ended::Failed)) => {
                leave(&commit.transaction, self.number, ended.unwrap_or(Ended::RolledBack), io);
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

/// Hands half messages to the store.
fn park(transaction: &mut Transaction, batch: Batch, channel: u16, parks: &mut Vec<TransactionId>, io: &mut Io) {
    let id = *transaction.id.get_or_insert_with(io.settings.new_id);
    transaction.bytes += batch.bytes() as u64;
    transaction.parked = true;
    parks.push(id);
    let named = transaction.named.clone();
    io.commands.push_back(Command::Park { channel, transaction: id, named, batch });
}

/// Forgets an undecided transaction, in the store too.
fn roll_back(transaction: &Transaction, channel: u16, ended: Ended, reason: Option<String>, io: &mut Io) {
    if !transaction.has_no_message() {
        io.commands.push_back(Command::Ended(ended));
    }
    if let Some(transaction) = transaction.id.filter(|_| transaction.parked) {
        io.commands.push_back(Command::RollBack { channel, transaction, reason });
    }
}

/// Forgets an undecided transaction, which ended in this way, unless it is named and in the store.
fn leave(transaction: &Transaction, channel: u16, ended: Ended, io: &mut Io) {
    match transaction.id.filter(|_| transaction.parked && transaction.named.is_some()) {
        None => roll_back(transaction, channel, ended, None, io),
        Some(id) => {
            io.commands.push_back(Command::Ended(Ended::InDoubt));
            io.commands.push_back(Command::Abandon { transaction: id });
        }
    }
}

fn refuse_store(error: &StoreError, method: (u16, u16)) -> Outcome {
    Outcome::Refuse(error.reply_code(), error.to_string(), method)
}
