//! What happened to a transaction, but for what the columns of its row tell: see [`crate::store::story`].

use super::rows::Rows;
use super::sql::{Failed, Sql, Words, words, words_if_any};
use crate::store::story::{Place, tell};
use crate::store::{Event, Summary};
use crate::tx::decision::Actor;
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::state::State;

impl Rows<'_> {
    /// Writes an entry.
    pub(super) fn note(
        &mut self,
        id: TransactionId,
        event: &str,
        actor: &Actor,
        reason: Option<&str>,
    ) -> Result<(), Failed> {
        let (entry, actor) = (self.me.sequence(), actor.to_string());
        self.sql.execute(
            "INSERT INTO history (transaction_id, entry, at, event, actor, reason) VALUES ($1, $2, $3, $4, $5, $6)",
            &[&id.0, &entry, &self.now.0, &event, &Words(&actor), &reason.map(Words)],
        )?;
        Ok(())
    }

    /// Writes that it was committed, unless its row tells all there is to say.
    pub(super) fn note_commit(&mut self, id: TransactionId, actor: &Actor, reason: Option<&str>) -> Result<(), Failed> {
        match (actor, reason) {
            (Actor::Channel, None) => Ok(()),
            _ => self.note(id, State::Committed.as_str(), actor, reason),
        }
    }
}

/// All that happened to a transaction, oldest first.
pub(super) fn read(sql: &Sql, place: &Place, summary: &Summary) -> Result<Vec<Event>, Failed> {
    let rows =
        sql.query("SELECT entry, at, event, actor, reason FROM history WHERE transaction_id = $1", &[&summary.id.0])?;
    let entries = rows.iter().map(|row| {
        let event = Event {
            at: Timestamp(row.try_get(1)?),
            event: words(row, 2)?,
            actor: words(row, 3)?,
            reason: words_if_any(row, 4)?,
        };
        Ok((row.try_get(0)?, event))
    });
    Ok(tell(entries.collect::<Result<_, Failed>>()?, place, summary))
}
