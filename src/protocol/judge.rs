//! How RabbitMQ judges half messages that come on ordinary channels.
//!
//! An ordinary channel can't be asked without delivering. So the connection has one more channel at RabbitMQ, the
//! judge, in tx mode, on which a half message is published without its body and rolled back, as on a transactional
//! channel. It is opened with the first half message on an ordinary channel, under a number that the client does not
//! use, and belongs to the client's own connection: same user, same rights, same alarms.
//!
//! Channels run side by side in RabbitMQ, so the judge could look for an exchange before the client's own channel has
//! declared it. [`super::ordinary`] asks only when the client's channel has been through everything before.

use super::command::{Io, Next, Ticket};
use super::connection::Numbers;
use crate::amqp::frame::{Frame, Split, split, write_on};
use crate::amqp::method::{self, Close, id};
use crate::amqp::reply_code::ReplyCode;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How old the judge's channel may be when it is asked: RabbitMQ keeps its yes to a permission in the channel's process. An older
/// one is left for a new one.
const SAYS_YES_FROM_MEMORY: Duration = Duration::from_millis(500);

/// What RabbitMQ says of a half message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It would have taken it.
    Fine,
    /// It refuses it: with these arguments of channel.close.
    Refused {
        /// The reply code.
        code: ReplyCode,
        /// RabbitMQ's words, the code's name in front.
        text: Vec<u8>,
        /// The method that it names.
        method: (u16, u16),
    },
}

impl Judgement {
    /// What becomes of a channel with such a message.
    pub fn refuse(self) -> Next {
        let Self::Refused { code, text, method } = self else { return Next::Nothing };
        let text = String::from_utf8_lossy(&text).into_owned();
        // The channel's error is written with the code's name in front, which RabbitMQ has done already.
        let detail = text.strip_prefix(&format!("{} - ", code.name())).unwrap_or(&text).to_owned();
        Next::Refuse(code, detail, method)
    }

    /// Takes the answer to [`super::probe::write_claim`]: whether RabbitMQ knows the client under this name. Who may
    /// write nowhere that is known of is told so under the own name, too.
    ///
    /// # Errors
    /// What RabbitMQ says instead.
    pub fn confirms(self, user: &str, vhost: &str) -> Result<(), String> {
        let Self::Refused { code, text, .. } = self else { return Ok(()) };
        let text = String::from_utf8_lossy(&text).into_owned();
        let own = format!("access to exchange 'amq.default' in vhost '{vhost}' refused for user '{user}'");
        match code == ReplyCode::ACCESS_REFUSED && text.contains(&own) {
            true => Ok(()),
            false => Err(format!(
                "RabbitMQ does not confirm that this is user '{user}', whose transaction it would be: {text}"
            )),
        }
    }
}

/// A question to RabbitMQ.
#[derive(Debug)]
pub struct Question {
    /// The channel that asks.
    pub channel: u16,
    /// Tells it from others.
    pub ticket: Ticket,
    /// What RabbitMQ is to judge, in frames made for any channel.
    pub probe: Vec<u8>,
    /// Nobody waits for the answer.
    pub is_renewal: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Absent,
    Open {
        number: u16,
        since: Instant,
        /// RabbitMQ has answered channel.open.
        is_there: bool,
    },
    /// Its number is the client's again as soon as RabbitMQ has closed it.
    Closing(u16),
}

/// The channel, and what it was asked.
#[derive(Debug, Default)]
pub struct Judge {
    state: State,
    /// In the order in which they were asked.
    questions: VecDeque<Question>,
}

impl Judge {
    /// Whether a frame from RabbitMQ on this channel is the judge's.
    pub fn is_at(&self, channel: u16) -> bool {
        self.number() == Some(channel)
    }

    fn number(&self) -> Option<u16> {
        match self.state {
            State::Absent => None,
            State::Open { number, .. } | State::Closing(number) => Some(number),
        }
    }

    /// Whether RabbitMQ has yet to say that the judge's channel is open.
    pub fn is_opening(&self) -> bool {
        matches!(self.state, State::Open { is_there: false, .. })
    }

    /// A channel number on which nothing is open at RabbitMQ, for what the client sends on the judge's: that is not open
    /// for it. `open` are the client's channels.
    pub(super) fn elsewhere(&self, open: &Numbers) -> u16 {
        // With all numbers taken channel 0 says as well that there is no such channel.
        unused(open, self.number()).unwrap_or(0)
    }

    /// Whether the client can't open one more channel, this one, while the judge is there.
    pub(super) fn is_in_the_way(&self, channel: u16, open: &Numbers, channel_max: u16) -> bool {
        self.number().is_some_and(|number| number == channel || has_no_room(open.len() + 1, channel_max))
    }

