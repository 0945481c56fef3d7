//! What a session hears of the store, the relay and the rest of the process.

use super::{Ending, Session};
use crate::memory::Turn;
use crate::protocol::command::Ticket;
use crate::session::metrics::Refused;
use crate::store::{Forwarded, Room, StoreError};
use crate::tx::decision::Verdict;
use crate::tx::id::TransactionId;
use crate::tx::name::TransactionName;
use futures_util::stream::StreamExt;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Answers of the store and the relay that are taken in one round.
const EVENTS_MAX: usize = 256;

/// An answer that was due, or word of the rest of the process.
pub(super) enum Event {
    /// With the bytes that were given to the store.
    Parked(u16, TransactionId, usize, Result<(), StoreError>),
    /// As well.
    Committed(u16, TransactionId, usize, Result<bool, StoreError>),
    Decided(u16, Ticket, TransactionName, Result<Verdict, StoreError>),
    Forwarded(u16, TransactionId, Option<Forwarded>),
    /// Rolled back or left in doubt.
    RolledBack(u16, TransactionId, Result<(), StoreError>),
    Abandoned(TransactionId, Result<(), StoreError>),
    /// Whether the store takes more of this user, and why it does not.
    Room(Option<&'static str>),
    Drain,
    /// An operator wants it gone.
    Close(String),
    /// There is memory again, or leave to go on without.
    Memory(Turn),
    /// That leave is over, unless it is made use of.
    OverdraftTimed,
    /// Its place among those who have not logged in is wanted for another.
    TurnedAway,
}

impl Session {
    pub(super) fn poll_events(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        for _ in 0..EVENTS_MAX {
            let Poll::Ready(Some(event)) = self.events.poll_next_unpin(cx) else { break };
            progress = true;
            match event {
                Event::Parked(channel, id, bytes, result) => {
                    self.share.answered(bytes);
                    self.connection.handle_parked(channel, id, result);
                }
                Event::Committed(channel, id, bytes, result) => {
                    self.share.answered(bytes);
                    match &result {
                        Ok(_) => self.begun.settled(id),
                        // As if RabbitMQ had said it on the client's own channel.
                        Err(StoreError::Refused(..)) => {}
                        Err(error) => {
                            tracing::error!(connection = self.number, channel, transaction = %id, %error, "commit failed");
                        }
                    }
                    self.connection.handle_committed(channel, id, result);
                }
                Event::Forwarded(channel, id, Some(forwarded)) => {
                    self.connection.handle_forwarded(channel, id, forwarded);
                }
                Event::Forwarded(channel, id, None) => self.connection.handle_unforwarded(channel, id),
                Event::Decided(channel, ticket, name, result) => {
                    self.connection.handle_decided(channel, ticket, &name, result);
                }
                Event::RolledBack(channel, id, result) => {
                    if let Err(error) = &result {
                        tracing::warn!(connection = self.number, transaction = %id, %error, "the rollback was not kept");
                    }
                    self.connection.handle_rolled_back(channel, id, result);
                }
                Event::Abandoned(id, result) => {
                    if let Err(error) = result {
                        tracing::warn!(connection = self.number, transaction = %id, %error, "the end was not kept");
                    }
                }
                Event::Room(no_room) => {
                    self.connection.handle_room(no_room);
                    self.watch_store();
                }
                Event::Memory(turn) => {
                    let overdraft = match turn {
                        Turn::Room => None,
                        Turn::Overdrawn(_) if self.connection.give_up_body() => None,
                        Turn::Overdraft(overdraft) | Turn::Overdrawn(overdraft) => overdraft,
                    };
                    self.share.go_on(overdraft);
                    self.time_overdraft();
                }
                Event::OverdraftTimed => {
                    self.share.time_overdraft();
                    self.time_overdraft();
                }
                Event::Drain => self.connection.drain(),
                Event::Close(reason) => {
                    tracing::info!(connection = self.number, peer = %self.addresses.source, ?reason, "an operator closes it");
                    self.connection.close_because(&format!("closed by an operator: {reason}"));
                }
                // It may have logged in just when it was told.
                Event::TurnedAway if self.opened => {}
                Event::TurnedAway => {
                    self.shared.metrics.refused(Refused::Handshakes);
                    self.ending = Some(Ending::Now);
                }
            }
            if self.connection.had_its_turn() {
                break;
            }
        }
        progress
    }

    /// Waits for the store to take no more for now, of all or of this user, or to take more again.
    pub(super) fn watch_store(&self) {
        let (mut room, mut heavy) = (self.shared.store.room(), self.shared.store.heavy_users());
        let (known, user) = (self.connection.no_room(), Arc::clone(&self.user));
        self.events.push(Box::pin(async move {
            loop {
                let now = no_room(*room.borrow_and_update(), heavy.borrow_and_update().contains(&user));
                if now != known {
                    return Event::Room(now);
                }
                let changed = tokio::select! {
                    changed = room.changed() => changed,
                    changed = heavy.changed() => changed,
                };
                if changed.is_err() {
                    // The store is closed, and the process about to end.
                    return std::future::pending().await;
                }
            }
        }));
    }
}

/// Why the store takes nothing more of a client, if so.
pub(super) fn no_room(room: Room, is_heavy: bool) -> Option<&'static str> {
    match room {
        Room::Full => Some("the store is full: store.max_size is reached"),
        Room::Away => Some("the store can't be reached"),
        Room::Free if is_heavy => Some("the store is full: store.max_size_per_user is reached"),
        Room::Free => None,
    }
}
