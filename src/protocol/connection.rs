//! One client connection and its twin to RabbitMQ: bytes and events in, bytes and commands out.
//!
//! Frames of ordinary channels pass as they are: only their header and, for methods, the class and method ids are looked
//! at, and runs of them are copied in one piece. Where a client breaks the protocol, what it sent is passed on, so that
//! RabbitMQ gives its own answer to it.

mod client;
mod ending;
mod login;
mod numbers;
mod ordinary;
mod refused;
mod slots;
#[cfg(test)]
pub(super) mod tests;
mod turn;
mod upstream;

use self::login::Handshake;
pub(super) use self::numbers::Numbers;
use self::refused::Refused;
use self::slots::Slots;
use super::behind::Behind;
use super::channel::Channel;
use super::command::{Command, ConnectionSettings, Io, Next, Refusal, Stage, Ticket};
use super::deliveries::Consumers;
use super::judge::{Judge, Question};
use super::ordinary::HalfChannel;
use crate::amqp::frame::{self};
use crate::amqp::method::{self, id};
use crate::amqp::reply_code::ReplyCode;
use crate::tx::decision::Verdict;
use crate::tx::id::TransactionId;
use crate::tx::name::TransactionName;
use crate::tx::outcome::{Forwarded, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest frame payload taken from a client before RabbitMQ has told its version. See [`Connection::input_bytes_max`].
const LOGIN_FRAME_BYTES_MAX: usize = 4_096;
/// Largest frame payload where RabbitMQ sets no limit, and from RabbitMQ, which never splits a content header.
const FRAME_BYTES_MAX: usize = 256 << 20;
/// RabbitMQ leaves a refused login unanswered for so long before it closes.
const REFUSED_FOR: Duration = Duration::from_secs(3);
/// How long a commit may go on whose client has gone: RabbitMQ may never answer.
const LOST_FOR: Duration = Duration::from_secs(30);
/// How long a client may take to answer connection.close.
const CLOSE_OK_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The client's protocol header is due.
    Greeting,
    /// RabbitMQ is being connected to.
    Connecting,
    /// From RabbitMQ's start to its open-ok.
    Handshake,
    /// Open.
    Running,
    /// RabbitMQ closes, or is about to: the client broke the framing, or one side has sent connection.close. Bytes pass
    /// until RabbitMQ ends the connection.
    PassThrough,
    /// The login was refused here: silence until the time is up, as from RabbitMQ.
    Refused,
    /// connection.close was sent from here; close-ok is due.
    Closing,
    /// Over.
    Closed,
}

/// Why the connection is being ended from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The proxy shuts down.
    Drain,
    /// RabbitMQ is gone.
    UpstreamLost,
    /// An operator closes it, or there is no place for it.
    Dismissed,
    /// The client sent connection.close while a commit was running; it goes on to RabbitMQ when none is.
    ClientClose,
    /// The client is gone without a word, and a commit that it sent is running.
    ClientLost,
}

/// A channel that is not simply an ordinary one.
#[derive(Debug)]
enum Slot {
    Tx(Box<Channel>),
    /// In confirm mode, with so many messages published.
    Confirm(u64),
    /// Half messages were published on it.
    Half(Box<HalfChannel>),
    /// Closed by the proxy; the client, or RabbitMQ, has not answered yet.
    Refused(Refused),
}

/// Where a frame of the client goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Road {
    /// To RabbitMQ, as it is.
    Pass,
    /// To a closer look.
    Look,
    /// Nowhere yet: what it is depends on the frame behind it.
    Wait,
}

/// Stands for the judge among [`Connection::congested`]: the client waits until it has stepped aside.
const JUDGE: u16 = 0;

/// The protocol logic of one session.
#[derive(Debug)]
pub struct Connection {
    /// Bytes out, and what channels share.
    pub io: Io,
    phase: Phase,
    channels: Slots,
    open: Numbers,
    /// How many RabbitMQ lets be open; 0 is no limit.
    channel_max: u16,
    judge: Judge,
    /// The client's channel.open, while the judge steps aside for it.
    behind_judge: Vec<u8>,
    /// How many channel.flow of the client RabbitMQ has not answered, on ordinary channels that have some.
    flows: BTreeMap<u16, usize>,
    /// Consumers of ordinary channels, which matter if they become transactional.
    consumers: BTreeMap<u16, Consumers>,
    /// Channels that the proxy closed at RabbitMQ, whose close-ok has not come: what comes on them is nobody's.
    closing_upstream: BTreeSet<u16>,
    /// Channels whose client has to wait.
    congested: BTreeSet<u16>,
    handshake: Handshake,
    /// Largest frame payload that RabbitMQ takes before open-ok.
    login_frame_max: usize,
    /// The client announced `connection.blocked`.
    understands_blocked: bool,
    ending: Option<End>,
    /// Why it is [`End::Dismissed`].
    closed_because: String,
    /// The client's connection.close, while it waits for a commit.
    client_close: Vec<u8>,
    /// When the phase ends by itself.
    phase_until: Option<Instant>,
    /// connection.blocked was sent from here, or would have been if the client understood it.
    blocked: bool,
    blocked_upstream: bool,
    had_its_turn: bool,
}

