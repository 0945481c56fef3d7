//! How a connection ends.

use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::Malformed;
use crate::relay::lane::Fault;
use crate::relay::login::LoginError;
use crate::upstream::ConnectError;
use std::io;

/// How a connection ended that was left.
pub(super) enum End {
    /// The relay drains, and everything that was in flight has its answer.
    Drained,
    /// There was nothing to send for a while.
    Idle,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::relay) enum Lost {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Login(#[from] LoginError),
    #[error("RabbitMQ closed the connection: {0} {1}")]
    Closed(ReplyCode, String),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("RabbitMQ said goodbye")]
    Goodbye,
    #[error("RabbitMQ gives no sign of life")]
    Silent,
    #[error("RabbitMQ sent what can't be read")]
    Malformed,
    #[error(transparent)]
    Lane(#[from] Fault),
}

impl Lost {
    /// Whether a message that was in flight may be why. An operator's word and an account's limits are no message's fault.
    pub(in crate::relay) fn accuses(&self) -> bool {
        matches!(self, Self::Closed(code, _) if ![ReplyCode::CONNECTION_FORCED, ReplyCode::NOT_ALLOWED].contains(code))
    }
}

impl From<Malformed> for Lost {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}
