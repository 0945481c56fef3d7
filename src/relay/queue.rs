//! What a lane still has to be given: from memory as long as RabbitMQ keeps up, else from the store.
//!
//! ```text
//!             memory is short, or RabbitMQ is away
//!   Live ────────────────────────────────────────────► Far: commits are not kept, pages are read
//!    │ ▲                                               │  ▲
//!    │ │ a page has reached what memory holds          │  │ memory is short again
//!    │ └────────────────────────── Near ◄──────────────┘  │
//!    └──── a gap behind memory ───► │ ◄── the end is near │
//!                                   └─────────────────────┘
//! ```
//!
//! In `Near`, commits are kept again while the last pages are read. A commit that was not kept became durable before
//! `Near` began, so the pages asked for from then on show it; one that is both kept and read is told by its sequence.
//! So nothing is left out, sent twice or out of order.

use super::message::Source;
use crate::store::{Committed, Cursor, Pack, Sequence, Waiter};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Waiters that are kept per lane for transactions that memory does not hold. Each belongs to a channel that waits for
/// its commit, so more are not expected; the commit of a dropped one is answered at once.
const WAITERS_MAX: usize = 10_000;

/// Memory for messages that wait for their turn, shared by all lanes.
#[derive(Debug)]
pub(super) struct Budget {
    free: AtomicUsize,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { free: AtomicUsize::new(bytes) })
    }

    fn take(&self, bytes: usize) -> bool {
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Live,
    Far,
    Near,
}

/// The queue of one lane.
#[derive(Debug)]
pub(super) struct Queue {
    budget: Arc<Budget>,
    mode: Mode,
    /// Commits in order, without a gap between them. Those that are not kept come behind them.
    live: VecDeque<Committed>,
    /// Whether commits are not kept, because the store has to be asked for one before them.
    behind: bool,
    /// How far the lane was given its transactions.
    given: Option<Cursor>,
    page_asked: bool,
    /// Of transactions that memory does not hold, in their order.
    waiters: VecDeque<(Sequence, Source, Waiter)>,
    /// Whether what comes is sent soon, so that it can be waited for.
    sends_soon: bool,
}

/// What a lane gets next.
#[derive(Debug)]
pub(super) enum Next {
    /// A transaction with its messages.
    Committed(Committed),
    /// The store must be asked for the page behind this; [`Queue::page`] wants to see it.
    Page(Option<Cursor>),
    /// Nothing now.
    Nothing,
}

impl Queue {
    /// A lane of which the store may hold any number of transactions.
    pub(super) fn new(budget: Arc<Budget>, sends_soon: bool) -> Self {
        Self {
            budget,
            mode: Mode::Far,
            live: VecDeque::new(),
            behind: true,
            given: None,
            page_asked: false,
            waiters: VecDeque::new(),
            sends_soon,
        }
    }

    /// Takes a new commit, in commit order.
    pub(super) fn push(&mut self, mut committed: Committed) {
        if !self.sends_soon {
            committed.forwarded = committed.forwarded.and_then(Waiter::if_mandatory);
        }
        if self.given.is_some_and(|given| committed.sequence <= given.sequence) {
            // A page showed it between its becoming durable and this.
            return self.keep_waiter(committed);
        }
        let bytes = committed.messages.as_ref().map(|messages| messages.len());
        if !self.behind && bytes.is_some_and(|bytes| self.budget.take(bytes)) {
            self.live.push_back(committed);
        } else {
            self.behind = true;
            self.keep_waiter(committed);
        }
    }

    /// What comes next in the lane's order.
    pub(super) fn next(&mut self) -> Next {
        if self.mode == Mode::Live {
            if let Some(committed) = self.pop_live() {
                self.given = Some(Cursor { sequence: committed.sequence, pack: u32::MAX });
                return Next::Committed(committed);
            }
            if !self.behind {
                return Next::Nothing;
            }
            self.mode = Mode::Near;
            self.behind = false;
        }
        if std::mem::replace(&mut self.page_asked, true) { Next::Nothing } else { Next::Page(self.given) }
    }

    /// The page that was asked for has come (and is given to the lane); `bytes_max` is what was asked for.
    pub(super) fn page(&mut self, packs: &[Pack], bytes_max: usize) {
        self.page_asked = false;
        if let Some(last) = packs.last() {
            self.given = Some(Cursor { sequence: last.sequence, pack: last.number });
        }
        let short = packs.iter().map(|pack| pack.messages.bytes().len()).sum::<usize>() < bytes_max / 2;
        match self.mode {
            Mode::Far if short => {
                self.mode = Mode::Near;
                self.behind = false;
            }
            Mode::Near if packs.is_empty() || (packs.last().is_some_and(|pack| pack.last) && self.meets_live()) => {
                while self.meets_live() {
                    let known = self.pop_live().expect("it has just been looked at");
                    self.keep_waiter(known);
                }
                self.mode = Mode::Live;
            }
            Mode::Near if self.behind && !short => self.spill(),
            _ => {}
        }
    }

