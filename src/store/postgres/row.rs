//! A transaction's row, and how its columns are read.

use super::sql::{Failed, number, words, words_if_any};
use crate::store::{Lane, Strand};
use crate::tx::id::TransactionId;
use crate::tx::state::State;

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
pub(super) const ROW_COLUMNS: &str = "t.sequence, t.id, t.state, t.name, t.\"user\", l.vhost, l.number, t.decided_at,
    t.decided_by, coalesce(t.number, 0), t.packs, t.messages, t.bytes, t.in_doubt_at,
    coalesce(t.finished, t.decided_at), t.strand";

impl Row {
    pub(super) fn read(row: &tokio_postgres::Row) -> Result<Self, Failed> {
        Ok(Self {
            sequence: row.try_get(0)?,
            id: id(row, 1)?,
            state: state(row, 2)?,
            name: words_if_any(row, 3)?,
            user: words(row, 4)?,
            lane: Lane::new(words(row, 5)?.into(), number(row, 6)?),
            decided_at: row.try_get(7)?,
            decided_by: words_if_any(row, 8)?,
            number: row.try_get(9)?,
            packs: number(row, 10)?,
            messages: number(row, 11)?,
            bytes: row.try_get(12)?,
            in_doubt_at: row.try_get(13)?,
            finished: row.try_get(14)?,
            strand: Strand(number(row, 15)?),
        })
    }
}

/// The id in a column.
pub(super) fn id(row: &tokio_postgres::Row, column: usize) -> Result<TransactionId, Failed> {
    Ok(TransactionId(row.try_get(column)?))
}

/// The state in a column.
pub(super) fn state(row: &tokio_postgres::Row, column: usize) -> Result<State, Failed> {
    let text: &str = row.try_get(column)?;
    let known = State::ALL.into_iter().find(|state| state.as_str() == text);
    known.ok_or_else(|| Failed::Other(format!("there is no state {text}")))
}
