//! How a connection ends: who is told what, and what is waited for before.

use super::{CLOSE_OK_WITHIN, Connection, End, LOST_FOR, Phase, Slot};
use crate::amqp::method::Close;
use crate::amqp::reply_code::ReplyCode;
use crate::protocol::command::{Command, Refusal};

/// Bytes that a reply text can have.
const SHORT_STRING_BYTES_MAX: usize = 255;

impl Connection {
    /// The connection to RabbitMQ ended, or could not be made.
    pub fn handle_upstream_lost(&mut self) {
        self.io.upstream_lost = true;
        self.io.to_upstream.clear();
        match self.phase {
            Phase::Running => {
                self.ending = Some(End::UpstreamLost);
                self.hurry();
                for number in self.channels.keys().copied().collect::<Vec<_>>() {
                    match self.channels.get_mut(&number) {
                        Some(Slot::Tx(channel)) => {
                            let next = channel.lose_upstream(&mut self.io);
                            self.apply(number, next);
                        }
                        Some(Slot::Half(channel)) => channel.lose_upstream(&mut self.io),
                        Some(Slot::Confirm(_) | Slot::Refused(_)) | None => {}
                    }
                }
                self.end_if_idle();
            }
            Phase::Closing | Phase::Closed => {}
            // RabbitMQ closes after connection.close, and during a handshake that it refuses: so does the proxy.
            _ => self.close(),
        }
    }

    /// The client is gone without a word. What it has not decided is over; a commit that has come is carried out, as
    /// RabbitMQ carries out what has reached it.
    pub fn handle_client_lost(&mut self) {
        if self.phase != Phase::Running || self.io.committing == 0 {
            return self.close();
        }
        for slot in self.channels.values_mut() {
            if let Slot::Tx(channel) = slot
                && !channel.is_committing()
            {
                channel.leave(&mut self.io);
            }
        }
        self.ending = Some(End::ClientLost);
        self.phase_until = Some(self.io.now + LOST_FOR);
        self.end_if_idle();
    }

    /// The proxy shuts down: running commits finish, then the client is told to go.
    pub fn drain(&mut self) {
        match self.phase {
            Phase::Running => {
                if self.ending.is_none() {
                    self.ending = Some(End::Drain);
                    self.end_if_idle();
                }
            }
            Phase::PassThrough | Phase::Closing | Phase::Closed => {}
            _ => {
                self.io.commands.push_back(Command::Refused(Refusal::Draining));
                self.close();
            }
        }
    }

    /// It is ended from here: running commits finish, then the client is told to go, and why.
    pub fn close_because(&mut self, reason: &str) {
        match self.phase {
            Phase::Running => {
                if self.ending.is_none() {
                    self.ending = Some(End::Dismissed);
                    self.closed_because = reason.to_owned();
                }
                self.end_if_idle();
            }
            Phase::Closing | Phase::Closed => {}
            _ => self.close(),
        }
    }

    /// Commits wait for the relay no more.
    pub(super) fn hurry(&mut self) {
        self.io.hurried = true;
        for number in self.io.timers.iter().map(|(_, number)| *number).collect::<Vec<_>>() {
            if let Some(Slot::Tx(channel)) = self.channels.get_mut(&number) {
                let next = channel.stop_waiting(&mut self.io);
                self.apply(number, next);
            }
        }
    }

    /// Ends the connection in the way that was decided, as soon as no commit is running.
    pub(super) fn end_if_idle(&mut self) {
        let Some(end) = self.ending.filter(|_| self.phase == Phase::Running) else { return };
        if !self.io.hurried {
            self.hurry();
        }
        if self.io.committing > 0 || self.phase != Phase::Running {
            return;
        }
        self.abandon_all();
        match end {
            End::ClientClose => {
                self.ending = None;
                self.phase = Phase::PassThrough;
                self.io.to_upstream.append(&mut self.client_close);
            }
            End::ClientLost => self.close(),
            End::Drain => self.dismiss("halfway is shutting down"),
            End::Dismissed => {
                let reason = std::mem::take(&mut self.closed_because);
                self.dismiss(&reason);
            }
            End::UpstreamLost => {
                let text = ReplyCode::CONNECTION_FORCED.text("the connection to RabbitMQ was lost");
                self.write_close(ReplyCode::CONNECTION_FORCED, &text);
                self.await_close_ok();
            }
        }
    }

    /// Tells the client to go, and RabbitMQ that it goes.
    fn dismiss(&mut self, why: &str) {
        let text = ReplyCode::CONNECTION_FORCED.text(why);
        let end = (0..=SHORT_STRING_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        self.write_close(ReplyCode::CONNECTION_FORCED, text.get(..end).unwrap_or(&text));
        Close { code: ReplyCode::SUCCESS, text: b"Goodbye", method: (0, 0) }.write(&mut self.io.to_upstream, 0);
        self.await_close_ok();
    }

    pub(super) fn await_close_ok(&mut self) {
        self.phase = Phase::Closing;
        self.phase_until = Some(self.io.now + CLOSE_OK_WITHIN);
    }

    pub(super) fn write_close(&mut self, code: ReplyCode, text: &str) {
        Close { code, text: text.as_bytes(), method: (0, 0) }.write(&mut self.io.to_client, 0);
    }

    pub(super) fn close(&mut self) {
        self.abandon_all();
        self.phase = Phase::Closed;
        self.phase_until = None;
        self.io.commands.push_back(Command::Close);
    }

    pub(super) fn abandon_all(&mut self) {
        for slot in self.channels.values_mut() {
            match slot {
                Slot::Tx(channel) => channel.leave(&mut self.io),
                Slot::Half(channel) => channel.abandon(&mut self.io),
                Slot::Confirm(_) | Slot::Refused(_) => {}
            }
        }
        self.channels.clear();
        self.congested.clear();
    }
}
