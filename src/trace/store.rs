//! A store, and its way out to the relay, with a look at what passes.

use super::{About, Operation, Span, Tracer, Value};
use crate::store::{
    Bookmark, Bounded, Check, Commit, Committed, Committing, Cursor, DeadLetter, DueNow, Event, Filter, ForAdmin,
    ForCheckBack, ForRelay, ForSessions, Heavy, Lane, Letter, LetterFilter, LetterId, LetterMessage, Listing, Named,
    Origin, Outlet, Outside, Pack, Reply, Room, Sequence, Shortcut, Store, StoreError, Summary,
};
use crate::tx::batch::Batch;
use crate::tx::decision::{Actor, Decision, Target, Verdict};
use crate::tx::id::TransactionId;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;

/// Bytes of messages that are read to find the spans of a producer.
const READ_BYTES_MAX: usize = 64 << 10;

/// See the module. Its calls must be made on a tokio runtime.
pub(crate) struct TracedStore {
    inner: Arc<dyn Store>,
    pub(super) tracer: Arc<Tracer>,
}

/// The same for [`Outlet`].
pub(crate) struct TracedOutlet {
    inner: Arc<dyn Outlet>,
    pub(super) tracer: Arc<Tracer>,
}

impl TracedOutlet {
    /// Looks at what becomes committed.
    pub(crate) fn new(inner: Arc<dyn Outlet>, tracer: Arc<Tracer>) -> Self {
        Self { inner, tracer }
    }
}

impl Outlet for TracedOutlet {
    fn committed(&self, transactions: Vec<Committed>) {
        for committed in transactions.iter().filter(|committed| self.tracer.samples(committed.id)) {
            let about = self.tracer.about(committed.id);
            self.tracer.began_forwarding(committed.sequence, committed.id, about);
        }
        self.inner.committed(transactions);
    }
}

/// The same for [`Shortcut`]. What the store is asked all the same has its spans from there.
pub(crate) struct TracedShortcut {
    inner: Arc<dyn Shortcut>,
    tracer: Arc<Tracer>,
}

impl TracedShortcut {
    /// Looks at what is sent before the store has it.
    pub(crate) fn new(inner: Arc<dyn Shortcut>, tracer: Arc<Tracer>) -> Self {
        Self { inner, tracer }
    }
}

impl Shortcut for TracedShortcut {
    fn take(&self, commit: Commit) -> Result<Reply<Committing>, Box<Commit>> {
        let id = commit.origin.id;
        if !self.tracer.samples(id) {
            return self.inner.take(commit);
        }
        let (tracer, start) = (Arc::clone(&self.tracer), SystemTime::now());
        let mut about = About::new(&commit.origin.lane.vhost, None);
        about.read(commit.batch.as_bytes());
        let about = Some(Arc::new(about));
        let reply = self.inner.take(commit)?;
        let decided = move |result: &Result<Committing, StoreError>| match result {
            Ok(Committing::Forwarded { asked: false }) => {
                let verdict = Some("decided");
                tracer.send(decide(id, start, about.clone(), Decision::Commit, &Actor::Channel, verdict, None));
                let (operation, end) = (Operation::Forward, SystemTime::now());
                tracer.send(Span { transaction: id, operation, start, end, about, more: Vec::new(), error: None });
            }
            Err(error @ StoreError::Refused(..)) => {
                tracer.send(decide(id, start, about, Decision::Commit, &Actor::Channel, None, Some(error)));
            }
            Ok(_) | Err(_) => {}
        };
        Ok(watched(reply, decided))
    }
}

impl TracedStore {
    /// Looks at what is asked of `inner`.
    pub(crate) fn new(inner: Arc<dyn Store>, tracer: Arc<Tracer>) -> Self {
        Self { inner, tracer }
    }

    /// Remembers what a batch tells, if its transaction has spans.
    fn remember(&self, origin: &Origin, batch: &Batch) -> Option<Arc<About>> {
        let name = origin.named.as_deref().map(|named: &Named| named.name.as_str());
        let samples = self.tracer.samples(origin.id);
        samples.then(|| self.tracer.remember(origin.id, &origin.lane.vhost, name, batch.as_bytes()))
    }

    /// Has a decision told once it is answered.
    fn decided<T: Send + 'static>(
        &self,
        id: TransactionId,
        about: Option<Arc<About>>,
        decision: Decision,
        start: SystemTime,
        reply: Reply<T>,
        verdict: fn(&T) -> &'static str,
    ) -> Reply<T> {
        let tracer = Arc::clone(&self.tracer);
        watched(reply, move |result| {
            let verdict = result.as_ref().ok().map(verdict);
            tracer.send(decide(id, start, about, decision, &Actor::Channel, verdict, result.as_ref().err()));
            if decision == Decision::RollBack {
                tracer.forget(id);
            }
        })
    }
}

