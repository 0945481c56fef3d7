//! One virtual host: a task, a connection to RabbitMQ, and the lanes on it.

use super::Settings;
use super::lane::{Fault, Lane, Policy};
use super::login::{Connection, LoginError};
use super::queue::{Budget, Next, Queue};
use super::status::{Link, VhostStatus, add};
use crate::amqp::frame::{self, Frame, Split};
use crate::amqp::method::{Close, id};
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::wire::{Malformed, Reader};
use crate::store::{Committed, DeadLetter, Pack, Sequence, Store, StoreError};
use crate::upstream::{ConnectError, Stream, Upstream};
use bytes::{Buf, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeMap;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, sleep_until, timeout};

/// Bytes of frames that are gathered for one write; the last message may go over it.
const WRITE_BYTES: usize = 64 << 10;
/// Bytes that one read may bring.
const READ_BYTES: usize = 64 << 10;
/// Bytes of messages that a lane has at hand to send; more waits in its queue.
const UNSENT_BYTES: usize = 256 << 10;
/// Bytes that are asked of the store at once.
const PAGE_BYTES: usize = 512 << 10;
/// A buffer that a large message has blown up is given back.
const BUFFER_BYTES_KEPT: usize = 1 << 20;
/// Transactions that are reported to the store at once, and how long a few may wait for more.
const DELIVERED_MAX: usize = 512;
const DELIVERED_WAIT: Duration = Duration::from_millis(10);
/// Before the store is asked again for what it could not do.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// A connection that held this long, or confirmed something, was no failure.
const USEFUL_AFTER: Duration = Duration::from_secs(30);
/// How long RabbitMQ may take for a polite goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the store's writer thread leaves what a virtual host's task takes.
#[derive(Debug)]
pub(super) struct Inbox {
    queues: Mutex<BTreeMap<u16, Queue>>,
    wake: Notify,
    budget: Arc<Budget>,
}

