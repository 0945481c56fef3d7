//! A transaction's row, and how its columns are read.

use crate::store::{Lane, Strand};
use crate::tx::id::TransactionId;
use crate::tx::state::State;
use std::ops::RangeInclusive;

/// A pack's key is its transaction's number and, in this many bits, its place: a million packs a transaction, and
/// 2^43 numbers, which is 28 years of 10,000 transactions a second.
pub(super) const PACK_BITS: u32 = 20;

/// A pack that is larger goes on in rows behind it: SQLite copies a value twice to write it, and once to read it.
pub(super) const PIECE_BYTES: usize = 4 << 20;

/// A transaction's row, as decisions look at it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) sequence: i64,
    pub(super) id: TransactionId,
    pub(super) state: State,
    pub(super) name: Option<String>,
    pub(super) user: String,
    pub(super) lane: Lane,
    pub(super) decided_at: Option<i64>,
    pub(super) decided_by: Option<String>,
    pub(super) number: i64,
    pub(super) packs: u32,
    pub(super) messages: u32,
    pub(super) bytes: i64,
    pub(super) in_doubt_at: Option<i64>,
    /// By the store's count of time.
    pub(super) finished: Option<i64>,
    pub(super) strand: Strand,
}

/// The columns of a [`Row`], of `transactions` as `t` and `lanes` as `l`.
pub(super) const ROW_COLUMNS: &str = "t.sequence, t.id, t.state, t.name, t.user, l.vhost, l.number, t.decided_at,
    t.decided_by, coalesce(t.number, 0), t.packs, t.messages, t.bytes, t.in_doubt_at,
    coalesce(t.finished, t.decided_at), t.strand";

impl Row {
    pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            sequence: row.get(0)?,
            id: id(row.get(1)?),
            state: state(row, 2)?,
            name: row.get(3)?,
            user: row.get(4)?,
            lane: Lane::new(row.get::<_, String>(5)?.into(), row.get(6)?),
            decided_at: row.get(7)?,
            decided_by: row.get(8)?,
            number: row.get(9)?,
            packs: row.get(10)?,
            messages: row.get(11)?,
            bytes: row.get(12)?,
            in_doubt_at: row.get(13)?,
            finished: row.get(14)?,
            strand: Strand(row.get(15)?),
        })
    }
}

/// What the column `first_index` says of a piece of a pack; see schema 9. `goes_on`: its next piece stands in the next row.
pub(super) fn mark(first_index: u32, goes_on: bool) -> i64 {
    if goes_on { !i64::from(first_index) } else { first_index.into() }
}

/// Whether a row with this mark goes on in the next one.
pub(super) fn goes_on(mark: i64) -> bool {
    mark < 0
}

/// The keys of a transaction's packs.
pub(super) fn pack_keys(number: i64) -> RangeInclusive<i64> {
    let first = number << PACK_BITS;
    first..=first + (1 << PACK_BITS) - 1
}

pub(super) fn key(id: TransactionId) -> [u8; 16] {
    id.0.into_bytes()
}

pub(super) fn id(key: [u8; 16]) -> TransactionId {
    TransactionId(uuid::Uuid::from_bytes(key))
}

/// The state in a column.
pub(super) fn state(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<State> {
    let text = row.get_ref(column)?.as_str()?;
    let known = State::ALL.into_iter().find(|state| state.as_str() == text);
    known.ok_or_else(|| rusqlite::Error::InvalidColumnType(column, "state".into(), rusqlite::types::Type::Text))
}
