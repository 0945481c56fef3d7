//! What is held for a client of the memory that all share, and what becomes of the client when that is short.

use crate::memory::{self, Held, Overdraft};

/// What a client may hold, and send, before it is counted.
const COUNT_BYTES: usize = 16 << 10;

pub(super) struct Share {
    /// At the last count.
    held: Held,
    /// Bytes of the client since then.
    uncounted: usize,
    /// Bytes that the store was given and has not answered for.
    given_away: usize,
    /// It waits for room, or for its turn to go on without.
    waits: bool,
    /// Leave to go on although memory is short.
    overdraft: Option<Overdraft>,
    /// Bytes of the client since that was looked at.
    overdrawn: usize,
}

impl Share {
    /// Of which nothing is held yet.
    pub(super) fn new(held: Held) -> Self {
        Self { held, uncounted: 0, given_away: 0, waits: false, overdraft: None, overdrawn: 0 }
    }

    /// The client sent something.
    pub(super) fn received(&mut self, bytes: usize) {
        self.uncounted += bytes;
        self.overdrawn += bytes;
    }

    /// The store is given something. Gives back how much, for [`Share::answered`].
    pub(super) fn give_away(&mut self, bytes: usize) -> usize {
        self.given_away += bytes;
        bytes
    }

    /// The store has answered for it.
    pub(super) fn answered(&mut self, bytes: usize) {
        self.given_away -= bytes;
    }

    /// Whether to count again, which is done seldom: only what came, and what the store or the relay `answered`, changes
    /// it by much.
    pub(super) fn is_due(&self, answered: bool) -> bool {
        self.uncounted >= COUNT_BYTES || (answered && self.held.bytes() > 0)
    }

    /// So much is held beside what the store was given.
    pub(super) fn count(&mut self, bytes: usize) {
        self.uncounted = 0;
        let held = bytes + self.given_away;
        self.held.set(if held < COUNT_BYTES { 0 } else { held });
    }

    /// Whether memory is short and the client has more than its part. If not, it needs no overdraft.
    pub(super) fn is_too_much(&mut self) -> bool {
        let is_too_much = self.held.is_too_much();
        if !is_too_much {
            self.overdraft = None;
        }
        is_too_much
    }

    /// Whether the client waits for memory.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// The client waits, until [`Share::go_on`].
    pub(super) fn wait(&mut self) {
        self.waits = true;
    }

    /// There is room again, or leave to go on without.
    pub(super) fn go_on(&mut self, overdraft: Option<Overdraft>) {
        self.waits = false;
        self.overdraft = overdraft;
        self.overdrawn = 0;
    }

    /// The overdraft's time is over: it stays with a client that makes use of it.
    pub(super) fn time_overdraft(&mut self) {
        if self.overdrawn < memory::OVERDRAFT_BYTES_MIN {
            self.overdraft = None;
        }
        self.overdrawn = 0;
    }

    /// Whether it has leave to go on although memory is short.
    pub(super) fn has_overdraft(&self) -> bool {
        self.overdraft.is_some()
    }
}
