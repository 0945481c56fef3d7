//! One virtual host: a task, a connection to RabbitMQ, and the lanes on it.

mod answers;
mod lost;

pub(super) use lost::Lost;

use self::answers::{DELIVERED_WAIT, StoreAnswer, keep};
use self::lost::End;
use super::RelaySettings;
use super::channels::Channels;
use super::inbox::Inbox;
use super::lane::{Lane, Lone, Policy};
use super::letters::Waiting;
use super::login::{Connection, LoginError};
use super::message::Message;
use super::queue::{Next, Queue};
use super::status::{Link, Stuck, VhostStatus, add};
use super::trial::{self, Ruling};
use super::wire::{WRITE_BYTES, Wire};
use crate::amqp::frame::{self, Frame};
use crate::amqp::method::{self, Close, id};
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::Reader;
use crate::store::{Sequence, Store};
use crate::upstream::Upstream;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

/// Bytes of messages that a lane has at hand to send; more waits in its queue.
const UNSENT_BYTES: usize = 256 << 10;
/// Bytes that are asked of the store at once.
const PAGE_BYTES: usize = 512 << 10;
/// The same of one client channel that waited beside its lane.
const ASIDE_BYTES: usize = 64 << 10;
/// A connection that held this long, or confirmed something, was no failure.
const USEFUL_AFTER: Duration = Duration::from_secs(30);
/// The timer is never set to less, should a lane's deadline have passed while it may not act.
const TIMER_MIN: Duration = Duration::from_millis(1);
/// How long after a write a transaction that nobody waits for may wait for company: RabbitMQ spends several times as much
/// on a message that comes alone.
const COMPANY_WAIT: Duration = Duration::from_millis(1);
/// How long RabbitMQ may take for a polite goodbye.
pub(super) const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the tasks of all virtual hosts share.
pub(super) struct Shared {
    pub(super) settings: watch::Receiver<RelaySettings>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) store: Arc<dyn Store>,
    /// The first commit of this process: what is older may have been sent by an earlier one.
    pub(super) first_own: Arc<AtomicI64>,
    pub(super) draining: watch::Receiver<bool>,
}

/// The task of one virtual host.
pub(super) struct Vhost {
    name: Arc<str>,
    shared: Arc<Shared>,
    settings: watch::Receiver<RelaySettings>,
    inbox: Arc<Inbox>,
    status: Arc<VhostStatus>,
    draining: watch::Receiver<bool>,
    /// By their channel, from 0; which of the store's lanes are on it, [`Channels`] knows.
    lanes: BTreeMap<u16, Lane>,
    channels: Channels,
    /// Dead letters that the store has not answered for.
    letters: Waiting,
    /// The lane whose turn it is to send first.
    turn: u16,
    /// Questions to the store that are not answered.
    questions: FuturesUnordered<BoxFuture<'static, StoreAnswer>>,
    delivered: Vec<Sequence>,
    delivered_since: Option<Instant>,
    confirmed_something: bool,
    blocked: bool,
    /// Until then what nobody waits for does not wake this.
    company_until: Option<Instant>,
    /// Where messages are tried, from the first one on that had to be.
    trial: Option<UnboundedSender<Vec<Message>>>,
    rulings: UnboundedReceiver<(Message, Ruling)>,
    rulings_sender: UnboundedSender<(Message, Ruling)>,
}

impl Vhost {
    pub(super) fn new(name: Arc<str>, shared: Arc<Shared>, inbox: Arc<Inbox>, status: Arc<VhostStatus>) -> Self {
        let (rulings_sender, rulings) = unbounded_channel();
        Self {
            name,
            draining: shared.draining.clone(),
            settings: shared.settings.clone(),
            shared,
            inbox,
            status,
            lanes: BTreeMap::new(),
            channels: Channels::default(),
            letters: Waiting::default(),
            turn: 0,
            questions: FuturesUnordered::new(),
            delivered: Vec::new(),
            delivered_since: None,
            confirmed_something: false,
            blocked: false,
            company_until: None,
            trial: None,
            rulings,
            rulings_sender,
        }
    }

