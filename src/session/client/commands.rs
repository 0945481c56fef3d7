//! What the protocol core has a session do, most of it on the store.

use super::events::Event;
use super::{Ending, Session};
use crate::health::{Component, Condition};
use crate::protocol::command::{Command, Refusal};
use crate::session::metrics::Refused;
use crate::store::{Commit, Committing, Lane, Named, Origin, Strand, Waiter};
use crate::tx::decision::{Actor, Owned, Target};
use crate::tx::id::{Timestamp, TransactionId};
use crate::upstream::ConnectError;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long the last bytes may take to go out once a session is over.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(5);

/// Between a connection that a node ended without a word and the next try.
const REDIAL_AFTER: Duration = Duration::from_millis(200);

impl Session {
    /// Dials RabbitMQ after a pause, and waits for it as long as the terms say.
    pub(super) fn dial(&mut self, pause: Duration) {
        let (shared, addresses, until) = (Arc::clone(&self.shared), self.addresses, self.connect_until);
        self.dialing = Some(Box::pin(async move {
            tokio::time::sleep(pause).await;
            let away = |error: &ConnectError| {
                shared.health.set(Component::Upstream, Condition::NotReady(error.to_string()));
            };
            shared.upstream.connect_by(Some(addresses), until.into(), away).await
        }));
    }

    /// RabbitMQ took the connection and ended it without a word, as a node does that goes down or comes up. Whether the
    /// client may still wait for another: it knows of nothing yet.
    pub(super) fn redial(&mut self, now: Instant) -> bool {
        if self.upstream_spoke || now >= self.connect_until || self.ending.is_some() {
            return false;
        }
        self.upstream = None;
        self.connection.io.to_upstream = self.greeting.clone();
        self.dial(REDIAL_AFTER);
        true
    }

    pub(super) fn run_commands(&mut self, now: Instant) -> bool {
        let mut progress = false;
        while let Some(command) = self.connection.poll_command() {
            progress = true;
            match command {
                Command::Connect => {
                    self.greeting = self.connection.io.to_upstream.clone();
                    self.connect_until = now + self.shared.terms().wait;
                    self.dial(Duration::ZERO);
                }
                Command::Opened(opened) => self.opened(&opened, now),
                Command::Park { channel, transaction, named, batch } => {
                    self.shared.metrics.staged.inc_by(batch.messages().into());
                    let bytes = self.share.give_away(batch.bytes());
                    self.begun.parked(transaction, named.as_deref());
                    let reply = self.shared.store.park(self.origin(channel, transaction, named), batch);
                    self.events.push(Box::pin(async move { Event::Parked(channel, transaction, bytes, reply.await) }));
                }
                Command::Commit { channel, transaction, named, batch, parked, alone, wait } => {
                    self.shared.metrics.staged.inc_by(batch.messages().into());
                    let (waiter, receiver) = wait.map(Waiter::pair).unzip();
                    let origin = self.origin(channel, transaction, named);
                    let bytes = self.share.give_away(batch.bytes());
                    let commit = Commit { origin, batch, parked, forwarded: waiter };
                    let taken = if alone { self.shared.shortcut.take(commit) } else { Err(Box::new(commit)) };
                    let reply = taken.unwrap_or_else(|commit| self.shared.store.commit(*commit));
                    self.events.push(Box::pin(async move {
                        let result = reply.await.map(|committing| committing != Committing::Before);
                        Event::Committed(channel, transaction, bytes, result)
                    }));
                    if let Some(receiver) = receiver {
                        self.events
                            .push(Box::pin(async move { Event::Forwarded(channel, transaction, receiver.await.ok()) }));
                    }
                }
                Command::RollBack { channel, transaction, reason } => {
                    self.begun.settled(transaction);
                    let reply = self.shared.store.rollback(transaction, reason);
                    self.events.push(Box::pin(async move { Event::RolledBack(channel, transaction, reply.await) }));
                }
                Command::Abandon { transaction } => {
                    self.begun.settled(transaction);
                    let reply = self.shared.store.abandon(transaction);
                    self.events.push(Box::pin(async move { Event::Abandoned(transaction, reply.await) }));
                }
                Command::Decide { channel, ticket, decision, name } => {
                    let owned =
                        Owned { vhost: Arc::clone(&self.vhost), user: Arc::clone(&self.user), name: name.clone() };
                    let reply = self.shared.store.decide(Target::Name(owned), decision, Actor::Control, None);
                    self.events.push(Box::pin(async move { Event::Decided(channel, ticket, name, reply.await) }));
                }
                Command::Refused(why) => self.shared.metrics.refused(match why {
                    Refusal::Protocol => Refused::Protocol,
                    Refusal::Login => Refused::LoopbackUser,
                    Refusal::Timeout => Refused::Timeout,
                    Refusal::Draining => Refused::Draining,
                }),
                Command::NoSpareChannel => {
                    tracing::warn!(
                        connection = self.number,
                        user = &*self.user,
                        "RabbitMQ lets this user open no channel beside its own; half messages on ordinary channels are refused"
                    );
                    self.shared.without_spare_channel().insert(Arc::clone(&self.user));
                }
                Command::EndLeases => self.routing.change(),
                Command::Began => self.begun.count(1),
                Command::Ended(outcome) => {
                    self.begun.count(-1);
                    self.shared.metrics.ended(outcome);
                }
                Command::CommitTook(took) => self.shared.metrics.commit_seconds.observe(took),
                Command::Close => self.ending = Some(Ending::Flushed(now + LAST_WORDS_WITHIN)),
                Command::Abort => self.ending = Some(Ending::Now),
            }
        }
        progress
    }

    fn origin(&self, channel: u16, id: TransactionId, named: Option<Arc<Named>>) -> Origin {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Neighbouring channels and neighbouring connections go different ways.
        let number = (self.number.wrapping_add(channel.into()) % u64::from(self.lanes)) as u16;
        // An odd factor: no two channels of a connection have the same, and those of others lie elsewhere.
        let strand = self.first_strand.wrapping_add(u32::from(channel).wrapping_mul(0x9e37_79b1)) >> 1;
        Origin {
            id,
            user: Arc::clone(&self.user),
            lane: Lane::new(Arc::clone(&self.vhost), number),
            strand: Strand(strand),
            created_at: Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
            named,
        }
    }
}