    /// Asks about a message; its answer comes from [`Judge::handle`]. `open` are the client's channels, `channel_max` what
    /// was negotiated.
    ///
    /// # Errors
    /// The client has as many channels open as it may, so that none is left for this.
    pub(super) fn ask(
        &mut self,
        question: Question,
        open: &Numbers,
        channel_max: u16,
        io: &mut Io,
    ) -> Result<(), String> {
        if !io.spare_channel {
            let user = io.user();
            return Err(format!(
                "RabbitMQ lets user '{user}' open no more channels, and a half message needs one more"
            ));
        }
        match self.state {
            State::Absent => {
                if has_no_room(open.len(), channel_max) {
                    return Err(format!("all {channel_max} channels are open, and a half message needs one more"));
                }
                // RabbitMQ counts channels, not numbers, so one above channel_max will do.
                let Some(number) = unused(open, None) else {
                    return Err("all 65535 channels are open, and a half message needs one more".into());
                };
                self.open(number, io);
            }
            // The question waits for a new one, behind those that this one has to answer.
            State::Open { since, .. } if io.now.saturating_duration_since(since) >= SAYS_YES_FROM_MEMORY => {
                self.step_aside(io);
            }
            State::Open { .. } | State::Closing(_) => {}
        }
        if let State::Open { number, .. } = self.state {
            put(number, &question.probe, io);
        }
        self.questions.push_back(question);
        Ok(())
    }

    fn open(&mut self, number: u16, io: &mut Io) {
        self.state = State::Open { number, since: io.now, is_there: false };
        method::write_channel_open(&mut io.to_upstream, number);
        method::write_bare(&mut io.to_upstream, number, id::TX_SELECT);
    }

    /// Leaves its channel, to make room for one of the client, say. What was asked and not answered is asked anew later.
    pub fn step_aside(&mut self, io: &mut Io) {
        if let State::Open { number, .. } = self.state {
            self.state = State::Closing(number);
            Close { code: ReplyCode::SUCCESS, text: b"", method: (0, 0) }.write(&mut io.to_upstream, number);
        }
    }

    /// Whether it has stepped aside and nobody asked since.
    pub fn is_absent(&self) -> bool {
        self.state == State::Absent
    }

    /// Questions that nobody works on, because the judge stepped aside.
    pub fn take_questions(&mut self) -> Vec<Question> {
        self.questions.drain(..).collect()
    }

    /// A frame from RabbitMQ on the judge's channel; gives back who has an answer now.
    pub fn handle(&mut self, frame: &Frame<'_>, io: &mut Io) -> Option<(u16, Ticket, Judgement)> {
        match (frame.method_id()?, &mut self.state) {
            (id::CHANNEL_OPEN_OK, State::Open { is_there, .. }) => {
                *is_there = true;
                None
            }
            (id::TX_ROLLBACK_OK, State::Open { .. } | State::Closing(_)) => {
                let Question { channel, ticket, is_renewal, .. } = self.questions.pop_front()?;
                // The next one wants a new channel, and one that does nothing costs RabbitMQ memory.
                if is_renewal && self.questions.is_empty() {
                    self.step_aside(io);
                }
                Some((channel, ticket, Judgement::Fine))
            }
            (id::CHANNEL_CLOSE, State::Open { number, .. }) => {
                let number = *number;
                method::write_bare(&mut io.to_upstream, number, id::CHANNEL_CLOSE_OK);
                let refused = self.questions.pop_front();
                // RabbitMQ ignored everything behind the one that it refused.
                self.open(number, io);
                for question in &self.questions {
                    put(number, &question.probe, io);
                }
                let close = Close::parse(frame.arguments()).ok()?;
                let judgement =
                    Judgement::Refused { code: close.code, text: close.text.to_vec(), method: close.method };
                refused.map(|question| (question.channel, question.ticket, judgement))
            }
            (id::CHANNEL_CLOSE, State::Closing(number)) => {
                method::write_bare(&mut io.to_upstream, *number, id::CHANNEL_CLOSE_OK);
                None
            }
            (id::CHANNEL_CLOSE_OK, State::Closing(_)) => {
                self.state = State::Absent;
                None
            }
            _ => None,
        }
    }
}

/// The highest number that is neither the client's nor `taken`.
fn unused(open: &Numbers, taken: Option<u16>) -> Option<u16> {
    (1..=u16::MAX).rev().find(|number| !open.contains(*number) && Some(*number) != taken)
}

fn has_no_room(channels: usize, channel_max: u16) -> bool {
    channel_max != 0 && channels >= usize::from(channel_max)
}

/// Sends a probe, made for any channel, on the judge's, and drops it again.
fn put(number: u16, probe: &[u8], io: &mut Io) {
    let mut rest = probe;
    while let Split::Frame(frame) = split(rest, usize::MAX - 8) {
        rest = &rest[frame.raw.len()..];
        write_on(&mut io.to_upstream, number, &frame);
    }
    method::write_bare(&mut io.to_upstream, number, id::TX_ROLLBACK);
}
