//! Whoever waits to hear that a transaction was forwarded.

use crate::tx::outcome::{Forwarded, Wait};
use tokio::sync::oneshot;

/// The end that tells. When it is dropped, nobody will.
#[derive(Debug)]
pub struct Waiter {
    sender: oneshot::Sender<Forwarded>,
    wait: Wait,
}

impl Waiter {
    /// A waiter and the end that hears.
    pub fn pair(wait: Wait) -> (Self, oneshot::Receiver<Forwarded>) {
        let (sender, receiver) = oneshot::channel();
        (Self { sender, wait }, receiver)
    }

    /// Whether nobody listens any more.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// RabbitMQ has answered for a message.
    pub fn answered(&self) {
        self.wait.answered();
    }

    /// Tells the end of it.
    pub fn tell(self, forwarded: Forwarded) {
        // Nobody listens any more when the channel went on without it.
        let _ = self.sender.send(forwarded);
    }

    /// It may take long: only for what may come back is waited on.
    pub fn if_mandatory(self) -> Option<Self> {
        self.wait.mandatory.then_some(self)
    }
}
