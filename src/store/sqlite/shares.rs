//! What users have in the file. What an earlier process left is counted bit by bit behind a start, which does not wait for it.

use super::row::state;
use crate::store::shares::{ROW_BYTES, Shares, add, holds};
use rusqlite::Connection;
use std::sync::Arc;

/// Rows that are counted in one step: commits wait for it.
const ROWS_AT_ONCE: i64 = 1_000;

/// Which rows are counted: those of this process, and of the earlier ones' as many as were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    /// All with lower or equal sequences are.
    up_to: i64,
    /// This one, and all behind it, are too.
    from: i64,
}

impl Default for Counted {
    fn default() -> Self {
        Self { up_to: 0, from: 1 }
    }
}

impl Counted {
    /// Nothing that was there before this one.
    pub(super) fn from(sequence: i64) -> Self {
        Self { up_to: 0, from: sequence }
    }

    pub(super) fn has(self, sequence: i64) -> bool {
        sequence <= self.up_to || sequence >= self.from
    }

    /// Whether all are.
    pub(super) fn is_whole(self) -> bool {
        self.up_to >= self.from - 1
    }
}

/// Counts some more of what an earlier process left.
pub(super) fn count_on(shares: &mut Shares, sql: &Connection, counted: &mut Counted) -> rusqlite::Result<()> {
    let mut statement = sql.prepare_cached(
        "SELECT sequence, state, user, bytes, packs > 0 AND parked_at IS NULL FROM transactions NOT INDEXED
         WHERE sequence > ?1 AND sequence < ?2 ORDER BY sequence LIMIT ?3",
    )?;
    let mut rows = statement.query([counted.up_to, counted.from, ROWS_AT_ONCE])?;
    let (mut found, mut last, mut changes) = (0, counted.up_to, Vec::<(Arc<str>, i64)>::new());
    while let Some(row) = rows.next()? {
        (found, last) = (found + 1, row.get(0)?);
        // A dead letter that is on its way once more is no transaction.
        if !holds(state(row, 1)?) || row.get(4)? {
            continue;
        }
        add(&mut changes, row.get_ref(2)?.as_str()?, row.get::<_, i64>(3)? + ROW_BYTES);
    }
    drop(rows);
    counted.up_to = if found < ROWS_AT_ONCE { counted.from - 1 } else { last };
    shares.change(&changes);
    Ok(())
}
