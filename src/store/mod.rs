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
//! - What is to be waited for comes after as much time as was said, however the wall clock is set meanwhile.
//! - What is read back for the relay is what was kept, or says that it is not.
//! - An error means that nothing of the call took effect, and the store goes on: when space returns, so do commits.

mod clock;
mod letter;
pub mod memory;
pub mod sqlite;
mod stored;
mod waiter;

pub use self::clock::{Clock, system_clock};
pub use self::letter::{Envelope, Letter, LetterFilter, LetterId, LetterMessage};
use self::stored::Messages;
pub use self::stored::Stored;
pub use self::waiter::Waiter;
use crate::amqp::method::Publish;
use crate::tx::batch::{self, Batch};
pub use crate::tx::checker::Named;
use crate::tx::decision::{Actor, Decision, Target, Verdict};
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::name::TransactionName;
pub use crate::tx::outcome::{Forwarded, ReturnedMessage, StoreError, Wait};
use crate::tx::state::State;
use bytes::Bytes;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
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
    /// Whether earlier messages of it were parked with [`Store::park`].
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
    /// What to ask for to get those behind; none: there are none.
    pub next: Option<i64>,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self { items: Vec::new(), next: None }
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
    /// Keeps messages of an undecided transaction. The first call makes the transaction: as `open`, or as `in_doubt` if
    /// it is named and not transactional.
    ///
    /// If it fails, an unnamed or transactional transaction is incomplete and can only be rolled back: every later call
    /// for it fails too, so the caller need not wait for this answer before the next call.
    ///
    /// Of a named transaction:
    /// - A message with the message-id of one that it has already is that message, and is not kept twice.
    /// - If its name was committed (and is remembered), nothing is kept, and the answer is the same.
    /// - A transactional one is an attempt of its own under its name. While another such attempt is open, it is refused
    ///   with [`StoreError::Locked`].
    /// - What is not transactional joins the transaction in doubt under its name, under whose id it is kept; only if
    ///   there is none, it makes one. While an attempt is open, it is refused with [`StoreError::Locked`].
    ///
    /// If we crash here: an unnamed transaction is rolled back at the next start, a named one is in doubt.
    fn park(&self, origin: Origin, batch: Batch) -> Reply<()>;

    /// Commits, on behalf of the channel that published. Once answered, every message of the transaction reaches
    /// RabbitMQ, whatever crashes.
    ///
    /// Of a named transaction: an earlier attempt in doubt under its name is rolled back, for this one replaces it. If
    /// an earlier one was committed, this one is rolled back and the answer is [`Committing::Before`].
    fn commit(&self, commit: Commit) -> Reply<Committing>;

    /// Rolls back a parked transaction on behalf of the channel that published: its messages go. `reason` is for its
    /// history: RabbitMQ's refusal, say. If this fails, the store tries again by itself; if the process ends first, the
    /// next start rolls it back, or leaves it in doubt if it has a name.
    fn rollback(&self, id: TransactionId, reason: Option<String>) -> Reply<()>;

    /// The channel of a named, open transaction ended undecided: it is in doubt from now on, and its check is due after
    /// its plan's `first_after`. If an earlier attempt under its name is in doubt already, the one with more messages
    /// stays, at a tie the later one, and the other is rolled back: a name has one fate. It is rolled back as well if
    /// its name was committed meanwhile, or if a part of it could not be kept. Does nothing to others.
    fn abandon(&self, id: TransactionId) -> Reply<()>;

    /// Decides from outside the channel that published. `reason` is for the history.
    ///
    /// To commit an attempt is to replace an earlier one in doubt under its name, as with [`Store::commit`]; if an
    /// earlier one was committed, this one is rolled back, and the verdict is [`Verdict::Before`] with the earlier one's
    /// fate. What is open without a name only its channel can commit ([`StoreError::Conflict`]); it can be rolled back.
    fn decide(&self, target: Target, decision: Decision, actor: Actor, reason: Option<String>) -> Reply<Verdict>;

    /// Transactions in doubt whose check by `checker` is due, `limit` at most. Users take turns, each with what is longest
    /// overdue, from the one behind `after` on: however much one has in doubt, nobody waits for more than a round.
    fn due(&self, checker: &str, after: &str, limit: usize) -> Reply<DueNow>;

    /// Writes down a check that decided nothing. Says whether the transaction is still in doubt.
    fn checked(&self, id: TransactionId, check: Check) -> Reply<bool>;

    /// Has a transaction in doubt checked now, by `checker` if given, else by its own. Says whether it is in doubt and
    /// has a checker. Its counts stay.
    fn check_now(&self, id: TransactionId, checker: Option<Arc<str>>) -> Reply<bool>;

    /// Transactions in doubt that nobody would ask about: without a checker, or with one that is not among `known`.
    /// Those behind `after` (0: from the first), `limit` at most.
    fn unasked(&self, known: Vec<Arc<str>>, after: i64, limit: usize) -> Reply<Listing<Summary>>;

    /// A transaction with its history, oldest event first.
    fn transaction(&self, id: TransactionId) -> Reply<Option<(Summary, Vec<Event>)>>;

    /// Transactions that fit, behind `after` (0: from the first), `limit` at most, in the order in which they entered the
    /// store or were committed.
    fn transactions(&self, filter: Filter, after: i64, limit: usize) -> Reply<Listing<Summary>>;

    /// Messages of a transaction in any state that has them still, from pack number `from` on, until they add up to
    /// `bytes_max` (at least one pack, if there is one).
    fn messages(&self, id: TransactionId, from: u32, bytes_max: usize) -> Reply<Vec<Pack>>;

    /// RabbitMQ has confirmed, or a dead letter keeps, every message of these. Need not be durable before the next
    /// commit: what is forgotten here is sent again, as a possible duplicate.
    fn delivered(&self, transactions: Vec<Sequence>);

    /// Keeps a message that RabbitMQ can't take. Asking again for the same message counts another attempt; so does one
    /// that was tried again, and is the same letter as before.
    fn dead_letter(&self, letter: DeadLetter) -> Reply<()>;

    /// Dead letters that wait for a person and fit, behind `after` (0: from the first), `limit` at most, in the order in
    /// which they were found out.
    fn dead_letters(&self, filter: LetterFilter, after: i64, limit: usize) -> Reply<Listing<Letter>>;

    /// A dead letter that waits for a person.
    fn dead_letter_by_id(&self, letter: LetterId) -> Reply<Option<Letter>>;

    /// The message of a dead letter that waits for a person, and its place in its transaction.
    fn dead_letter_message(&self, letter: LetterId) -> Reply<Option<LetterMessage>>;

    /// Has a dead letter tried again: its message is committed once more, under its old place in its transaction and
    /// behind all that is committed now, as a possible duplicate. Until RabbitMQ has answered, the letter is not to be
    /// seen; then it is gone, or waits again under its number. With the last letter gone its transaction is delivered.
    ///
    /// The answer is its transaction, or none if the letter is gone or on its way. While its transaction still is
    /// forwarded, it is refused with [`StoreError::Conflict`].
    fn retry(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>>;

    /// Forgets a dead letter for good. Otherwise as [`Store::retry`].
    fn discard(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>>;

    /// These of a lane, committed and all of one strand, wait beside it from now on: the lane's pages don't show them any
    /// more, and those of `aside` do. So a crash finds them there.
    fn step_aside(&self, aside: &Lane, transactions: Vec<Sequence>) -> Reply<()>;

    /// Lanes, and what stepped aside of them, that hold committed, undelivered messages.
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
