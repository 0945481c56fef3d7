//! What an operator is told of a store by the command line, whichever it is.

use super::stored::is_sound;
use crate::amqp::wire::Malformed;
use crate::tx::batch;
use serde::Serialize;
use std::sync::atomic::AtomicU64;

/// How far a check is, for somebody who looks on.
#[derive(Debug, Default)]
pub struct Checked {
    /// Transactions looked at.
    pub done: AtomicU64,
    /// Transactions to look at; 0 while SQLite's own structures are looked at, which comes first.
    pub total: AtomicU64,
}

/// What `halfway store check` found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Transactions looked at.
    pub transactions: u64,
    /// Messages looked at.
    pub messages: u64,
    /// What is wrong, in words; nothing in a store that is right.
    pub problems: Vec<String>,
}

/// What `halfway store stats` counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreStats {
    /// The version of the schema.
    pub schema: i64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes in use in the file; the rest is free for what comes.
    pub used_bytes: u64,
    /// Bytes of the log beside the file.
    pub log_bytes: u64,
    /// Undecided transactions whose channel lives, or ended with a proxy that was not started since.
    pub open: u64,
    /// Undecided transactions whose channel is gone.
    pub in_doubt: u64,
    /// Committed transactions that are not known to be delivered.
    pub committed: u64,
    /// Delivered transactions that are kept for their history.
    pub delivered: u64,
    /// Rolled back transactions that are kept for their history.
    pub rolled_back: u64,
    /// Messages that RabbitMQ could not take, without those that are tried again just now.
    pub dead_letters: u64,
    /// When the oldest committed transaction was decided: milliseconds since 1970-01-01 UTC.
    pub oldest_committed_at: Option<i64>,
    /// The committed transactions by the way they will go.
    pub lanes: Vec<LaneBacklog>,
}

/// The committed, undelivered transactions of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneBacklog {
    /// The virtual host.
    pub vhost: String,
    /// The lane's number.
    pub lane: u16,
    /// Transactions.
    pub committed: u64,
}

/// A setting of the server that makes a promise of the store weaker than it sounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weakness {
    /// What it is.
    pub text: &'static str,
    /// What it leads to.
    pub why: &'static str,
    /// What mends it.
    pub cure: &'static str,
}

/// What is there of one transaction.
#[derive(Default)]
pub(super) struct Found {
    /// The place of its first message.
    first_index: i64,
    pub(super) messages: i64,
    bytes: i64,
    problem: Option<String>,
}

impl Found {
    /// Of one whose first message has this place.
    pub(super) fn from(first_index: i64) -> Self {
        Self { first_index, ..Self::default() }
    }

    /// What is wrong with it, if it should have so many messages, and so many bytes.
    pub(super) fn verdict(&mut self, messages: i64, bytes: i64) -> Option<String> {
        self.problem.take().or_else(|| {
            (self.messages != messages || self.bytes != bytes).then(|| {
                format!("should have {messages} messages of {bytes} bytes, and has {} of {}", self.messages, self.bytes)
            })
        })
    }

    /// Only the first is told: the others follow from it.
    pub(super) fn problem(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }

    /// Counts what one piece has.
    pub(super) fn add(&mut self, first_index: i64, body: &[u8], checksum: Option<u32>) {
        self.add_read(first_index, body, is_sound(body, checksum));
    }

    /// The same, of one of which is known whether it is what was kept.
    pub(super) fn add_read(&mut self, first_index: i64, body: &[u8], is_sound: bool) {
        let place = self.first_index + self.messages;
        if first_index != place {
            self.problem(format!("counts its message {place} as {first_index}"));
        }
        self.bytes += body.len() as i64;
        match count_messages(body) {
            Ok(messages) => self.messages += messages,
            Err(Malformed) => self.problem(format!("can't be read behind message {}", self.messages)),
        }
        if !is_sound {
            self.problem(format!("has other bytes than were kept, from message {place} on"));
        }
    }
}

/// Messages in one piece.
pub(super) fn count_messages(bytes: &[u8]) -> Result<i64, Malformed> {
    batch::iter(bytes).try_fold(0, |count, message| message.map(|_| count + 1))
}