    /// Whether it has nothing, and neither has the store.
    pub(super) fn is_idle(&self) -> bool {
        self.mode == Mode::Live && self.live.is_empty() && !self.behind
    }

    /// The page that was asked for can't be had now.
    pub(super) fn page_failed(&mut self) {
        self.page_asked = false;
    }

    /// Gives up what is in memory: the store has it too.
    pub(super) fn spill(&mut self) {
        self.mode = Mode::Far;
        self.behind = true;
        while let Some(committed) = self.pop_live() {
            self.keep_waiter(committed);
        }
    }

    /// Waiters of transactions that the lane was given without them.
    pub(super) fn take_waiter(&mut self) -> Option<(Sequence, Source, Waiter)> {
        let given = self.given?.sequence;
        self.waiters.front().filter(|(sequence, ..)| *sequence <= given)?;
        self.waiters.pop_front()
    }

    /// Whether what is here, and what comes, is sent soon. If not, only those are told of it who have to be.
    pub(super) fn set_sends_soon(&mut self, sends_soon: bool) {
        if std::mem::replace(&mut self.sends_soon, sends_soon) == sends_soon || sends_soon {
            return;
        }
        for committed in &mut self.live {
            committed.forwarded = committed.forwarded.take().and_then(Waiter::if_mandatory);
        }
        let waiters = std::mem::take(&mut self.waiters).into_iter();
        self.waiters =
            waiters.filter_map(|(sequence, source, waiter)| Some((sequence, source, waiter.if_mandatory()?))).collect();
    }

    fn meets_live(&self) -> bool {
        self.live.front().is_some_and(|first| self.given.is_some_and(|given| first.sequence <= given.sequence))
    }

    fn pop_live(&mut self) -> Option<Committed> {
        let committed = self.live.pop_front()?;
        self.budget.give_back(committed.messages.as_ref().map_or(0, |messages| messages.len()));
        Some(committed)
    }