    /// Forwards until the relay drains, over as many connections as it takes.
    pub(super) async fn run(mut self) {
        let (mut failures, mut node, mut connections) = (0, 0, 0);
        while !*self.draining.borrow() {
            let began = Instant::now();
            self.confirmed_something = false;
            let lost = match self.connect(node).await {
                None => break,
                Some(Err(lost)) => {
                    node += 1;
                    lost
                }
                Some(Ok((connection, number))) => {
                    tracing::info!(vhost = %self.name, node = %self.shared.upstream.urls()[number], "the relay is connected");
                    self.status.set_link(Link::Connected);
                    self.inbox.set_cut_off(false);
                    self.inbox.open_for_lones();
                    add(&self.status.counters.reconnects, u64::from(connections > 0));
                    connections += 1;
                    let end = self.converse(connection).await;
                    self.close_for_lones();
                    let opened = self.lanes.values().filter(|lane| lane.is_opened()).count();
                    let was_opening = self.lanes.values().any(|lane| !lane.is_down() && !lane.is_opened());
                    self.disconnected(end.as_ref().is_err_and(Lost::accuses));
                    let lost = match end {
                        Ok(End::Drained) => break,
                        Ok(End::Idle) => {
                            tracing::info!(vhost = %self.name, "the relay has nothing to send and leaves its connection");
                            self.status.set_link(Link::Idle);
                            self.wait_for_work().await;
                            (failures, node) = (0, 0);
                            continue;
                        }
                        Err(lost) => lost,
                    };
                    let mut useful = self.confirmed_something || began.elapsed() > USEFUL_AFTER;
                    if let Lost::Closed(ReplyCode::NOT_ALLOWED, text) = &lost
                        && was_opening
                    {
                        // The account's limit. What is open will do.
                        useful |= self.channels.refused(opened, Instant::now());
                        tracing::warn!(vhost = %self.name, opened, reason = %text, "RabbitMQ allows the relay fewer channels than it has lanes; they share them");
                    }
                    (failures, node) = if useful { (0, 0) } else { (failures, number + 1) };
                    lost
                }
            };
            self.cut_off();
            failures = u32::saturating_add(failures, 1);
            let pause = self.settings.borrow().retry.pause(failures);
            tracing::warn!(vhost = %self.name, reason = %lost, ?pause, "the relay has no connection and tries again");
            let reach = match &lost {
                Lost::Login(LoginError::Refused(..)) => false,
                Lost::Closed(code, _) => *code == ReplyCode::CONNECTION_FORCED,
                _ => true,
            };
            self.status.set_link(match lost {
                Lost::Closed(code @ ReplyCode::NOT_ALLOWED, text) => Link::Refused(code.0, text),
                Lost::Login(LoginError::Refused(code, text)) => {
                    // Not this node's fault: the first one is asked again.
                    node = 0;
                    Link::Refused(code.0, text)
                }
                lost => Link::Connecting(Some(lost.to_string())),
            });
            self.wait(pause, reach).await;
        }
        self.report_delivered();
        self.status.set_link(Link::Connecting(None));
    }

    /// Waits, without a connection, until there is something to send, or the relay drains.
    async fn wait_for_work(&mut self) {
        let (inbox, mut draining) = (Arc::clone(&self.inbox), self.draining.clone());
        while self.is_idle() && !*draining.borrow() {
            tokio::select! {
                () = inbox.wake.notified() => {}
                () = inbox.wake_soon.notified() => {}
                _ = draining.changed() => {}
            }
        }
    }

    /// Whether there is nothing to send, and nothing to wait for.
    fn is_idle(&self) -> bool {
        self.questions.is_empty()
            && self.letters.is_empty()
            && self.lanes.values().all(Lane::is_empty)
            && self.inbox.asides.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
            && self.inbox.queues().values().all(Queue::is_idle)
    }

    /// Nothing can be sent on the connection that there was.
    fn close_for_lones(&self) {
        for lone in self.inbox.close_for_lones() {
            self.store_first(lone);
        }
    }