impl Connection {
    /// A connection that was accepted and has not spoken. `handshake_until` is when it is closed if it is not open then.
    pub fn new(settings: ConnectionSettings, now: Instant, handshake_until: Instant) -> Self {
        Self {
            io: Io::new(settings, now),
            phase: Phase::Greeting,
            channels: Slots::default(),
            open: Numbers::default(),
            channel_max: 0,
            judge: Judge::default(),
            behind_judge: Vec::new(),
            flows: BTreeMap::new(),
            consumers: BTreeMap::new(),
            closing_upstream: BTreeSet::new(),
            congested: BTreeSet::new(),
            handshake: Handshake::Start,
            login_frame_max: LOGIN_FRAME_BYTES_MAX,
            understands_blocked: false,
            ending: None,
            closed_because: String::new(),
            client_close: Vec::new(),
            phase_until: Some(handshake_until),
            blocked: false,
            blocked_upstream: false,
            had_its_turn: false,
        }
    }

    /// New limits, waits and checkers, for transactions that begin from now on. Who may log in was asked at the start, and
    /// the control exchange stays what it was: a message to it may have begun.
    pub fn change_settings(&mut self, settings: ConnectionSettings) {
        let old = &self.io.settings;
        let (login, control_exchange) = (old.login.clone(), Arc::clone(&old.control_exchange));
        self.io.settings = Arc::new(ConnectionSettings { login, control_exchange, ..settings });
        self.end_leases();
    }

    /// RabbitMQ is asked anew about the next message of each kind.
    fn end_leases(&mut self) {
        for slot in self.channels.values_mut() {
            match slot {
                Slot::Tx(channel) => channel.end_leases(),
                Slot::Half(channel) => channel.end_leases(),
                Slot::Confirm(_) | Slot::Refused(_) => {}
            }
        }
    }

    /// How far it is, for people to look at.
    pub fn stage(&self) -> Stage {
        match self.phase {
            Phase::Running if self.ending.is_none() => match self.blocked || self.blocked_upstream {
                true => Stage::Blocked,
                false => Stage::Open,
            },
            Phase::Greeting | Phase::Connecting | Phase::Handshake => Stage::Opening,
            _ => Stage::Closing,
        }
    }

    /// Channels that are open, and those of them that are transactional.
    pub fn channels(&self) -> (usize, usize) {
        (self.open.len(), self.channels.transactional())
    }

    /// Bytes that are held for the client: what it sent and is not done with, and what waits for it.
    pub fn held_bytes(&self) -> usize {
        let held = |slot: &Slot| match slot {
            Slot::Tx(channel) => channel.held_bytes(),
            Slot::Half(channel) => channel.held_bytes(),
            Slot::Confirm(_) | Slot::Refused(_) => 0,
        };
        self.io.to_client.len() + self.io.to_upstream.len() + self.channels.values().map(held).sum::<usize>()
    }

    /// Memory is short, and nobody comes to an end: closes the channel with the largest message that is not all there, if there
    /// is one, and says whether.
    pub fn give_up_body(&mut self) -> bool {
        let begun = |number: &u16| match self.channels.get(number) {
            Some(Slot::Tx(channel)) => channel.begun_bytes(),
            Some(Slot::Half(channel)) => channel.begun_bytes(),
            Some(Slot::Confirm(_) | Slot::Refused(_)) | None => 0,
        };
        let largest = self.channels.keys().map(|number| (begun(number), *number)).max();
        let Some((1.., number)) = largest else { return false };
        let text = "memory is short (memory.max), and this message did not come to its end";
        self.refuse(number, ReplyCode::RESOURCE_ERROR, text, id::BASIC_PUBLISH);
        true
    }

    /// Memory is short: gives the store what it can keep already.
    pub fn spill(&mut self) {
        for slot in self.channels.values_mut() {
            if let Slot::Tx(channel) = slot {
                channel.spill(&mut self.io);
            }
        }
    }

