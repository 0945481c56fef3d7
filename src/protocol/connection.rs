//! One client connection and its twin to RabbitMQ: bytes and events in, bytes and commands out.
//!
//! Frames of ordinary channels pass as they are: only their header and, for methods, the class and method ids are looked
//! at, and runs of them are copied in one piece. Where a client breaks the protocol, what it sent is passed on, so that
//! RabbitMQ gives its own answer to it.

mod ending;
mod login;
mod ordinary;
mod slots;
#[cfg(test)]
pub(super) mod tests;

use self::login::Handshake;
use self::slots::Slots;
use super::channel::{Channel, Outcome};
use super::command::{Command, Ended, Io, Refusal, Settings, Stage, Ticket};
use super::deliveries::{Consumers, Content};
use super::judge::Judge;
use super::ordinary::{HalfChannel, Step};
use crate::amqp::frame::{self, Frame, PROTOCOL_HEADER, Split, kind};
use crate::amqp::method::{self, Close, id};
use crate::amqp::reply_code::ReplyCode;
use crate::tx::decision::Verdict;
use crate::tx::id::TransactionId;
use crate::tx::name::TransactionName;
use crate::tx::outcome::{Forwarded, StoreError};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest frame payload taken from a client before RabbitMQ has told its version. See [`Connection::input_bytes_max`].
const LOGIN_FRAME_BYTES_MAX: usize = 4_096;
/// Largest frame payload where RabbitMQ sets no limit, and from RabbitMQ, which never splits a content header.
const FRAME_BYTES_MAX: usize = 256 << 20;
/// RabbitMQ leaves a refused login unanswered for so long before it closes.
const REFUSED_FOR: Duration = Duration::from_secs(3);
/// Bytes that may wait on a channel that RabbitMQ has not closed yet before the client has to wait.
const REFUSED_BEHIND_BYTES_MAX: usize = 64 << 10;
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

#[derive(Debug, Default)]
struct Refused {
    /// channel.close, if it waits for the end of a content.
    close: Vec<u8>,
    content: Content,
    client_answered: bool,
    /// What the client sent after its answer. RabbitMQ takes no channel.open before it has answered too.
    behind: Vec<u8>,
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
    /// The client's channels whose numbers RabbitMQ has not given back: until one of them has answered channel.close.
    open: HashSet<u16>,
    /// How many RabbitMQ lets be open; 0 is no limit.
    channel_max: u16,
    judge: Judge,
    /// The client's channel.open, while the judge steps aside for it.
    behind_judge: Vec<u8>,
    /// How many channel.flow of the client RabbitMQ has not answered, on ordinary channels that have some.
    flows: HashMap<u16, usize>,
    /// Consumers of ordinary channels, which matter if they become transactional.
    consumers: HashMap<u16, Consumers>,
    /// Channels that RabbitMQ closed and whose client has not answered: RabbitMQ ignores what comes on them.
    closed_upstream: HashSet<u16>,
    /// Channels that the proxy closed at RabbitMQ, whose close-ok has not come: what comes on them is nobody's.
    closing_upstream: HashSet<u16>,
    /// Channels whose client has to wait.
    congested: HashSet<u16>,
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
    store_full: bool,
    /// connection.blocked was sent from here, or would have been if the client understood it.
    blocked: bool,
    blocked_upstream: bool,
}

impl Connection {
    /// A connection that was accepted and has not spoken. `handshake_until` is when it is closed if it is not open then.
    pub fn new(settings: Settings, now: Instant, handshake_until: Instant) -> Self {
        Self {
            io: Io::new(settings, now),
            phase: Phase::Greeting,
            channels: Slots::default(),
            open: HashSet::new(),
            channel_max: 0,
            judge: Judge::default(),
            behind_judge: Vec::new(),
            flows: HashMap::new(),
            consumers: HashMap::new(),
            closed_upstream: HashSet::new(),
            closing_upstream: HashSet::new(),
            congested: HashSet::new(),
            handshake: Handshake::Start,
            login_frame_max: LOGIN_FRAME_BYTES_MAX,
            understands_blocked: false,
            ending: None,
            closed_because: String::new(),
            client_close: Vec::new(),
            phase_until: Some(handshake_until),
            store_full: false,
            blocked: false,
            blocked_upstream: false,
        }
    }

