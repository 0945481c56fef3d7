//! A way to RabbitMQ that is shorter than that through the store.

use super::{Commit, Committing, Reply};

/// Who sends a transaction of one message before the store has it: one message needs no log to be all or nothing.
pub trait Shortcut: Send + Sync + 'static {
    /// Has a transaction without a name, of one message that was not parked, sent to RabbitMQ at once, and kept in the
    /// store if RabbitMQ takes its time. The answer comes when RabbitMQ has it or the store does, whichever is first, and
    /// it is sent until RabbitMQ has it; or it is RabbitMQ's refusal, and nothing is kept
    /// ([`StoreError::Refused`](super::StoreError::Refused)). As long as it is neither here nor there, there is no answer.
    ///
    /// If we crash before the answer, RabbitMQ may have it, once, or not.
    ///
    /// # Errors
    /// The commit, if it can't be sent now: it is for the store.
    fn take(&self, commit: Commit) -> Result<Reply<Committing>, Box<Commit>>;
}