    /// Nothing can be sent now, so nobody waits for it, and memory is for those who can send.
    fn cut_off(&mut self) {
        self.inbox.set_cut_off(true);
        self.lanes.values_mut().for_each(Lane::wait_for_nothing);
    }

    /// `None`: the relay drains.
    async fn connect(&mut self, node: usize) -> Option<Result<(Connection, usize), Lost>> {
        let (name, upstream) = (Arc::clone(&self.name), Arc::clone(&self.shared.upstream));
        let (credentials, mut draining) = (self.settings.borrow().credentials.clone(), self.draining.clone());
        let mut connect = pin!(async move {
            let (stream, number) = upstream.connect_from(node, None).await?;
            let connection = Connection::open(stream, &credentials, &name).await?;
            Ok((connection, number))
        });
        loop {
            self.collect();
            tokio::select! {
                result = &mut connect => return Some(result),
                _ = draining.wait_for(|draining| *draining) => return None,
                Some(answer) = self.questions.next() => self.hear(answer),
                Some((message, ruling)) = self.rulings.recv() => self.tried(message, ruling),
            }
        }
    }

    /// Waits without a connection; what the store has to say is heard all the same.
    /// `reach`: RabbitMQ was not to be reached, so as soon as anybody has reached it, there is nothing to wait for.
    async fn wait(&mut self, pause: Duration, reach: bool) {
        let mut draining = self.draining.clone();
        let upstream = Arc::clone(&self.shared.upstream);
        let (mut pause, mut reached) = (pin!(sleep(pause)), pin!(upstream.reached()));
        loop {
            self.collect();
            self.report_delivered();
            tokio::select! {
                () = &mut pause => return,
                () = &mut reached, if reach => return,
                _ = draining.wait_for(|draining| *draining) => return,
                Some(answer) = self.questions.next() => self.hear(answer),
                Some((message, ruling)) = self.rulings.recv() => self.tried(message, ruling),
            }
        }
    }

    /// There is no connection any more; `accused`: because of a message that was in flight.
    fn disconnected(&mut self, accused: bool) {
        let now = Instant::now();
        for lane in self.lanes.values_mut() {
            lane.disconnected(accused, now);
        }
        self.status.counters.in_flight.store(0, Ordering::Relaxed);
        self.report_delivered();
    }

    /// Forwards over one connection.
    async fn converse(&mut self, connection: Connection) -> Result<End, Lost> {
        self.share_channels(connection.channels_max);
        let mut wire = Wire::new(connection);
        self.blocked = false;
        let end = self.forward(&mut wire).await;
        let goodbye = match &end {
            Ok(_) => self.say_goodbye(wire).await,
            Err(Lost::Closed(..)) => {
                method::write_bare(&mut wire.writer.out, 0, id::CONNECTION_CLOSE_OK);
                timeout(GOODBYE_TIMEOUT, wire.writer.write()).await.unwrap_or(Ok(())).map_err(Lost::from)
            }
            Err(_) => Ok(()),
        };
        if let Err(error) = goodbye {
            tracing::debug!(vhost = %self.name, %error, "the connection did not end politely");
        }
        end
    }

    /// There is a connection with so many channels: lanes for which there is none go to another's.
    fn share_channels(&mut self, offered: u16) {
        let nothing_held = self.lanes.values().all(Lane::is_empty);
        self.channels.connected(offered, nothing_held, Instant::now());
        while let Some((number, _)) = self.lanes.range(self.channels.count()..).next_back() {
            let number = *number;
            let Some(lane) = self.lanes.remove(&number) else { break };
            self.lane(number % self.channels.count()).take_over(lane);
        }
    }

    /// The lane on a channel.
    fn lane(&mut self, channel: u16) -> &mut Lane {
        self.lanes.entry(channel).or_insert_with(|| {
            // Channel 0 is the connection's own.
            Lane::new(channel + 1, self.settings.borrow().policy(), Arc::clone(&self.status))
        })
    }

