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

mod commit;
mod consuming;
mod judgement;
mod receiving;
mod room;

use self::commit::{Commit, Step};
use self::consuming::{Consuming, Noted};
#[cfg(test)]
pub(super) use self::judgement::PROBES_MAX;
use self::receiving::{Body, Receiving};
use self::room::Room;
use super::command::{Command, Io, Next, Ticket};
use super::deliveries::Consumers;
use super::leases::Leases;
use super::line::Line;
use super::transaction::Transaction;
use crate::amqp::frame::{Frame, kind};
use crate::amqp::method::{self, Close, Publish, Settle, id};
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::Malformed;
use crate::tx::batch::Batch;
use crate::tx::id::TransactionId;
use crate::tx::outcome::{Outcome, StoreError};
use std::collections::{BTreeSet, VecDeque};

/// Bytes of frames that may wait behind a commit before the client has to wait.
const BEHIND_BYTES_MAX: usize = 1 << 20;
/// Calls to park that may be unanswered before the client has to wait.
const PARKS_MAX: usize = 4;
/// Half messages that are parked before their time, when memory is short, have so many bytes at least.
const SPILL_BYTES_MIN: usize = 16 << 10;

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

/// A channel in tx mode.
#[derive(Debug, Default)]
pub struct Channel {
    number: u16,
    transaction: Transaction,
    leases: Leases,
    receiving: Option<Receiving>,
    commit: Option<Commit>,
    /// The prepare barrier: a repeated tx.select in a named transaction; and whether RabbitMQ has answered it.
    barrier: Option<bool>,
    /// Whether the client has asked RabbitMQ something behind which nobody has asked since, so that the answer to a
    /// commit could overtake that to it.
    asked: bool,
    /// Decisions about other transactions that the store has not answered.
    deciding: BTreeSet<Ticket>,
    /// How often the client said tx.select that is no barrier, and RabbitMQ has not answered.
    selects: usize,
    rolling_back: Option<RollingBack>,
    /// What waits on it came behind a commit, a barrier, a rollback or a message that waits for room.
    pub(super) line: Line,
    room: Room,
    answers: VecDeque<Asker>,
    consuming: Consuming,
    /// Calls to park that the store has not answered.
    parks: Vec<TransactionId>,
    /// Committed transactions whose returns came too late for their commit-ok and still go out.
    late: BTreeSet<TransactionId>,
}

impl Channel {
    /// A channel whose client has just sent tx.select.
    pub fn new(number: u16, consumers: Consumers) -> Self {
        Self { number, consuming: Consuming::new(consumers), selects: 1, asked: true, ..Self::default() }
    }

    /// RabbitMQ is asked anew about the next message of each kind.
    pub fn end_leases(&mut self) {
        self.leases.forget();
    }

    /// Whether a commit is on its way.
    pub fn is_committing(&self) -> bool {
        self.commit.is_some()
    }

    /// Whether the client has to wait before it may send more.
    pub fn is_congested(&self) -> bool {
        self.line.behind.len() > BEHIND_BYTES_MAX || self.parks.len() > PARKS_MAX
    }

    /// Bytes that it holds in memory.
    pub fn held_bytes(&self) -> usize {
        let receiving = self.receiving.as_ref().map_or(0, Receiving::held_bytes);
        let judging = |asker: &Asker| if let Asker::Judge(_, batch) = asker { batch.bytes() } else { 0 };
        let judged: usize = self.answers.iter().map(judging).sum();
        let committing = self.commit.as_ref().map_or(0, Commit::held_bytes);
        self.transaction.held_bytes() + receiving + judged + committing + self.line.held_bytes()
    }

    /// Bytes that it holds for the sake of a message that is not all there.
    pub fn begun_bytes(&self) -> usize {
        let receiving = self.receiving.as_ref().filter(|receiving| receiving.header.is_some());
        receiving.map_or(0, |receiving| receiving.held_bytes() + self.transaction.batch.bytes())
    }

    /// Parks what has gathered of a transaction without a name, if it is whole and worth it.
    pub fn spill(&mut self, io: &mut Io) {
        let transaction = &mut self.transaction;
        let is_whole = transaction.named.is_none() && self.receiving.is_none();
        if is_whole && io.no_room.is_none() && transaction.batch.bytes() >= SPILL_BYTES_MIN {
            let batch = std::mem::take(&mut transaction.batch);
            park(transaction, batch, self.number, &mut self.parks, io);
        }
    }

