//! What waits beside a lane: each client channel with a message that RabbitMQ did not take, and what comes behind it from
//! the same channel. The rest of the lane goes on.
//!
//! ```text
//!            a nack            what is in flight has its answer         each of them is taken, or a dead letter
//!  (flows) ─────────► settling ────────────────────────────────► one by one, with pauses ─────────────────────┐
//!     ▲                   ▲                                                                                   │
//!     │                   └── a nack ──┐                                                                      │
//!     └─── the store has no more ── reading ◄─────────────────────────────────────────────────────────────────┘
//! ```
//!
//! What is read goes one by one too, each when the one before it was taken: a queue that was full may be full again, and
//! would take what finds room by chance. Only a channel with many taken in a row has several in flight again.
//!
//! Those of which a message may have made RabbitMQ close the channel wait here too: their messages are tried first.
//!
//! Kept in memory is what was in flight when the nack came, within bounds. All else stays in the store, where it is told
//! to stand beside the lane, and is read from there.

use super::message::{Message, Source};
use super::status::Stuck;
use crate::store::{Cursor, Sequence, Waiter};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Instant;

/// Bytes of messages that are kept beside a lane, each with what it costs to keep it; what comes on top is read again from
/// the store.
const KEPT_BYTES_MAX: usize = 4 << 20;
const MESSAGE_COST: usize = 256;
/// Commits of one source that are waited for, of those that are left to the store.
const WAITERS_MAX: usize = 16;
/// Messages of a source that RabbitMQ takes in a row before several of it are in flight again.
const TRUSTED_AFTER: u32 = 1000;
/// Client channels that may wait beside a lane. With more the lane waits for one of them.
const SOURCES_MAX: usize = 20_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Aside {
    sources: HashMap<Source, Waiting>,
    /// When the next message of each may go, or its page be read.
    due: BTreeSet<(Instant, Source)>,
    /// Those of which RabbitMQ nacked something, by how often.
    nacked: BTreeSet<(u32, Source)>,
    nacked_messages: u64,
    bytes: usize,
    to_mark: Vec<Source>,
    to_read: VecDeque<Source>,
    /// Whether the store owes a page.
    reading: bool,
    /// What is to be tried, and the bytes of what is being tried.
    suspects: Vec<Message>,
    tried_bytes: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    again: BTreeMap<(Sequence, u32), Message>,
    in_flight: usize,
    /// Whether what is in flight is a single message that goes again.
    trying: bool,
    not_before: Option<Instant>,
    /// How many RabbitMQ has taken since it last nacked one.
    taken: u32,
    /// Whether what is in memory is tried before it goes with others, and until when all that comes is.
    suspect: bool,
    guilty_until: Option<Instant>,
    /// What stands in `due` and `nacked` for it.
    due: Option<Instant>,
    nacks: Option<u32>,
    /// Transactions that the store is to be told of, and whether it has not answered for those before.
    to_mark: Vec<Sequence>,
    marking: bool,
    /// How far it was read.
    read: Option<Cursor>,
    /// Whether the store may have more behind that, and whether it had nothing when it was asked.
    more: bool,
    dry: bool,
    /// Whether a page is to be asked for, or is owed.
    queued: bool,
    /// Stretches that came from the store, and are in the lane and not sent yet.
    unsent: usize,
    /// Of those that memory does not hold.
    waiters: BTreeMap<Sequence, Waiter>,
    /// Up to where it was forgotten, and how often RabbitMQ had nacked it at most.
    forgotten: Option<(Sequence, u32)>,
}

impl Waiting {
    fn is_suspect(&self) -> bool {
        self.suspect || self.guilty_until.is_some()
    }

    fn is_trusted(&self) -> bool {
        self.taken >= TRUSTED_AFTER && !self.is_suspect()
    }
}

impl Aside {
    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    pub(super) fn contains(&self, source: Source) -> bool {
        !self.sources.is_empty() && self.sources.contains_key(&source)
    }

    pub(super) fn has_room(&self) -> bool {
        self.sources.len() < SOURCES_MAX
    }

    /// Whether something of this source may be in the lane and not sent yet.
    pub(super) fn flows(&self, source: Source) -> bool {
        self.sources.get(&source).is_none_or(|waiting| waiting.unsent > 0)
    }

    /// A stretch of a source came from the store into the lane.
    pub(super) fn given(&mut self, source: Source) {
        if let Some(waiting) = self.sources.get_mut(&source) {
            waiting.unsent += 1;
        }
    }

    /// A stretch of a source left the lane.
    pub(super) fn cut(&mut self, source: Source, now: Instant) {
        if let Some(waiting) = self.sources.get_mut(&source) {
            waiting.unsent = waiting.unsent.saturating_sub(1);
            self.settle(source, now);
        }
    }

