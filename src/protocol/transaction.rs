//! What a transactional channel has gathered since the last decision, and what of it has to be done again once RabbitMQ
//! has judged and dropped the probes.

use super::command::{ConnectionSettings, Io};
use crate::amqp::frame;
use crate::amqp::method::{self, Settle, id};
use crate::amqp::tags::TagSet;
use crate::amqp::wire::Write;
use crate::tx::batch::Batch;
use crate::tx::checker::Named;
use crate::tx::decision::Decision;
use crate::tx::id::TransactionId;
use crate::tx::name::TransactionName;
use std::sync::Arc;
use std::time::Instant;

/// What a decision takes in memory, with a name of usual length.
const DECISION_BYTES: usize = 64;

/// Messages and acknowledgements between two decisions of a channel.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Given to it with its first message.
    pub id: Option<TransactionId>,
    /// When its first message was there.
    pub since: Option<Instant>,
    /// The settings under which it began, once it has a message.
    pub settings: Option<Arc<ConnectionSettings>>,
    /// What the producer said of it, if its messages are to be durable as they come.
    pub named: Option<Arc<Named>>,
    /// Whether RabbitMQ is judging half messages of a named one, which are parked when it has.
    pub awaits_judgement: bool,
    /// Whether RabbitMQ was asked, among its probes, if the client is who it says.
    pub claimed: bool,
    /// Decisions about other transactions, to be made at commit.
    pub decisions: Vec<(Decision, TransactionName)>,
    /// Half messages that are in memory.
    pub batch: Batch,
    /// Whether earlier half messages are in the store.
    pub parked: bool,
    /// Half messages, parked ones included.
    pub messages: u64,
    /// Their bytes as stored.
    pub bytes: u64,
    /// Whether one of them wants to be returned when it finds no queue.
    pub mandatory: bool,
    /// Frames of messages that live and die with the connection, to be published on it at commit.
    pub native: Vec<u8>,
    /// Whether RabbitMQ has been asked about something of it and has not answered.
    pub unjudged: bool,
    /// Probes that RabbitMQ may still hold.
    pub pending: usize,
    /// Frames of acks, nacks and rejects, to be sent again after the fence.
    settlements: Vec<u8>,
    /// Whether a fence has undone them in RabbitMQ's own transaction.
    undone: bool,
    /// The unacknowledged tags, were the transaction rolled back now. `None` while nothing has been settled in it.
    unsettled: Option<TagSet>,
}

impl Transaction {
    /// Whether there is nothing to decide about: no message, only acks perhaps.
    pub fn has_no_message(&self) -> bool {
        self.messages == 0 && self.native.is_empty() && self.decisions.is_empty()
    }

    /// Whether it is one message, and nothing else: that is all or nothing by itself.
    pub fn is_alone(&self) -> bool {
        let more = self.parked || !self.native.is_empty() || !self.settlements.is_empty() || !self.decisions.is_empty();
        self.messages == 1 && self.named.is_none() && !more
    }

    /// Bytes that it holds in memory.
    pub fn held_bytes(&self) -> usize {
        let decisions = self.decisions.len() * DECISION_BYTES;
        self.batch.bytes() + self.native.len() + self.settlements.len() + decisions
    }

    /// Its limits and waits: what an operator changes meanwhile is for those that begin later.
    pub fn settings<'a>(&'a self, io: &'a Io) -> &'a ConnectionSettings {
        self.settings.as_ref().unwrap_or(&io.settings)
    }

    /// Takes the name that a message carries.
    ///
    /// # Errors
    /// The transaction has another name, or began without one and may have been kept without one.
    pub fn take_name(&mut self, named: Named) -> Result<(), String> {
        match &self.named {
            Some(own) if own.name == named.name => Ok(()),
            Some(own) => {
                let (own, other) = (&own.name, &named.name);
                Err(format!("header x-half-transaction is '{other}', the transaction of this channel is '{own}'"))
            }
            None if self.messages > 0 => {
                Err("header x-half-transaction must come with the first message of a transaction".into())
            }
            None => {
                self.named = Some(Arc::new(named));
                Ok(())
            }
        }
    }

    /// Whether RabbitMQ has nothing left to judge, and nothing to do for it.
    pub fn is_judged(&self) -> bool {
        let is_parked = self.named.is_none() || self.is_parked();
        is_parked && !self.unjudged && self.settlements.is_empty() && self.native.is_empty()
    }

    /// Whether every message of this named transaction has been given to the store.
    pub fn is_parked(&self) -> bool {
        self.named.is_some() && !self.awaits_judgement && self.batch.is_empty()
    }

    /// Asks RabbitMQ, with this probe, whether the client is who it says.
    pub fn claim(&mut self, probe: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(probe);
        self.claimed = true;
        self.unjudged = true;
        self.pending += 1;
    }

    /// Has RabbitMQ judge and drop the probes that it holds. The acks, nacks and rejects so far are undone there.
    pub fn fence(&mut self, channel: u16, out: &mut Vec<u8>) {
        self.pending = 0;
        self.undone = !self.settlements.is_empty();
        method::write_bare(out, channel, id::TX_ROLLBACK);
    }

    /// Whether RabbitMQ lacks acks, nacks or rejects that are to take effect.
    pub fn is_undone(&self) -> bool {
        self.undone
    }

