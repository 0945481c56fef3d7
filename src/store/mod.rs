//! What survives a crash: transactions, their half messages, their history, dead letters.
//!
//! The contract of every [`Store`]:
//!
//! - A call takes its place in one order at once, when it is made; its [`Reply`] comes when the effect is durable. So
//!   two calls made one after the other take effect in that order, and a caller may wait for the second only.
//! - A state changes only along the arrows of [`State`](crate::tx::state::State), by an update that names the state it
//!   expects: the first decision wins.
//! - What is committed is handed to the [`Outlet`] once, in commit order, after it is durable. After a restart it is
//!   read again with [`ForRelay::page`].
//! - What is to be waited for comes after as much time as was said, however the wall clock is set meanwhile.
//! - What is read back for the relay is what was kept, or says that it is not.
//! - An error means that nothing of the call took effect, and the store goes on: when space returns, so do commits.

mod calls;
mod clock;
mod error;
mod letter;
pub mod memory;
mod metrics;
pub mod postgres;
mod recent;
mod request;
mod shares;
mod shortcut;
pub mod sqlite;
mod stats;
mod stored;
mod story;
mod tools;
mod url;
mod waiter;

pub use self::calls::{Backend, Bounded, ForAdmin, ForApp, ForCheckBack, ForRelay, ForSessions, Outside, Store};
pub use self::clock::{Clock, system_clock};
pub use self::error::{OpenError, ToolError};
pub use self::letter::{Envelope, Letter, LetterFilter, LetterId, LetterMessage};
pub use self::metrics::StoreMetrics;
pub(crate) use self::metrics::Unfinished;
pub use self::shortcut::Shortcut;
pub use self::stats::Stats;
use self::stored::Messages;
pub use self::stored::Stored;
pub use self::tools::{CheckReport, Checked, LaneBacklog, StoreStats, Weakness};
pub use self::waiter::Waiter;
use crate::amqp::method::Publish;
use crate::tx::batch::{self, Batch};
pub use crate::tx::checker::Named;
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::name::TransactionName;
pub use crate::tx::outcome::{Forwarded, ReturnedMessage, Room, StoreError, Wait};
use crate::tx::state::State;
use bytes::Bytes;
use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use wildmatch::WildMatch;

/// The place of a committed transaction in the order of commits. Rises, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sequence(pub i64);

/// A client channel, as far as the order of what it publishes goes: order binds its transactions, and no others. Should two
/// channels have the same one by chance, they have one order. Below 2^31.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Strand(pub u32);

/// One road to RabbitMQ: a virtual host and a channel of the relay's connection to it. All transactions of one client
/// channel take the same lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// The virtual host.
    pub vhost: Arc<str>,
    /// Which of the relay's channels.
    pub number: u16,
    /// The strand whose transactions wait beside the lane; none: it is the lane itself.
    pub aside: Option<Strand>,
}

impl Lane {
    /// The lane itself.
    pub fn new(vhost: Arc<str>, number: u16) -> Self {
        Self { vhost, number, aside: None }
    }
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
    /// What it has its order with.
    pub strand: Strand,
    /// When its first message came.
    pub created_at: Timestamp,
    /// What only named transactions have.
    pub named: Option<Arc<Named>>,
}

/// A decision to commit.
#[derive(Debug)]
pub struct Commit {
    /// Whose.
    pub origin: Origin,
    /// Messages that are not in the store yet; those that were parked go before them.
    pub batch: Batch,
    /// Whether earlier messages of it were parked with [`ForSessions::park`].
    pub parked: bool,
    /// Told when the relay has an answer for every message; dropped if that may take long, or nobody will know.
    pub forwarded: Option<Waiter>,
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
    /// What it has its order with.
    pub strand: Strand,
    /// When the decision was durable.
    pub decided: Instant,
    /// All its messages (see [`crate::tx::batch::iter`]), or `None` if the store must be asked for them, because some
    /// were parked earlier.
    pub messages: Option<Bytes>,
    /// Told when the relay has an answer for every message.
    pub forwarded: Option<Waiter>,
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
    /// What it has its order with.
    pub strand: Strand,
    /// Which pack of it, from 0.
    pub number: u32,
    /// The index in the transaction of the first message.
    pub first_index: u32,
    /// Whether it is the transaction's last.
    pub last: bool,
    /// When the transaction was committed; none: it is undecided.
    pub decided_at: Option<Timestamp>,
    /// Whether it is a dead letter's once more: RabbitMQ may have some copies of it.
    pub retried: bool,
    /// The messages.
    pub messages: Stored,
}

/// How far a lane has been read: up to and including this pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// The transaction.
    pub sequence: Sequence,
    /// The pack of it.
    pub pack: u32,
}

/// A committed message that RabbitMQ can't take, or must not be given, as the relay tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its transaction.
    pub sequence: Sequence,
    /// Its place in the transaction.
    pub index: u32,
    /// The one message, as a batch.
    pub message: Stored,
    /// RabbitMQ's reply code.
    pub reply_code: u16,
    /// RabbitMQ's words.
    pub reply_text: String,
    /// When it was found out.
    pub since: Timestamp,
}

/// Why the one is rolled back that comes second under a name.
const COMMITTED_BEFORE: &str = "its name was committed before";

/// What a commit came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committing {
    /// Its messages are on their way.
    Now(Sequence),
    /// RabbitMQ has its message already; and whether the store was asked to keep it meanwhile.
    Forwarded {
        /// It was.
        asked: bool,
    },
    /// It, or an earlier attempt under its name, was committed before: its messages have gone, or will go, by
    /// themselves, and this call added none.
    Before,
}

