//! Transactions of one message that RabbitMQ is given before the store: each is here with a deadline, or in the store.
//!
//! ```text
//!   can't be sent now ─► the store first
//!
//!         RabbitMQ has it, or refuses it
//!   sent ────────────────────────────────► told, and gone
//!    │
//!    │ the moment is over, or RabbitMQ's answer is not the last word        it is kept
//!    └──────────────────────────────────► the store is asked ──────────────────────────► a transaction as all others
//! ```
//!
//! A channel has one at most, for its client waits; and a row of it comes as all rows do, in its place. So what the channel
//! commits behind it has its place behind it.

use super::{Lane, Phase};
use crate::amqp::reply_code::ReplyCode;
use crate::relay::forward;
use crate::relay::message::{Message, Source, Transaction};
use crate::relay::status::add;
use crate::relay::trial::Ruling;
use crate::store::{Commit, Committing, Forwarded, Origin, Sequence, StoreError, Waiter};
use crate::tx::batch::{self, Batch};
use crate::tx::id::{MessageId, TransactionId};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long RabbitMQ has before the store is asked: longer than it takes in health, even with many at once, and shorter
/// than anybody notices.
pub(super) const MOMENT: Duration = Duration::from_millis(20);

/// Whom to tell what became of it.
type ReplyTo = oneshot::Sender<Result<Committing, StoreError>>;

/// A transaction of one message that nobody has been given.
#[derive(Debug)]
pub(in crate::relay) struct Lone {
    pub(in crate::relay) commit: Commit,
    pub(in crate::relay) answer: ReplyTo,
    pub(in crate::relay) since: Instant,
}

/// Those that RabbitMQ was given, until they are rows, or gone.
#[derive(Debug, Default)]
pub(super) struct Lones {
    sent: HashMap<TransactionId, Sent>,
    /// When the store is to be asked, of those for which RabbitMQ has not answered.
    due: VecDeque<(Instant, TransactionId)>,
    /// Of which it is to be asked at once.
    due_now: Vec<TransactionId>,
    /// Those that are rows, and in flight still as what they were.
    rows: HashMap<TransactionId, Sequence>,
}

#[derive(Debug)]
struct Sent {
    origin: Origin,
    bytes: Bytes,
    waiter: Option<Waiter>,
    since: Instant,
    keeping: Keeping,
    at: At,
}

/// What the store knows.
#[derive(Debug)]
enum Keeping {
    /// Nothing.
    Unasked(ReplyTo),
    /// It was asked; who waits is told when it has answered, unless RabbitMQ was first.
    Asked(Option<ReplyTo>),
    /// It has it. The row is about to come.
    Kept,
}

/// Where the message is.
#[derive(Debug)]
enum At {
    InFlight,
    /// It is to go on as a row, from then.
    Back(Message<Option<Sequence>>, Fate, Instant),
    /// RabbitMQ has it.
    Taken,
}

#[derive(Debug)]
enum Fate {
    Judged(Ruling),
    /// Its channel, or the connection, is gone; and whether a message that was in flight is to blame.
    Unknown {
        accused: bool,
    },
}