    fn keep_waiter(&mut self, committed: Committed) {
        let Some(waiter) = committed.forwarded else { return };
        if self.waiters.len() >= WAITERS_MAX {
            self.waiters.retain(|(.., waiter)| !waiter.is_closed());
        }
        if self.waiters.len() < WAITERS_MAX && !waiter.is_closed() {
            // Nearly always the last place: only what leaves memory comes before those that never were in it.
            let place = self.waiters.partition_point(|(sequence, ..)| *sequence < committed.sequence);
            let source = Source { lane: committed.lane.number, strand: committed.strand };
            self.waiters.insert(place, (committed.sequence, source, waiter));
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        while self.pop_live().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Forwarded, Wait};
    use crate::store::{Lane, Strand};
    use crate::tx::id::TransactionId;
    use bytes::Bytes;
    use proptest::prelude::*;
    use tokio::sync::oneshot;
    use uuid::Uuid;

    const BYTES: usize = 10;

    fn committed(sequence: i64, in_memory: bool) -> (Committed, oneshot::Receiver<Forwarded>) {
        let (sender, receiver) = Waiter::pair(Wait::default());
        let committed = Committed {
            sequence: Sequence(sequence),
            id: TransactionId(Uuid::from_u128(sequence as u128)),
            lane: Lane::new("/".into(), 0),
            strand: Strand(0),
            decided: std::time::Instant::now(),
            messages: in_memory.then(|| Bytes::from_static(&[0; BYTES])),
            forwarded: Some(sender),
        };
        (committed, receiver)
    }

    /// The store: transactions of two packs each.
    #[derive(Default)]
    struct Stored(Vec<i64>);

    impl Stored {
        fn page(&self, after: Option<Cursor>, packs_max: usize) -> Vec<Pack> {
            let packs = self.0.iter().flat_map(|sequence| [(*sequence, 0), (*sequence, 1)]);
            let pack = |(sequence, number)| Pack {
                sequence: Sequence(sequence),
                id: TransactionId(Uuid::from_u128(sequence as u128)),
                strand: Strand(0),
                number,
                first_index: number,
                last: number == 1,
                decided_at: None,
                retried: false,
                messages: crate::store::Stored::Sound(Bytes::from_static(&[0; BYTES / 2])),
            };
            packs
                .map(pack)
                .filter(|pack| after.is_none_or(|after| Cursor { sequence: pack.sequence, pack: pack.number } > after))
                .take(packs_max)
                .collect()
        }
    }

    proptest! {
        /// Commits, pages, disconnections in any order, commits heard of late: the lane gets each transaction once, in
        /// order, with its waiter.
        #[test]
        fn nothing_is_left_out_sent_twice_or_out_of_order(
            backlog in 0i64..5,
            steps in proptest::collection::vec(0u8..10, 1..200),
            budget in 0usize..5,
            packs_max in 1usize..6,
        ) {
            let budget = Budget::new(budget * BYTES);
            let (mut queue, mut stored, mut next) = (Queue::new(Arc::clone(&budget), true), Stored::default(), 0);
            let free_at_first = budget.free.load(Ordering::Relaxed);
            stored.0.extend(0..backlog);
            next += backlog;
            let (mut given, mut waiters, mut receivers) = (Vec::new(), Vec::new(), Vec::new());
            let mut asked = None;
            let mut durable = VecDeque::new();
            let drain = [7u8, 3, 4].repeat(400);
            for step in steps.into_iter().chain(drain) {
                match step {
                    0..=2 => {
                        let (committed, receiver) = committed(next, step != 2);
                        stored.0.push(next);
                        durable.push_back(committed);
                        receivers.push(receiver);
                        next += 1;
                    }
                    3 | 5 => match queue.next() {
                        Next::Committed(committed) => {
                            waiters.extend(committed.forwarded.map(|waiter| (committed.sequence, waiter)));
                            given.extend([(committed.sequence.0, 0), (committed.sequence.0, 1)]);
                        }
                        Next::Page(after) => {
                            prop_assert!(asked.is_none());
                            // Asked now, answered later: what is committed in between may be missing from it.
                            asked = Some(stored.page(after, packs_max));
                        }
                        Next::Nothing => {}
                    },
                    4 | 6 => if let Some(packs) = asked.take() {
                        given.extend(packs.iter().map(|pack| (pack.sequence.0, pack.number)));
                        queue.page(&packs, packs_max * BYTES / 2);
                    },
                    7 | 8 => durable.drain(..).for_each(|committed| queue.push(committed)),
                    _ => queue.spill(),
                }
                waiters.extend(std::iter::from_fn(|| queue.take_waiter()).map(|(sequence, _, waiter)| (sequence, waiter)));
            }
            let all: Vec<_> = (0..next).flat_map(|sequence| [(sequence, 0), (sequence, 1)]).collect();
            prop_assert_eq!(given, all);
            let mut sequences: Vec<_> = waiters.iter().map(|(sequence, _)| sequence.0).collect();
            sequences.sort_unstable();
            prop_assert_eq!(sequences, (backlog..next).collect::<Vec<_>>());
            prop_assert_eq!(budget.free.load(Ordering::Relaxed), free_at_first);
        }
    }

    #[test]
    fn a_commit_that_a_page_showed_before_it_was_heard_of_is_given_once() {
        let mut queue = Queue::new(Budget::new(1000), true);
        let mut stored = Stored::default();
        stored.0.push(1);
        for packs in [stored.page(None, 10), Vec::new()] {
            assert!(matches!(queue.next(), Next::Page(_)));
            queue.page(&packs, 1000);
        }
        queue.push(committed(1, true).0);
        assert!(matches!(queue.next(), Next::Nothing));
        assert!(queue.take_waiter().is_some_and(|(sequence, ..)| sequence.0 == 1));
    }

    #[test]
    fn nobody_waits_for_what_is_not_sent_soon_but_to_hear_what_comes_back() {
        let mut queue = Queue::new(Budget::new(15), true);
        let push = |queue: &mut Queue, sequence, mandatory| {
            let (waiter, receiver) = Waiter::pair(Wait::new(mandatory));
            queue.push(Committed { forwarded: Some(waiter), ..committed(sequence, true).0 });
            receiver
        };
        for _ in 0..2 {
            assert!(matches!(queue.next(), Next::Page(None)));
            queue.page(&[], 1000);
        }
        let mut receivers: Vec<_> = (0..4).map(|sequence| push(&mut queue, sequence, sequence % 2 == 1)).collect();
        queue.set_sends_soon(false);
        receivers.extend((4..6).map(|sequence| push(&mut queue, sequence, sequence % 2 == 1)));
        queue.set_sends_soon(true);
        receivers.push(push(&mut queue, 6, false));
        let waits: Vec<_> = receivers
            .iter_mut()
            .map(|receiver| receiver.try_recv() == Err(oneshot::error::TryRecvError::Empty))
            .collect();
        assert_eq!(waits, [false, true, false, true, false, true, true]);
    }

    #[test]
    fn a_lane_that_keeps_up_reads_no_page() {
        let mut queue = Queue::new(Budget::new(1000), true);
        for _ in 0..2 {
            assert!(matches!(queue.next(), Next::Page(None)));
            queue.page(&[], 1000);
        }
        for sequence in 0..50 {
            queue.push(committed(sequence, true).0);
            assert!(matches!(queue.next(), Next::Committed(committed) if committed.sequence.0 == sequence));
            assert!(matches!(queue.next(), Next::Nothing));
        }
    }
}
