//! What is asked of a store, by who asks it. The module above says what every store promises.

use super::{
    Bookmark, Check, Commit, Committing, Cursor, DeadLetter, DueNow, Event, Filter, Heavy, Lane, Letter, LetterFilter,
    LetterId, LetterMessage, Limits, Listing, Origin, Pack, Reply, Room, Sequence, Stats, Summary,
};
use crate::tx::batch::Batch;
use crate::tx::decision::{Actor, Decision, Target, Verdict};
use crate::tx::id::TransactionId;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::sync::watch;

/// For all who have to know whether publishers must wait.
pub trait Bounded: Send + Sync + 'static {
    /// Whether there is room for more, and whoever waits is told when that changes.
    fn room(&self) -> watch::Receiver<Room>;
}

/// For all who look at a transaction, or decide, from outside the channel that published it.
pub trait Outside: Send + Sync + 'static {
    /// Decides from outside the channel that published. `reason` is for the history.
    ///
    /// To commit an attempt is to replace an earlier one in doubt under its name, as with [`ForSessions::commit`]; if an
    /// earlier one was committed, this one is rolled back, and the verdict is [`Verdict::Before`] with the earlier one's
    /// fate. What is open without a name only its channel can commit ([`StoreError::Conflict`](super::StoreError::Conflict)); it can be rolled back.
    fn decide(&self, target: Target, decision: Decision, actor: Actor, reason: Option<String>) -> Reply<Verdict>;

    /// Has a transaction in doubt checked now, by `checker` if given, else by its own. Says whether it is in doubt and
    /// has a checker. Its counts stay.
    fn check_now(&self, id: TransactionId, checker: Option<Arc<str>>) -> Reply<bool>;

    /// A transaction with its history, oldest event first.
    fn transaction(&self, id: TransactionId) -> Reply<Option<(Summary, Vec<Event>)>>;

    /// Messages of a transaction in any state that has them still, from pack number `from` on, until they add up to
    /// `bytes_max` (at least one pack, if there is one).
    fn messages(&self, id: TransactionId, from: u32, bytes_max: usize) -> Reply<Vec<Pack>>;
}

/// For sessions: what the channels that publish need.
pub trait ForSessions: Outside + Bounded {
    /// Users for whom there is no room because they have more than their share, and whoever waits is told when that changes. By
    /// login name, in all virtual hosts.
    fn heavy_users(&self) -> watch::Receiver<Heavy>;

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
    ///   with [`StoreError::Locked`](super::StoreError::Locked).
    /// - What is not transactional joins the transaction in doubt under its name, under whose id it is kept; only if
    ///   there is none, it makes one. While an attempt is open, it is refused with [`StoreError::Locked`](super::StoreError::Locked).
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
}

/// For the relay: what is committed, and what became of it.
pub trait ForRelay: Send + Sync + 'static {
    /// Lanes, and what stepped aside of them, that hold committed, undelivered messages.
    fn lanes(&self) -> Reply<Vec<Lane>>;

    /// The committed packs of a lane behind `after`, in order, until they add up to `bytes_max` (at least one, if there
    /// is one). Answered from a reader of its own; sees every commit that was answered before the call, and may see
    /// some that the [`Outlet`](super::Outlet) is only about to be told of, and some that [`ForRelay::delivered`] was just called for.
    fn page(&self, lane: &Lane, after: Option<Cursor>, bytes_max: usize) -> Reply<Vec<Pack>>;

    /// RabbitMQ has confirmed, or a dead letter keeps, every message of these. Need not be durable before the next
    /// commit: what is forgotten here is sent again, as a possible duplicate.
    fn delivered(&self, transactions: Vec<Sequence>);

    /// Keeps a message that RabbitMQ can't take. Asking again for the same message counts another attempt; so does one
    /// that was tried again, and is the same letter as before.
    fn dead_letter(&self, letter: DeadLetter) -> Reply<()>;

    /// These of a lane, committed and all of one strand, wait beside it from now on: the lane's pages don't show them any
    /// more, and those of `aside` do. So a crash finds them there.
    fn step_aside(&self, aside: &Lane, transactions: Vec<Sequence>) -> Reply<()>;
}

/// For the check-back: what is in doubt, and what was heard about it.
pub trait ForCheckBack: Outside {
    /// Transactions in doubt whose check by `checker` is due, `limit` at most. Users take turns, each with what is longest
    /// overdue, from the one behind `after` on: however much one has in doubt, nobody waits for more than a round.
    fn due(&self, checker: &str, after: &str, limit: usize) -> Reply<DueNow>;

    /// Writes down a check that decided nothing. Says whether the transaction is still in doubt.
    fn checked(&self, id: TransactionId, check: Check) -> Reply<bool>;

    /// Transactions in doubt that nobody would ask about: without a checker, or with one that is not among `known`.
    /// Those behind `after`, `limit` at most.
    fn unasked(&self, known: Vec<Arc<str>>, after: Bookmark, limit: usize) -> Reply<Listing<Summary>>;
}

/// For people and their programs.
pub trait ForAdmin: Outside + Bounded {
    /// Transactions that fit, behind `after`, `limit` at most, in the order in which they entered the
    /// store or were committed.
    fn transactions(&self, filter: Filter, after: Bookmark, limit: usize) -> Reply<Listing<Summary>>;

    /// Dead letters that wait for a person and fit, behind `after`, `limit` at most, in the order in
    /// which they were found out.
    fn dead_letters(&self, filter: LetterFilter, after: Bookmark, limit: usize) -> Reply<Listing<Letter>>;

    /// A dead letter that waits for a person.
    fn dead_letter_by_id(&self, letter: LetterId) -> Reply<Option<Letter>>;

    /// The message of a dead letter that waits for a person, and its place in its transaction.
    fn dead_letter_message(&self, letter: LetterId) -> Reply<Option<LetterMessage>>;

    /// Has a dead letter tried again: its message is committed once more, under its old place in its transaction and
    /// behind all that is committed now, as a possible duplicate. Until RabbitMQ has answered, the letter is not to be
    /// seen; then it is gone, or waits again under its number. With the last letter gone its transaction is delivered.
    ///
    /// The answer is its transaction, or none if the letter is gone or on its way. While its transaction still is
    /// forwarded, it is refused with [`StoreError::Conflict`](super::StoreError::Conflict).
    fn retry(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>>;

    /// Forgets a dead letter for good. Otherwise as [`ForAdmin::retry`].
    fn discard(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>>;
}

/// All that the proxy's parts ask, together.
pub trait Store: ForSessions + ForRelay + ForCheckBack + ForAdmin {}

impl<T: ForSessions + ForRelay + ForCheckBack + ForAdmin> Store for T {}

/// For the one who runs the store.
pub trait ForApp: Bounded + Debug {
    /// What the store counts about itself.
    fn stats(&self) -> &Arc<Stats>;

    /// Works by these limits from now on: see [`Limits`].
    fn change_limits(&self, limits: Limits);

    /// Whether another process has taken over the store: then this one must give RabbitMQ nothing more of it.
    fn taken(&self) -> watch::Receiver<bool>;

    /// Finishes every call made before, and lets go of what it has. Later calls are answered with
    /// [`StoreError::Closed`](super::StoreError::Closed). Blocks until done; a second call does nothing.
    fn close(&self);
}

/// A store that a proxy can run on.
pub trait Backend: Store + ForApp {}

impl<T: Store + ForApp> Backend for T {}
