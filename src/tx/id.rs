//! Who a transaction is, and when something happened to it.

use uuid::Uuid;

/// The id that the proxy gives a transaction: a time-ordered UUID (version 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId(pub Uuid);

impl std::fmt::Display for TransactionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The id of one half message: its transaction, and its place in it, from 0. Every copy of the message that reaches
/// RabbitMQ carries it as `x-half-id`, so a duplicate is recognisable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId {
    /// The transaction.
    pub transaction: TransactionId,
    /// The place in it, from 0.
    pub index: u32,
}

impl std::fmt::Display for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.transaction, self.index)
    }
}

/// Wall clock, milliseconds since 1970-01-01 UTC. What is stored; never used to measure how long something took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(pub i64);
