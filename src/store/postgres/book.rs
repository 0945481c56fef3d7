//! What a writer remembers between its SQL transactions.

use crate::store::Lane;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use uuid::Uuid;

/// What is left for the count in a sequence beside the id of who gives it: 2^40, which is three years of 10,000 commits a
/// second without a restart.
const COUNT_BITS: u32 = 40;

/// Who this process is to the database, from its start to its end.
#[derive(Debug)]
pub(super) struct Me {
    /// Never given to another.
    pub(super) id: i64,
    /// Nor this, should the database have gone back in time.
    pub(super) key: Uuid,
    next: AtomicI64,
}

impl Me {
    pub(super) fn new(id: i64, key: Uuid) -> Self {
        Self { id, key, next: AtomicI64::new((id << COUNT_BITS) + 1) }
    }

    /// A sequence that nobody has had before, behind all that were.
    pub(super) fn sequence(&self) -> i64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

/// What a writer knows of the database, so as not to ask again.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) lanes: HashMap<Lane, i64>,
    /// Lanes that were made for what stepped aside, since those that are empty were last looked for.
    pub(super) asides: usize,
}

impl Book {
    /// Forgets what may have been written by a SQL transaction that came to nothing.
    pub(super) fn doubt(&mut self) {
        *self = Self::default();
    }
}
