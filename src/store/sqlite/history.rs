//! What happened to a transaction, but for what its row tells: see [`crate::store::story`].

use super::row::key;
use super::rows::Rows;
use crate::store::story::{Place, tell};
use crate::store::{Event, Summary};
use crate::tx::decision::Actor;
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::state::State;
use rusqlite::{Connection, params};

impl Rows<'_> {
    /// Writes an entry.
    pub(super) fn note(
        &mut self,
        id: TransactionId,
        event: &str,
        actor: &Actor,
        reason: Option<&str>,
    ) -> rusqlite::Result<()> {
        let entry = self.sequence()?;
        self.sql
            .prepare_cached(
                "INSERT INTO history (transaction_id, entry, at, event, actor, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![key(id), entry, self.now.0, event, actor.to_string(), reason])?;
        Ok(())
    }

    /// Writes that it was committed, unless its row tells all there is to say.
    pub(super) fn note_commit(
        &mut self,
        id: TransactionId,
        actor: &Actor,
        reason: Option<&str>,
    ) -> rusqlite::Result<()> {
        match (actor, reason) {
            (Actor::Channel, None) => Ok(()),
            _ => self.note(id, State::Committed.as_str(), actor, reason),
        }
    }
}

/// All that happened to a transaction, oldest first.
pub(super) fn read(sql: &Connection, place: &Place, summary: &Summary) -> rusqlite::Result<Vec<Event>> {
    let entries = sql
        .prepare_cached("SELECT entry, at, event, actor, reason FROM history WHERE transaction_id = ?1")?
        .query_map([key(summary.id)], |row| {
            let [event, actor] = [row.get(2)?, row.get(3)?];
            Ok((row.get(0)?, Event { at: Timestamp(row.get(1)?), event, actor, reason: row.get(4)? }))
        })?
        .collect::<rusqlite::Result<Vec<(i64, Event)>>>()?;
    Ok(tell(entries, place, summary))
}
