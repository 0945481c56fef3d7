//! What happened to a transaction.
//!
//! The usual way of one stands in the columns of its row: parked, committed by its channel, delivered. That is not
//! written down a second time, for three more entries would be most of what a named transaction costs; the entries in
//! the table are about everything else. An earlier version of the proxy wrote all of it down, and its entries count.

use super::row::{Place, key};
use super::rows::Rows;
use crate::store::{Event, Summary};
use crate::tx::decision::Actor;
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::state::State;
use rusqlite::{Connection, params};

/// The first event of whatever was parked.
const PARKED: &str = "parked";

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
    let mut entries = sql
        .prepare_cached("SELECT entry, at, event, actor, reason FROM history WHERE transaction_id = ?1")?
        .query_map([key(summary.id)], |row| {
            let [event, actor] = [row.get(2)?, row.get(3)?];
            Ok((row.get(0)?, Event { at: Timestamp(row.get(1)?), event, actor, reason: row.get(4)? }))
        })?
        .collect::<rusqlite::Result<Vec<(i64, Event)>>>()?;
    for (entry, event) in told_by_row(place, summary) {
        if !entries.iter().any(|(_, written)| written.event == event.event) {
            entries.push((entry, event));
        }
    }
    entries.sort_by_key(|(entry, _)| *entry);
    Ok(entries.into_iter().map(|(_, event)| event).collect())
}

/// The events that a row stands for, each with its place among the entries: numbers of transactions, sequences of
/// commits and entries come from one counter.
fn told_by_row(place: &Place, summary: &Summary) -> Vec<(i64, Event)> {
    let (Some(number), Some(parked_at)) = (place.number, summary.parked_at) else { return Vec::new() };
    let event =
        |event: &str, at, actor: Actor| Event { at, event: event.into(), actor: actor.to_string(), reason: None };
    let mut told = vec![(number, event(PARKED, parked_at, Actor::Channel))];
    let by_channel = summary.decided_by == Some(Actor::Channel.to_string());
    if let (Some(at), true) = (summary.decided_at, by_channel && summary.state != State::RolledBack) {
        told.push((place.sequence, event(State::Committed.as_str(), at, Actor::Channel)));
    }
    if let (Some(at), State::Delivered) = (place.settled_at, summary.state) {
        told.push((i64::MAX, event(State::Delivered.as_str(), at, Actor::Relay)));
    }
    told
}