    /// New limits, waits and checkers, for transactions that begin from now on. Who may log in was asked at the start, and
    /// the control exchange stays what it was: a message to it may have begun.
    pub fn change_settings(&mut self, settings: Settings) {
        let old = &self.io.settings;
        let (login, control_exchange) = (old.login.clone(), Arc::clone(&old.control_exchange));
        self.io.settings = Arc::new(Settings { login, control_exchange, ..settings });
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

    /// The next thing to do, in order.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.io.commands.pop_front()
    }

    /// Whether more bytes of the client may be handled now.
    pub fn wants_client(&self) -> bool {
        self.congested.is_empty()
            && !self.blocked
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
        [commit, self.phase_until].into_iter().flatten().min()
    }

    /// Whether the handshake is through and the connection not yet closing.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::PassThrough)
    }

    /// Whether a client that says nothing counts as dead after a while. RabbitMQ doesn't miss the heartbeats of one that
    /// it has blocked; nor may anybody here, for whom the store has blocked, or who only waits for the end.
    pub fn misses_heartbeats(&self) -> bool {
        self.phase == Phase::Running && self.ending.is_none() && !self.blocked && !self.blocked_upstream
    }

    /// Bytes from the client. Gives back how many were used; the rest is the front of a frame, to be given again with
    /// more behind it.
    pub fn handle_client(&mut self, input: &[u8]) -> usize {
        let mut at = 0;
        loop {
            let rest = &input[at..];
            let (used, go_on) = match self.phase {
                Phase::Greeting => self.greeting(rest),
                Phase::Connecting | Phase::Closed => (0, false),
                Phase::Refused => (rest.len(), false),
                Phase::PassThrough => {
                    self.io.to_upstream.extend_from_slice(rest);
                    (rest.len(), false)
                }
                Phase::Handshake | Phase::Running | Phase::Closing => self.client_frames(rest),
            };
            at += used;
            if !go_on || at == input.len() {
                return at;
            }
        }
    }

    fn greeting(&mut self, input: &[u8]) -> (usize, bool) {
        let Some(greeting) = input.first_chunk::<8>() else { return (0, false) };
        // RabbitMQ takes the header of AMQP 0-9-1 in the form of 0-9 as well.
        if *greeting == PROTOCOL_HEADER || greeting == b"AMQP\x01\x01\x00\x09" {
            self.io.to_upstream.extend_from_slice(greeting);
            self.phase = Phase::Connecting;
            self.io.commands.push_back(Command::Connect);
        } else {
            self.io.to_client.extend_from_slice(&PROTOCOL_HEADER);
            self.io.commands.push_back(Command::Refused(Refusal::Protocol));
            self.close();
        }
        (8, false)
    }

    /// Handles frames until they end or the phase changes; the second value is whether another look may help.
    fn client_frames(&mut self, input: &[u8]) -> (usize, bool) {
        let phase = self.phase;
        let (mut run, mut at) = (0, 0);
        loop {
            match frame::split(&input[at..], self.client_payload_max()) {
                Split::Frame(frame) => {
                    match self.road(&frame, &input[at + frame.raw.len()..], true) {
                        Road::Pass => {
                            at += frame.raw.len();
                            continue;
                        }
                        Road::Wait => {
                            self.io.to_upstream.extend_from_slice(&input[run..at]);
                            return (at, false);
                        }
                        Road::Look => {}
                    }
                    self.io.to_upstream.extend_from_slice(&input[run..at]);
                    at += frame.raw.len();
                    run = at;
                    self.client_frame(&frame);
                    if self.phase != phase || !self.wants_client() {
                        return (at, self.phase != phase);
                    }
                }
                Split::NeedBytes(_) => {
                    self.io.to_upstream.extend_from_slice(&input[run..at]);
                    return (at, false);
                }
                Split::Malformed => {
                    self.io.to_upstream.extend_from_slice(&input[run..at]);
                    match self.phase {
                        Phase::Handshake => self.refuse_in_silence(Refusal::Protocol),
                        _ => self.break_off(),
                    }
                    return (at, true);
                }
            }
        }
    }

    fn client_payload_max(&self) -> usize {
        match (self.phase, self.io.frame_max) {
            (Phase::Handshake, _) => self.login_frame_max,
            (_, 0) => FRAME_BYTES_MAX,
            // RabbitMQ measures the payload alone, so it takes eight bytes more than it says.
            (_, max) => max as usize,
        }
    }

    fn client_frame(&mut self, frame: &Frame<'_>) {
        if self.phase == Phase::Handshake {
            return self.login_client_frame(frame);
        }
        if self.phase == Phase::Closing {
            if frame.method_id() == Some(id::CONNECTION_CLOSE_OK) {
                self.close();
            } else if frame.method_id() == Some(id::CONNECTION_CLOSE) {
                method::write_bare(&mut self.io.to_client, 0, id::CONNECTION_CLOSE_OK);
                self.close();
            }
            return;
        }
        if self.judge.is_at(frame.channel) && frame.method_id() != Some(id::CHANNEL_OPEN) {
            return self.frame_on_judge(frame);
        }
        match self.channels.get_mut(&frame.channel) {
            Some(Slot::Tx(channel)) => {
                let outcome = channel.handle_client(frame, &mut self.io);
                self.apply(frame.channel, outcome);
                self.block_if_full();
            }
            Some(Slot::Half(channel)) => {
                match channel.handle_client(frame, &mut self.io) {
                    Step::Pass => self.ordinary_client_frame(frame),
                    step => self.take(frame.channel, step),
                }
                self.block_if_full();
            }
            Some(Slot::Refused(_)) => self.refused_client_frame(frame),
            None if frame.channel == 0 => self.client_frame_0(frame),
            None | Some(Slot::Confirm(_)) => self.ordinary_client_frame(frame),
        }
    }

    fn ordinary_client_frame(&mut self, frame: &Frame<'_>) {
        let number = frame.channel;
        match frame.method_id() {
            Some(id::CHANNEL_OPEN) if self.judge.is_in_the_way(number, &self.open, self.channel_max) => {
                self.judge.step_aside(&mut self.io);
                self.behind_judge.extend_from_slice(frame.raw);
                self.congested.insert(JUDGE);
                return;
            }
            Some(id::CHANNEL_OPEN) => {
                // Whatever was there before: this is another channel.
                self.forget_ordinary(number);
                self.open.insert(number);
                self.closed_upstream.remove(&number);
            }
            Some(id::CHANNEL_CLOSE_OK) => {
                self.closed_upstream.remove(&number);
                self.open.remove(&number);
            }
            _ if self.closed_upstream.contains(&number) => {}
            Some(id::TX_SELECT) => {
                let consumers = self.consumers.remove(&number).unwrap_or_default();
                self.channels.insert(number, Slot::Tx(Box::new(Channel::new(number, consumers))));
            }
            Some(id::CHANNEL_FLOW) => *self.flows.entry(number).or_default() += 1,
            Some(id::CONFIRM_SELECT) if self.channels.get(&number).is_none() => {
                self.channels.insert(number, Slot::Confirm(0));
            }
            Some(id::BASIC_CONSUME) => {
                // What can't be read, RabbitMQ refuses.
                let _ = self.consumers.entry(number).or_default().asked(frame.arguments());
            }
            Some(id::BASIC_CANCEL) => {
                self.follow_consumers(number, |consumers| {
                    // What can't be read, RabbitMQ refuses.
                    let _ = consumers.cancelled(frame.arguments());
                });
            }
            // Nothing waits on it, or this would.
            Some(id::CHANNEL_CLOSE) => match self.channels.get_mut(&number) {
                // Confirms may still come, in RabbitMQ's numbers.
                Some(Slot::Half(channel)) => channel.close(),
                _ => drop(self.forget_ordinary(number)),
            },
            _ => {}
        }
        self.io.to_upstream.extend_from_slice(frame.raw);
    }

    /// A channel that the proxy closed: the client's frames are ignored until it has answered.
    fn refused_client_frame(&mut self, frame: &Frame<'_>) {
        let Some(Slot::Refused(refused)) = self.channels.get_mut(&frame.channel) else { return };
        match frame.method_id() {
            Some(id::CHANNEL_CLOSE) if !refused.client_answered => {
                // Behind the proxy's own channel.close, and never into the middle of a content.
                let out = if refused.close.is_empty() { &mut self.io.to_client } else { &mut refused.close };
                method::write_bare(out, frame.channel, id::CHANNEL_CLOSE_OK);
            }
            Some(id::CHANNEL_CLOSE_OK) if !refused.client_answered => {
                refused.client_answered = true;
                self.reopen_if_answered(frame.channel);
            }
            Some(id::CHANNEL_OPEN) => {
                refused.client_answered = true;
                refused.behind.extend_from_slice(frame.raw);
                self.reopen_if_answered(frame.channel);
            }
            _ if refused.client_answered => {
                refused.behind.extend_from_slice(frame.raw);
                if refused.behind.len() > REFUSED_BEHIND_BYTES_MAX {
                    self.congested.insert(frame.channel);
                }
            }
            _ => {}
        }
    }

    /// The channel is free again when both sides have answered.
    fn reopen_if_answered(&mut self, number: u16) {
        if self.closing_upstream.contains(&number) {
            return;
        }
        if let Some(Slot::Refused(Refused { client_answered: true, behind, .. })) = self.channels.get_mut(&number) {
            let behind = std::mem::take(behind);
            self.channels.remove(&number);
            self.open.remove(&number);
            self.congested.remove(&number);
            self.replay(&behind);
        }
    }

    fn client_frame_0(&mut self, frame: &Frame<'_>) {
        match frame.method_id() {
            None if frame.raw == frame::HEARTBEAT => return,
            Some(id::CONNECTION_CLOSE) => {
                self.ending = Some(End::ClientClose);
                self.client_close = frame.raw.to_vec();
                return self.end_if_idle();
            }
            _ => {}
        }
        self.io.to_upstream.extend_from_slice(frame.raw);
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

    fn apply(&mut self, number: u16, outcome: Outcome) {
        match outcome {
            Outcome::Stay => {}
            Outcome::Gone => {
                if !self.closed_upstream.contains(&number) {
                    self.open.remove(&number);
                }
                if let Some(Slot::Tx(mut channel)) = self.channels.remove(&number) {
                    self.congested.remove(&number);
                    self.replay(&channel.take_behind());
                }
                return self.end_if_idle();
            }
            Outcome::Released => {
                if let Some(Slot::Tx(channel)) = self.channels.get_mut(&number) {
                    let behind = channel.take_behind();
                    self.replay(&behind);
                }
                self.end_if_idle();
            }
            Outcome::Ask(ticket, probe) => drop(self.ask(number, ticket, probe)),
            Outcome::Refuse(code, detail, method) => return self.refuse(number, code, &detail, method),
            Outcome::Broken => return self.break_off(),
        }
        match self.channels.get(&number) {
            Some(Slot::Tx(channel)) if channel.is_congested() => drop(self.congested.insert(number)),
            _ => drop(self.congested.remove(&number)),
        }
    }

    /// Handles frames that waited behind a commit. They are whole, and were looked at before.
    fn replay(&mut self, mut frames: &[u8]) {
        if self.io.upstream_lost {
            // Nobody would ever answer them, and the client is about to be told so.
            return;
        }
        while let Split::Frame(frame) = frame::split(frames, FRAME_BYTES_MAX) {
            frames = &frames[frame.raw.len()..];
            match self.phase {
                Phase::Running => match self.road(&frame, frames, false) {
                    Road::Pass => self.io.to_upstream.extend_from_slice(frame.raw),
                    Road::Look | Road::Wait => self.client_frame(&frame),
                },
                Phase::PassThrough => self.io.to_upstream.extend_from_slice(frame.raw),
                _ => return,
            }
        }
    }

    /// Closes a channel towards both sides.
    fn refuse(&mut self, number: u16, code: ReplyCode, detail: &str, method: (u16, u16)) {
        if let Some(Slot::Half(channel)) = self.channels.get_mut(&number)
            && channel.holds_refusal(code, detail, method, &mut self.io)
        {
            self.congested.remove(&number);
            return self.end_if_idle();
        }
        let text = code.text(detail);
        let mut refused = Refused::default();
        let behind = match self.channels.remove(&number) {
            Some(Slot::Tx(mut channel)) => {
                let (ended, reason) = match (code, method) {
                    (_, id::TX_COMMIT) => (Ended::Failed, None),
                    (ReplyCode::PRECONDITION_FAILED, _) => (Ended::Refused, Some(format!("refused: {code} {text}"))),
                    _ => (Ended::Failed, Some(format!("refused: {code} {text}"))),
                };
                channel.abandon(ended, reason, &mut self.io);
                refused.content = channel.content();
                channel.take_behind()
            }
            Some(Slot::Half(mut channel)) => {
                channel.abandon(&mut self.io);
                refused.content = channel.content();
                refused.close = channel.take_held();
                channel.take_behind()
            }
            Some(other) => return self.channels.insert(number, other),
            None => return,
        };
        self.congested.remove(&number);
        Close { code, text: text.as_bytes(), method }.write(&mut refused.close, number);
        if refused.content == Content::Idle {
            self.io.to_client.append(&mut refused.close);
        }
        self.channels.insert(number, Slot::Refused(refused));
        if !self.io.upstream_lost {
            Close { code: ReplyCode::SUCCESS, text: b"", method: (0, 0) }.write(&mut self.io.to_upstream, number);
            self.closing_upstream.insert(number);
        }
        self.replay(&behind);
        self.end_if_idle();
    }

    /// RabbitMQ is connected.
    pub fn handle_upstream_connected(&mut self) {
        if self.phase == Phase::Connecting {
            self.phase = Phase::Handshake;
        }
    }

    /// Bytes from RabbitMQ; as for [`Connection::handle_client`].
    pub fn handle_upstream(&mut self, input: &[u8]) -> usize {
        if self.phase == Phase::Handshake && input.starts_with(b"AMQP") {
            // RabbitMQ speaks another protocol here. The client may know what to do with that.
            self.io.to_client.extend_from_slice(input);
            self.close();
            return input.len();
        }
        let (mut run, mut at) = (0, 0);
        loop {
            match frame::split(&input[at..], FRAME_BYTES_MAX) {
                Split::Frame(frame) => {
                    if self.upstream_frame_passes(&frame) {
                        at += frame.raw.len();
                        continue;
                    }
                    self.io.to_client.extend_from_slice(&input[run..at]);
                    at += frame.raw.len();
                    run = at;
                    self.upstream_frame(&frame);
                }
                Split::NeedBytes(_) => {
                    self.io.to_client.extend_from_slice(&input[run..at]);
                    return at;
                }
                Split::Malformed => {
                    self.io.to_client.extend_from_slice(&input[run..at]);
                    self.handle_upstream_lost();
                    return input.len();
                }
            }
        }
    }

    fn upstream_frame_passes(&self, frame: &Frame<'_>) -> bool {
        if frame.channel == 0
            || !matches!(self.phase, Phase::Running | Phase::PassThrough)
            || !matches!(self.channels.get(&frame.channel), None | Some(Slot::Confirm(_)))
            || !self.closing_upstream.is_empty()
            || self.judge.is_at(frame.channel)
        {
            return false;
        }
        match frame.method_id() {
            Some(id::CHANNEL_CLOSE | id::CHANNEL_CLOSE_OK) => false,
            Some(id::BASIC_CONSUME_OK | id::BASIC_CANCEL | id::BASIC_CANCEL_OK) => self.consumers.is_empty(),
            Some(id::CHANNEL_FLOW_OK) => self.flows.is_empty(),
            _ => true,
        }
    }

    fn upstream_frame(&mut self, frame: &Frame<'_>) {
        if matches!(self.phase, Phase::Refused | Phase::Closing | Phase::Closed) {
            return;
        }
        if self.phase == Phase::Handshake {
            return self.login_upstream_frame(frame);
        }
        if self.closing_upstream.contains(&frame.channel) {
            return self.closing_upstream_frame(frame);
        }
        if self.judge.is_at(frame.channel) {
            return self.judge_frame(frame);
        }
        if frame.channel != 0 && frame.method_id() == Some(id::CHANNEL_CLOSE) {
            self.closed_upstream.insert(frame.channel);
        }
        if let Some(Slot::Tx(channel)) = self.channels.get_mut(&frame.channel) {
            let outcome = channel.handle_upstream(frame, &mut self.io);
            return self.apply(frame.channel, outcome);
        }
        if let Some(Slot::Half(channel)) = self.channels.get_mut(&frame.channel) {
            match channel.handle_upstream(frame, &mut self.io) {
                Step::Pass => {}
                step => return self.take(frame.channel, step),
            }
        }
        if frame.channel == 0 {
            return self.upstream_frame_0(frame);
        }
        match frame.method_id() {
            Some(id::BASIC_CONSUME_OK | id::BASIC_CANCEL_OK) => {
                self.follow_consumers(frame.channel, |consumers| consumers.answered(frame.arguments()));
            }
            Some(id::BASIC_CANCEL) => {
                self.follow_consumers(frame.channel, |consumers| consumers.lost(frame.arguments()))
            }
            Some(id::CHANNEL_FLOW_OK) => {
                if let Some(flows) = self.flows.get_mut(&frame.channel) {
                    *flows = flows.saturating_sub(1);
                }
                self.flows.retain(|_, flows| *flows > 0);
            }
            Some(id::CHANNEL_CLOSE_OK) => {
                self.open.remove(&frame.channel);
                self.forget_ordinary(frame.channel);
            }
            Some(id::CHANNEL_CLOSE) => {
                let behind = self.forget_ordinary(frame.channel);
                self.io.to_client.extend_from_slice(frame.raw);
                self.replay(&behind);
                return self.end_if_idle();
            }
            _ => {}
        }
        self.io.to_client.extend_from_slice(frame.raw);
    }

    /// A frame on a channel that the proxy closed: nobody's, but for the end of a content that the client has begun to
    /// receive.
    fn closing_upstream_frame(&mut self, frame: &Frame<'_>) {
        if let Some(Slot::Refused(refused)) = self.channels.get_mut(&frame.channel)
            && refused.content != Content::Idle
        {
            // Answers to what the proxy asked for.
            let ours = [id::CHANNEL_CLOSE, id::CHANNEL_CLOSE_OK, id::CHANNEL_FLOW_OK];
            let is_ours = frame.method_id().is_some_and(|method| ours.contains(&method));
            if !is_ours {
                self.io.to_client.extend_from_slice(frame.raw);
            }
            refused.content.follow(frame);
            if refused.content == Content::Idle {
                self.io.to_client.append(&mut refused.close);
            }
            if !is_ours {
                return;
            }
        }
        match frame.method_id() {
            Some(id::CHANNEL_CLOSE_OK) => {
                self.closing_upstream.remove(&frame.channel);
                self.reopen_if_answered(frame.channel);
            }
            Some(id::CHANNEL_CLOSE) => {
                method::write_bare(&mut self.io.to_upstream, frame.channel, id::CHANNEL_CLOSE_OK);
            }
            _ => {}
        }
    }

    fn upstream_frame_0(&mut self, frame: &Frame<'_>) {
        match frame.method_id() {
            None if frame.kind == kind::HEARTBEAT => return,
            Some(id::CONNECTION_CLOSE) if self.phase == Phase::Running => self.break_off(),
            Some(id::CONNECTION_BLOCKED) => self.blocked_upstream = true,
            Some(id::CONNECTION_UNBLOCKED) => {
                self.blocked_upstream = false;
                if self.blocked {
                    return;
                }
            }
            _ => {}
        }
        self.io.to_client.extend_from_slice(frame.raw);
    }

    /// The store's answer to [`Command::Park`].
    pub fn handle_parked(&mut self, channel: u16, transaction: TransactionId, result: Result<(), StoreError>) {
        if let Some(Slot::Half(half)) = self.channels.get_mut(&channel) {
            let step = half.handle_parked(transaction, result, &mut self.io);
            return self.take(channel, step);
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
            let step = half.handle_decided(ticket, result, &mut self.io);
            return self.take(channel, step);
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

    fn on_channel(&mut self, number: u16, event: impl FnOnce(&mut Channel, &mut Io) -> Outcome) {
        if let Some(Slot::Tx(channel)) = self.channels.get_mut(&number) {
            let outcome = event(channel, &mut self.io);
            self.apply(number, outcome);
        }
    }

    /// Tells the time; to be called before anything else is told, and whenever a deadline has passed.
    pub fn handle_time(&mut self, now: Instant) {
        self.io.now = now;
        while let Some((until, number)) = self.io.timers.first().copied().filter(|(until, _)| *until <= now) {
            self.io.timers.remove(&(until, number));
            self.on_channel(number, Channel::stop_waiting);
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

    /// The store is past its limit, or has room again.
    pub fn handle_store_full(&mut self, full: bool) {
        self.store_full = full;
        if !full && self.blocked {
            self.blocked = false;
            if !self.blocked_upstream && self.understands_blocked {
                method::write_bare(&mut self.io.to_client, 0, id::CONNECTION_UNBLOCKED);
            }
        }
    }

    /// What [`Connection::handle_store_full`] said last.
    pub fn knows_store_full(&self) -> bool {
        self.store_full
    }

    /// As RabbitMQ under an alarm: the first publish that the store has no room for blocks the connection.
    fn block_if_full(&mut self) {
        if std::mem::take(&mut self.io.published) && self.store_full && !self.blocked && self.phase == Phase::Running {
            self.blocked = true;
            if !self.blocked_upstream && self.understands_blocked {
                method::write_blocked(&mut self.io.to_client, b"the store of halfway is full");
            }
        }
    }
}
