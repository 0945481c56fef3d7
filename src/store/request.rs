//! Calls that are answered when they are durable: what is asked, what it came to, and who is told. What is in between is
//! each store's own.

use super::recent::Recent;
use super::stats::{Stats, add};
use super::{
    Check, Committed, Committing, DeadLetter, Lane, LetterId, Messages, Origin, Outlet, Sequence, StoreError, Strand,
    Waiter,
};
use crate::tx::decision::{Actor, Decision, Target, Verdict};
use crate::tx::id::TransactionId;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// How to answer a call.
pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// A call that is answered when it is durable.
#[derive(Debug)]
pub(super) enum Request {
    Park { origin: Origin, messages: Messages, answer: Answer<()> },
    Commit { origin: Origin, messages: Messages, parked: bool, forwarded: Option<Waiter>, answer: Answer<Committing> },
    Rollback { id: TransactionId, reason: Option<String>, answer: Answer<()> },
    Abandon { id: TransactionId, answer: Answer<()> },
    Decide { target: Target, decision: Decision, actor: Actor, reason: Option<String>, answer: Answer<Verdict> },
    Checked { id: TransactionId, check: Check, answer: Answer<bool> },
    CheckNow { id: TransactionId, checker: Option<Arc<str>>, answer: Answer<bool> },
    DeadLetter { letter: DeadLetter, answer: Answer<()> },
    StepAside { aside: Lane, transactions: Vec<Sequence>, answer: Answer<()> },
    Retry { letter: LetterId, actor: Actor, reason: String, answer: Answer<Option<TransactionId>> },
    Discard { letter: LetterId, actor: Actor, reason: String, answer: Answer<Option<TransactionId>> },
}

impl Request {
    /// Bytes of messages that it brings.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Park { messages, .. } | Self::Commit { messages, .. } => messages.bytes.len(),
            Self::DeadLetter { letter, .. } => letter.message.bytes().len(),
            Self::Rollback { .. }
            | Self::Abandon { .. }
            | Self::Decide { .. }
            | Self::Checked { .. }
            | Self::CheckNow { .. }
            | Self::StepAside { .. }
            | Self::Retry { .. }
            | Self::Discard { .. } => 0,
        }
    }

    fn refuse(self, error: StoreError) {
        // A caller that no longer waits needs no answer; so everywhere below.
        match self {
            Self::Park { answer, .. }
            | Self::Rollback { answer, .. }
            | Self::Abandon { answer, .. }
            | Self::DeadLetter { answer, .. }
            | Self::StepAside { answer, .. } => drop(answer.send(Err(error))),
            Self::Commit { answer, .. } => drop(answer.send(Err(error))),
            Self::Decide { answer, .. } => drop(answer.send(Err(error))),
            Self::Checked { answer, .. } | Self::CheckNow { answer, .. } => drop(answer.send(Err(error))),
            Self::Retry { answer, .. } | Self::Discard { answer, .. } => drop(answer.send(Err(error))),
        }
    }
}

/// What a request came to, to be told once the SQL transaction is durable.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Done.
    Done,
    /// Done, and these are the first messages of a named transaction, all of them together.
    Parked(TransactionId, Bytes),
    /// Committed, to be handed to the relay.
    Committed(Released),
    /// An equal decision was there before.
    CommittedBefore,
    /// What a decision from outside came to, and what it released.
    Verdict(Verdict, Option<Released>),
    /// Whether the transaction is such that it could be done.
    Is(bool),
    /// A dead letter is committed once more, to be handed to the relay.
    Retried(Released),
    /// A dead letter of this transaction is gone.
    Discarded(TransactionId),
    /// There is no such transaction, or no such letter.
    NotThere,
    /// Not done, and nothing was written for it.
    Refused(StoreError),
}

/// A transaction that was committed.
#[derive(Debug)]
pub(super) struct Released {
    pub(super) sequence: Sequence,
    pub(super) id: TransactionId,
    pub(super) lane: Lane,
    pub(super) strand: Strand,
    /// In which its messages are kept; 0: in its row.
    pub(super) packs: u32,
}

/// What a writer knows of those who asked, between its SQL transactions.
pub(super) struct Desk {
    /// Undecided transactions a part of which could not be stored, and why. They can only be rolled back: the caller of
    /// a park need not wait for its answer, and a commit behind it must not stand for less than was published.
    pub(super) broken: HashMap<TransactionId, StoreError>,
    pub(super) recent: Recent,
    outlet: Arc<dyn Outlet>,
    stats: Arc<Stats>,
}

impl Desk {
    pub(super) fn new(outlet: Arc<dyn Outlet>, stats: Arc<Stats>) -> Self {
        Self { broken: HashMap::new(), recent: Recent::default(), outlet, stats }
    }

    /// Hands on what was committed, then answers. In this order because what RabbitMQ takes long for goes first.
    pub(super) fn answer(&mut self, answered: impl Iterator<Item = (Request, Outcome)>) {
        let (now, mut committed) = (Instant::now(), Vec::new());
        let answered = answered.map(|(request, outcome)| self.hand_on(request, outcome, now, &mut committed));
        let replies = answered.collect::<Vec<_>>();
        add(&self.stats.backlog, committed.len() as u64);
        if !committed.is_empty() {
            self.outlet.committed(committed);
        }
        replies.into_iter().for_each(Told::send);
    }

