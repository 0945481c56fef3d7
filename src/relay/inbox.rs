//! Where the store's writer thread leaves what a virtual host's task takes.

use super::lane::Lone;
use super::message::Source;
use super::queue::{Budget, Queue};
use crate::store::{Committed, Strand};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// See the module.
#[derive(Debug)]
pub(super) struct Inbox {
    queues: Mutex<BTreeMap<u16, Queue>>,
    /// Transactions of one message that the store does not have; none while no lane can send.
    lones: Mutex<Option<Vec<Lone>>>,
    /// What an earlier process left beside the lanes.
    pub(super) asides: Mutex<Vec<Source>>,
    /// Something came that is to be looked at now.
    pub(super) wake: Notify,
    /// Something came that nobody waits for.
    pub(super) wake_soon: Notify,
    budget: Arc<Budget>,
    /// Whether nothing can be sent, as far as is known: there is no connection, though it was tried.
    is_cut_off: AtomicBool,
}

impl Inbox {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self {
            queues: Mutex::default(),
            lones: Mutex::default(),
            asides: Mutex::default(),
            wake: Notify::new(),
            wake_soon: Notify::new(),
            budget,
            is_cut_off: AtomicBool::new(false),
        }
    }

    /// Makes a lane known, or what waits beside it, of which the store may hold transactions.
    pub(super) fn add_lane(&self, lane: u16, aside: Option<Strand>) {
        let source = aside.map(|strand| Source { lane, strand });
        self.asides.lock().unwrap_or_else(PoisonError::into_inner).extend(source);
        let sends_soon = !self.is_cut_off.load(Ordering::Relaxed);
        self.queues().entry(lane).or_insert_with(|| Queue::new(Arc::clone(&self.budget), sends_soon));
        self.wake.notify_one();
    }

    /// Takes new commits, in commit order.
    pub(super) fn push(&self, transactions: impl Iterator<Item = Committed>) {
        let mut queues = self.queues();
        let is_cut_off = self.is_cut_off.load(Ordering::Relaxed);
        let mut awaited = false;
        for committed in transactions {
            awaited |= committed.forwarded.is_some();
            let queue = queues.entry(committed.lane.number);
            queue.or_insert_with(|| Queue::new(Arc::clone(&self.budget), !is_cut_off)).push(committed);
        }
        drop(queues);
        if awaited { self.wake.notify_one() } else { self.wake_soon.notify_one() }
    }

    /// Takes a transaction of one message that is to be sent before the store has it.
    ///
    /// # Errors
    /// It, as nothing can be sent now.
    pub(super) fn push_lone(&self, lone: Lone) -> Result<(), Box<Lone>> {
        match &mut *self.lones() {
            Some(lones) => lones.push(lone),
            None => return Err(Box::new(lone)),
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Those that came, and no more come until [`Inbox::open_for_lones`].
    pub(super) fn close_for_lones(&self) -> Vec<Lone> {
        self.lones().take().unwrap_or_default()
    }

    /// What comes can be sent.
    pub(super) fn open_for_lones(&self) {
        self.lones().get_or_insert_default();
    }

    /// Those that came.
    pub(super) fn take_lones(&self) -> Vec<Lone> {
        self.lones().as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn lones(&self) -> MutexGuard<'_, Option<Vec<Lone>>> {
        self.lones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is no connection, or there is one again.
    pub(super) fn set_cut_off(&self, is_cut_off: bool) {
        let mut queues = self.queues();
        self.is_cut_off.store(is_cut_off, Ordering::Relaxed);
        for queue in queues.values_mut() {
            queue.set_sends_soon(!is_cut_off);
            if is_cut_off {
                queue.spill();
            }
        }
    }

    pub(super) fn queues(&self) -> MutexGuard<'_, BTreeMap<u16, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
