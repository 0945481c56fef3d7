//! What an operator is told of a store by the command line, whichever it is.

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