impl Lones {
    /// Whether each is known to its client.
    pub(super) fn is_settled(&self) -> bool {
        self.sent.values().all(|sent| matches!(sent.keeping, Keeping::Kept | Keeping::Asked(None)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.rows.is_empty()
    }

    pub(super) fn take_over(&mut self, other: Self) {
        self.sent.extend(other.sent);
        self.due_now.extend(other.due_now);
        self.due_now.extend(other.due.into_iter().map(|(_, id)| id));
        self.rows.extend(other.rows);
    }

    /// When the store is to be asked for the first of them.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due.front().map(|(at, _)| *at)
    }

    /// What may take long is waited for by those only who have to.
    pub(super) fn wait_for_nothing(&mut self) {
        for sent in self.sent.values_mut() {
            sent.waiter = sent.waiter.take().and_then(Waiter::if_mandatory);
        }
    }

    /// What RabbitMQ was given as a lone message and has answered for: of a row, if it is one by now.
    pub(super) fn resolve(&mut self, message: Message<Option<Sequence>>) -> Result<Message, Message<Option<Sequence>>> {
        match message.sequence.or_else(|| self.rows.remove(&message.id.transaction)) {
            Some(sequence) => Ok(message.placed(sequence)),
            None => Err(message),
        }
    }

    /// The due ones, of which RabbitMQ has not said the last word.
    fn next_due(&mut self, now: Instant) -> Option<TransactionId> {
        self.due_now.pop().or_else(|| {
            let (at, id) = *self.due.front()?;
            let is_open = self.sent.get(&id).is_some_and(|sent| matches!(sent.keeping, Keeping::Unasked(_)));
            if is_open && now < at {
                return None;
            }
            self.due.pop_front();
            Some(id)
        })
    }
}

impl Lane {
    /// Sends a transaction of one message that the store does not have.
    ///
    /// # Errors
    /// It, if it can't be sent now, or would overtake another one.
    pub(in crate::relay) fn send_lone(
        &mut self,
        lone: Lone,
        out: &mut Vec<u8>,
        frame_bytes_max: u32,
        now: Instant,
    ) -> Result<(), Box<Lone>> {
        let source = Source { lane: lone.commit.origin.lane.number, strand: lone.commit.origin.strand };
        let accepts = self.phase == Phase::Open && !self.opening && !self.blocked && !self.stalled;
        if !accepts
            || !self.unsent.is_empty()
            || !self.again.is_empty()
            || self.is_full()
            || self.aside.contains(source)
        {
            return Err(Box::new(lone));
        }
        let Lone { commit: Commit { origin, batch, parked, forwarded: waiter }, answer, since } = lone;
        let bytes = Bytes::from(batch.into_bytes());
        let message = Message {
            sequence: None,
            source,
            id: MessageId { transaction: origin.id, index: 0 },
            bytes: bytes.clone(),
            possible_duplicate: false,
            nacks: 0,
            returned: None,
        };
        if self.outgoing.send(message, out, frame_bytes_max, now).is_err() {
            let commit = Commit { origin, batch: unpacked(&bytes), parked, forwarded: waiter };
            return Err(Box::new(Lone { commit, answer, since }));
        }
        let id = origin.id;
        let sent = Sent { origin, bytes, waiter, since, keeping: Keeping::Unasked(answer), at: At::InFlight };
        self.lones.sent.insert(id, sent);
        self.lones.due.push_back((since + MOMENT, id));
        Ok(())
    }

    /// What the store is to be asked to keep; each is answered with [`Lane::lone_kept`].
    pub(in crate::relay) fn next_to_keep(&mut self, now: Instant) -> Option<Commit> {
        loop {
            let id = self.lones.next_due(now)?;
            let Some(sent) = self.lones.sent.get_mut(&id) else { continue };
            match std::mem::replace(&mut sent.keeping, Keeping::Kept) {
                Keeping::Unasked(answer) => {
                    sent.keeping = Keeping::Asked(Some(answer));
                    let (origin, batch) = (sent.origin.clone(), unpacked(&sent.bytes));
                    return Some(Commit { origin, batch, parked: false, forwarded: None });
                }
                other => sent.keeping = other,
            }
        }
    }

    /// The store has it, or could not keep it. Says whether it is to be asked again, with [`Lane::keep_again`].
    pub(in crate::relay) fn lone_kept(&mut self, id: TransactionId, kept: Result<Committing, StoreError>) -> bool {
        let Some(sent) = self.lones.sent.get_mut(&id) else { return false };
        let Keeping::Asked(answer) = std::mem::replace(&mut sent.keeping, Keeping::Kept) else { return false };
        match (kept, answer) {
            (Ok(committing), answer) => {
                answer.map(|answer| answer.send(Ok(committing)));
                return false;
            }
            (Err(error @ (StoreError::Unknown(_) | StoreError::Fenced | StoreError::Closed)), answer) => {
                // A row may come all the same, so nobody can be told more than that.
                answer.map(|answer| answer.send(Err(error)));
                sent.keeping = Keeping::Asked(None);
                return false;
            }
            (Err(_), Some(answer)) => match &sent.at {
                At::Back(_, Fate::Judged(Ruling::Guilty(code, text)), _) => {
                    drop(answer.send(Err(refusal(*code, text))))
                }
                _ => {
                    sent.keeping = Keeping::Unasked(answer);
                    return true;
                }
            },
            (Err(_), None) => {}
        }
        // RabbitMQ was first, and no row will come.
        self.lones.sent.remove(&id);
        false
    }

    /// The store is to be asked again.
    pub(in crate::relay) fn keep_again(&mut self, id: TransactionId) {
        self.lones.due_now.push(id);
    }

