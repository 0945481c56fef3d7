//! Channels that the proxy closed: told to both sides, and nobody's until both have answered.

use super::{Connection, Slot};
use crate::amqp::frame::Frame;
use crate::amqp::method::{self, Close, id};
use crate::amqp::reply_code::ReplyCode;
use crate::protocol::deliveries::Content;
use crate::tx::outcome::Outcome;

/// Bytes that may wait on a channel that RabbitMQ has not closed yet before the client has to wait.
const BEHIND_BYTES_MAX: usize = 64 << 10;

/// Such a channel.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// What waits for the end of a content: channel.close, and answers before it.
    close: Vec<u8>,
    content: Content,
    client_answered: bool,
    /// What the client sent after its answer. RabbitMQ takes no channel.open before it has answered too.
    behind: Vec<u8>,
}

impl Connection {
    /// Closes a channel towards both sides.
    pub(super) fn refuse(&mut self, number: u16, code: ReplyCode, detail: &str, method: (u16, u16)) {
        if code == ReplyCode::CONNECTION_FORCED {
            return self.leave_unanswered(number, detail, method);
        }
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
                let (outcome, reason) = match (code, method) {
                    (_, id::TX_COMMIT) => (Outcome::Failed, None),
                    (ReplyCode::PRECONDITION_FAILED, _) => (Outcome::Refused, Some(format!("refused: {code} {text}"))),
                    _ => (Outcome::Failed, Some(format!("refused: {code} {text}"))),
                };
                channel.abandon(outcome, reason, &mut self.io);
                (refused.content, refused.close) = channel.line.end();
                channel.line.take_behind()
            }
            Some(Slot::Half(mut channel)) => {
                channel.abandon(&mut self.io);
                (refused.content, refused.close) = channel.line.end();
                channel.line.take_behind()
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
        self.replay(number, behind);
        self.end_if_idle();
    }

    /// Ends the connection, for nobody knows what became of something that a channel asked for: no close of the channel may
    /// say that it was not done. Until running commits of others are through, what the client sends on it is ignored.
    fn leave_unanswered(&mut self, number: u16, why: &str, method: (u16, u16)) {
        // What may lack a part, nobody may release; a commit that is unknown lacks none.
        let reason = (method != id::TX_COMMIT).then(|| format!("not known to be kept: {why}"));
        let (content, close) = match self.channels.remove(&number) {
            Some(Slot::Tx(mut channel)) => {
                channel.abandon(Outcome::Failed, reason, &mut self.io);
                channel.line.end()
            }
            Some(Slot::Half(mut channel)) => {
                channel.abandon(&mut self.io);
                channel.line.end()
            }
            Some(other) => {
                self.channels.insert(number, other);
                return self.close_because(why);
            }
            None => return self.close_because(why),
        };
        self.congested.remove(&number);
        self.channels.insert(number, Slot::Refused(Refused { content, close, ..Refused::default() }));
        // What RabbitMQ says on it is nobody's. It is not closed there: half of a message may have passed.
        self.closing_upstream.insert(number);
        self.close_because(why);
    }

    /// A channel that the proxy closed: the client's frames are ignored until it has answered.
    pub(super) fn refused_client_frame(&mut self, frame: &Frame<'_>) {
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
                if refused.behind.len() > BEHIND_BYTES_MAX {
                    self.congested.insert(frame.channel);
                }
            }
            _ => {}
        }
    }

    /// A frame on a channel that the proxy closed: nobody's, but for the end of a content that the client has begun to
    /// receive.
    pub(super) fn closing_upstream_frame(&mut self, frame: &Frame<'_>) {
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

    /// The channel is free again when both sides have answered.
    fn reopen_if_answered(&mut self, number: u16) {
        if self.closing_upstream.contains(&number) {
            return;
        }
        if let Some(Slot::Refused(Refused { client_answered: true, behind, .. })) = self.channels.get_mut(&number) {
            let behind = std::mem::take(behind);
            self.channels.remove(&number);
            self.open.given_back(number);
            self.congested.remove(&number);
            self.replay(number, behind.into());
        }
    }
}
