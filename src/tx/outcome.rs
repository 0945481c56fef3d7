//! What becomes of a transaction, as those who wait for it are told.

use crate::amqp::reply_code::ReplyCode;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How a transaction ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable as committed.
    Committed,
    /// By `tx.rollback`, or because its channel or connection ended.
    RolledBack,
    /// RabbitMQ, or a limit, refused one of its messages.
    Refused,
    /// The store could not make it durable.
    Failed,
    /// Its channel or connection ended, and it is named: somebody who knows decides.
    InDoubt,
}

impl Outcome {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Committed, Self::RolledBack, Self::Refused, Self::Failed, Self::InDoubt];

    /// As metrics call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled_back",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::InDoubt => "in_doubt",
        }
    }
}

/// What became of a transaction that was handed to the relay: told when RabbitMQ has answered for every message.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// Messages published as mandatory that found no queue, in publish order.
    pub returned: Vec<ReturnedMessage>,
}

/// Why a commit waits for the relay, and what it sees meanwhile.
#[derive(Debug, Clone, Default)]
pub struct Wait {
    /// A message may come back, and has to before the commit is answered.
    pub mandatory: bool,
    /// How many of its messages RabbitMQ has answered for.
    answers: Arc<AtomicU32>,
}

impl Wait {
    /// Begins to wait.
    pub fn new(mandatory: bool) -> Self {
        Self { mandatory, answers: Arc::default() }
    }

    /// RabbitMQ has answered for a message.
    pub fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// How many of its messages RabbitMQ has answered for.
    pub fn answers(&self) -> u32 {
        self.answers.load(Ordering::Relaxed)
    }
}

/// A mandatory message that found no queue, as its publisher has to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnedMessage {
    /// The arguments of basic.return.
    pub arguments: Bytes,
    /// The payload of the content header frame, as published, without BCC.
    pub header: Bytes,
    /// The body.
    pub body: Bytes,
}

/// Whether the store takes messages of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It does.
    Free,
    /// It is past its size limit.
    Full,
    /// It can't be reached just now.
    Away,
}

impl Room {
    /// Whether it does.
    pub fn is_free(self) -> bool {
        self == Self::Free
    }
}

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk, or the quota, is full. Nothing was written.
    #[error("the store is full: {0}")]
    Full(String),
    /// Reading or writing failed. Nothing was written.
    #[error("the store failed: {0}")]
    Io(String),
    /// The transaction is decided already, the other way, or is not there.
    #[error("the transaction is {0}")]
    Conflict(String),
    /// Another live channel has an open transaction under this name.
    #[error("transaction '{0}' is open on another channel")]
    Locked(String),
    /// It was asked, and no answer came: it may have taken effect, or may yet.
    #[error("nobody knows whether the store took it: {0}")]
    Unknown(String),
    /// The store takes nothing more of this process: others have taken over what was its own.
    #[error("the store was taken over by another process")]
    Fenced,
    /// RabbitMQ refused its only message, before it was kept: its code, and its words behind the code's name.
    #[error("{1}")]
    Refused(ReplyCode, String),
    /// The store has been shut down.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the store will say the same to all that this process asks from now on.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Fenced | Self::Closed)
    }

    /// What a client is told: as a channel error, but for [`ReplyCode::CONNECTION_FORCED`]. Behind that its connection goes,
    /// so that it takes nothing for an answer.
    pub fn reply_code(&self) -> ReplyCode {
        match self {
            Self::Full(_) => ReplyCode::RESOURCE_ERROR,
            Self::Conflict(_) => ReplyCode::PRECONDITION_FAILED,
            Self::Locked(_) => ReplyCode::RESOURCE_LOCKED,
            Self::Refused(code, _) => *code,
            Self::Io(_) | Self::Closed => ReplyCode::INTERNAL_ERROR,
            Self::Unknown(_) | Self::Fenced => ReplyCode::CONNECTION_FORCED,
        }
    }
}