    /// The next thing to do, in order.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.io.commands.pop_front()
    }

    /// All others have had their turn.
    pub fn begin_turn(&mut self) {
        self.had_its_turn = false;
    }

    /// Whether as much was handled as there may be before all others have theirs.
    pub fn had_its_turn(&self) -> bool {
        self.had_its_turn
    }

    /// Whether more bytes of the client may be handled now.
    pub fn wants_client(&self) -> bool {
        self.congested.is_empty()
            && self.ending.is_none_or(|_| self.phase == Phase::Closing)
            && match self.phase {
                Phase::Connecting | Phase::Closed => false,
                Phase::Handshake => self.handshake.is_clients_turn(),
                _ => true,
            }
    }

    /// How many bytes of the client may be kept for [`Connection::handle_client`]. Before open-ok they are few: nobody
    /// has said yet that the client may be here.
    pub fn input_bytes_max(&self) -> Option<usize> {
        match self.phase {
            Phase::Greeting | Phase::Connecting | Phase::Handshake | Phase::Refused => {
                Some(self.login_frame_max + frame::OVERHEAD_BYTES)
            }
            Phase::Running | Phase::PassThrough | Phase::Closing | Phase::Closed => None,
        }
    }

    /// When [`Connection::handle_time`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let commit = self.io.timers.first().map(|(until, _)| *until);
        [commit, self.oldest_ends(), self.phase_until].into_iter().flatten().min()
    }

    /// Since when its oldest transaction is open that nobody has decided.
    pub fn oldest_open(&self) -> Option<Instant> {
        self.io.open.first().map(|(since, _)| *since)
    }

    /// When that is open for longer than one may be.
    fn oldest_ends(&self) -> Option<Instant> {
        let age_max = Some(self.io.settings.age_max).filter(|max| !max.is_zero())?;
        self.oldest_open()?.checked_add(age_max)
    }

    /// Whether the handshake is through and the connection not yet closing.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::PassThrough)
    }

    /// Whether a client that says nothing counts as dead after a while. RabbitMQ doesn't miss the heartbeats of one that
    /// it has blocked; nor may anybody here, or those of one who only waits for the end.
    pub fn misses_heartbeats(&self) -> bool {
        self.phase == Phase::Running && self.ending.is_none() && !self.blocked_upstream
    }

    /// The framing is broken: from here on RabbitMQ gets the bytes as they come, and has the last word.
    fn break_off(&mut self) {
        for slot in self.channels.values_mut() {
            match slot {
                Slot::Tx(channel) => channel.pass_receiving(&mut self.io),
                Slot::Half(channel) => channel.pass_receiving(&mut self.io),
                Slot::Confirm(_) | Slot::Refused(_) => {}
            }
        }
        self.abandon_all();
        self.phase = Phase::PassThrough;
    }

    /// Does what a channel needs.
    fn apply(&mut self, number: u16, next: Next) {
        match next {
            Next::Nothing | Next::Pass => {}
            Next::Forget => {
                if let Some(Slot::Tx(mut channel)) = self.channels.remove(&number) {
                    self.congested.remove(&number);
                    self.replay(number, channel.line.take_behind());
                }
                return self.end_if_idle();
            }
            Next::Release => {
                let behind = match self.channels.get_mut(&number) {
                    Some(Slot::Tx(channel)) => channel.line.take_behind(),
                    Some(Slot::Half(channel)) => channel.line.take_behind(),
                    Some(Slot::Confirm(_) | Slot::Refused(_)) | None => Behind::default(),
                };
                self.replay(number, behind);
                self.end_if_idle();
            }
            Next::Ask(probes) => {
                for (ticket, probe) in probes {
                    if !self.ask(Question { channel: number, ticket, probe, is_renewal: false }) {
                        return;
                    }
                }
            }
            Next::Renew(ticket, probe) => {
                self.ask(Question { channel: number, ticket, probe, is_renewal: true });
            }
            Next::Refuse(code, detail, method) => return self.refuse(number, code, &detail, method),
            Next::BreakOff => return self.break_off(),
        }
        match self.channels.get(&number) {
            Some(Slot::Tx(channel)) if channel.is_congested() => drop(self.congested.insert(number)),
            Some(Slot::Half(channel)) if channel.is_congested() => drop(self.congested.insert(number)),
            _ => drop(self.congested.remove(&number)),
        }
    }

    /// The store's answer to [`Command::Park`].
    pub fn handle_parked(&mut self, channel: u16, transaction: TransactionId, result: Result<(), StoreError>) {
        if let Some(Slot::Half(half)) = self.channels.get_mut(&channel) {
            let next = half.handle_parked(transaction, result, &mut self.io);
            return self.apply(channel, next);
        }
        self.on_channel(channel, |channel, io| channel.handle_parked(transaction, result, io));
    }

    /// The store's answer to [`Command::RollBack`].
    pub fn handle_rolled_back(&mut self, channel: u16, transaction: TransactionId, result: Result<(), StoreError>) {
        self.on_channel(channel, |channel, io| channel.handle_rolled_back(transaction, result, io));
    }

    /// The store's answer to [`Command::Decide`].
    pub fn handle_decided(
        &mut self,
        channel: u16,
        ticket: Ticket,
        name: &TransactionName,
        result: Result<Verdict, StoreError>,
    ) {
        if let Some(Slot::Half(half)) = self.channels.get_mut(&channel) {
            let next = half.handle_decided(ticket, result, &mut self.io);
            return self.apply(channel, next);
        }
        self.on_channel(channel, |channel, io| channel.handle_decided(ticket, name, result, io));
    }

    /// The store's answer to [`Command::Commit`]; `true`: it was committed just now, and is being forwarded.
    pub fn handle_committed(&mut self, channel: u16, transaction: TransactionId, result: Result<bool, StoreError>) {
        self.on_channel(channel, |channel, io| channel.handle_committed(transaction, result, io));
    }

    /// The relay's answer for every message of a committed transaction.
    pub fn handle_forwarded(&mut self, channel: u16, transaction: TransactionId, forwarded: Forwarded) {
        self.on_channel(channel, |channel, io| channel.handle_forwarded(transaction, forwarded, io));
    }

    /// Nobody will tell what became of it, or it may take long: it is on its way, and not waited for.
    pub fn handle_unforwarded(&mut self, channel: u16, transaction: TransactionId) {
        self.on_channel(channel, |channel, io| channel.handle_unforwarded(transaction, io));
    }

    fn on_channel(&mut self, number: u16, event: impl FnOnce(&mut Channel, &mut Io) -> Next) {
        if let Some(Slot::Tx(channel)) = self.channels.get_mut(&number) {
            let next = event(channel, &mut self.io);
            self.apply(number, next);
        }
    }

    /// Tells the time; to be called before anything else is told, and whenever a deadline has passed.
    pub fn handle_time(&mut self, now: Instant) {
        self.io.now = now;
        while let Some((until, number)) = self.io.timers.first().copied().filter(|(until, _)| *until <= now) {
            self.io.timers.remove(&(until, number));
            self.on_channel(number, Channel::wait_is_over);
        }
        while self.oldest_ends().is_some_and(|at| at <= now) {
            if let Some((_, number)) = self.io.open.pop_first() {
                self.on_channel(number, |channel, io| channel.is_too_old(io));
            }
        }
        if self.phase_until.is_some_and(|until| until <= now) {
            self.phase_until = None;
            if matches!(self.phase, Phase::Greeting | Phase::Connecting | Phase::Handshake) {
                self.io.commands.push_back(Command::Refused(Refusal::Timeout));
            }
            self.abandon_all();
            self.phase = Phase::Closed;
            self.io.commands.push_back(Command::Abort);
        }
    }

    /// The store takes nothing more of this client, and why; or it has room again.
    pub fn handle_room(&mut self, no_room: Option<&'static str>) {
        self.io.no_room = no_room;
        if no_room.is_some() {
            return;
        }
        if std::mem::take(&mut self.blocked) && !self.blocked_upstream && self.understands_blocked {
            method::write_bare(&mut self.io.to_client, 0, id::CONNECTION_UNBLOCKED);
        }
        for number in self.channels.keys().copied().collect::<Vec<_>>() {
            let next = match self.channels.get_mut(&number) {
                Some(Slot::Tx(channel)) => channel.have_room(),
                Some(Slot::Half(channel)) => channel.have_room(&mut self.io),
                Some(Slot::Confirm(_) | Slot::Refused(_)) | None => Next::Nothing,
            };
            self.apply(number, next);
        }
    }

    /// What [`Connection::handle_room`] said last.
    pub fn no_room(&self) -> Option<&'static str> {
        self.io.no_room
    }

    /// As RabbitMQ under an alarm, the first publish that the store has no room for is answered by connection.blocked. But all
    /// that comes is read: what decides makes room.
    fn block_if_full(&mut self) {
        let no_room = self.io.no_room.filter(|_| self.phase == Phase::Running);
        let Some(why) = no_room.filter(|_| std::mem::take(&mut self.io.published) && !self.blocked) else { return };
        self.blocked = true;
        if !self.blocked_upstream && self.understands_blocked {
            method::write_blocked(&mut self.io.to_client, why.as_bytes());
        }
    }
}
