//! What happened to a transaction.
//!
//! The usual way of one stands in the columns of its row: parked, committed by its channel, delivered. That is not
//! written down a second time, for three more entries would be most of what a named transaction costs; the entries in
//! the table are about everything else. An earlier version of the proxy wrote all of it down, and its entries count.

use super::{Event, Summary};
use crate::tx::decision::Actor;
use crate::tx::id::Timestamp;
use crate::tx::state::State;

/// The first event of whatever was parked.
const PARKED: &str = "parked";

/// What a row tells beside a summary.
pub(super) struct Place {
    pub(super) sequence: i64,
    /// Of its packs, if it ever had some.
    pub(super) number: Option<i64>,
    /// When it was finished, which may be long after its decision.
    pub(super) settled_at: Option<Timestamp>,
}

/// All of it, oldest first: the entries in the table, by their numbers, and what the row tells.
pub(super) fn tell(mut entries: Vec<(i64, Event)>, place: &Place, summary: &Summary) -> Vec<Event> {
    for (entry, event) in told_by_row(place, summary) {
        if !entries.iter().any(|(_, written)| written.event == event.event) {
            entries.push((entry, event));
        }
    }
    entries.sort_by_key(|(entry, _)| *entry);
    entries.into_iter().map(|(_, event)| event).collect()
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