    async fn forward(&mut self, wire: &mut Wire) -> Result<End, Lost> {
        self.handle_frames(wire)?;
        let (idle_after, mut idle_since) = (self.settings.borrow().idle_after, None);
        let mut armed = Instant::now() + wire.heartbeat;
        let mut timer = pin!(sleep_until(armed.into()));
        let (inbox, mut draining) = (Arc::clone(&self.inbox), self.draining.clone());
        loop {
            let now = Instant::now();
            if self.settings.has_changed().is_ok_and(|changed| changed) {
                let policy = self.settings.borrow_and_update().policy();
                self.lanes.values_mut().for_each(|lane| lane.change_policy(policy.clone()));
            }
            let drains = *draining.borrow_and_update();
            if drains {
                self.close_for_lones();
            }
            if !drains {
                self.feed(wire, now);
            }
            self.collect();
            if drains && self.letters.is_empty() && self.lanes.values().all(Lane::is_settled) {
                self.report_delivered();
                return Ok(End::Drained);
            }
            idle_since = if self.is_idle() { idle_since.or(Some(now)) } else { None };
            if self.delivered_is_due(now) {
                self.report_delivered();
            }
            let idle_until = idle_since.map(|since| since + idle_after);
            if idle_until.is_some_and(|until| until <= now) {
                self.report_delivered();
                return Ok(End::Idle);
            }
            // A timer that rings too early costs less than one that is set each time.
            let deadline = self.deadline(wire).min(idle_until.unwrap_or(armed)).max(now + TIMER_MIN);
            if deadline < armed || armed <= now {
                armed = deadline;
                timer.as_mut().reset(deadline.into());
            }
            let Wire { reader, writer, .. } = &mut *wire;
            let dirty = !writer.out.is_empty();
            let alone = self.company_until.is_none_or(|until| until <= now);
            tokio::select! {
                result = writer.write(), if dirty => result?,
                result = reader.read() => {
                    result?;
                    self.handle_frames(wire)?;
                }
                () = inbox.wake.notified() => {}
                () = inbox.wake_soon.notified(), if alone => {}
                Some(answer) = self.questions.next() => self.hear(answer),
                Some((message, ruling)) = self.rulings.recv() => self.tried(message, ruling),
                _ = draining.changed() => {}
                () = &mut timer => self.handle_timeout(wire)?,
            }
        }
    }

    /// Gives the lanes what they may have, and writes what they may send.
    fn feed(&mut self, wire: &mut Wire, now: Instant) {
        let (mut pages, mut asides) = (Vec::new(), Vec::new());
        // Before the queues: what their clients committed earlier is in there.
        let lones = self.inbox.take_lones();
        let inbox = Arc::clone(&self.inbox);
        for source in std::mem::take(&mut *inbox.asides.lock().unwrap_or_else(PoisonError::into_inner)) {
            let channel = self.channels.of(source.lane);
            self.lane(channel).found_aside(source, now);
        }
        for (number, queue) in inbox.queues().iter_mut() {
            let channel = self.channels.of(*number);
            let blocked = self.blocked;
            let lane = self.lane(channel);
            queue.set_sends_soon(!blocked && !lane.is_stalled());
            while lane.unsent_bytes() < UNSENT_BYTES && lane.has_room() {
                match queue.next() {
                    Next::Committed(committed) => lane.add_committed(committed),
                    Next::Page(after) => pages.push((*number, after)),
                    Next::Nothing => break,
                }
            }
            if lane.is_down() && !lane.is_empty() {
                lane.connected(&mut wire.writer.out);
                lane.set_blocked(blocked, now);
            }
            while let Some((sequence, source, waiter)) = queue.take_waiter() {
                lane.attach(sequence, source, waiter);
            }
        }
        for lane in self.lanes.values_mut().filter(|lane| lane.unsent_bytes() < UNSENT_BYTES + ASIDE_BYTES) {
            asides.extend(lane.next_page());
        }
        self.status.counters.channels.store(self.channels.shared().into(), Ordering::Relaxed);
        // With the queues free again: the store may be about to fill them, holding what a page needs.
        for (number, after) in pages {
            let lane = crate::store::Lane::new(Arc::clone(&self.name), number);
            let page = self.shared.store.page(&lane, after, PAGE_BYTES);
            self.questions.push(Box::pin(async move { StoreAnswer::Page { lane: number, packs: page.await } }));
        }
        for (source, after) in asides {
            let page = self.shared.store.page(&self.aside(source), after, ASIDE_BYTES);
            self.questions.push(Box::pin(async move { StoreAnswer::Aside { source, after, packs: page.await } }));
        }
        let before = wire.writer.out.len();
        self.fill(&mut wire.writer.out, wire.frame_bytes_max, now);
        for lone in lones {
            self.send_lone(lone, wire, now);
        }
        if wire.writer.out.len() > before {
            self.company_until = Some(now + COMPANY_WAIT);
        } else if self.company_until.is_some_and(|until| until <= now) {
            self.company_until = None;
        }
    }

