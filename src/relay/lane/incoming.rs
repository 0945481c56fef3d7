//! What a lane is given: from memory, from the store, and who waits for it.

use super::Lane;
use crate::relay::message::{Source, Stretch, Transaction};
use crate::store::{Committed, Cursor, Forwarded, Pack, Sequence, Stored, Waiter};
use crate::tx::id::TransactionId;
use std::time::Instant;

impl Lane {
    /// Takes a transaction that never left this process. Sequences rise.
    pub(in crate::relay) fn add_committed(&mut self, committed: Committed) {
        let Committed { sequence, id, decided, messages, forwarded: waiter, lane, strand } = committed;
        if self.adopt(id, sequence) {
            return;
        }
        let source = Source { lane: lane.number, strand };
        if self.aside.contains(source) {
            return self.aside.leave(source, sequence, waiter);
        }
        let messages = messages.expect("a transaction without its messages is read from the store");
        self.begin(sequence, id, source, decided, waiter);
        let (possible_duplicate, damaged, nacks) = (false, false, 0);
        let (next_index, last) = (0, true);
        self.add_stretch(Stretch { sequence, source, next_index, last, messages, damaged, possible_duplicate, nacks });
    }

    /// Takes a part of a transaction of this lane of the store's that was decided at `decided`, read from the store.
    pub(in crate::relay) fn add_pack(&mut self, lane: u16, pack: Pack, possible_duplicate: bool, decided: Instant) {
        if pack.number == 0 && self.adopt(pack.id, pack.sequence) {
            return;
        }
        let source = Source { lane, strand: pack.strand };
        if !self.aside.contains(source) {
            self.take_pack(source, pack, possible_duplicate, decided);
        } else if pack.number == 0 {
            self.aside.leave(source, pack.sequence, None);
        }
    }

    fn take_pack(&mut self, source: Source, pack: Pack, possible_duplicate: bool, decided: Instant) {
        let Pack { sequence, id, number, first_index, last, retried, messages, .. } = pack;
        let forgotten = self.aside.forgotten(source, sequence);
        let possible_duplicate = possible_duplicate || retried || forgotten.is_some();
        if number == 0 && !self.transactions.contains_key(&sequence) {
            let waiter = self.aside.take_waiter(source, sequence);
            self.begin(sequence, id, source, decided, waiter);
        }
        let (messages, damaged) = match messages {
            Stored::Sound(messages) => (messages, false),
            Stored::Damaged(messages) => (messages, true),
        };
        // What comes behind a last pack, from a store that miscounts, is passed over; so is what came before.
        if let Some(transaction) = self.transactions.get_mut(&sequence).filter(|it| it.next_pack == number) {
            transaction.next_pack += 1;
            let (next_index, nacks) = (first_index, forgotten.unwrap_or(0));
            let mut stretch =
                Stretch { sequence, source, next_index, last, messages, damaged, possible_duplicate, nacks };
            stretch.skip_to(transaction.cut_to);
            if damaged && !stretch.messages.is_empty() {
                self.tell_of_damage(id);
            }
            self.aside.given(source);
            self.add_stretch(stretch);
        }
    }

    /// An earlier process left something of this source beside the lane.
    pub(in crate::relay) fn found_aside(&mut self, source: Source, now: Instant) {
        self.aside.found(source, now);
    }

    /// What the store is to be asked for, of what waits beside the lane.
    pub(in crate::relay) fn next_page(&mut self) -> Option<(Source, Option<Cursor>)> {
        self.aside.next_page()
    }

    /// The store has answered, or failed to. Says whether the lane is to be given the packs with [`Lane::add_aside`].
    pub(in crate::relay) fn page(
        &mut self,
        source: Source,
        after: Option<Cursor>,
        packs: Option<&[Pack]>,
        now: Instant,
    ) -> bool {
        let cursor = |pack: &Pack| Cursor { sequence: pack.sequence, pack: pack.number };
        self.aside.page(source, after, packs.map(|packs| packs.last().map(cursor)), now)
    }

    /// As [`Lane::add_pack`], of what waited beside the lane.
    pub(in crate::relay) fn add_aside(
        &mut self,
        source: Source,
        pack: Pack,
        possible_duplicate: bool,
        decided: Instant,
    ) {
        self.take_pack(source, pack, possible_duplicate, decided);
    }

    /// What the store is to keep beside the lane; each is answered with [`Lane::marked`].
    pub(in crate::relay) fn next_marks(&mut self) -> Option<(Source, Vec<Sequence>)> {
        self.aside.next_marks()
    }

    /// The store keeps it there.
    pub(in crate::relay) fn marked(&mut self, source: Source, now: Instant) {
        self.aside.marked(source, now);
    }

    /// Someone waits for a transaction that was read from the store.
    pub(in crate::relay) fn attach(&mut self, sequence: Sequence, source: Source, waiter: Waiter) {
        match self.transactions.get_mut(&sequence) {
            Some(transaction) => transaction.waiter = Some(waiter),
            None if self.aside.contains(source) => self.aside.wait(source, sequence, Some(waiter)),
            // It was read from the store, and confirmed, before the commit was heard of.
            None => {
                let place = self.unheard.iter().position(|(unheard, _)| *unheard == sequence);
                let returned = place.and_then(|place| self.unheard.remove(place)).map(|(_, returned)| returned);
                waiter.tell(Forwarded { returned: returned.unwrap_or_default() });
            }
        }
    }

    pub(super) fn begin(
        &mut self,
        sequence: Sequence,
        id: TransactionId,
        source: Source,
        decided: Instant,
        waiter: Option<Waiter>,
    ) {
        let waiter = if self.stalled { waiter.and_then(Waiter::if_mandatory) } else { waiter };
        let transaction = Transaction {
            id,
            source,
            decided,
            waiter,
            unanswered: 0,
            burying: 0,
            cut_to: 0,
            cut: false,
            next_pack: 0,
            returned: Vec::new(),
        };
        self.transactions.insert(sequence, transaction);
    }

    pub(super) fn add_stretch(&mut self, stretch: Stretch) {
        self.unsent_bytes += stretch.messages.len();
        self.unsent.push_back(stretch);
    }
}