fn decide(
    transaction: TransactionId,
    start: SystemTime,
    about: Option<Arc<About>>,
    decision: Decision,
    actor: &Actor,
    verdict: Option<&'static str>,
    error: Option<&StoreError>,
) -> Span {
    let mut more =
        vec![("halfway.decision", decision.as_str().into()), ("halfway.decided_by", Value::Text(actor.to_string()))];
    more.extend(verdict.map(|verdict| ("halfway.verdict", verdict.into())));
    let (operation, end, error) = (Operation::Decide, SystemTime::now(), error.map(StoreError::to_string));
    Span { transaction, operation, start, end, about, more, error }
}

/// The same reply, of which `told` hears first.
fn watched<T: Send + 'static>(reply: Reply<T>, told: impl FnOnce(&Result<T, StoreError>) + Send + 'static) -> Reply<T> {
    let (sender, watched) = Reply::pair();
    tokio::spawn(async move {
        let result = reply.await;
        told(&result);
        // Who no longer waits needs no answer.
        let _ = sender.send(result);
    });
    watched
}

impl Bounded for TracedStore {
    fn room(&self) -> watch::Receiver<Room> {
        self.inner.room()
    }
}

impl Outside for TracedStore {
    fn decide(&self, target: Target, decision: Decision, actor: Actor, reason: Option<String>) -> Reply<Verdict> {
        let (tracer, start) = (Arc::clone(&self.tracer), SystemTime::now());
        let by = actor.clone();
        // What an earlier process parked is not known yet. Asked before the decision, which may throw it away.
        let unknown = match target {
            Target::Id(id) if tracer.samples(id) && tracer.about(id).is_none() => {
                Some((self.inner.transaction(id), self.inner.messages(id, 0, READ_BYTES_MAX)))
            }
            _ => None,
        };
        let reply = self.inner.decide(target, decision, actor, reason);
        let (sender, answer) = Reply::pair();
        tokio::spawn(async move {
            let read = match unknown {
                None => None,
                Some((transaction, packs)) => about(transaction.await, packs.await),
            };
            let result = reply.await;
            let (fate, verdict) = match &result {
                Ok(Verdict::Decided(fate)) => (Some(fate), "decided"),
                Ok(Verdict::Before(fate)) => (Some(fate), "before"),
                Ok(Verdict::Contradicted(fate)) => (Some(fate), "contradicted"),
                Ok(Verdict::Unknown) | Err(_) => (None, ""),
            };
            if let Some(id) = fate.map(|fate| fate.id).filter(|id| tracer.samples(*id)) {
                let about = read.map(Arc::new).or_else(|| tracer.about(id));
                tracer.send(decide(id, start, about, decision, &by, Some(verdict), None));
                if decision == Decision::RollBack {
                    tracer.forget(id);
                }
            }
            // Who no longer waits needs no answer.
            let _ = sender.send(result);
        });
        answer
    }

    fn check_now(&self, id: TransactionId, checker: Option<Arc<str>>) -> Reply<bool> {
        self.inner.check_now(id, checker)
    }

    fn transaction(&self, id: TransactionId) -> Reply<Option<(Summary, Vec<Event>)>> {
        self.inner.transaction(id)
    }

    fn messages(&self, id: TransactionId, from: u32, bytes_max: usize) -> Reply<Vec<Pack>> {
        self.inner.messages(id, from, bytes_max)
    }
}

impl ForSessions for TracedStore {
    fn heavy_users(&self) -> watch::Receiver<Heavy> {
        self.inner.heavy_users()
    }

    fn park(&self, origin: Origin, batch: Batch) -> Reply<()> {
        let (id, about) = (origin.id, self.remember(&origin, &batch));
        let (tracer, start) = (Arc::clone(&self.tracer), SystemTime::now());
        let reply = self.inner.park(origin, batch);
        match about {
            None => reply,
            Some(about) => watched(reply, move |result| tracer.send(stage(id, start, about, result.as_ref().err()))),
        }
    }