    /// A frame from the client.
    pub fn handle_client(&mut self, frame: &Frame<'_>, io: &mut Io) -> Next {
        if self.line.closing {
            // Nothing may come here; RabbitMQ says so.
            io.to_upstream.extend_from_slice(frame.raw);
            return Next::Nothing;
        }
        if self.commit.is_some() || self.barrier.is_some() || self.rolling_back.is_some() {
            self.line.behind.push(frame.raw);
            return Next::Nothing;
        }
        if matches!(self.room, Room::Awaited { .. }) {
            return self.push_behind(frame, io);
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
            Next::BreakOff
        })
    }

    fn handle_method(&mut self, frame: &Frame<'_>, io: &mut Io) -> Result<Next, Malformed> {
        let method = frame.method_id().ok_or(Malformed)?;
        match method {
            id::BASIC_PUBLISH => {
                Publish::parse(frame.arguments())?;
                let publish = frame.arguments().to_vec();
                self.receiving = Some(Receiving { publish, header: None, remaining: 0, body: Body::Parked });
                return Ok(Next::Nothing);
            }
            id::TX_COMMIT if frame.arguments().is_empty() => return Ok(self.begin_commit(frame, io)),
            id::TX_ROLLBACK if frame.arguments().is_empty() => self.roll_back(io),
            id::BASIC_ACK | id::BASIC_NACK => {
                let settle = Settle::parse(frame.arguments())?;
                self.transaction.settle(settle, frame.raw, &mut self.consuming.unacked);
            }
            id::BASIC_REJECT => {
                let settle = Settle::parse_reject(frame.arguments())?;
                self.transaction.settle(settle, frame.raw, &mut self.consuming.unacked);
            }
            id::BASIC_GET | id::BASIC_CONSUME | id::BASIC_CANCEL => self.consuming.asked(method, frame.arguments())?,
            id::BASIC_RECOVER => self.redo_acks(io),
            id::BASIC_RECOVER_ASYNC => {
                self.redo_acks(io);
                self.recovered();
            }
            id::TX_SELECT if self.transaction.named.is_some() => self.barrier = Some(false),
            id::TX_SELECT => self.selects += 1,
            id::CHANNEL_CLOSE => {
                self.leave(io);
                self.room = Room::Enough;
                self.late.clear();
                self.line.closing = true;
            }
            _ if method::takes_away(method) => self.leases.take_away(),
            _ => self.leases.forget(),
        }
        if !matches!(method, id::BASIC_ACK | id::BASIC_NACK | id::BASIC_REJECT) {
            self.asked = self.barrier.is_none();
        }
        io.to_upstream.extend_from_slice(frame.raw);
        Ok(Next::Nothing)
    }

    /// Answers the prepare barrier if everything before it is durable.
    fn pass_barrier(&mut self, io: &mut Io) -> Next {
        let is_durable = self.transaction.is_parked() && self.transaction.id.is_none_or(|id| !self.parks.contains(&id));
        if self.barrier != Some(true) || !is_durable {
            return Next::Nothing;
        }
        self.barrier = None;
        let mut answer = Vec::new();
        method::write_bare(&mut answer, self.number, id::TX_SELECT_OK);
        self.line.say(&answer, io);
        Next::Release
    }

    /// The store has kept, or not kept, what was parked.
    pub fn handle_parked(&mut self, id: TransactionId, result: Result<(), StoreError>, io: &mut Io) -> Next {
        let Some(at) = self.parks.iter().position(|parked| *parked == id) else { return Next::Nothing };
        self.parks.swap_remove(at);
        let committing = self.commit.as_ref().map(|commit| commit.transaction.id);
        match result {
            Err(error) if [committing, Some(self.transaction.id)].contains(&Some(Some(id))) => {
                refuse_store(&error, method::id::BASIC_PUBLISH)
            }
            _ => match self.pass_barrier(io) {
                Next::Nothing => self.decide(io),
                release => release,
            },
        }
    }

    /// Its transaction, which is open no more.
    fn take_transaction(&mut self, io: &mut Io) -> Transaction {
        if let Some(since) = self.transaction.since {
            io.open.remove(&(since, self.number));
        }
        std::mem::take(&mut self.transaction)
    }

    /// Its transaction is open for longer than one may be.
    pub fn is_too_old(&self, io: &Io) -> Next {
        let text = format!("the transaction is open for more than {:?} (transaction.max_age)", io.settings.age_max);
        Next::Refuse(ReplyCode::PRECONDITION_FAILED, text, (0, 0))
    }

    fn roll_back(&mut self, io: &mut Io) {
        let mut transaction = self.take_transaction(io);
        self.room = Room::Enough;
        self.leases.next_transaction(io);
        if let Some(unacked) = transaction.take_unsettled() {
            self.consuming.unacked = unacked;
        }
        // One without a name is rolled back by the next start, whatever the store has kept.
        let stored = transaction.id.filter(|_| transaction.parked && transaction.named.is_some());
        self.rolling_back = stored.map(|transaction| RollingBack { transaction, answered: false, durable: false });
        self.answers.push_back(if stored.is_some() { Asker::RollBack } else { Asker::Client });
        roll_back(&transaction, self.number, Outcome::RolledBack, None, io);
    }

    /// The store has, or has not, kept that a transaction is rolled back.
    pub fn handle_rolled_back(
        &mut self,
        transaction: TransactionId,
        result: Result<(), StoreError>,
        io: &mut Io,
    ) -> Next {
        let Some(own) = self.rolling_back.as_mut().filter(|own| own.transaction == transaction) else {
            return Next::Nothing;
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
    fn pass_rollback(&mut self, io: &mut Io) -> Next {
        if self.rolling_back.take_if(|own| own.answered && own.durable).is_none() {
            return Next::Nothing;
        }
        let mut answer = Vec::new();
        method::write_bare(&mut answer, self.number, id::TX_ROLLBACK_OK);
        self.line.say(&answer, io);
        Next::Release
    }

    /// A frame from RabbitMQ.
    pub fn handle_upstream(&mut self, frame: &Frame<'_>, io: &mut Io) -> Next {
        let outcome = match frame.method_id() {
            Some(id::TX_ROLLBACK_OK | id::TX_COMMIT_OK) => match self.answers.pop_front() {
                Some(Asker::Client) | None => Next::Nothing,
                Some(Asker::RollBack) => {
                    if let Some(own) = &mut self.rolling_back {
                        own.answered = true;
                    }
                    return self.pass_rollback(io);
                }
                Some(Asker::Trim) => {
                    self.leases.fenced();
                    return Next::Nothing;
                }
                Some(Asker::Judge(id, batch)) => {
                    self.leases.fenced();
                    return self.park_judged(id, batch, io);
                }
                Some(Asker::Fence) => {
                    self.leases.fenced();
                    return self.fenced(io);
                }
                Some(Asker::Settle) => return self.settled(io),
            },
            Some(id::TX_SELECT_OK) if self.selects > 0 => {
                self.selects -= 1;
                Next::Nothing
            }
            Some(id::TX_SELECT_OK) if self.barrier == Some(false) => {
                self.barrier = Some(true);
                return self.pass_barrier(io);
            }
            Some(id::CHANNEL_CLOSE_OK) if self.line.closing => Next::Forget,
            Some(id::CHANNEL_CLOSE) => {
                match Close::parse(frame.arguments()) {
                    // A refused publish decides its transaction: nobody may release half of it later.
                    Ok(Close { code, text, method: id::BASIC_PUBLISH }) => {
                        let text = String::from_utf8_lossy(text);
                        if self.leases.has_words() {
                            io.commands.push_back(Command::EndLeases);
                        }
                        self.abandon(Outcome::Refused, Some(format!("refused by RabbitMQ: {code} {text}")), io);
                    }
                    _ => self.leave(io),
                }
                Next::Forget
            }
            Some(method) => {
                self.note_method(method, frame.arguments());
                Next::Nothing
            }
            None => Next::Nothing,
        };
        self.line.pass(frame, io);
        outcome
    }

    /// Keeps account of delivery tags.
    fn note_method(&mut self, method: (u16, u16), arguments: &[u8]) {
        match self.consuming.note(method, arguments) {
            Some(Noted::Delivered(tag)) => self.transaction.delivered(tag),
            Some(Noted::Recovered) => self.recovered(),
            None => {}
        }
    }

    fn recovered(&mut self) {
        self.transaction.recovered(&self.consuming.unacked);
        self.consuming.unacked.clear();
    }

    /// RabbitMQ is gone, and with it every answer that it owed. What the store is deciding goes on.
    pub fn lose_upstream(&mut self, io: &mut Io) -> Next {
        match &mut self.commit {
            None => Next::Nothing,
            Some(Commit { step: Step::Fencing | Step::Confirming(_) | Step::Fenced, .. }) => {
                self.leave(io);
                Next::Nothing
            }
            Some(Commit { step: Step::Deciding | Step::DecidingOthers(_), .. }) => Next::Nothing,
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
        let transaction = self.take_transaction(io);
        leave(&transaction, self.number, Outcome::RolledBack, io);
        self.leave_commit(None, None, io);
    }

    /// The channel is over because something was refused, or failed: what is undecided is rolled back, for `reason`. A
    /// decision that is being made goes on without it; one that failed leaves a named transaction in doubt.
    pub fn abandon(&mut self, outcome: Outcome, reason: Option<String>, io: &mut Io) {
        let transaction = self.take_transaction(io);
        roll_back(&transaction, self.number, outcome, reason.clone(), io);
        self.leave_commit(Some(outcome), reason, io);
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
fn roll_back(transaction: &Transaction, channel: u16, outcome: Outcome, reason: Option<String>, io: &mut Io) {
    if !transaction.has_no_message() {
        io.commands.push_back(Command::Ended(outcome));
    }
    if let Some(transaction) = transaction.id.filter(|_| transaction.parked) {
        io.commands.push_back(Command::RollBack { channel, transaction, reason });
    }
}

/// Forgets an undecided transaction, which ended in this way, unless it is named and in the store.
fn leave(transaction: &Transaction, channel: u16, outcome: Outcome, io: &mut Io) {
    match transaction.id.filter(|_| transaction.parked && transaction.named.is_some()) {
        None => roll_back(transaction, channel, outcome, None, io),
        Some(id) => {
            io.commands.push_back(Command::Ended(Outcome::InDoubt));
            io.commands.push_back(Command::Abandon { transaction: id });
        }
    }
}

fn refuse_store(error: &StoreError, method: (u16, u16)) -> Next {
    Next::Refuse(error.reply_code(), error.to_string(), method)
}
