//! Ordinary channels: which frames pass, which message is a half message, and the channels on which there was one.

use super::{Connection, JUDGE, Phase, Road, Slot};
use crate::amqp::frame::{self, Frame, Split, kind};
use crate::amqp::method::{self, id};
use crate::amqp::reply_code::ReplyCode;
use crate::protocol::behind::Behind;
use crate::protocol::command::Command;
use crate::protocol::deliveries::Consumers;
use crate::protocol::judge::Question;
use crate::protocol::ordinary::{self, HalfChannel};

impl Connection {
    /// Tells in one look what most frames need: to go on. `behind` is what follows the frame.
    ///
    /// Whether a message on an ordinary channel is a half message stands in its content header, so basic.publish waits
    /// for that, if it may.
    pub(super) fn road(&mut self, frame: &Frame<'_>, behind: &[u8], may_wait: bool) -> Road {
        if frame.channel == 0 || self.phase != Phase::Running {
            return Road::Look;
        }
        if self.judge.is_at(frame.channel) {
            return Road::Look;
        }
        self.note_taken_away(frame);
        let payload_bytes_max = self.client_payload_max();
        let slot = self.channels.get_mut(&frame.channel);
        if !matches!(slot, None | Some(Slot::Confirm(_))) {
            return Road::Look;
        }
        match frame.method_id() {
            Some(id::BASIC_PUBLISH) if !self.open.is_closed_upstream(frame.channel) => {}
            Some(
                id::TX_SELECT
                | id::CONFIRM_SELECT
                | id::BASIC_CONSUME
                | id::BASIC_CANCEL
                | id::CHANNEL_CLOSE
                | id::CHANNEL_CLOSE_OK
                | id::CHANNEL_OPEN
                | id::CHANNEL_FLOW,
            ) => return Road::Look,
            _ => return Road::Pass,
        }
        let is_ordinary = match frame::split(behind, payload_bytes_max) {
            Split::Frame(header) if header.channel == frame.channel && header.kind == kind::HEADER => {
                !ordinary::is_ours(frame.arguments(), header.payload, &self.io.settings.control_exchange)
            }
            Split::NeedBytes(_) if may_wait => return Road::Wait,
            // Frames of other channels stand in between: the channel is followed from here on, and will be found out.
            Split::Frame(_) | Split::NeedBytes(_) => false,
            // RabbitMQ's to answer.
            Split::Malformed => true,
        };
        let published = match slot {
            Some(Slot::Confirm(published)) => Some(published),
            _ => None,
        };
        if is_ordinary {
            if let Some(published) = published {
                *published += 1;
            }
            return Road::Pass;
        }
        let flows = self.flows.get(&frame.channel).copied().unwrap_or_default();
        let half = HalfChannel::new(frame.channel, published.map(|published| *published), flows);
        self.channels.insert(frame.channel, Slot::Half(Box::new(half)));
        Road::Look
    }

    /// Something may be taken away on which RabbitMQ's judgements rest, in any session of the virtual host.
    pub(super) fn note_taken_away(&mut self, frame: &Frame<'_>) {
        let is_said = matches!(self.io.commands.back(), Some(Command::EndLeases));
        if !is_said && frame.method_id().is_some_and(method::takes_away) {
            self.io.commands.push_back(Command::EndLeases);
        }
    }

    /// Tells the consumers of an ordinary channel what happened to them, and forgets them when there is none left.
    pub(super) fn follow_consumers(&mut self, number: u16, event: impl FnOnce(&mut Consumers)) {
        if let Some(consumers) = self.consumers.get_mut(&number) {
            event(consumers);
            if consumers.is_empty() {
                self.consumers.remove(&number);
            }
        }
    }

    /// An ordinary channel is over.
    ///
    /// Gives back frames that waited on it. RabbitMQ ignores them now, but for a channel.close, which it answers.
    pub(super) fn forget_ordinary(&mut self, number: u16) -> Behind {
        self.consumers.remove(&number);
        self.flows.remove(&number);
        match self.channels.remove(&number) {
            Some(Slot::Half(mut channel)) => {
                channel.abandon(&mut self.io);
                self.congested.remove(&number);
                return channel.line.take_behind();
            }
            None | Some(Slot::Confirm(_)) => {}
            Some(other @ (Slot::Tx(_) | Slot::Refused(_))) => self.channels.insert(number, other),
        }
        Behind::default()
    }

    /// Asks RabbitMQ. `false`: it can't be asked, and the channel was closed for that.
    pub(super) fn ask(&mut self, question: Question) -> bool {
        let (number, is_renewal) = (question.channel, question.is_renewal);
        match self.judge.ask(question, &self.open, self.channel_max, &mut self.io) {
            Ok(()) => true,
            // The lease ends, and the next message is asked about on its own channel.
            Err(_) if is_renewal => true,
            Err(text) => {
                self.refuse(number, ReplyCode::RESOURCE_ERROR, &text, id::BASIC_PUBLISH);
                false
            }
        }
    }

    /// A frame of the client on the number that the judge has: to the client no channel is open there, and RabbitMQ says
    /// so, if it comes on a number where none is. It must not reach the judge's channel, where its answer would be taken
    /// for RabbitMQ's judgement.
    pub(super) fn frame_on_judge(&mut self, frame: &Frame<'_>) {
        frame::write_on(&mut self.io.to_upstream, self.judge.elsewhere(&self.open), frame);
        self.break_off();
    }

    /// A frame from RabbitMQ on the judge's channel.
    pub(super) fn judge_frame(&mut self, frame: &Frame<'_>) {
        if let Some((number, ticket, judgement)) = self.judge.handle(frame, &mut self.io) {
            match self.channels.get_mut(&number) {
                Some(Slot::Half(channel)) => {
                    let next = channel.handle_judged(ticket, judgement, &mut self.io);
                    self.apply(number, next);
                }
                Some(Slot::Tx(channel)) => {
                    let next = channel.handle_judged(ticket, judgement, &mut self.io);
                    self.apply(number, next);
                }
                Some(Slot::Confirm(_) | Slot::Refused(_)) | None => {}
            }
        }
        if self.judge.is_absent() {
            self.congested.remove(&JUDGE);
            let behind = std::mem::take(&mut self.behind_judge);
            self.replay(JUDGE, behind.into());
            for question in self.judge.take_questions() {
                self.ask(question);
            }
        }
    }
}