impl Inbox {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { queues: Mutex::default(), wake: Notify::new(), budget }
    }

    /// Makes a lane known, of which the store may hold transactions.
    pub(super) fn add_lane(&self, lane: u16) {
        self.queues().entry(lane).or_insert_with(|| Queue::new(Arc::clone(&self.budget)));
        self.wake.notify_one();
    }

    /// Takes new commits, in commit order.
    pub(super) fn push(&self, transactions: impl Iterator<Item = Committed>) {
        let mut queues = self.queues();
        for committed in transactions {
            let queue = queues.entry(committed.lane.number);
            queue.or_insert_with(|| Queue::new(Arc::clone(&self.budget))).push(committed);
        }
        drop(queues);
        self.wake.notify_one();
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<u16, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the tasks of all virtual hosts share.
pub(super) struct Shared {
    pub(super) settings: Settings,
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
    inbox: Arc<Inbox>,
    status: Arc<VhostStatus>,
    draining: watch::Receiver<bool>,
    lanes: BTreeMap<u16, Lane>,
    /// The lane whose turn it is to send first.
    turn: u16,
    /// Questions to the store that are not answered.
    questions: FuturesUnordered<BoxFuture<'static, Answer>>,
    delivered: Vec<Sequence>,
    delivered_since: Option<Instant>,
    confirmed_something: bool,
    blocked: bool,
}

/// What the store said.
enum Answer {
    Page { lane: u16, packs: Result<Vec<Pack>, StoreError> },
    AskForPageAgain { lane: u16 },
    DeadLetter { lane: u16, letter: DeadLetter, kept: Result<(), StoreError> },
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Login(#[from] LoginError),
    #[error("RabbitMQ closed the connection: {0} {1}")]
    Closed(ReplyCode, String),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("RabbitMQ gives no sign of life")]
    Silent,
    #[error("RabbitMQ sent what can't be read")]
    Malformed,
    #[error(transparent)]
    Lane(#[from] Fault),
}

impl From<Malformed> for Lost {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

/// What a connection needs while it lives.
struct Wire {
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    input: BytesMut,
    payload_bytes_max: usize,
    frame_bytes_max: u32,
    heartbeat: Duration,
    out: Vec<u8>,
    /// How much of `out` is written.
    written: usize,
    last_read: Instant,
    last_write: Instant,
    said_goodbye: bool,
}

impl Vhost {
    pub(super) fn new(name: Arc<str>, shared: Arc<Shared>, inbox: Arc<Inbox>, status: Arc<VhostStatus>) -> Self {
        Self {
            name,
            draining: shared.draining.clone(),
            shared,
            inbox,
            status,
            lanes: BTreeMap::new(),
            turn: 0,
            questions: FuturesUnordered::new(),
            delivered: Vec::new(),
            delivered_since: None,
            confirmed_something: false,
            blocked: false,
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
                    add(&self.status.counters.reconnects, u64::from(connections > 0));
                    connections += 1;
                    let end = self.converse(connection).await;
                    self.disconnected();
                    let Err(lost) = end else { break };
                    let useful = self.confirmed_something || began.elapsed() > USEFUL_AFTER;
                    (failures, node) = if useful { (0, 0) } else { (failures, number + 1) };
                    lost
                }
            };
            failures = u32::saturating_add(failures, 1);
            let pause = self.shared.settings.retry.pause(failures);
            tracing::warn!(vhost = %self.name, reason = %lost, ?pause, "the relay has no connection and tries again");
            self.status.set_link(match lost {
                Lost::Login(LoginError::Refused(code, text)) => {
                    // Not this node's fault: the first one is asked again.
                    node = 0;
                    Link::Refused(code.0, text)
                }
                lost => Link::Connecting(Some(lost.to_string())),
            });
            self.wait(pause).await;
        }
        self.report_delivered();
        self.status.set_link(Link::Connecting(None));
    }

    /// `None`: the relay drains.
    async fn connect(&mut self, node: usize) -> Option<Result<(Connection, usize), Lost>> {
        let Self { name, shared, draining, .. } = self;
        let connect = async {
            let (stream, number) = shared.upstream.connect_from(node, None).await?;
            let connection = Connection::open(stream, &shared.settings.credentials, name).await?;
            Ok((connection, number))
        };
        tokio::select! {
            result = connect => Some(result),
            _ = draining.wait_for(|draining| *draining) => None,
        }
    }

    /// Waits without a connection; what the store has to say is heard all the same.
    async fn wait(&mut self, pause: Duration) {
        let mut draining = self.draining.clone();
        let mut pause = pin!(sleep(pause));
        loop {
            tokio::select! {
                () = &mut pause => return,
                _ = draining.wait_for(|draining| *draining) => return,
                Some(answer) = self.questions.next() => {
                    self.hear(answer);
                    self.collect();
                    self.report_delivered();
                }
            }
        }
    }

    fn disconnected(&mut self) {
        for queue in self.inbox.queues().values_mut() {
            queue.spill();
        }
        for lane in self.lanes.values_mut() {
            lane.disconnected();
        }
        self.status.counters.in_flight.store(0, Ordering::Relaxed);
        self.report_delivered();
    }

    /// Forwards over one connection. `Ok`: the relay drains, and everything that was in flight has its answer.
    async fn converse(&mut self, connection: Connection) -> Result<(), Lost> {
        let mut wire = Wire::new(connection);
        self.blocked = false;
        for lane in self.lanes.values_mut() {
            lane.connected(&mut wire.out);
        }
        wire.handle_input(self)?;
        let mut armed = Instant::now() + wire.heartbeat;
        let mut timer = pin!(sleep_until(armed.into()));
        let (inbox, mut draining) = (Arc::clone(&self.inbox), self.draining.clone());
        loop {
            let now = Instant::now();
            let drains = *draining.borrow_and_update();
            if !drains {
                self.feed(&mut wire, now);
            }
            self.collect();
            if drains && self.lanes.values().all(Lane::is_settled) {
                self.report_delivered();
                return self.say_goodbye(wire).await;
            }
            if self.delivered_is_due(now) {
                self.report_delivered();
            }
            // A timer that rings too early costs less than one that is set each time.
            let deadline = self.deadline(&wire);
            if deadline < armed || armed <= now {
                armed = deadline;
                timer.as_mut().reset(deadline.into());
            }
            let dirty = wire.written < wire.out.len();
            let Wire { reader, writer, input, out, written, .. } = &mut wire;
            input.reserve(READ_BYTES);
            tokio::select! {
                result = write_all(writer, out, written), if dirty => {
                    result?;
                    wire.wrote();
                }
                result = reader.read_buf(input) => {
                    if result? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    wire.last_read = Instant::now();
                    wire.handle_input(self)?;
                }
                () = inbox.wake.notified() => {}
                Some(answer) = self.questions.next() => self.hear(answer),
                _ = draining.changed() => {}
                () = &mut timer => self.handle_timeout(&mut wire)?,
            }
        }
    }

    /// Gives the lanes what they may have, and writes what they may send.
    fn feed(&mut self, wire: &mut Wire, now: Instant) {
        let mut pages = Vec::new();
        for (number, queue) in self.inbox.queues().iter_mut() {
            // There is no channel for the last number; `relay.lanes` is far below it.
            let Some(channel) = number.checked_add(1) else { continue };
            let lane = self.lanes.entry(*number).or_insert_with(|| {
                let mut lane = Lane::new(channel, self.shared.settings.policy(), Arc::clone(&self.status));
                lane.connected(&mut wire.out);
                lane.set_blocked(self.blocked, now);
                lane
            });
            while lane.unsent_bytes() < UNSENT_BYTES {
                match queue.next() {
                    Next::Committed(committed) => lane.add_committed(committed),
                    Next::Page(after) => pages.push((*number, after)),
                    Next::Nothing => break,
                }
            }
            while let Some((sequence, waiter)) = queue.take_waiter() {
                lane.attach(sequence, waiter);
            }
        }
        // With the queues free again: the store may be about to fill them, holding what a page needs.
        for (number, after) in pages {
            let lane = crate::store::Lane { vhost: Arc::clone(&self.name), number };
            let page = self.shared.store.page(&lane, after, PAGE_BYTES);
            self.questions.push(Box::pin(async move { Answer::Page { lane: number, packs: page.await } }));
        }
        let first = self.turn;
        let ends = self.lanes.range(first..).chain(self.lanes.range(..first)).nth(1);
        self.turn = ends.map_or(0, |(number, _)| *number);
        let mut fill = |lane: &mut Lane| lane.fill(&mut wire.out, WRITE_BYTES, wire.frame_bytes_max, now);
        self.lanes.range_mut(first..).for_each(|(_, lane)| fill(lane));
        self.lanes.range_mut(..first).for_each(|(_, lane)| fill(lane));
    }

    /// Takes what the lanes have for the store.
    fn collect(&mut self) {
        let mut in_flight = 0;
        for (number, lane) in &mut self.lanes {
            in_flight += lane.in_flight() as u64;
            self.delivered.append(&mut lane.delivered);
            for letter in lane.take_dead_letters() {
                self.questions.push(Box::pin(keep(Arc::clone(&self.shared.store), *number, letter)));
            }
        }
        self.status.counters.in_flight.store(in_flight, Ordering::Relaxed);
        if !self.delivered.is_empty() {
            self.delivered_since.get_or_insert_with(Instant::now);
            self.confirmed_something = true;
        }
    }

    fn delivered_is_due(&self, now: Instant) -> bool {
        self.delivered.len() >= DELIVERED_MAX || self.delivered_since.is_some_and(|since| now >= since + DELIVERED_WAIT)
    }

    /// If we crash before this: the transactions are sent again, as possible duplicates.
    fn report_delivered(&mut self) {
        self.delivered_since = None;
        if !self.delivered.is_empty() {
            self.shared.store.delivered(std::mem::take(&mut self.delivered));
        }
    }

    fn hear(&mut self, answer: Answer) {
        match answer {
            Answer::Page { lane, packs: Ok(packs) } => {
                let mut queues = self.inbox.queues();
                let (Some(queue), Some(lane)) = (queues.get_mut(&lane), self.lanes.get_mut(&lane)) else { return };
                queue.page(&packs, PAGE_BYTES);
                let first_own = Sequence(self.shared.first_own.load(Ordering::Relaxed));
                for pack in packs {
                    let possible_duplicate = pack.sequence < first_own;
                    lane.add_pack(pack, possible_duplicate);
                }
            }
            Answer::Page { lane, packs: Err(error) } => {
                tracing::error!(vhost = %self.name, lane, %error, "the store gives no page; it is asked again");
                self.questions.push(Box::pin(async move {
                    sleep(STORE_PAUSE).await;
                    Answer::AskForPageAgain { lane }
                }));
            }
            Answer::AskForPageAgain { lane } => {
                if let Some(queue) = self.inbox.queues().get_mut(&lane) {
                    queue.page_failed();
                }
            }
            Answer::DeadLetter { lane, letter, kept: Err(error @ (StoreError::Full(_) | StoreError::Io(_))) } => {
                tracing::error!(vhost = %self.name, lane, %error, "the store does not keep a dead letter; it is asked again");
                let store = Arc::clone(&self.shared.store);
                self.questions.push(Box::pin(async move {
                    sleep(STORE_PAUSE).await;
                    keep(store, lane, letter).await
                }));
            }
            // A store that is closed has the message as undelivered still; one that does not know it can't be helped.
            Answer::DeadLetter { kept: Err(StoreError::Closed), .. } => {}
            Answer::DeadLetter { lane, letter, kept } => {
                if let Err(error) = kept {
                    tracing::error!(vhost = %self.name, lane, %error, "the store does not know the transaction of a dead letter");
                }
                if let Some(lane) = self.lanes.get_mut(&lane) {
                    lane.dead_letter_kept(letter.sequence);
                }
            }
        }
    }

    fn deadline(&self, wire: &Wire) -> Instant {
        let lanes = self.lanes.values().filter_map(Lane::deadline);
        let delivered = self.delivered_since.map(|since| since + DELIVERED_WAIT);
        let signs_of_life = (wire.last_write + wire.heartbeat / 2).min(wire.last_read + wire.heartbeat * 2);
        lanes.chain(delivered).fold(signs_of_life, Instant::min)
    }

    fn handle_timeout(&mut self, wire: &mut Wire) -> Result<(), Lost> {
        let now = Instant::now();
        if now >= wire.last_read + wire.heartbeat * 2 {
            return Err(Lost::Silent);
        }
        if now >= wire.last_write + wire.heartbeat / 2 {
            // While RabbitMQ does not read, what waits to be written is all the sign of life that we can give.
            if wire.out.is_empty() {
                wire.out.extend_from_slice(&frame::HEARTBEAT);
            }
            wire.last_write = now;
        }
        for lane in self.lanes.values_mut() {
            lane.handle_timeout(&mut wire.out, now)?;
        }
        Ok(())
    }

    fn handle_frame(&mut self, frame: Frame<'_>, wire: &mut Sink<'_>) -> Result<(), Lost> {
        let now = Instant::now();
        if let Some(lane) = frame.channel.checked_sub(1) {
            if let Some(lane) = self.lanes.get_mut(&lane) {
                lane.handle_frame(frame, wire.out, now)?;
            }
            return Ok(());
        }
        match frame.method_id() {
            Some(id::CONNECTION_CLOSE) => {
                let close = Close::parse(frame.arguments())?;
                return Err(Lost::Closed(close.code, String::from_utf8_lossy(close.text).into_owned()));
            }
            Some(id::CONNECTION_CLOSE_OK) => *wire.said_goodbye = true,
            Some(id::CONNECTION_BLOCKED) => {
                let reason = String::from_utf8_lossy(Reader::new(frame.arguments()).short_string()?).into_owned();
                tracing::warn!(vhost = %self.name, %reason, "RabbitMQ takes no messages for now");
                self.status.set_link(Link::Blocked(reason));
                self.set_blocked(true, now);
            }
            Some(id::CONNECTION_UNBLOCKED) => {
                tracing::info!(vhost = %self.name, "RabbitMQ takes messages again");
                self.status.set_link(Link::Connected);
                self.set_blocked(false, now);
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
        Close { code: ReplyCode::SUCCESS, text: b"goodbye", method: (0, 0) }.write(&mut wire.out, 0);
        let goodbye = async {
            write_all(&mut wire.writer, &wire.out, &mut wire.written).await?;
            while !wire.said_goodbye && wire.reader.read_buf(&mut wire.input).await? > 0 {
                wire.handle_input(self)?;
            }
            Ok(())
        };
        timeout(GOODBYE_TIMEOUT, goodbye).await.unwrap_or(Ok(()))
    }
}

/// What a frame may change of the connection that it came on.
struct Sink<'a> {
    out: &'a mut Vec<u8>,
    said_goodbye: &'a mut bool,
}

impl Wire {
    fn new(connection: Connection) -> Self {
        let (payload_bytes_max, now) = (connection.payload_bytes_max(), Instant::now());
        let Connection { stream, input, frame_bytes_max, heartbeat } = connection;
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            input,
            payload_bytes_max,
            frame_bytes_max,
            heartbeat,
            out: Vec::with_capacity(2 * WRITE_BYTES),
            written: 0,
            last_read: now,
            last_write: now,
            said_goodbye: false,
        }
    }

    /// Hands the whole frames of the input to `vhost`.
    fn handle_input(&mut self, vhost: &mut Vhost) -> Result<(), Lost> {
        let mut consumed = 0;
        loop {
            match frame::split(&self.input[consumed..], self.payload_bytes_max) {
                Split::Frame(frame) => {
                    consumed += frame.raw.len();
                    vhost
                        .handle_frame(frame, &mut Sink { out: &mut self.out, said_goodbye: &mut self.said_goodbye })?;
                }
                Split::NeedBytes(_) => break,
                Split::Malformed => return Err(Lost::Malformed),
            }
        }
        self.input.advance(consumed);
        Ok(())
    }

    fn wrote(&mut self) {
        self.last_write = Instant::now();
        self.written = 0;
        self.out.clear();
        self.out.shrink_to(BUFFER_BYTES_KEPT);
    }
}

/// Writes what of `out` is not `written` yet, and flushes. May be dropped at any moment and called again.
async fn write_all(writer: &mut WriteHalf<Stream>, out: &[u8], written: &mut usize) -> io::Result<()> {
    let poll = |cx: &mut Context<'_>| -> Poll<io::Result<()>> {
        while *written < out.len() {
            match ready!(Pin::new(&mut *writer).poll_write(cx, &out[*written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => *written += count,
            }
        }
        Pin::new(&mut *writer).poll_flush(cx)
    };
    std::future::poll_fn(poll).await
}

/// Asks the store to keep a dead letter.
async fn keep(store: Arc<dyn Store>, lane: u16, letter: DeadLetter) -> Answer {
    let kept = store.dead_letter(letter.clone()).await;
    Answer::DeadLetter { lane, letter, kept }
}

impl Settings {
    fn policy(&self) -> Policy {
        Policy {
            window: self.window,
            retry: self.retry,
            confirm_timeout: self.confirm_timeout,
            keep_unroutable: self.keep_unroutable,
        }
    }
}