    fn hand_on(&mut self, request: Request, outcome: Outcome, now: Instant, committed: &mut Vec<Committed>) -> Told {
        match request {
            Request::Park { answer, .. } => {
                let outcome = match outcome {
                    Outcome::Parked(id, messages) => {
                        self.recent.keep(id, messages);
                        Outcome::Done
                    }
                    other => other,
                };
                Told::Done(answer, done(outcome))
            }
            Request::DeadLetter { answer, .. } | Request::StepAside { answer, .. } => Told::Done(answer, done(outcome)),
            Request::Rollback { id, answer, .. } | Request::Abandon { id, answer } => {
                self.broken.remove(&id);
                self.recent.take(id);
                Told::Done(answer, done(outcome))
            }
            Request::Commit { messages, forwarded, answer, .. } => match outcome {
                Outcome::Committed(released) => {
                    let sequence = released.sequence;
                    let messages = (released.packs == 0).then_some(messages.bytes);
                    committed.push(self.release(released, now, messages, forwarded));
                    Told::Commit(answer, Ok(Committing::Now(sequence)))
                }
                Outcome::CommittedBefore => Told::Commit(answer, Ok(Committing::Before)),
                other => Told::Commit(answer, Err(refusal(other))),
            },
            Request::Decide { answer, .. } => match outcome {
                Outcome::Verdict(verdict, released) => {
                    if let Verdict::Decided(fate) = &verdict
                        && released.is_none()
                    {
                        self.recent.take(fate.id);
                    }
                    committed.extend(released.map(|released| self.release(released, now, None, None)));
                    Told::Verdict(answer, Ok(verdict))
                }
                other => Told::Verdict(answer, Err(refusal(other))),
            },
            Request::Checked { answer, .. } | Request::CheckNow { answer, .. } => match outcome {
                Outcome::Is(so) => Told::Is(answer, Ok(so)),
                other => Told::Is(answer, Err(refusal(other))),
            },
            Request::Retry { answer, .. } | Request::Discard { answer, .. } => match outcome {
                Outcome::Retried(Released { sequence, id, lane, strand, .. }) => {
                    let (messages, forwarded) = (None, None);
                    committed.push(Committed { sequence, id, lane, strand, decided: now, messages, forwarded });
                    Told::Letter(answer, Ok(Some(id)))
                }
                Outcome::Discarded(id) => Told::Letter(answer, Ok(Some(id))),
                Outcome::NotThere => Told::Letter(answer, Ok(None)),
                other => Told::Letter(answer, Err(refusal(other))),
            },
        }
    }

    fn release(
        &mut self,
        released: Released,
        decided: Instant,
        messages: Option<Bytes>,
        forwarded: Option<Waiter>,
    ) -> Committed {
        let Released { sequence, id, lane, strand, packs } = released;
        add(&self.stats.commits, 1);
        // What is remembered of it is its first pack.
        let messages = messages.or_else(|| self.recent.take(id).filter(|_| packs == 1));
        Committed { sequence, id, lane, strand, decided, messages, forwarded }
    }

    /// Says that nothing of it took effect. What comes back is an end that has to be tried again: its channel is gone, so
    /// nobody else would. `is_kept` says whether anything of a transaction that was parked is in the store.
    pub(super) fn refuse(
        &mut self,
        request: Request,
        error: StoreError,
        is_kept: impl Fn(TransactionId) -> bool,
    ) -> Option<Request> {
        if let Request::Park { origin, .. } = &request
            && is_one(origin)
        {
            self.broken.entry(origin.id).or_insert_with(|| error.clone());
        }
        // Nobody waits for the second answer.
        let again = oneshot::channel().0;
        match request {
            Request::Rollback { id, answer, .. } | Request::Abandon { id, answer } if !is_kept(id) => {
                // There is nothing to end: the first part of it was what failed.
                let ended = self.broken.remove(&id).map(drop).ok_or(error);
                drop(answer.send(ended));
                None
            }
            Request::Rollback { id, reason, answer } => {
                drop(answer.send(Err(error)));
                Some(Request::Rollback { id, reason, answer: again })
            }
            Request::Abandon { id, answer } => {
                drop(answer.send(Err(error)));
                Some(Request::Abandon { id, answer: again })
            }
            other => {
                other.refuse(error);
                None
            }
        }
    }
}

/// Whether all that is parked under this id shares the fate of what could not be: one channel publishes it and decides
/// it. Other half messages each have an answer of their own.
pub(super) fn is_one(origin: &Origin) -> bool {
    origin.named.as_ref().is_none_or(|named| named.transactional)
}

/// An answer to be sent.
enum Told {
    Done(Answer<()>, Result<(), StoreError>),
    Commit(Answer<Committing>, Result<Committing, StoreError>),
    Verdict(Answer<Verdict>, Result<Verdict, StoreError>),
    Is(Answer<bool>, Result<bool, StoreError>),
    Letter(Answer<Option<TransactionId>>, Result<Option<TransactionId>, StoreError>),
}

impl Told {
    fn send(self) {
        match self {
            Self::Done(answer, result) => drop(answer.send(result)),
            Self::Commit(answer, result) => drop(answer.send(result)),
            Self::Verdict(answer, result) => drop(answer.send(result)),
            Self::Is(answer, result) => drop(answer.send(result)),
            Self::Letter(answer, result) => drop(answer.send(result)),
        }
    }
}

fn done(outcome: Outcome) -> Result<(), StoreError> {
    if let Outcome::Done = outcome { Ok(()) } else { Err(refusal(outcome)) }
}

/// Why nothing was done.
fn refusal(outcome: Outcome) -> StoreError {
    match outcome {
        Outcome::Refused(error) => error,
        Outcome::NotThere => StoreError::Conflict("not there".into()),
        other => unreachable!("{other:?} answers another call"),
    }
}
