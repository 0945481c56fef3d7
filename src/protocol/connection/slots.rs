//! The channels that are not simply ordinary ones, and how many of them are transactional.

use super::Slot;
use std::collections::BTreeMap;

/// Slots by their channel's number.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: BTreeMap<u16, Slot>,
    transactional: usize,
}

impl Slots {
    /// Channels in tx mode. Counted as they come and go: it is asked for all the time.
    pub(super) fn transactional(&self) -> usize {
        self.transactional
    }

    pub(super) fn get(&self, number: &u16) -> Option<&Slot> {
        self.slots.get(number)
    }

    /// To be changed within; another kind of slot comes by [`Slots::insert`].
    pub(super) fn get_mut(&mut self, number: &u16) -> Option<&mut Slot> {
        self.slots.get_mut(number)
    }

    pub(super) fn insert(&mut self, number: u16, slot: Slot) {
        self.transactional += usize::from(matches!(slot, Slot::Tx(_)));
        let before = self.slots.insert(number, slot);
        self.left(before.as_ref());
    }

    pub(super) fn remove(&mut self, number: &u16) -> Option<Slot> {
        let slot = self.slots.remove(number);
        self.left(slot.as_ref());
        slot
    }

    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.transactional = 0;
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &u16> {
        self.slots.keys()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.values_mut()
    }

    fn left(&mut self, slot: Option<&Slot>) {
        self.transactional -= usize::from(matches!(slot, Some(Slot::Tx(_))));
    }
}
