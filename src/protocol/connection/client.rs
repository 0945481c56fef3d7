//! What comes from the client.

use super::turn::Turn;
use super::{Connection, End, FRAME_BYTES_MAX, JUDGE, Phase, Road, Slot};
use crate::amqp::frame::{self, Frame, PROTOCOL_HEADER, Split};
use crate::amqp::method::{self, id};
use crate::protocol::behind::Behind;
use crate::protocol::channel::Channel;
use crate::protocol::command::{Command, Next, Refusal};

impl Connection {
    /// Bytes from the client. Gives back how many were used; the rest is the front of a frame, to be given again with
    /// more behind it, or was too much for one turn.
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
        let (mut run, mut at, mut turn) = (0, 0, Turn::default());
        loop {
            if turn.is_over() {
                self.had_its_turn = true;
                self.io.to_upstream.extend_from_slice(&input[run..at]);
                return (at, false);
            }
            match frame::split(&input[at..], self.client_payload_max()) {
                Split::Frame(frame) => {
                    match self.road(&frame, &input[at + frame.raw.len()..], true) {
                        Road::Pass => {
                            at += frame.raw.len();
                            turn.passed();
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
                    turn.looked_at(&frame);
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

    pub(super) fn client_payload_max(&self) -> usize {
        match (self.phase, self.io.frame_max) {
            (Phase::Handshake, _) => self.login_frame_max,
            (_, 0) => FRAME_BYTES_MAX,
            // RabbitMQ measures the payload alone, so it takes eight bytes more than it says.
            (_, max) => max as usize,
        }
    }

    pub(super) fn client_frame(&mut self, frame: &Frame<'_>) {
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
                let next = channel.handle_client(frame, &mut self.io);
                if channel.line.closing {
                    self.open.client_closes(frame.channel);
                }
                self.apply(frame.channel, next);
                self.block_if_full();
            }
            Some(Slot::Half(channel)) => {
                match channel.handle_client(frame, &mut self.io) {
                    Next::Pass => self.ordinary_client_frame(frame),
                    next => self.apply(frame.channel, next),
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
                self.open.opened(number);
            }
            Some(id::CHANNEL_CLOSE_OK) => self.open.client_answers(number),
            Some(id::CHANNEL_CLOSE) => {
                self.open.client_closes(number);
                // Nothing waits on it, or this would.
                match self.channels.get_mut(&number) {
                    // Confirms may still come, in RabbitMQ's numbers.
                    Some(Slot::Half(channel)) => channel.close(&mut self.io),
                    _ => drop(self.forget_ordinary(number)),
                }
            }
            _ if self.open.is_closed_upstream(number) => {}
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
            _ => {}
        }
        self.io.to_upstream.extend_from_slice(frame.raw);
    }

    fn client_frame_0(&mut self, frame: &Frame<'_>) {
        match frame.method_id() {
            None if frame.raw == frame::HEARTBEAT => return,
            Some(id::CONNECTION_CLOSE) => {
                self.ending = Some(End::ClientClose);
                self.client_close = frame.raw.to_vec();
                return self.end_if_idle();
            }
            // Another token may bring other permissions.
            Some(id::CONNECTION_UPDATE_SECRET) => self.end_leases(),
            _ => {}
        }
        self.io.to_upstream.extend_from_slice(frame.raw);
    }

    /// Handles frames that waited on a channel, behind a commit say, until one of them has to wait again: then all behind it
    /// do. They are whole, and were looked at before. They may be more than a turn has, but no others are handled in it then.
    pub(super) fn replay(&mut self, number: u16, mut behind: Behind) {
        if self.io.upstream_lost {
            // Nobody would ever answer them, and the client is about to be told so.
            return;
        }
        let mut turn = Turn::default();
        while let Split::Frame(frame) = frame::split(behind.frames(), FRAME_BYTES_MAX) {
            let bytes = frame.raw.len();
            turn.looked_at(&frame);
            self.had_its_turn |= turn.is_over();
            match self.phase {
                Phase::Running => match self.road(&frame, &behind.frames()[bytes..], false) {
                    Road::Pass => self.io.to_upstream.extend_from_slice(frame.raw),
                    Road::Look | Road::Wait => self.client_frame(&frame),
                },
                Phase::PassThrough => self.io.to_upstream.extend_from_slice(frame.raw),
                _ => return,
            }
            match self.channels.get_mut(&number) {
                Some(Slot::Tx(channel)) if !channel.line.behind.is_empty() => {
                    match channel.put_behind(behind, &self.io) {
                        Next::Release => behind = channel.line.take_behind(),
                        next => return self.apply(number, next),
                    }
                }
                Some(Slot::Half(channel)) if !channel.line.behind.is_empty() => return channel.line.behind = behind,
                _ => behind.advance(bytes),
            }
        }
    }
}
