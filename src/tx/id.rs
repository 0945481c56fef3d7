//! Who a transaction is, and when something happened to it.

use std::time::{Duration, UNIX_EPOCH};
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

/// RFC 3339, in UTC, to the millisecond. Times before 1970 and behind the year 9999, which it can't say, become the
/// nearest that it can.
impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const LAST: i64 = 253_402_300_799_999;
        let since_epoch = Duration::from_millis(self.0.clamp(0, LAST).unsigned_abs());
        humantime::format_rfc3339_millis(UNIX_EPOCH + since_epoch).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    #[test]
    fn a_time_is_written_as_rfc_3339_has_it() {
        for (millis, text) in [
            (1_790_000_000_250, "2026-09-21T14:13:20.250Z"),
            (-1, "1970-01-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp(millis).to_string(), text);
        }
    }
}
