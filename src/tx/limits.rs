//! How much a transaction may be.

/// Bounds of one transaction, and of its messages: what users set in `[transaction]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionLimits {
    /// Messages, and decisions about other transactions.
    pub messages_max: u64,
    /// Bytes of all of it.
    pub bytes_max: u64,
    /// Bytes of one message's body; none: what RabbitMQ takes in its version.
    pub message_bytes_max: Option<u64>,
    /// Bytes that are gathered in memory before they are parked in the store.
    pub memory_bytes_max: usize,
}