    /// Sends them again, behind a fence.
    pub fn redo(&mut self, out: &mut Vec<u8>) {
        self.undone = false;
        out.extend_from_slice(&self.settlements);
    }

    /// The acks, nacks and rejects so far, as frames for a second sending.
    pub fn settlements(&self) -> &[u8] {
        &self.settlements
    }

    /// Records an ack, nack or reject that was just passed on to RabbitMQ, whose own transaction checks it; the fence
    /// will undo it there. `raw` is its frame, `unacked` the tags that the client holds.
    ///
    /// Tag 0 with `multiple` means "all so far". Newer deliveries may have arrived when it is sent again, so it is
    /// recorded with the highest tag that the client held.
    pub fn settle(&mut self, settle: Settle, raw: &[u8], unacked: &mut TagSet) {
        self.unsettled.get_or_insert_with(|| unacked.clone());
        match settle {
            Settle { tag: 0, multiple: true } => {
                if let Some(highest) = unacked.highest() {
                    let start = self.settlements.len();
                    self.settlements.extend_from_slice(raw);
                    let tag_at = start + frame::HEADER_BYTES + 4;
                    self.settlements[tag_at..tag_at + 8].copy_from_slice(&highest.to_be_bytes());
                }
                unacked.clear();
            }
            Settle { tag, multiple: true } => {
                self.settlements.extend_from_slice(raw);
                unacked.remove_up_to(tag);
            }
            Settle { tag, multiple: false } => {
                self.settlements.extend_from_slice(raw);
                unacked.remove(tag);
            }
        }
    }

    /// A delivery arrived on the channel.
    pub fn delivered(&mut self, tag: u64) {
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.insert(tag);
        }
    }

    /// RabbitMQ put back into their queues all deliveries but those settled in this transaction.
    pub fn recovered(&mut self, unacked: &TagSet) {
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.remove_all(unacked);
        }
    }

    /// The tags that are unacknowledged again when this transaction is rolled back; `None` if nothing was settled.
    pub fn take_unsettled(&mut self) -> Option<TagSet> {
        self.unsettled.take()
    }
}

/// Appends the frames of a message as the client sent them, its body cut anew.
pub fn write_native(out: &mut Vec<u8>, channel: u16, publish: &[u8], header: &[u8], body: &[u8], frame_max: u32) {
    frame::write_method(out, channel, id::BASIC_PUBLISH, |out| out.extend_from_slice(publish));
    frame::write_content(out, channel, header, body, frame_max);
}

/// Appends basic.return with its content, as RabbitMQ sends it.
pub fn write_return(out: &mut Vec<u8>, channel: u16, arguments: &[u8], header: &[u8], body: &[u8], frame_max: u32) {
    frame::write(out, frame::kind::METHOD, channel, |out| {
        out.put_u16(id::BASIC_RETURN.0);
        out.put_u16(id::BASIC_RETURN.1);
        out.extend_from_slice(arguments);
    });
    frame::write_content(out, channel, header, body, frame_max);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::frame::{Split, split};

    fn ack(tag: u64, multiple: bool) -> (Settle, Vec<u8>) {
        let mut raw = Vec::new();
        frame::write_method(&mut raw, 1, id::BASIC_ACK, |out| {
            out.put_u64(tag);
            out.put_u8(multiple.into());
        });
        (Settle { tag, multiple }, raw)
    }

    fn replayed(transaction: &Transaction) -> Vec<Settle> {
        let (mut rest, mut found) = (transaction.settlements(), Vec::new());
        while let Split::Frame(frame) = split(rest, 100) {
            found.push(Settle::parse(frame.arguments()).unwrap());
            rest = &rest[frame.raw.len()..];
        }
        found
    }

    fn settle(transaction: &mut Transaction, unacked: &mut TagSet, tag: u64, multiple: bool) {
        let (settle, raw) = ack(tag, multiple);
        transaction.settle(settle, &raw, unacked);
    }

    fn tags(tags: impl IntoIterator<Item = u64>) -> TagSet {
        let mut set = TagSet::default();
        tags.into_iter().for_each(|tag| set.insert(tag));
        set
    }

    #[test]
    fn all_so_far_is_replayed_with_the_highest_tag_that_was_held() {
        let (mut transaction, mut unacked) = (Transaction::default(), tags(1..=5));
        settle(&mut transaction, &mut unacked, 5, false);
        settle(&mut transaction, &mut unacked, 0, true);
        unacked.insert(6);
        transaction.delivered(6);
        assert_eq!(replayed(&transaction), [ack(5, false).0, ack(4, true).0]);
        settle(&mut transaction, &mut unacked, 6, false);
        settle(&mut transaction, &mut unacked, 0, true);
        assert_eq!(replayed(&transaction).len(), 3, "nothing was held, so nothing is replayed");
    }

    #[test]
    fn a_rollback_gives_the_settled_tags_back_but_not_the_recovered_ones() {
        let (mut transaction, mut unacked) = (Transaction::default(), tags(1..=4));
        settle(&mut transaction, &mut unacked, 2, false);
        transaction.recovered(&unacked);
        unacked.clear();
        unacked.insert(5);
        transaction.delivered(5);
        assert_eq!(transaction.take_unsettled(), Some(tags([2, 5])));
    }
}
