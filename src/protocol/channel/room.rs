//! A store that is full: which message waits for room, what waits behind it, and what is refused because it might wait for
//! ever. Only what would add to the store waits; what is decided never does.

use super::{BEHIND_BYTES_MAX, Channel};
use crate::amqp::frame::{self, Frame, Split};
use crate::amqp::method::{Publish, id};
use crate::protocol::behind::Behind;
use crate::protocol::command::{Io, Next};

/// What becomes of half messages that the store has no room for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// There are none.
    #[default]
    Enough,
    /// One waits, and all frames behind it; whether a commit or a barrier is among them, whose answer says that it is kept.
    Awaited { asked: bool },
    /// They are dropped up to the rollback, or the close of the channel, that has come behind them.
    Dropped,
}

impl Room {
    /// What a frame behind a message that waits means for those before it.
    fn look(&mut self, frame: &Frame<'_>, io: &Io) -> Next {
        match (frame.method_id(), &mut *self) {
            (Some(id::TX_COMMIT | id::TX_SELECT), Self::Awaited { asked }) => *asked = true,
            (Some(id::TX_ROLLBACK | id::CHANNEL_CLOSE), Self::Awaited { asked: false }) => {
                *self = Self::Dropped;
                return Next::Release;
            }
            (Some(id::TX_ROLLBACK | id::CHANNEL_CLOSE), Self::Awaited { asked: true }) => {
                return io.refuse_full("the client has given up to wait");
            }
            (Some(id::BASIC_PUBLISH), Self::Awaited { .. }) if is_decision(frame, io) => {
                return io.refuse_full("a decision stands behind a message that waits");
            }
            _ => {}
        }
        Next::Nothing
    }
}

impl Channel {
    /// Whether this transaction, before its next message, must not wait for room: it takes some of it, or is about to, or
    /// its commit decides about others that may.
    pub(super) fn may_not_wait(&self) -> bool {
        let transaction = &self.transaction;
        let is_named = transaction.named.is_some() && transaction.messages > 0;
        transaction.parked || is_named || !transaction.decisions.is_empty()
    }

    /// The store is full, and a message has begun that it would have to keep. Its content header has to come again.
    pub(super) fn await_room(&mut self, header: &Frame<'_>) -> Next {
        self.room = Room::Awaited { asked: false };
        self.line.behind.push(header.raw);
        Next::Nothing
    }

    /// A frame behind a message that waits for room.
    pub(super) fn push_behind(&mut self, frame: &Frame<'_>, io: &Io) -> Next {
        self.line.behind.push(frame.raw);
        match self.room.look(frame, io) {
            Next::Nothing => self.bound_behind(io),
            next => next,
        }
    }

    /// Lets these wait again, and says what is to be done about it.
    pub fn put_behind(&mut self, behind: Behind, io: &Io) -> Next {
        self.line.behind = behind;
        if !matches!(self.room, Room::Awaited { .. }) {
            return Next::Nothing;
        }
        let mut frames = self.line.behind.frames();
        while let Split::Frame(frame) = frame::split(frames, usize::MAX - frame::OVERHEAD_BYTES) {
            frames = &frames[frame.raw.len()..];
            match self.room.look(&frame, io) {
                Next::Nothing => {}
                next => return next,
            }
        }
        self.bound_behind(io)
    }

    fn bound_behind(&self, io: &Io) -> Next {
        match self.line.behind.len() > BEHIND_BYTES_MAX {
            true => io.refuse_full(&format!("more than {BEHIND_BYTES_MAX} bytes wait on this channel")),
            false => Next::Nothing,
        }
    }

    /// There is room again.
    pub fn have_room(&mut self) -> Next {
        match self.room {
            Room::Awaited { .. } => {
                self.room = Room::Enough;
                Next::Release
            }
            Room::Enough | Room::Dropped => Next::Nothing,
        }
    }
}

fn is_decision(frame: &Frame<'_>, io: &Io) -> bool {
    let exchange = io.settings.control_exchange.as_bytes();
    Publish::parse(frame.arguments()).is_ok_and(|publish| publish.exchange == exchange)
}
