//! What both kinds of channels that are looked at stand on, whatever their client does: RabbitMQ's contents come through
//! whole, frames of the client may have to wait, and a close is the end.

use super::behind::Behind;
use super::command::Io;
use super::deliveries::Content;
use crate::amqp::frame::{Frame, kind};

/// One channel between its client and RabbitMQ.
#[derive(Debug)]
pub(super) struct Line {
    /// Where RabbitMQ is within a content.
    content: Content,
    /// What the proxy has to say once that is through.
    held: Vec<u8>,
    /// Frames of the client that wait.
    pub(super) behind: Behind,
    /// The client has closed it, and RabbitMQ has not answered: only RabbitMQ, and who is asked already, may still speak.
    pub(super) closing: bool,
}

impl Default for Line {
    /// Of a channel that was not looked at before.
    fn default() -> Self {
        Self { content: Content::Unknown, held: Vec::new(), behind: Behind::default(), closing: false }
    }
}

impl Line {
    /// Speaks to the client, never into the middle of a content.
    pub(super) fn say(&mut self, frames: &[u8], io: &mut Io) {
        match self.content {
            Content::Idle => io.to_client.extend_from_slice(frames),
            Content::Unknown | Content::Header | Content::Body(_) => self.held.extend_from_slice(frames),
        }
    }

    /// Passes a frame of RabbitMQ's, and behind the end of a content what had to wait for it.
    pub(super) fn pass(&mut self, frame: &Frame<'_>, io: &mut Io) {
        io.to_client.extend_from_slice(frame.raw);
        self.content.follow(frame);
        if self.content == Content::Idle {
            io.to_client.append(&mut self.held);
        }
    }

    /// Looks at a frame of RabbitMQ's before it is known whether it passes. Whether it is the rest of a content, and has
    /// passed.
    pub(super) fn pass_content(&mut self, frame: &Frame<'_>, io: &mut Io) -> bool {
        if frame.kind == kind::METHOD {
            // A method stands between contents, whatever was known before.
            self.content.follow(frame);
            io.to_client.append(&mut self.held);
            return false;
        }
        self.pass(frame, io);
        true
    }

    /// Bytes that wait on either side.
    pub(super) fn held_bytes(&self) -> usize {
        self.behind.len() + self.held.len()
    }

    /// Frames of the client that waited; they are its next ones.
    pub(super) fn take_behind(&mut self) -> Behind {
        std::mem::take(&mut self.behind)
    }

    /// What RabbitMQ is in the middle of, and what the client is told behind it.
    pub(super) fn end(&mut self) -> (Content, Vec<u8>) {
        (self.content, std::mem::take(&mut self.held))
    }
}