    /// Sends a transaction of one message before the store has it, if nothing stands before it in its lane.
    fn send_lone(&mut self, lone: Lone, wire: &mut Wire, now: Instant) {
        let number = lone.commit.origin.lane.number;
        let is_next = self.inbox.queues().get(&number).is_some_and(Queue::is_idle)
            && wire.writer.out.len() < WRITE_BYTES
            && !self.letters.is_full();
        let channel = self.channels.of(number);
        let sent = match is_next {
            true => self.lane(channel).send_lone(lone, &mut wire.writer.out, wire.frame_bytes_max, now),
            false => Err(Box::new(lone)),
        };
        if let Err(lone) = sent {
            self.store_first(*lone);
        }
    }

    /// Writes what the lanes may send. Each time another lane comes first.
    fn fill(&mut self, out: &mut Vec<u8>, frame_bytes_max: u32, now: Instant) {
        let first = self.turn;
        let next = self.lanes.range(first..).chain(self.lanes.range(..first)).nth(1);
        self.turn = next.map_or(0, |(number, _)| *number);
        if self.letters.is_full() {
            return;
        }
        let mut fill = |(_, lane): (&u16, &mut Lane)| lane.fill(out, WRITE_BYTES, frame_bytes_max, now);
        self.lanes.range_mut(first..).for_each(&mut fill);
        self.lanes.range_mut(..first).for_each(&mut fill);
    }

    /// Takes what the lanes have for the store.
    fn collect(&mut self) {
        let (mut in_flight, mut marks, mut suspects, mut lones) = (0, Vec::new(), Vec::new(), Vec::new());
        let now = Instant::now();
        for lane in self.lanes.values_mut() {
            in_flight += lane.in_flight() as u64;
            self.delivered.append(&mut lane.delivered);
            for letter in lane.take_dead_letters() {
                self.letters.add(&letter);
                self.questions.push(Box::pin(keep(Arc::clone(&self.shared.store), letter)));
            }
            suspects.append(&mut lane.take_suspects());
            lones.extend(std::iter::from_fn(|| lane.next_to_keep(now)));
            self.confirmed_something |= std::mem::take(&mut lane.confirmed);
            while let Some((source, transactions)) = lane.next_marks() {
                marks.push((source, transactions));
            }
        }
        for (source, transactions) in marks {
            self.mark(source, transactions);
        }
        for commit in lones {
            self.keep_lone(commit);
        }
        if !suspects.is_empty() {
            self.try_first(suspects);
        }
        self.status.counters.in_flight.store(in_flight, Ordering::Relaxed);
        self.status.set_refused(self.lanes.values().filter_map(Lane::refused).reduce(Stuck::and));
        if !self.delivered.is_empty() {
            self.delivered_since.get_or_insert(now);
        }
    }

    /// Has messages tried on a connection of their own.
    fn try_first(&mut self, suspects: Vec<Message>) {
        let trial = self.trial.get_or_insert_with(|| {
            let (sender, messages) = unbounded_channel();
            let (shared, status) = (Arc::clone(&self.shared), Arc::clone(&self.status));
            tokio::spawn(trial::start(Arc::clone(&self.name), shared, status, messages, self.rulings_sender.clone()));
            sender
        });
        // It ends with this sender.
        let _ = trial.send(suspects);
    }

    fn tried(&mut self, message: Message, ruling: Ruling) {
        let channel = self.channels.of(message.source.lane);
        self.lane(channel).tried(message, ruling, Instant::now());
    }

