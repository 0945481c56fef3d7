//! What the writer remembers of the file.

use super::shares::Counted;
use crate::store::Lane;
use crate::store::clock::{Reading, SLACK};
use rusqlite::Connection;
use std::collections::HashMap;

/// What the writer remembers of the file between SQL transactions, so as not to ask again.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) next_sequence: i64,
    pub(super) sequence_reserved: i64,
    pub(super) lanes: HashMap<Lane, i64>,
    /// What the file says of the count of time; none: nobody knows.
    pub(super) time: Option<Reading>,
    /// Which rows count in their users' shares.
    pub(super) counted: Counted,
    /// Lanes that were made for what stepped aside, since those that are empty were last looked for.
    pub(super) asides: usize,
}

impl Book {
    pub(super) fn read(sql: &Connection) -> rusqlite::Result<Self> {
        let reserved = sql.query_row("SELECT sequence_reserved FROM store", [], |row| row.get(0))?;
        let counted = Counted::from(reserved);
        Ok(Self { next_sequence: reserved, sequence_reserved: reserved, counted, ..Self::default() })
    }

    /// Forgets what may have been written by a SQL transaction that was rolled back. Sequences that it gave out stay
    /// unused.
    pub(super) fn doubt(&mut self) {
        self.sequence_reserved = self.next_sequence;
        self.lanes.clear();
        self.time = None;
    }

    /// Whether the wall clock was set since its time was written down.
    pub(super) fn is_clock_set(&self, now: Reading) -> bool {
        self.time.is_some_and(|written| now.set_since(&written) > SLACK)
    }
}
