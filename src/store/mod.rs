//! What survives a crash: transactions, their half messages, their history, dead letters.
//!
//! The contract of every [`Store`]:
//!
//! - A call takes its place in one order at once, when it is made; its [`Reply`] comes when the effect is durable. So
//!   two calls made one after the other take effect in that order, and a caller may wait for the second only.
//! - A state changes only along the arrows of [`State`](crate::tx::state::State), by an update that names the state it
//!   expects: the first decision wins.
//! - What is committed is handed to the [`Outlet`] once, in commit order, after it is durable. After a restart it is
//!   read again with [`Store::page`].
//! - An error means that nothing of the call took effect, and the store goes on: when space returns, so do commits.

pub mod memory;
pub mod sqlite;

use crate::tx::batch::Batch;
use crate::tx::id::{Timestamp, TransactionId};
pub use crate::tx::outcome::{Forwarded, ReturnedMessage, StoreError};
use bytes::Bytes;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{oneshot, watch};

/// The place of a committed transaction in the order of commits. Rises, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sequence(pub i64);

/// One road to RabbitMQ: a virtual host and a channel of the relay's connection to it. All transactions of one client
/// channel take the same lane, and a lane keeps its order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// The virtual host.
    pub vhost: Arc<str>,
    /// Which of the relay's channels.
    pub number: u16,
}

/// What is known of a transaction from its first message on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its id.
    pub id: TransactionId,
    /// The user who publishes.
    pub user: Arc<str>,
    /// The way its messages will go.
    pub lane: Lane,
    /// When its first message came.
    pub created_at: Timestamp,
}

/// A decision to commit.
#[derive(Debug)]
pub struct Commit {
    /// Whose.
    pub origin: Origin,
    /// Messages that are not in the store yet; those that were parked go before them.
    pub batch: Batch,
    /// Whether earlier messages of it were parked with [`Store::park`].
    pub parked: bool,
    /// Told when the relay has an answer for every message. Dropped if the receiver has no use for it any more.
    pub forwarded: Option<oneshot::Sender<Forwarded>>,
}

/// A transaction that became durable as committed, on its way to the relay.
#[derive(Debug)]
pub struct Committed {
    /// Its place in the order of commits.
    pub sequence: Sequence,
    /// Its id.
    pub id: TransactionId,
    /// Its way.
    pub lane: Lane,
    /// All its messages (see [`crate::tx::batch::iter`]), or `None` if the store must be asked for them, because some
    /// were parked earlier.
    pub messages: Option<Bytes>,
    /// Told when the relay has an answer for every message.
    pub forwarded: Option<oneshot::Sender<Forwarded>>,
}

/// Where committed transactions go: the relay. Called on the store's writer thread, in commit order, so it must not
/// block.
pub trait Outlet: Send + Sync + 'static {
    /// These are durable now.
    fn committed(&self, transactions: Vec<Committed>);
}

/// Some messages of a committed transaction, read back from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    /// The transaction's place in the order of commits.
    pub sequence: Sequence,
    /// Its id.
    pub id: TransactionId,
    /// Which pack of it, from 0.
    pub number: u32,
    /// The index in the transaction of the first message.
    pub first_index: u32,
    /// Whether it is the transaction's last.
    pub last: bool,
    /// The messages: see [`crate::tx::batch::iter`].
    pub messages: Bytes,
}

/// How far a lane has been read: up to and including this pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// The transaction.
    pub sequence: Sequence,
    /// The pack of it.
    pub pack: u32,
}

/// A committed message that RabbitMQ can't take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its transaction.
    pub sequence: Sequence,
    /// Its place in the transaction.
    pub index: u32,
    /// The one message, as a batch.
    pub message: Bytes,
    /// RabbitMQ's reply code.
    pub reply_code: u16,
    /// RabbitMQ's words.
    pub reply_text: String,
    /// When it was found out.
    pub since: Timestamp,
}

/// A batch that is whole, in the form in which a store keeps it and the relay takes it.
#[derive(Debug, Clone)]
struct Messages {
    bytes: Bytes,
    count: u32,
}

impl From<Batch> for Messages {
    fn from(batch: Batch) -> Self {
        Self { count: batch.messages(), bytes: batch.into_bytes().into() }
    }
}

/// The answer to come of a call on a [`Store`].
#[derive(Debug)]
pub struct Reply<T>(oneshot::Receiver<Result<T, StoreError>>);

impl<T> Reply<T> {
    /// A reply and the end that answers it.
    pub fn pair() -> (oneshot::Sender<Result<T, StoreError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or(Err(StoreError::Closed)))
    }
}

/// What the proxy needs of a store. See the module for what every implementation promises.
pub trait Store: Send + Sync + 'static {
    /// Keeps messages of an undecided transaction. The first call makes the transaction, as `open`.
    ///
    /// If it fails, the transaction is incomplete and can only be rolled back: every later call for it fails too, so the
    /// caller need not wait for this answer before the next call.
    ///
    /// If we crash here: an unnamed transaction is rolled back at the next start.
    fn park(&self, origin: Origin, batch: Batch) -> Reply<()>;

    /// Commits. Once answered, every message of the transaction reaches RabbitMQ, whatever crashes.
    fn commit(&self, commit: Commit) -> Reply<Sequence>;

    /// Rolls back a parked transaction: its messages go. If this fails it stays undecided, and one without a name is
    /// rolled back at the next start.
    fn rollback(&self, id: TransactionId) -> Reply<()>;

    /// RabbitMQ has confirmed, or a dead letter keeps, every message of these. Need not be durable before the next
    /// commit: what is forgotten here is sent again, as a possible duplicate.
    fn delivered(&self, transactions: Vec<Sequence>);

    /// Keeps a message that RabbitMQ can't take. Asking again for the same message counts another attempt.
    fn dead_letter(&self, letter: DeadLetter) -> Reply<()>;

    /// Lanes that hold committed, undelivered messages.
    fn lanes(&self) -> Reply<Vec<Lane>>;

    /// The committed packs of a lane behind `after`, in order, until they add up to `bytes_max` (at least one, if there
    /// is one). Answered from a reader of its own; sees every commit that was answered before the call, and may see
    /// some that the [`Outlet`] is only about to be told of, and some that [`Store::delivered`] was just called for.
    fn page(&self, lane: &Lane, after: Option<Cursor>, bytes_max: usize) -> Reply<Vec<Pack>>;

    /// Whether the store is past its size limit, so that publishers of transactions have to wait.
    fn is_full(&self) -> bool;

    /// Tells when [`Store::is_full`] changes.
    fn fullness(&self) -> watch::Receiver<bool>;
}

/// The wall clock.
pub fn system_clock() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since_epoch.as_millis().try_into().unwrap_or(i64::MAX))
}