/// An attempt to find out about a transaction in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Who was asked.
    pub checker: Arc<str>,
    /// What came of it, for its history: `unknown` or `ongoing` and how long that took, or why there is no answer.
    pub result: String,
    /// Whether it was an answer. Each is written down; of attempts without one, only the first with that result.
    pub answered: bool,
    /// Whether it was an answer that counts against `max_checks`.
    pub counted: bool,
    /// After how long to ask again; never: it waits for a person.
    pub again_after: Option<Duration>,
}

/// A transaction about which somebody is to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Which.
    pub id: TransactionId,
    /// Whose.
    pub user: Arc<str>,
    /// Attempts so far, answered or not.
    pub attempts: u32,
    /// Answers so far that counted.
    pub answered: u32,
}

/// What is due at a checker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DueNow {
    /// In the order in which to ask.
    pub due: Vec<Due>,
    /// How long until the next one behind these is due, if there is one.
    pub next: Option<Duration>,
}

/// A transaction as those see it who look from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its id.
    pub id: TransactionId,
    /// Its name, if the producer gave one.
    pub name: Option<TransactionName>,
    /// The virtual host.
    pub vhost: Arc<str>,
    /// The user who published.
    pub user: Arc<str>,
    /// Where it stands.
    pub state: State,
    /// When its first message came.
    pub created_at: Timestamp,
    /// When its first message was durable; none: its first write was its commit.
    pub parked_at: Option<Timestamp>,
    /// When it was decided.
    pub decided_at: Option<Timestamp>,
    /// By whom: an [`Actor`]'s text.
    pub decided_by: Option<String>,
    /// How many messages it has.
    pub messages: u64,
    /// Their bytes as they are kept.
    pub bytes: u64,
    /// Who is asked about it.
    pub checker: Option<Arc<str>>,
    /// Attempts to ask, answered or not.
    pub attempts: u32,
    /// Answers that counted.
    pub checks_answered: u32,
    /// When it will be asked about next, if the wall clock is not set meanwhile.
    pub next_check_at: Option<Timestamp>,
    /// The lane that its messages take.
    pub lane: u16,
}

/// What happened to a transaction, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What: `parked`, `in_doubt`, `check`, `committed`, ...
    pub event: String,
    /// Who: an [`Actor`]'s text.
    pub actor: String,
    /// Why, or what was answered.
    pub reason: Option<String>,
}

/// Which transactions to list. A part that is not given fits everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Where they stand.
    pub state: Option<State>,
    /// The virtual host.
    pub vhost: Option<String>,
    /// The user.
    pub user: Option<String>,
    /// The name.
    pub name: Option<NameFilter>,
    /// The exchange of the first message. What has no messages any more fits none.
    pub exchange: Option<String>,
    /// The first message came before this.
    pub created_before: Option<Timestamp>,
    /// The first message was durable before this.
    pub parked_before: Option<Timestamp>,
}

/// Which names are wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum NameFilter {
    /// This one.
    Whole(String),
    /// Those that fit; `*` stands for any characters, `?` for one.
    Pattern(WildMatch),
}

impl NameFilter {
    fn fits(&self, name: &TransactionName) -> bool {
        match self {
            Self::Whole(whole) => name.as_str() == whole,
            Self::Pattern(pattern) => pattern.matches(name.as_str()),
        }
    }
}

impl Filter {
    /// Whether a transaction is wanted, as far as can be seen without its messages.
    pub fn fits(&self, summary: &Summary) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        let name = || self.name.as_ref().is_none_or(|name| summary.name.as_ref().is_some_and(|found| name.fits(found)));
        self.state.is_none_or(|state| state == summary.state)
            && is(&self.vhost, &summary.vhost)
            && is(&self.user, &summary.user)
            && self.created_before.is_none_or(|before| summary.created_at < before)
            && self.parked_before.is_none_or(|before| summary.parked_at.is_some_and(|at| at < before))
            && name()
    }

    /// Whether one is wanted whose messages begin like this.
    fn fits_front(&self, front: &[u8]) -> bool {
        self.exchange.as_deref().is_none_or(|exchange| {
            let publish = batch::first_publish(front).and_then(Publish::parse);
            publish.is_ok_and(|publish| publish.exchange == exchange.as_bytes())
        })
    }
}

/// Some of a list.
///
/// It may have fewer than were asked for, or none, although there are more: what hardly anything fits is looked for a
/// bounded way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// At most as many as were asked for.
    pub items: Vec<T>,
    /// Where those behind begin; none: there are none.
    pub next: Option<Bookmark>,
}

/// A place in a list, to ask for what is behind it. Only the store can read it; others may keep it as a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bookmark(i64);

impl Bookmark {
    /// Before the first.
    pub const START: Self = Self(0);
}

impl fmt::Display for Bookmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The text is no [`Bookmark`]'s, or no [`LetterId`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOfAStore;

impl FromStr for Bookmark {
    type Err = NotOfAStore;

    fn from_str(text: &str) -> Result<Self, NotOfAStore> {
        let bookmark = i64::from_str_radix(text, 16).ok().map(Self);
        // Whoever asks has got it from here: other spellings are others' inventions.
        bookmark.filter(|bookmark| bookmark.to_string() == text).ok_or(NotOfAStore)
    }
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self { items: Vec::new(), next: None }
    }
}

/// Users who have more in the store than their share.
pub type Heavy = Arc<HashSet<Arc<str>>>;

/// What an operator lets a store have, and may change while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that may be in use before there is no [`Room`].
    pub max_size: u64,
    /// Bytes that are undecided, or committed and not delivered, of one user before there is no room for more of it.
    pub max_size_per_user: u64,
    /// How long a finished transaction that was parked is kept, from its end.
    pub retention: Duration,
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