    /// A row has come of a transaction that may be one of these: from here on it is as all others. Says whether it is one.
    pub(super) fn adopt(&mut self, id: TransactionId, sequence: Sequence) -> bool {
        let Some(Sent { origin, waiter, since, keeping, at, .. }) = self.lones.sent.remove(&id) else { return false };
        if let Keeping::Asked(Some(answer)) = keeping {
            // Who no longer waits needs no answer; so everywhere here.
            let _ = answer.send(Ok(Committing::Now(sequence)));
        }
        let source = Source { lane: origin.lane.number, strand: origin.strand };
        if let At::Taken = at {
            self.delivered.push(sequence);
            return true;
        }
        let waiter = if self.stalled { waiter.and_then(Waiter::if_mandatory) } else { waiter };
        let transaction = Transaction {
            id,
            source,
            decided: since,
            waiter,
            unanswered: 1,
            burying: 0,
            cut_to: 1,
            cut: true,
            next_pack: 1,
            returned: Vec::new(),
        };
        self.transactions.insert(sequence, transaction);
        match at {
            At::Back(message, Fate::Judged(ruling), now) => self.judged(message.placed(sequence), ruling, now),
            At::Back(message, Fate::Unknown { accused }, now) => {
                self.put_back(vec![message.placed(sequence)], accused, now)
            }
            At::InFlight | At::Taken => drop(self.lones.rows.insert(id, sequence)),
        }
        true
    }

    /// RabbitMQ's word on a message that the store does not have, as far as is known here.
    pub(super) fn lone_judged(&mut self, mut message: Message<Option<Sequence>>, ruling: Ruling, now: Instant) {
        let id = message.id.transaction;
        let Some(sent) = self.lones.sent.get_mut(&id) else { return };
        match (ruling, &mut sent.keeping) {
            (Ruling::Taken, keeping) => {
                let half = message.parse();
                let (came_back, mandatory) = (message.returned.is_some(), forward::is_mandatory(half));
                let heard = sent.waiter.as_ref().is_some_and(|waiter| !waiter.is_closed());
                if came_back && self.policy.keep_unroutable && !(mandatory && heard) {
                    // It becomes a dead letter, for which the store has to have it.
                    return self.lone_back(message, Fate::Judged(Ruling::Taken), now);
                }
                let counters = &self.status.counters;
                let body = message.bytes.slice(message.bytes.len() - half.body.len()..);
                let back = message.returned.as_ref().map(|returned| forward::for_publisher(returned, half, body));
                message.returned = None;
                let returned: Vec<_> = back.into_iter().filter(|_| mandatory).collect();
                add(&counters.confirmed, 1);
                add(&counters.returned, returned.len() as u64);
                add(&counters.unroutable, u64::from(came_back && !mandatory));
                self.status.forwarded.observe(now.saturating_duration_since(sent.since));
                self.confirmed = true;
                if let Some(waiter) = sent.waiter.take() {
                    waiter.tell(Forwarded { returned });
                }
                match std::mem::replace(keeping, Keeping::Kept) {
                    Keeping::Unasked(answer) => {
                        add(&counters.direct, 1);
                        let _ = answer.send(Ok(Committing::Forwarded { asked: false }));
                        self.lones.sent.remove(&id);
                        return;
                    }
                    Keeping::Asked(answer) => {
                        answer.map(|answer| answer.send(Ok(Committing::Forwarded { asked: true })));
                        *keeping = Keeping::Asked(None);
                    }
                    Keeping::Kept => {}
                }
                sent.at = At::Taken;
            }
            (Ruling::Guilty(code, text), Keeping::Unasked(_)) => {
                if let Some(Sent { keeping: Keeping::Unasked(answer), .. }) = self.lones.sent.remove(&id) {
                    let _ = answer.send(Err(refusal(code, &text)));
                }
            }
            (ruling, _) => self.lone_back(message, Fate::Judged(ruling), now),
        }
    }

    /// RabbitMQ may have it or not.
    pub(super) fn lone_unknown(&mut self, message: Message<Option<Sequence>>, accused: bool, now: Instant) {
        self.lone_back(message, Fate::Unknown { accused }, now);
    }

    fn lone_back(&mut self, message: Message<Option<Sequence>>, fate: Fate, now: Instant) {
        let id = message.id.transaction;
        if let Some(sent) = self.lones.sent.get_mut(&id) {
            sent.at = At::Back(message, fate, now);
            self.lones.due_now.push(id);
        }
    }
}

/// RabbitMQ's refusal: `text` begins with the code's name, as the proxy's own words don't.
fn refusal(code: ReplyCode, text: &str) -> StoreError {
    let own = text.strip_prefix(code.name()).and_then(|rest| rest.strip_prefix(" - "));
    StoreError::Refused(code, own.unwrap_or(text).to_owned())
}

/// As the store is given it.
fn unpacked(bytes: &[u8]) -> Batch {
    let mut batch = Batch::default();
    batch::iter(bytes).map_while(Result::ok).for_each(|message| batch.push(message));
    batch
}