    fn deadline(&self, wire: &Wire) -> Instant {
        let lanes = self.lanes.values().filter_map(Lane::deadline);
        let delivered = self.delivered_since.map(|since| since + DELIVERED_WAIT);
        let signs_of_life =
            (wire.writer.last_write + wire.heartbeat / 2).min(wire.reader.last_read + wire.heartbeat * 2);
        lanes.chain(delivered).chain(self.company_until).fold(signs_of_life, Instant::min)
    }

    fn handle_timeout(&mut self, wire: &mut Wire) -> Result<(), Lost> {
        let now = Instant::now();
        if now >= wire.reader.last_read + wire.heartbeat * 2 {
            return Err(Lost::Silent);
        }
        if now >= wire.writer.last_write + wire.heartbeat / 2 {
            // While RabbitMQ does not read, what waits to be written is all the sign of life that we can give.
            if wire.writer.out.is_empty() {
                wire.writer.out.extend_from_slice(&frame::HEARTBEAT);
            }
            wire.writer.last_write = now;
        }
        for lane in self.lanes.values_mut() {
            lane.handle_timeout(&mut wire.writer.out, now)?;
        }
        Ok(())
    }

    fn handle_frames(&mut self, wire: &mut Wire) -> Result<(), Lost> {
        let (now, Wire { reader, writer, .. }) = (Instant::now(), wire);
        reader.frames(|frame| self.handle_frame(frame, &mut writer.out, now))
    }

    fn handle_frame(&mut self, frame: Frame<'_>, out: &mut Vec<u8>, now: Instant) -> Result<(), Lost> {
        if let Some(lane) = frame.channel.checked_sub(1) {
            if let Some(lane) = self.lanes.get_mut(&lane) {
                lane.handle_frame(frame, out, now)?;
            }
            return Ok(());
        }
        match frame.method_id() {
            Some(id::CONNECTION_CLOSE) => {
                let close = Close::parse(frame.arguments())?;
                return Err(Lost::Closed(close.code, String::from_utf8_lossy(close.text).into_owned()));
            }
            Some(id::CONNECTION_CLOSE_OK) => return Err(Lost::Goodbye),
            Some(id::CONNECTION_BLOCKED) => {
                let reason = String::from_utf8_lossy(Reader::new(frame.arguments()).short_string()?).into_owned();
                tracing::warn!(vhost = %self.name, %reason, "RabbitMQ takes no messages for now");
                self.status.set_link(Link::Blocked(reason));
                self.set_blocked(true, now);
                self.cut_off();
            }
            Some(id::CONNECTION_UNBLOCKED) => {
                tracing::info!(vhost = %self.name, "RabbitMQ takes messages again");
                self.status.set_link(Link::Connected);
                self.set_blocked(false, now);
                self.inbox.set_cut_off(false);
            }
            _ => {}
        }
        Ok(())
    }

    fn set_blocked(&mut self, blocked: bool, now: Instant) {
        self.blocked = blocked;
        for lane in self.lanes.values_mut() {
            lane.set_blocked(blocked, now);
        }
    }

    /// Closes the connection as the protocol wants it, as far as RabbitMQ plays along.
    async fn say_goodbye(&mut self, mut wire: Wire) -> Result<(), Lost> {
        Close { code: ReplyCode::SUCCESS, text: b"goodbye", method: (0, 0) }.write(&mut wire.writer.out, 0);
        let goodbye = async {
            wire.writer.write().await?;
            loop {
                wire.reader.read().await?;
                match self.handle_frames(&mut wire) {
                    Ok(()) => {}
                    Err(Lost::Goodbye) => return Ok(()),
                    Err(lost) => return Err(lost),
                }
            }
        };
        timeout(GOODBYE_TIMEOUT, goodbye).await.unwrap_or(Ok(()))
    }
}

impl RelaySettings {
    fn policy(&self) -> Policy {
        Policy {
            window: self.window,
            nack_pauses: self.nack_pauses,
            confirm_timeout: self.confirm_timeout,
            keep_unroutable: self.keep_unroutable,
        }
    }
}