    /// An earlier process left some of this source beside the lane.
    pub(super) fn found(&mut self, source: Source, now: Instant) {
        self.sources.entry(source).or_default().more = true;
        self.settle(source, now);
    }

    /// A source steps aside, or what was read of it goes back: so many of its messages are in flight, `held` of its
    /// transactions are in memory, and what was not sent, from `unsent` on, is left to the store.
    pub(super) fn step(&mut self, source: Source, in_flight: usize, held: Vec<Sequence>, unsent: Option<Sequence>) {
        let waiting = self.sources.entry(source).or_insert_with(|| Waiting { in_flight, ..Waiting::default() });
        let all = held.iter().max().map(|last| Cursor { sequence: *last, pack: u32::MAX });
        waiting.read = match unsent {
            Some(first) => Some(before(first)),
            None => all.max(waiting.read),
        };
        waiting.more |= unsent.is_some();
        (waiting.dry, waiting.unsent) = (false, 0);
        waiting.to_mark.extend(held);
        self.to_mark.push(source);
    }

    /// A further transaction of a source that waits is left to the store.
    pub(super) fn leave(&mut self, source: Source, sequence: Sequence, waiter: Option<Waiter>) {
        self.wait(source, sequence, waiter);
        let Some(waiting) = self.sources.get_mut(&source) else { return };
        waiting.to_mark.push(sequence);
        waiting.more = true;
        if waiting.read.is_some_and(|read| sequence <= read.sequence) {
            waiting.read = Some(before(sequence));
        }
        if waiting.to_mark.len() == 1 {
            self.to_mark.push(source);
        }
    }

    /// Somebody waits for a transaction that is left to the store.
    pub(super) fn wait(&mut self, source: Source, sequence: Sequence, waiter: Option<Waiter>) {
        let waiter = waiter.and_then(Waiter::if_mandatory);
        if let (Some(waiting), Some(waiter)) = (self.sources.get_mut(&source), waiter) {
            waiting.waiters.retain(|_, waiter| !waiter.is_closed());
            if waiting.waiters.len() < WAITERS_MAX {
                waiting.waiters.insert(sequence, waiter);
            }
        }
    }

    /// Who waits for a transaction that was left to the store, and is in memory now.
    pub(super) fn take_waiter(&mut self, source: Source, sequence: Sequence) -> Option<Waiter> {
        self.sources.get_mut(&source)?.waiters.remove(&sequence)
    }

    /// A message of a source that waits was sent.
    pub(super) fn sent(&mut self, source: Source) {
        if let Some(waiting) = self.sources.get_mut(&source) {
            waiting.in_flight += 1;
        }
    }

    /// A message of a source that waits is in flight no more; [`Aside::settle`] has to follow.
    pub(super) fn answered(&mut self, source: Source) {
        if let Some(waiting) = self.sources.get_mut(&source) {
            waiting.in_flight = waiting.in_flight.saturating_sub(1);
        }
    }

    /// A message of a source that waits has to go again, `not_before` if it was nacked; [`Aside::settle`] has to follow.
    pub(super) fn put_back(&mut self, mut message: Message, not_before: Option<Instant>) {
        let Some(waiting) = self.sources.get_mut(&message.source) else { return };
        if not_before.is_some() {
            (waiting.not_before, waiting.taken) = (not_before, 0);
        }
        // A part of a page would keep the whole of it.
        message.bytes = Bytes::copy_from_slice(&message.bytes);
        self.bytes += message.bytes.len() + MESSAGE_COST;
        self.nacked_messages += u64::from(message.nacks > 0);
        waiting.again.insert(message.place(), message);
    }

    /// RabbitMQ took a message of a source that waits.
    pub(super) fn taken(&mut self, source: Source) {
        if let Some(waiting) = self.sources.get_mut(&source) {
            waiting.taken = waiting.taken.saturating_add(1);
        }
    }

    /// Whether the next message of this source, which was never sent, is to be put back until those before it were taken.
    pub(super) fn goes_alone(&self, source: Source) -> bool {
        self.sources.get(&source).is_some_and(|waiting| !waiting.is_trusted() || !waiting.again.is_empty())
    }

    /// Whether memory has no room for what is kept of this source, which is not sent soon.
    pub(super) fn is_too_much(&self, source: Source) -> bool {
        let settled = |waiting: &Waiting| waiting.in_flight == 0 && waiting.not_before.is_some();
        self.bytes > KEPT_BYTES_MAX && self.sources.get(&source).is_some_and(settled)
    }