    fn commit(&self, commit: Commit) -> Reply<Committing> {
        let (id, has_messages) = (commit.origin.id, !commit.batch.is_empty());
        let Some(about) = self.remember(&commit.origin, &commit.batch) else { return self.inner.commit(commit) };
        let (tracer, start) = (Arc::clone(&self.tracer), SystemTime::now());
        let mut reply = self.inner.commit(commit);
        if has_messages {
            let about = Arc::clone(&about);
            reply = watched(reply, move |result| tracer.send(stage(id, start, about, result.as_ref().err())));
        }
        self.decided(id, Some(about), Decision::Commit, start, reply, |committing| match committing {
            Committing::Now(_) | Committing::Forwarded { .. } => "decided",
            Committing::Before => "before",
        })
    }

    fn rollback(&self, id: TransactionId, reason: Option<String>) -> Reply<()> {
        let start = SystemTime::now();
        let reply = self.inner.rollback(id, reason);
        match self.tracer.samples(id) {
            false => reply,
            true => self.decided(id, self.tracer.about(id), Decision::RollBack, start, reply, |()| "decided"),
        }
    }

    fn abandon(&self, id: TransactionId) -> Reply<()> {
        self.inner.abandon(id)
    }
}

impl ForRelay for TracedStore {
    fn lanes(&self) -> Reply<Vec<Lane>> {
        self.inner.lanes()
    }

    fn page(&self, lane: &Lane, after: Option<Cursor>, bytes_max: usize) -> Reply<Vec<Pack>> {
        let (tracer, vhost) = (Arc::clone(&self.tracer), Arc::clone(&lane.vhost));
        watched(self.inner.page(lane, after, bytes_max), move |packs| {
            for pack in packs.iter().flatten().filter(|pack| pack.number == 0 && tracer.samples(pack.id)) {
                let about = tracer.about(pack.id).unwrap_or_else(|| {
                    let mut about = About::new(&vhost, None);
                    about.read(pack.messages.bytes());
                    Arc::new(about)
                });
                tracer.began_forwarding(pack.sequence, pack.id, Some(about));
            }
        })
    }

    fn delivered(&self, transactions: Vec<Sequence>) {
        self.tracer.forwarded(&transactions);
        self.inner.delivered(transactions);
    }

    fn dead_letter(&self, letter: DeadLetter) -> Reply<()> {
        self.inner.dead_letter(letter)
    }

    fn step_aside(&self, aside: &Lane, transactions: Vec<Sequence>) -> Reply<()> {
        self.inner.step_aside(aside, transactions)
    }
}

impl ForCheckBack for TracedStore {
    fn due(&self, checker: &str, after: &str, limit: usize) -> Reply<DueNow> {
        self.inner.due(checker, after, limit)
    }

    fn checked(&self, id: TransactionId, check: Check) -> Reply<bool> {
        self.inner.checked(id, check)
    }

    fn unasked(&self, known: Vec<Arc<str>>, after: Bookmark, limit: usize) -> Reply<Listing<Summary>> {
        self.inner.unasked(known, after, limit)
    }
}

impl ForAdmin for TracedStore {
    fn transactions(&self, filter: Filter, after: Bookmark, limit: usize) -> Reply<Listing<Summary>> {
        self.inner.transactions(filter, after, limit)
    }

    fn dead_letters(&self, filter: LetterFilter, after: Bookmark, limit: usize) -> Reply<Listing<Letter>> {
        self.inner.dead_letters(filter, after, limit)
    }

    fn dead_letter_by_id(&self, letter: LetterId) -> Reply<Option<Letter>> {
        self.inner.dead_letter_by_id(letter)
    }

    fn dead_letter_message(&self, letter: LetterId) -> Reply<Option<LetterMessage>> {
        self.inner.dead_letter_message(letter)
    }

    fn retry(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>> {
        self.inner.retry(letter, actor, reason)
    }

    fn discard(&self, letter: LetterId, actor: Actor, reason: String) -> Reply<Option<TransactionId>> {
        self.inner.discard(letter, actor, reason)
    }
}

fn stage(transaction: TransactionId, start: SystemTime, about: Arc<About>, error: Option<&StoreError>) -> Span {
    let (operation, end, error) = (Operation::Stage, SystemTime::now(), error.map(StoreError::to_string));
    Span { transaction, operation, start, end, about: Some(about), more: Vec::new(), error }
}

/// What is to be told of a transaction that this process has not seen before.
fn about(
    transaction: Result<Option<(Summary, Vec<Event>)>, StoreError>,
    packs: Result<Vec<Pack>, StoreError>,
) -> Option<About> {
    let (summary, _) = transaction.ok()??;
    let mut about = About::new(&summary.vhost, summary.name.as_ref().map(|name| name.as_str()));
    packs.iter().flatten().for_each(|pack| about.read(pack.messages.bytes()));
    Some(about)
}
