//! The loop of one session, between the client's socket, RabbitMQ's, and the protocol core.
//!
//! It is one hand-written poll, because each of four directions (reading and writing on two sockets) has to be held
//! back by itself: a client that reads slowly stops what is read *for it*, and nothing else. A silent session holds no
//! buffer.

mod commands;
mod events;

use self::events::Event;
use super::begun::Begun;
use super::buffers;
use super::entry::Entry;
use super::heartbeat::{Due, Heartbeat};
use super::metrics::Refused;
use super::routing::Version;
use super::share::Share;
use super::side::Side;
use super::{Shared, Terms};
use crate::amqp::frame;
use crate::health::{Component, Condition};
use crate::memory;
use crate::places::{Leave, told_to};
use crate::protocol::command::Opened;
use crate::protocol::connection::Connection;
use crate::roster::{Guest, Seat};
use crate::upstream::{ClientAddresses, ConnectError, Stream};
use bytes::Buf;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::watch;
use tokio::time::Sleep;

/// Bytes waiting to be written to one side past which the other side is read no more.
const OUTPUT_BYTES_MAX: usize = 256 << 10;
/// How often a session looks for more to do before all others have their turn: a client that sends without end must not
/// keep a thread for itself. Each round takes what one read gave, or as much of it as the core handles in a turn: then it
/// was the last one.
const ROUNDS_MAX: usize = 2;

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
    /// Until when it may wait for RabbitMQ.
    connect_until: Instant,
    /// What the client has sent for it to answer, until it has.
    greeting: Vec<u8>,
    upstream_spoke: bool,
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
    share: Share,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// When what is to be written is written, or the time is up.
    Flushed(Instant),
    Now,
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
        // The client's own time stands still while it waits.
        let until = now + terms.handshake_timeout + terms.wait;
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
            connect_until: now,
            greeting: Default::default(),
            upstream_spoke: false,
            events,
            sleep: Box::pin(tokio::time::sleep_until(until.into())),
            user: Arc::from(""),
            vhost: Arc::from(""),
            routing: Version::default(),
            ending: None,
            opened: false,
            misses_heartbeats: false,
            share: Share::new(shared.memory.part()),
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
        self.connection.begin_turn();
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
            if self.connection.had_its_turn() || rounds == ROUNDS_MAX {
                // Behind all others that are ready, and behind a look at the sockets.
                let _ = pin!(tokio::task::yield_now()).poll(cx);
                break;
            }
        }
        self.count_held(true);
        buffers::reclaim_output(&mut self.connection.io.to_client);
        buffers::reclaim_output(&mut self.connection.io.to_upstream);
        self.seat.note(self.connection.stage(), self.connection.channels());
        self.seat.note_oldest(self.connection.oldest_open());
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
        let waited = self.share.waits();
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
                self.share.received(read);
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

    fn count_held(&mut self, answered: bool) {
        if self.share.is_due(answered) {
            let inputs = self.client.input.len() + self.upstream.as_ref().map_or(0, |upstream| upstream.input.len());
            self.share.count(self.connection.held_bytes() + inputs);
        }
    }

    /// Has a look at the overdraft after a while, if there is one.
    fn time_overdraft(&self) {
        if self.share.has_overdraft() {
            self.events.push(Box::pin(async {
                tokio::time::sleep(memory::OVERDRAFT_FOR).await;
                Event::OverdraftTimed
            }));
        }
    }

    /// Whether the client has to wait because memory is short and it has more than its part.
    fn waits_for_memory(&mut self) -> bool {
        if self.share.waits() {
            return true;
        }
        if !self.share.is_too_much() {
            return false;
        }
        // What is whole needs no overdraft.
        self.connection.spill();
        if self.share.has_overdraft() {
            return false;
        }
        self.share.wait();
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
                self.upstream_spoke = true;
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
                if !self.redial(now) {
                    self.connection.handle_upstream_lost();
                }
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
        let is_heavy = self.shared.store.heavy_users().borrow().contains(&self.user);
        self.connection.handle_room(events::no_room(*self.shared.store.room().borrow(), is_heavy));
        self.watch_store();
    }
}