    /// A source is read again from the store, from the start: its transactions up to `to` were put out of memory.
    pub(super) fn forget(&mut self, source: Source, to: Sequence) {
        let Some(waiting) = self.sources.get_mut(&source) else { return };
        let again = std::mem::take(&mut waiting.again);
        let nacks = again.values().map(|message| message.nacks).max().unwrap_or(0);
        let (to_before, nacks_before) = waiting.forgotten.unwrap_or((to, nacks));
        waiting.forgotten = Some((to.max(to_before), nacks.max(nacks_before)));
        (waiting.read, waiting.more, waiting.dry) = (None, true, false);
        again.values().for_each(|message| self.let_go(message));
    }

    fn let_go(&mut self, message: &Message) {
        self.bytes -= message.bytes.len() + MESSAGE_COST;
        self.nacked_messages -= u64::from(message.nacks > 0);
    }

    /// Looks what a source waits for now; it may be for nothing more.
    pub(super) fn settle(&mut self, source: Source, now: Instant) {
        let Some(waiting) = self.sources.get_mut(&source) else { return };
        if waiting.in_flight == 0 {
            waiting.trying = false;
            waiting.suspect &= !waiting.again.is_empty();
        }
        waiting.guilty_until = waiting.guilty_until.filter(|until| now < *until);
        if waiting.is_suspect() {
            // What was nacked goes alone; what was not goes at once.
            while waiting.not_before.is_none()
                && let Some(first) = waiting.again.first_entry().filter(|first| first.get().nacks == 0)
            {
                let message = first.remove();
                waiting.in_flight += 1;
                self.bytes -= message.bytes.len() + MESSAGE_COST;
                self.tried_bytes += message.bytes.len() + MESSAGE_COST;
                self.suspects.push(message);
            }
        }
        let may_go = match waiting.again.is_empty() {
            false => waiting.in_flight == 0 || waiting.is_trusted(),
            true => {
                let reads = waiting.more && !waiting.dry && !waiting.queued;
                reads && !waiting.trying && (waiting.in_flight == 0 || !waiting.is_suspect())
            }
        };
        let due = may_go.then_some(waiting.not_before);
        let nacks = waiting.again.values().next().map(|first| first.nacks).filter(|nacks| *nacks > 0);
        if nacks != waiting.nacks {
            waiting.nacks.map(|nacks| self.nacked.remove(&(nacks, source)));
            nacks.map(|nacks| self.nacked.insert((nacks, source)));
            waiting.nacks = nacks;
        }
        if let Some(due) = waiting.due.take() {
            self.due.remove(&(due, source));
        }
        match due {
            Some(None) if waiting.again.is_empty() => {
                waiting.queued = true;
                self.to_read.push_back(source);
            }
            Some(not_before) => {
                let at = not_before.unwrap_or(now);
                waiting.due = Some(at);
                self.due.insert((at, source));
            }
            None => {
                let store_owes = waiting.more || waiting.queued || waiting.marking || !waiting.to_mark.is_empty();
                let owes = store_owes || waiting.unsent > 0;
                // What is remembered of those that were forgotten is needed until they are done with.
                let remembers = waiting.forgotten.is_some() && waiting.in_flight > 0;
                if !waiting.again.is_empty() || waiting.trying || waiting.suspect || owes || remembers {
                    return;
                }
                match waiting.guilty_until {
                    Some(until) => {
                        waiting.due = Some(until);
                        self.due.insert((until, source));
                    }
                    None => drop(self.sources.remove(&source)),
                }
            }
        }
    }

    /// When [`Aside::next_message`] will have something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The next message whose time has come.
    pub(super) fn next_message(&mut self, now: Instant) -> Option<Message> {
        loop {
            let (at, source) = *self.due.first().filter(|(at, _)| *at <= now)?;
            self.due.remove(&(at, source));
            let waiting = self.sources.get_mut(&source)?;
            (waiting.due, waiting.not_before) = (None, None);
            if let Some((_, message)) = waiting.again.pop_first() {
                waiting.trying = true;
                let (is_suspect, is_trusted) = (waiting.is_suspect(), waiting.is_trusted());
                waiting.in_flight += usize::from(is_suspect);
                self.let_go(&message);
                if is_trusted {
                    self.settle(source, now);
                }
                if !is_suspect {
                    return Some(message);
                }
                self.tried_bytes += message.bytes.len() + MESSAGE_COST;
                self.suspects.push(message);
                continue;
            }
            self.settle(source, now);
        }
    }

    /// One of what this source had in flight may be guilty: all of it is tried first.
    pub(super) fn suspect(&mut self, source: Source) {
        if let Some(waiting) = self.sources.get_mut(&source) {
            waiting.suspect = true;
        }
    }

    /// One of this source was guilty: what it commits is tried first, until then.
    pub(super) fn convict(&mut self, source: Source, until: Instant) {
        if let Some(waiting) = self.sources.get_mut(&source) {
            waiting.guilty_until = Some(until);
        }
    }

