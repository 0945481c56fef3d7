//! The loop of one session, between the client's socket, RabbitMQ's, and the protocol core.
//!
//! It is one hand-written poll, because each of four directions (reading and writing on two sockets) has to be held
//! back by itself: a client that reads slowly stops what is read *for it*, and nothing else. A silent session holds no
//! buffer.

use super::begun::Begun;
use super::buffers::{self, READ_BYTES};
use super::heartbeat::{Due, Heartbeat};
use super::listener::Entry;
use super::routing::Version;
use super::{Shared, Terms};
use crate::amqp::frame::{self, Split};
use crate::health::{Component, Condition};
use crate::memory::{self, Held, Overdraft};
use crate::metrics::{Outcome, Refused};
use crate::places::{Leave, told_to};
use crate::protocol::command::{Command, Ended, Opened, Refusal, Ticket};
use crate::protocol::connection::Connection;
use crate::roster::{Guest, Seat};
use crate::store::{Commit, Committing, Forwarded, Lane, Named, Origin, StoreError, Strand, Waiter};
use crate::tx::decision::{Actor, Owned, Target, Verdict};
use crate::tx::id::{Timestamp, TransactionId};
use crate::tx::name::TransactionName;
use crate::upstream::{ClientAddresses, ConnectError, Stream};
use bytes::{Buf, BufMut, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Sleep;

/// Bytes waiting to be written to one side past which the other side is read no more.
const OUTPUT_BYTES_MAX: usize = 256 << 10;
/// How often a session looks for more to do before all others have their turn: a client that sends without end must not
/// keep a thread for itself. Each round takes what one read gave, or as much of it as the core handles at a time.
const ROUNDS_MAX: usize = 2;
/// Answers of the store and the relay that are taken in one round.
const EVENTS_MAX: usize = 256;
/// What a client may hold, and send, before it is counted.
const COUNT_BYTES: usize = 16 << 10;
/// What one read takes at most from a client that has not logged in.
const LOGIN_READ_BYTES: usize = 1 << 10;
/// How long the last bytes may take to go out once a session is over.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(5);

/// One client connection.
pub(super) struct Session {
    shared: Arc<Shared>,
    /// For the log, and for spreading channels over lanes.
    number: u64,
    /// By chance, so that no strand is one that an earlier process left behind.
    first_strand: u32,
    /// Where it tells of itself.
    seat: Arc<Seat>,
    entry: Entry,
    begun: Begun,
    addresses: ClientAddresses,
    connection: Connection,
    /// Tells when the terms are others than the connection has.
    new_terms: watch::Receiver<Arc<Terms>>,
    /// Over how many lanes its channels are spread: always the same, for order holds within a lane.
    lanes: u16,
    from_loopback: bool,
    client: Side,
    upstream: Option<Side>,
    dialing: Option<BoxFuture<'static, Result<Stream, ConnectError>>>,
    /// Answers that are due from the store and the relay, and word of the rest of the process.
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    sleep: Pin<Box<Sleep>>,
    user: Arc<str>,
    vhost: Arc<str>,
    routing: Version,
    ending: Option<Ending>,
    opened: bool,
    /// Whether the client's silence counted at the last look.
    misses_heartbeats: bool,
    /// What is held for the client, at the last count.
    held: Held,
    /// Bytes of the client since then.
    uncounted: usize,
    /// Bytes that the store was given and has not answered for.
    given_away: usize,
    /// Memory is waited for.
    waits_for_memory: bool,
    /// Leave to go on although memory is short.
    overdraft: Option<Overdraft>,
    /// Bytes of the client since it was timed.
    overdrawn: usize,
}

/// One socket, and what came from it and is not handled yet.
struct Side {
    stream: Stream,
    input: BytesMut,
    heartbeat: Option<Heartbeat>,
    /// Nothing more comes from it, or it takes nothing more.
    gone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// When what is to be written is written, or the time is up.
    Flushed(Instant),
    Now,
}

enum Event {
    /// With the bytes that were given to the store.
    Parked(u16, TransactionId, usize, Result<(), StoreError>),
    /// As well.
    Committed(u16, TransactionId, usize, Result<bool, StoreError>),
    Decided(u16, Ticket, TransactionName, Result<Verdict, StoreError>),
    Forwarded(u16, TransactionId, Option<Forwarded>),
    /// Rolled back or left in doubt.
    RolledBack(u16, TransactionId, Result<(), StoreError>),
    Abandoned(TransactionId, Result<(), StoreError>),
    StoreFull(bool),
    Drain,
    /// An operator wants it gone.
    Close(String),
    /// There is memory again, or leave to go on without.
    Memory(Option<Overdraft>),
    /// That leave is over, unless it is made use of.
    OverdraftTimed,
    /// Its place among those who have not logged in is wanted for another.
    TurnedAway,
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        seat: Arc<Seat>,
        (entry, mut leave): (Entry, Leave),
        addresses: ClientAddresses,
        from_loopback: bool,
        stream: Stream,
    ) -> Self {
        let now = Instant::now();
        let new_terms = shared.terms.subscribe();
        let terms = shared.terms();
        let until = now + terms.handshake_timeout;
        let events = FuturesUnordered::new();
        let (mut shutdown, told) = (shared.shutdown.clone(), Arc::clone(&seat));
        events.push(Box::pin(async move {
            tokio::select! {
                () = shutdown.requested() => Event::Drain,
                reason = told.told_to_close() => Event::Close(reason.to_owned()),
            }
        }) as BoxFuture<'static, Event>);
        events.push(Box::pin(async move {
            told_to(&mut leave).await;
            Event::TurnedAway
        }));
        Self {
            connection: Connection::new(terms.settings(from_loopback), now, until),
            new_terms,
            lanes: terms.lanes,
            from_loopback,
            number: seat.number,
            first_strand: fastrand::u32(..),
            begun: Begun::new(seat.number, Arc::clone(&shared.store), Arc::clone(&shared.metrics)),
            seat,
            entry,
            addresses,
            client: Side::new(stream),
            upstream: None,
            dialing: None,
            events,
            sleep: Box::pin(tokio::time::sleep_until(until.into())),
            user: Arc::from(""),
            vhost: Arc::from(""),
            routing: Version::default(),
            ending: None,
            opened: false,
            misses_heartbeats: false,
            held: shared.memory.part(),
            uncounted: 0,
            given_away: 0,
            waits_for_memory: false,
            overdraft: None,
            overdrawn: 0,
            shared,
        }
    }

    /// Runs until both sides are done with each other.
    pub(super) async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
        if self.opened {
            tracing::info!(connection = self.number, peer = %self.addresses.source, "closed");
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        self.connection.handle_time(now);
        self.connection.io.routing = self.routing.number();
        // Only whoever has something to do takes notice: a look costs less than a wait in every session.
        if self.new_terms.has_changed().is_ok_and(|changed| changed) {
            let settings = self.new_terms.borrow_and_update().settings(self.from_loopback);
            self.connection.change_settings(settings);
        }
        buffers::lend_output(&mut self.connection.io.to_client);
        buffers::lend_output(&mut self.connection.io.to_upstream);
        let mut rounds = 0;
        loop {
            let mut progress = self.poll_events(cx);
            self.count_held(progress);
            progress |= self.poll_dialing(cx);
            progress |= self.poll_client(cx, now);
            progress |= self.poll_upstream(cx, now);
            self.beat(now);
            progress |= self.run_commands(now);
            progress |= self.write_all(cx, now);
            if self.has_ended(now) {
                return Poll::Ready(());
            }
            if !progress && !self.poll_sleep(cx, now) {
                break;
            }
            rounds += 1;
            if rounds == ROUNDS_MAX {
                // Behind all others that are ready, and behind a look at the sockets.
                let _ = pin!(tokio::task::yield_now()).poll(cx);
                break;
            }
        }
        self.count_held(true);
        buffers::reclaim_output(&mut self.connection.io.to_client);
        buffers::reclaim_output(&mut self.connection.io.to_upstream);
        self.seat.note(self.connection.stage(), self.connection.channels());
        Poll::Pending
    }

    fn has_ended(&self, now: Instant) -> bool {
        match self.ending {
            None => false,
            Some(Ending::Now) => true,
            Some(Ending::Flushed(until)) => {
                let io = &self.connection.io;
                now >= until || (io.to_client.is_empty() && io.to_upstream.is_empty())
            }
        }
    }

    fn poll_events(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        for _ in 0..EVENTS_MAX {
            let Poll::Ready(Some(event)) = self.events.poll_next_unpin(cx) else { break };
            progress = true;
            match event {
                Event::Parked(channel, id, bytes, result) => {
                    self.given_away -= bytes;
                    self.connection.handle_parked(channel, id, result);
                }
                Event::Committed(channel, id, bytes, result) => {
                    self.given_away -= bytes;
                    match &result {
                        Ok(_) => self.begun.settled(id),
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
                Event::StoreFull(full) => {
                    self.connection.handle_store_full(full);
                    self.watch_store();
                }
                Event::Memory(leave) => {
                    self.waits_for_memory = false;
                    self.overdraft = leave;
                    self.time_overdraft();
                }
                Event::OverdraftTimed => {
                    if self.overdrawn < memory::OVERDRAFT_BYTES_MIN {
                        self.overdraft = None;
                    }
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
        }
        progress
    }

    fn poll_dialing(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(Poll::Ready(result)) = self.dialing.as_mut().map(|dialing| dialing.as_mut().poll(cx)) else {
            return false;
        };
        self.dialing = None;
        match result {
            Ok(stream) => {
                self.shared.health.set(Component::Upstream, Condition::Ready);
                self.upstream = Some(Side::new(stream));
                self.connection.handle_upstream_connected();
            }
            Err(error) => {
                self.shared.metrics.refused(Refused::Upstream);
                self.shared.health.set(Component::Upstream, Condition::NotReady(error.to_string()));
                tracing::warn!(connection = self.number, peer = %self.addresses.source, %error, "RabbitMQ can't be reached");
                self.connection.handle_upstream_lost();
            }
        }
        true
    }

    /// Reads from the client as long as RabbitMQ's side has room.
    fn poll_client(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let wants = self.ending.is_none()
            && !self.client.gone
            && self.connection.wants_client()
            && self.connection.io.to_upstream.len() < OUTPUT_BYTES_MAX;
        if !wants {
            self.client.heard(now);
            return false;
        }
        let waited = self.waits_for_memory;
        if self.waits_for_memory() {
            self.client.heard(now);
            // What it waits for now has to be asked once.
            return !waited;
        }
        // What is left of an earlier read may be whole frames that had to wait.
        let waiting = self.client.input.len();
        if waiting > 0 {
            let used = self.connection.handle_client(&self.client.input);
            self.client.input.advance(used);
            if used > 0 {
                return true;
            }
        }
        match self.client.poll_read(cx, self.connection.input_bytes_max()) {
            Poll::Pending => false,
            Poll::Ready(Ok(read @ 1..)) => {
                self.client.heard(now);
                self.shared.metrics.received_bytes.inc_by(read as u64);
                self.seat.received(read);
                self.entry.heard(read);
                self.uncounted += read;
                self.overdrawn += read;
                let used = self.connection.handle_client(&self.client.input);
                self.client.input.advance(used);
                true
            }
            Poll::Ready(Ok(0) | Err(_)) => {
                self.client.gone = true;
                self.connection.handle_client_lost();
                true
            }
        }
    }

    /// Counts what is held, seldom: only what came, and what the store or the relay answered, changes it by much.
    fn count_held(&mut self, answered: bool) {
        if self.uncounted >= COUNT_BYTES || (answered && self.held.bytes() > 0) {
            self.uncounted = 0;
            let inputs = self.client.input.len() + self.upstream.as_ref().map_or(0, |upstream| upstream.input.len());
            let held = self.connection.held_bytes() + self.given_away + inputs;
            self.held.set(if held < COUNT_BYTES { 0 } else { held });
        }
    }

    /// Counts what the store is given.
    fn gives_away(&mut self, bytes: usize) -> usize {
        self.given_away += bytes;
        bytes
    }

    /// Has a look at the leave to go on after a while, if there is one.
    fn time_overdraft(&mut self) {
        self.overdrawn = 0;
        if self.overdraft.is_some() {
            self.events.push(Box::pin(async {
                tokio::time::sleep(memory::OVERDRAFT_FOR).await;
                Event::OverdraftTimed
            }));
        }
    }

    /// Whether the client has to wait because memory is short and it has more than its part.
    fn waits_for_memory(&mut self) -> bool {
        if self.waits_for_memory {
            return true;
        }
        if !self.held.is_too_much() {
            self.overdraft = None;
            return false;
        }
        // What is whole needs no leave.
        self.connection.spill();
        if self.overdraft.is_some() {
            return false;
        }
        self.waits_for_memory = true;
        self.shared.metrics.memory_waits.inc();
        let memory = Arc::clone(&self.shared.memory);
        self.events.push(Box::pin(async move { Event::Memory(memory.turn().await) }));
        true
    }

    /// Reads from RabbitMQ as long as the client's side has room.
    fn poll_upstream(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(upstream) = self.upstream.as_mut().filter(|upstream| !upstream.gone) else { return false };
        if self.connection.io.to_client.len() >= OUTPUT_BYTES_MAX && self.ending.is_none() {
            upstream.heard(now);
            return false;
        }
        // What is left of an earlier read was too much for one turn, or is the front of a frame.
        if self.ending.is_none() && !upstream.input.is_empty() {
            let used = self.connection.handle_upstream(&upstream.input);
            upstream.input.advance(used);
            if used > 0 {
                return true;
            }
        }
        match upstream.poll_read(cx, None) {
            Poll::Pending => false,
            Poll::Ready(Ok(1..)) => {
                upstream.heard(now);
                if self.ending.is_some() {
                    // Nobody is left to read it; it is taken so that RabbitMQ goes on reading.
                    upstream.input.clear();
                } else {
                    let used = self.connection.handle_upstream(&upstream.input);
                    upstream.input.advance(used);
                }
                true
            }
            Poll::Ready(Ok(0) | Err(_)) => {
                upstream.gone = true;
                self.connection.handle_upstream_lost();
                true
            }
        }
    }

    /// Sends heartbeats, and gives up a side that sent nothing for too long.
    fn beat(&mut self, now: Instant) {
        // Also once when it begins to count: what was not said before is not counted in.
        let misses = self.connection.misses_heartbeats();
        if !misses || !self.misses_heartbeats {
            self.client.heard(now);
        }
        self.misses_heartbeats = misses;
        match self.client.due(now) {
            Due::Nothing => {}
            Due::Send => {
                self.client.spoken(now);
                self.connection.io.to_client.extend_from_slice(&frame::HEARTBEAT);
            }
            Due::Dead => {
                tracing::warn!(connection = self.number, peer = %self.addresses.source, "missed heartbeats from the client");
                self.client.heartbeat = None;
                self.client.gone = true;
                self.connection.handle_client_lost();
            }
        }
        let Some(upstream) = &mut self.upstream else { return };
        match upstream.due(now) {
            Due::Nothing => {}
            Due::Send => {
                upstream.spoken(now);
                self.connection.io.to_upstream.extend_from_slice(&frame::HEARTBEAT);
            }
            Due::Dead => {
                tracing::warn!(connection = self.number, "missed heartbeats from RabbitMQ");
                upstream.heartbeat = None;
                upstream.gone = true;
                self.connection.handle_upstream_lost();
            }
        }
    }

    fn write_all(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let io = &mut self.connection.io;
        let before = io.to_client.len();
        let mut progress = self.client.poll_write_all(cx, &mut io.to_client, now);
        if progress {
            let sent = before - io.to_client.len();
            self.shared.metrics.sent_bytes.inc_by(sent as u64);
            self.seat.sent(sent);
        }
        match &mut self.upstream {
            Some(upstream) => progress |= upstream.poll_write_all(cx, &mut io.to_upstream, now),
            None if self.ending.is_some() => io.to_upstream.clear(),
            None => {}
        }
        progress
    }

    /// Sees to it that this is polled again in time. Gives back whether time has passed already.
    fn poll_sleep(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let ending = match self.ending {
            Some(Ending::Flushed(until)) => Some(until),
            _ => None,
        };
        let beats = [Some(&self.client), self.upstream.as_ref()]
            .map(|side| side.and_then(|side| side.heartbeat.as_ref()).map(Heartbeat::next));
        let [client, upstream] = beats;
        let next = [self.connection.deadline(), ending, client, upstream].into_iter().flatten().min();
        let Some(next) = next else { return false };
        // Setting the timer costs more than waking once too often: a later time is left to the wake-up.
        if self.sleep.deadline().into_std() > next || self.sleep.is_elapsed() {
            self.sleep.as_mut().reset(next.into());
        }
        if self.sleep.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.connection.handle_time(Instant::now().max(now));
        true
    }

    fn run_commands(&mut self, now: Instant) -> bool {
        let mut progress = false;
        while let Some(command) = self.connection.poll_command() {
            progress = true;
            match command {
                Command::Connect => {
                    let (upstream, addresses) = (Arc::clone(&self.shared.upstream), self.addresses);
                    self.dialing = Some(Box::pin(async move { upstream.connect(Some(addresses)).await }));
                }
                Command::Opened(opened) => self.opened(&opened, now),
                Command::Park { channel, transaction, named, batch } => {
                    self.shared.metrics.messages_staged.inc_by(batch.messages().into());
                    let bytes = self.gives_away(batch.bytes());
                    self.begun.parked(transaction, named.as_deref());
                    let reply = self.shared.store.park(self.origin(channel, transaction, named), batch);
                    self.events.push(Box::pin(async move { Event::Parked(channel, transaction, bytes, reply.await) }));
                }
                Command::Commit { channel, transaction, named, batch, parked, wait } => {
                    self.shared.metrics.messages_staged.inc_by(batch.messages().into());
                    let (waiter, receiver) = wait.map(Waiter::pair).unzip();
                    let origin = self.origin(channel, transaction, named);
                    let bytes = self.gives_away(batch.bytes());
                    let commit = Commit { origin, batch, parked, forwarded: waiter };
                    let reply = self.shared.store.commit(commit);
                    self.events.push(Box::pin(async move {
                        let result = reply.await.map(|committing| matches!(committing, Committing::Now(_)));
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
                Command::Ended(ended) => self.count(ended),
                Command::Close => self.ending = Some(Ending::Flushed(now + LAST_WORDS_WITHIN)),
                Command::Abort => self.ending = Some(Ending::Now),
            }
        }
        progress
    }

    fn count(&mut self, ended: Ended) {
        let outcome = match ended {
            Ended::Committed(took) => {
                self.shared.metrics.commit_seconds.observe(took);
                Outcome::Committed
            }
            Ended::RolledBack => Outcome::RolledBack,
            Ended::Refused => Outcome::Refused,
            Ended::Failed => Outcome::Failed,
            Ended::InDoubt => Outcome::InDoubt,
        };
        self.begun.count(-1);
        self.shared.metrics.transaction(outcome);
    }

    fn opened(&mut self, opened: &Opened, now: Instant) {
        tracing::info!(
            connection = self.number,
            peer = %self.addresses.source,
            user = &*opened.identity.user,
            vhost = &*opened.identity.vhost,
            product = opened.product,
            version = opened.version,
            name = opened.name,
            "open"
        );
        self.opened = true;
        self.shared.upstream.is_reached();
        let max = self.shared.terms().connections_max;
        if !self.entry.sit(max) {
            self.shared.metrics.refused(Refused::Limit);
            tracing::warn!(peer = %self.addresses.source, limit = max, "refused: listen.max_connections are open");
            self.connection.close_because("listen.max_connections are open");
        }
        self.user = Arc::clone(&opened.identity.user);
        self.vhost = Arc::clone(&opened.identity.vhost);
        self.routing = self.shared.routing.of(&self.vhost);
        self.connection.io.spare_channel = !self.shared.without_spare_channel().contains(&self.user);
        self.seat.take(Guest {
            user: Arc::clone(&self.user),
            vhost: Arc::clone(&self.vhost),
            product: opened.product.clone(),
            version: opened.version.clone(),
            name: opened.name.clone(),
        });
        self.client.heartbeat = Heartbeat::new(opened.heartbeat, now);
        if let Some(upstream) = &mut self.upstream {
            upstream.heartbeat = Heartbeat::new(opened.heartbeat, now);
        }
        self.connection.handle_store_full(self.shared.store.is_full());
        self.watch_store();
    }

    /// Waits for the store to become full, or to have room again.
    fn watch_store(&self) {
        let mut fullness = self.shared.store.fullness();
        let known = self.connection.knows_store_full();
        self.events.push(Box::pin(async move {
            let changed = fullness.wait_for(|full| *full != known).await.map(|full| *full);
            match changed {
                Ok(full) => Event::StoreFull(full),
                // The store is closed, and the process about to end.
                Err(_) => std::future::pending().await,
            }
        }));
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

impl Side {
    fn new(stream: Stream) -> Self {
        Self { stream, input: BytesMut::new(), heartbeat: None, gone: false }
    }

    fn heard(&mut self, now: Instant) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.heard(now);
        }
    }

    fn spoken(&mut self, now: Instant) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.spoken(now);
        }
    }

    fn due(&self, now: Instant) -> Due {
        self.heartbeat.as_ref().map_or(Due::Nothing, |heartbeat| heartbeat.due(now))
    }

    /// Reads what there is, behind the front of a frame that may be in `input` already, which grows to `bytes_max`.
    fn poll_read(&mut self, cx: &mut Context<'_>, bytes_max: Option<usize>) -> Poll<io::Result<usize>> {
        if let Some(max) = bytes_max {
            // Whoever has not logged in gets memory of its own, as much as it sends: a shared buffer would be held by a
            // single byte.
            let room = max.saturating_sub(self.input.len()).min(LOGIN_READ_BYTES);
            self.input.reserve(room);
            let read = pin!(self.stream.read_buf(&mut (&mut self.input).limit(room))).poll(cx);
            if read.is_pending() && self.input.is_empty() {
                self.input = BytesMut::new();
            }
            return read;
        }
        let missing = match frame::split(&self.input, usize::MAX - frame::OVERHEAD_BYTES) {
            Split::NeedBytes(total) => total.saturating_sub(self.input.len()),
            Split::Frame(_) | Split::Malformed => 0,
        };
        // Memory is taken for what comes, not for what a frame header announces.
        let room = missing.clamp(READ_BYTES, READ_BYTES.max(self.input.len()));
        buffers::lend_input(&mut self.input, room);
        let read = pin!(self.stream.read_buf(&mut self.input)).poll(cx);
        if read.is_pending() {
            buffers::reclaim_input(&mut self.input);
        }
        read
    }

    /// Writes as much of `output` as the socket takes, and takes it out of `output`.
    fn poll_write_all(&mut self, cx: &mut Context<'_>, output: &mut Vec<u8>, now: Instant) -> bool {
        let mut written = 0;
        while written < output.len() && !self.gone {
            match Pin::new(&mut self.stream).poll_write(cx, &output[written..]) {
                Poll::Pending => break,
                Poll::Ready(Ok(bytes @ 1..)) => written += bytes,
                // The reading side learns of the end by itself; until then there is nobody to write to.
                Poll::Ready(Ok(0) | Err(_)) => written = output.len(),
            }
        }
        if self.gone {
            written = output.len();
        }
        if written == 0 {
            return false;
        }
        output.drain(..written);
        self.spoken(now);
        // TLS keeps what it encrypted until it is flushed; for TCP this is nothing.
        if matches!(self.stream, Stream::Tls(_)) {
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
        true
    }
}
