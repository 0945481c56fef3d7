//! What comes from RabbitMQ.

use super::turn::Turn;
use super::{Connection, FRAME_BYTES_MAX, Phase, Slot};
use crate::amqp::frame::{self, Frame, Split, kind};
use crate::amqp::method::{Close, id};
use crate::amqp::reply_code::ReplyCode;
use crate::protocol::command::{Command, Next};

impl Connection {
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
        let (mut run, mut at, mut turn) = (0, 0, Turn::default());
        loop {
            if turn.is_over() {
                self.had_its_turn = true;
                self.io.to_client.extend_from_slice(&input[run..at]);
                return at;
            }
            match frame::split(&input[at..], FRAME_BYTES_MAX) {
                Split::Frame(frame) => {
                    self.note_taken_away(&frame);
                    if self.upstream_frame_passes(&frame) {
                        at += frame.raw.len();
                        turn.passed();
                        continue;
                    }
                    self.io.to_client.extend_from_slice(&input[run..at]);
                    at += frame.raw.len();
                    run = at;
                    turn.looked_at(&frame);
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
            self.open.upstream_closes(frame.channel);
        }
        if frame.channel != 0 && frame.method_id() == Some(id::CHANNEL_CLOSE_OK) {
            self.open.upstream_answers(frame.channel);
        }
        if let Some(Slot::Tx(channel)) = self.channels.get_mut(&frame.channel) {
            let next = channel.handle_upstream(frame, &mut self.io);
            return self.apply(frame.channel, next);
        }
        if let Some(Slot::Half(channel)) = self.channels.get_mut(&frame.channel) {
            match channel.handle_upstream(frame, &mut self.io) {
                Next::Pass => {}
                next => return self.apply(frame.channel, next),
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
            Some(id::CHANNEL_CLOSE_OK) => drop(self.forget_ordinary(frame.channel)),
            Some(id::CHANNEL_CLOSE) => {
                let behind = self.forget_ordinary(frame.channel);
                self.io.to_client.extend_from_slice(frame.raw);
                self.replay(frame.channel, behind);
                return self.end_if_idle();
            }
            _ => {}
        }
        self.io.to_client.extend_from_slice(frame.raw);
    }

    fn upstream_frame_0(&mut self, frame: &Frame<'_>) {
        match frame.method_id() {
            None if frame.kind == kind::HEARTBEAT => return,
            Some(id::CONNECTION_CLOSE) if self.phase == Phase::Running => {
                let is_limit = Close::parse(frame.arguments()).is_ok_and(|close| close.code == ReplyCode::NOT_ALLOWED);
                if is_limit && self.judge.is_opening() {
                    self.io.commands.push_back(Command::NoSpareChannel);
                }
                self.break_off();
            }
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
}