    /// This source has nothing to do with it.
    pub(super) fn acquit(&mut self, source: Source) {
        if let Some(waiting) = self.sources.get_mut(&source) {
            (waiting.suspect, waiting.guilty_until) = (false, None);
        }
    }

    /// Whether what comes of this source is tried first.
    pub(super) fn is_suspect(&self, source: Source) -> bool {
        self.sources.get(&source).is_some_and(Waiting::is_suspect)
    }

    /// What is to be tried now. Each counts as in flight, until [`Aside::tried`].
    pub(super) fn take_suspects(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.suspects)
    }

    /// A message that was tried is here again.
    pub(super) fn tried(&mut self, message: &Message) {
        self.tried_bytes -= message.bytes.len() + MESSAGE_COST;
        self.answered(message.source);
    }

    /// What the store is to be told, and has not been yet. Each is answered with [`Aside::marked`].
    pub(super) fn next_marks(&mut self) -> Option<(Source, Vec<Sequence>)> {
        loop {
            let source = self.to_mark.pop()?;
            // One call after the other, so that what a crash leaves beside the lane is never behind what it leaves in it.
            if let Some(waiting) = self.sources.get_mut(&source)
                && !waiting.marking
                && !waiting.to_mark.is_empty()
            {
                waiting.marking = true;
                return Some((source, std::mem::take(&mut waiting.to_mark)));
            }
        }
    }

    /// The store has heard.
    pub(super) fn marked(&mut self, source: Source, now: Instant) {
        let Some(waiting) = self.sources.get_mut(&source) else { return };
        (waiting.marking, waiting.dry) = (false, false);
        if !waiting.to_mark.is_empty() {
            self.to_mark.push(source);
        }
        self.settle(source, now);
    }

    /// The source that the store is to be asked for, and from where on; answered with [`Aside::page`].
    pub(super) fn next_page(&mut self) -> Option<(Source, Option<Cursor>)> {
        if self.reading {
            return None;
        }
        for _ in 0..self.to_read.len() {
            let source = self.to_read.pop_front()?;
            if let Some(waiting) = self.sources.get_mut(&source) {
                let bytes = if waiting.is_suspect() { self.tried_bytes } else { self.bytes };
                if bytes > KEPT_BYTES_MAX && !waiting.is_trusted() {
                    self.to_read.push_back(source);
                    continue;
                }
                self.reading = true;
                // What the store is only being told of may be missing from the page.
                waiting.more = waiting.marking || !waiting.to_mark.is_empty();
                return Some((source, waiting.read));
            }
        }
        None
    }

    /// The store has answered with packs up to `last`, or with none, or not at all. Says whether they are the next ones;
    /// if not, they are asked for again.
    pub(super) fn page(
        &mut self,
        source: Source,
        after: Option<Cursor>,
        last: Option<Option<Cursor>>,
        now: Instant,
    ) -> bool {
        self.reading = false;
        let Some(waiting) = self.sources.get_mut(&source) else { return false };
        waiting.queued = false;
        let wanted = waiting.again.is_empty() && waiting.read == after;
        match last {
            Some(Some(last)) if wanted => (waiting.read, waiting.more) = (Some(last), true),
            Some(None) if wanted => waiting.dry = true,
            _ => waiting.more = true,
        }
        self.settle(source, now);
        wanted
    }

    /// How often a transaction that was forgotten was nacked; none: it was not.
    pub(super) fn forgotten(&self, source: Source, sequence: Sequence) -> Option<u32> {
        let (to, nacks) = self.sources.get(&source)?.forgotten?;
        (sequence <= to).then_some(nacks)
    }

    /// What RabbitMQ nacked and has not taken since: how many messages, and the one that was nacked most.
    pub(super) fn refused(&self) -> Option<Stuck> {
        let (_, source) = self.nacked.last()?;
        let first = self.sources.get(source)?.again.values().next()?;
        let (exchange, routing_key) = first.destination();
        let channels = self.sources.len() as u64;
        Some(Stuck { messages: self.nacked_messages, channels, nacks: first.nacks, exchange, routing_key })
    }

    /// Takes over what waits beside another lane.
    pub(super) fn take_over(&mut self, other: Self) {
        self.sources.extend(other.sources);
        self.due.extend(other.due);
        self.nacked.extend(other.nacked);
        self.nacked_messages += other.nacked_messages;
        self.bytes += other.bytes;
        self.to_mark.extend(other.to_mark);
        self.to_read.extend(other.to_read);
        self.reading |= other.reading;
        self.suspects.extend(other.suspects);
        self.tried_bytes += other.tried_bytes;
    }
}

/// From a transaction on, it included.
fn before(first: Sequence) -> Cursor {
    Cursor { sequence: Sequence(first.0 - 1), pack: u32::MAX }
}
