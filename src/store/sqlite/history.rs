//! What happened to a transaction.
//!
//! The usual way of one stands in the columns of its row: parked, committed by its channel, delivered. That is not
//! written down a second time, for three more entries would be most of what a named transaction costs; the entries in
//! the table are about everything else. An earlier version of the proxy wrote all of it down, and its entries count.

use super::rows::{Rows, key, state};
use crate::store::Event;
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

/// All that happened to the transaction in this row, oldest first.
pub(super) fn read(sql: &Connection, sequence: i64, id: TransactionId) -> rusqlite::Result<Vec<Event>> {
    let mut entries = sql
        .prepare_cached("SELECT entry, at, event, actor, reason FROM history WHERE transaction_id = ?1")?
        .query_map([key(id)], |row| {
            let [event, actor] = [row.get(2)?, row.get(3)?];
            Ok((row.get(0)?, Event { at: Timestamp(row.get(1)?), event, actor, reason: row.get(4)? }))
        })?
        .collect::<rusqlite::Result<Vec<(i64, Event)>>>()?;
    for (place, event) in told_by_row(sql, sequence)? {
        if !entries.iter().any(|(_, entry)| entry.event == event.event) {
            entries.push((place, event));
        }
    }
    entries.sort_by_key(|(place, _)| *place);
    Ok(entries.into_iter().map(|(_, event)| event).collect())
}

/// The events that a row stands for, each with its place among the entries: numbers of transactions, sequences of
/// commits and entries come from one counter.
fn told_by_row(sql: &Connection, sequence: i64) -> rusqlite::Result<Vec<(i64, Event)>> {
    let channel = Actor::Channel.to_string();
    sql.prepare_cached(
        "SELECT number, parked_at, state, decided_at, decided_by, settled_at FROM transactions NOT INDEXED
         WHERE sequence = ?1 AND parked_at IS NOT NULL",
    )?
    .query_map([sequence], |row| {
        let state = state(row, 2)?;
        let event = |event: &str, at, actor: Actor| Event {
            at: Timestamp(at),
            event: event.into(),
            actor: actor.to_string(),
            reason: None,
        };
        let mut told = vec![(row.get(0)?, event(PARKED, row.get(1)?, Actor::Channel))];
        let (decided_at, decided_by) = (row.get(3)?, row.get::<_, Option<String>>(4)?);
        if let (Some(at), true) = (decided_at, decided_by.as_ref() == Some(&channel) && state != State::RolledBack) {
            told.push((sequence, event(State::Committed.as_str(), at, Actor::Channel)));
        }
        if let (Some(at), State::Delivered) = (row.get(5)?, state) {
            told.push((i64::MAX, event(state.as_str(), at, Actor::Relay)));
        }
        Ok(told)
    })?
    .next()
    .transpose()
    .map(Option::unwrap_or_default)
}
