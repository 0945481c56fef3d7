//! A client and a RabbitMQ that keep to the protocol, a store that answers in its time or fails, a relay, a clock. Then
//! the session keeps to the protocol on both sides, keeps and decides only what was judged, and leaves nobody waiting
//! for ever.

use crate::broker::{Broker, News, Place};
use crate::client::Client;
use crate::login;
use crate::script::Script;
use crate::stream::{Stream, describe, trace};
use pure::amqp::frame;
use pure::amqp::method::Publish;
use pure::protocol::command::{Command, Ticket};
use pure::protocol::connection::Connection;
use pure::tx::batch::{self, Batch};
use pure::tx::decision::Verdict;
use pure::tx::id::TransactionId;
use pure::tx::name::TransactionName;
use pure::tx::outcome::Forwarded;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The last one is the place that the proxy likes best for a channel of its own.
const CHANNELS: [u16; 5] = [1, 2, 3, 4, u16::MAX];

/// A transaction of a transactional channel, as the store knows it.
struct Kept {
    named: bool,
    serial: usize,
    messages: usize,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Undecided,
    /// A part of it could not be kept.
    Incomplete,
    Deciding,
    /// It could not be committed.
    Failed,
    Over,
}

struct Run {
    connection: Connection,
    client: Client,
    broker: Broker,
    channel_max: u16,
    now: Instant,
    fed: usize,
    /// Read from the client and from RabbitMQ, and not used by the session yet.
    client_input: Vec<u8>,
    upstream_input: Vec<u8>,
    /// With what of it is parked.
    parks: Vec<(u16, TransactionId, Vec<String>)>,
    /// With how often their channels had been closed.
    commits: Vec<(u16, TransactionId, usize)>,
    decides: Vec<(u16, Ticket, TransactionName)>,
    forwards: Vec<(u16, TransactionId)>,
    rollbacks: Vec<(u16, TransactionId)>,
    kept: BTreeMap<TransactionId, Kept>,
    judged: BTreeSet<Place>,
    began: usize,
    ended: usize,
    upstream_is_lost: bool,
    over: bool,
}

/// Runs the script; gives back how many bytes were fed.
pub fn run(script: &mut Script<'_>) -> usize {
    let mut run = Run::open(script);
    while !script.is_over() && !run.over {
        let number = run.channel(script);
        match script.below(20) {
            0..7 => {
                let quiet = run.client.out.is_empty() && run.client_input.is_empty() && run.upstream_input.is_empty();
                run.client.act(script, number, quiet && !run.broker.is_sending(number));
            }
            7 if !run.client.acks_all.contains(&number) => run.broker.deliver(number, script.bytes(30)),
            8 if script.below(4) == 0 => {
                let open: Vec<u16> = run.broker.open_channels().collect();
                run.broker.refuse(*open.get(script.below(8)).unwrap_or(&number));
            }
            9 | 16 => run.answer_park(|script| script.below(4) == 0, script),
            10 => run.answer_commit(|script| script.below(4) == 0, script),
            11 => run.forward(),
            12 => run.later(Duration::from_millis(100 << script.below(10))),
            13 => run.connection.handle_room(script.flag().then_some("the store is full")),
            14 if script.below(16) == 0 => run.connection.drain(),
            15 if script.below(16) == 0 => run.lose_upstream(),
            17 => run.broker.confirm(number, script.below(8), script.flag(), script.below(4) > 0),
            18 => run.answer_decide(|script| script.below(4) == 0, script),
            19 => run.answer_rollback(|script| script.below(4) == 0, script),
            _ => {}
        }
        run.collect();
        let (of_client, of_upstream, work) = (script.byte(), script.byte(), script.below(8));
        run.work(Some(work).filter(|work| *work < 7));
        run.pump(usize::from(of_client), usize::from(of_upstream));
    }
    run.settle();
    run.connection.handle_client_lost();
    // A commit that has come goes on for a while without its client.
    run.connection.handle_time(run.now + Duration::from_secs(60));
    run.collect();
    assert_eq!(run.began, run.ended, "every transaction that began ends");
    // What could not be committed when its channel was gone already is left to the next start.
    let left = |kept: &&Kept| matches!(kept.stage, Stage::Undecided | Stage::Incomplete);
    assert_eq!(run.kept.values().filter(left).count(), 0, "the store keeps what nobody decides");
    let half = run.broker.taken.iter().find(|(_, key)| key.starts_with(b"t") || key.starts_with(b"h"));
    assert_eq!(half, None, "a half message was delivered");
    run.fed
}

/// Where the messages of a batch are to go.
fn places(batch: Batch) -> Vec<Place> {
    let bytes = batch.into_bytes();
    let place = |publish: Publish<'_>| (publish.exchange.to_vec(), publish.routing_key.to_vec());
    let messages = batch::iter(&bytes).map(|message| message.expect("a message"));
    messages.map(|message| place(Publish::parse(message.publish).expect("basic.publish"))).collect()
}

fn key((_, key): &Place) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// Which transaction of a transactional channel a message belongs to.
fn serial(place: &Place) -> usize {
    let key = key(place);
    let digits = key.strip_prefix('t').and_then(|key| key.split('.').next()).expect("a message of a transaction");
    digits.parse().expect("its serial number")
}

impl Run {
    /// A connection through its handshake, with channels 1 and 2 in tx mode.
    fn open(script: &mut Script<'_>) -> Self {
        let now = Instant::now();
        let mut connection = Connection::new(script.settings(), now, now + Duration::from_secs(10));
        let channel_max = [0, 4, 5, 2047][script.below(4)];
        login::log_in(&mut connection, "orders", "/", channel_max);
        let mut run = Self {
            connection,
            client: Client::default(),
            broker: Broker::new(channel_max),
            channel_max,
            now,
            fed: 0,
            client_input: Vec::new(),
            upstream_input: Vec::new(),
            parks: Vec::new(),
            commits: Vec::new(),
            decides: Vec::new(),
            forwards: Vec::new(),
            rollbacks: Vec::new(),
            kept: BTreeMap::new(),
            judged: BTreeSet::new(),
            began: 0,
            ended: 0,
            upstream_is_lost: false,
            over: false,
        };
        for number in [1, 2] {
            run.client.open(&mut Script::new(&[]), number);
        }
        run
    }

    fn channel(&self, script: &mut Script<'_>) -> u16 {
        let count = CHANNELS.len() - usize::from(self.channel_max != 0);
        CHANNELS[script.below(count)]
    }

    /// Lets RabbitMQ work on what has arrived: see [`Broker::work`].
    fn work(&mut self, choice: Option<usize>) {
        self.broker.work(choice);
        for number in self.broker.acked_all.drain(..) {
            self.client.acks_all.remove(&number);
        }
    }

    /// Moves bytes both ways; the numbers say how much, 0 being nothing and 255 everything.
    fn pump(&mut self, of_client: usize, of_upstream: usize) {
        let some = |part: usize, whole: usize| if part == 255 { whole } else { whole.min(part * part / 16) };
        let bytes = some(of_client, self.client.out.len());
        self.client_input.extend(self.client.out.drain(..bytes));
        self.feed_client();
        for _ in 0..some(of_upstream, usize::MAX).min(64) {
            if self.upstream_is_lost {
                break;
            }
            let Some((answer, News { judged, confirmed })) = self.broker.next_answer() else { break };
            self.upstream_input.extend(answer);
            self.judged.extend(judged);
            self.client.through.extend(confirmed.iter().map(|(place, ack)| (key(place), *ack)));
        }
        let held_back = if of_upstream % 7 == 2 { self.upstream_input.len() / 3 } else { 0 };
        self.feed_upstream(self.upstream_input.len() - held_back);
    }

    fn feed_client(&mut self) {
        // As the session does: only when wanted, and what was not used is shown again.
        while !self.over && !self.client_input.is_empty() && self.connection.wants_client() {
            let used = self.connection.handle_client(&self.client_input);
            let read = |frame: &frame::Frame<'_>| trace(|| format!("client -> {}", describe(frame)));
            Stream::default().feed(&self.client_input[..used], read);
            self.fed += used;
            self.client_input.drain(..used);
            self.collect();
            if used == 0 {
                return;
            }
        }
    }

    fn feed_upstream(&mut self, bytes: usize) {
        if self.over || self.upstream_is_lost || bytes == 0 {
            return;
        }
        let read = |frame: &frame::Frame<'_>| trace(|| format!("               broker -> {}", describe(frame)));
        Stream::default().feed(&self.upstream_input[..bytes], read);
        let used = self.connection.handle_upstream(&self.upstream_input[..bytes]);
        self.fed += used;
        self.upstream_input.drain(..used);
        self.collect();
    }

    fn answer_park(&mut self, fails: impl Fn(&mut Script<'_>) -> bool, script: &mut Script<'_>) {
        if self.parks.is_empty() {
            return;
        }
        let (channel, id, keys) = self.parks.remove(0);
        let mut result = if fails(script) { Err(script.store_error()) } else { Ok(()) };
        match self.kept.get_mut(&id) {
            // As the contract of the store says: what is incomplete stays so.
            Some(Kept { stage: Stage::Incomplete, .. }) => result = Err(script.store_error()),
            Some(kept) if result.is_err() && kept.stage == Stage::Undecided => kept.stage = Stage::Incomplete,
            Some(kept) if result.is_ok() => *self.client.durable.entry(kept.serial).or_default() += keys.len(),
            Some(_) => {}
            None if result.is_ok() => self.client.through.extend(keys.into_iter().map(|key| (key, true))),
            None => {}
        }
        trace(|| format!("                              parked {channel} {id} {result:?}"));
        self.connection.handle_parked(channel, id, result);
    }

    fn answer_rollback(&mut self, fails: impl Fn(&mut Script<'_>) -> bool, script: &mut Script<'_>) {
        if self.rollbacks.is_empty() {
            return;
        }
        let (channel, id) = self.rollbacks.remove(0);
        let result = if fails(script) { Err(script.store_error()) } else { Ok(()) };
        trace(|| format!("                              rolled back {channel} {id} {result:?}"));
        self.connection.handle_rolled_back(channel, id, result);
    }

    fn answer_commit(&mut self, fails: impl Fn(&mut Script<'_>) -> bool, script: &mut Script<'_>) {
        if self.commits.is_empty() {
            return;
        }
        let (channel, id, closes) = self.commits.remove(0);
        let result = if fails(script) { Err(script.store_error()) } else { Ok(script.below(4) > 0) };
        let kept = self.kept.get_mut(&id).expect("it was to be committed");
        kept.stage = if result.is_ok() { Stage::Over } else { Stage::Failed };
        if result.is_ok() {
            self.client.decided(channel, closes);
        }
        trace(|| format!("                              committed {channel} {id} {result:?}"));
        self.connection.handle_committed(channel, id, result);
    }

    fn answer_decide(&mut self, fails: impl Fn(&mut Script<'_>) -> bool, script: &mut Script<'_>) {
        if self.decides.is_empty() {
            return;
        }
        let (channel, ticket, name) = self.decides.remove(0);
        let result = match fails(script) {
            true if script.flag() => Err(script.store_error()),
            true => Ok(Verdict::Unknown),
            false => Ok(script.verdict()),
        };
        if matches!(result, Ok(Verdict::Decided(_) | Verdict::Before(_))) {
            self.client.through.insert(name.to_string(), true);
        }
        trace(|| format!("                              decided {channel} {name} {result:?}"));
        self.connection.handle_decided(channel, ticket, &name, result);
    }

    fn forward(&mut self) {
        if !self.forwards.is_empty() {
            let (channel, id) = self.forwards.remove(0);
            self.connection.handle_forwarded(channel, id, Forwarded::default());
        }
    }

    fn later(&mut self, wait: Duration) {
        self.now += wait;
        self.connection.handle_time(self.now);
    }

    fn lose_upstream(&mut self) {
        self.upstream_is_lost = true;
        self.upstream_input.clear();
        self.connection.handle_upstream_lost();
    }

    /// Lets everybody answer; then nobody may be waiting, but for room in a store that is full: and then not with a
    /// decision, and not unread.
    fn settle(&mut self) {
        if self.connection.no_room().is_some() {
            self.answer_all();
            assert_eq!(self.connection.io.committing, 0, "a full store holds up the end of the connection");
            if !self.over {
                assert!(self.connection.wants_client(), "a client is not read because the store is full");
                assert_eq!(self.client.decides(), None, "a decision waits for room");
            }
            self.connection.handle_room(None);
        }
        self.answer_all();
        self.pump(255, 255);
        assert_eq!(self.connection.io.committing, 0, "a commit is stuck");
        // What nobody knows has no answer but the end of the connection.
        if !self.over && !self.client.is_closed {
            assert_eq!(self.client.waits(), None);
            assert!(self.connection.wants_client(), "the client is held back for ever");
        }
    }

    fn answer_all(&mut self) {
        for _ in 0..100 {
            let none = &mut Script::new(&[]);
            self.collect();
            self.work(None);
            self.broker.confirm_all();
            self.pump(255, 255);
            while !(self.parks.is_empty()
                && self.commits.is_empty()
                && self.decides.is_empty()
                && self.rollbacks.is_empty())
            {
                self.answer_rollback(|_| false, none);
                self.answer_park(|_| false, none);
                self.answer_decide(|_| false, none);
                self.answer_commit(|_| false, none);
                self.collect();
            }
            while !self.forwards.is_empty() {
                self.forward();
                self.collect();
            }
            if self.client.is_closed && !self.upstream_is_lost {
                self.lose_upstream();
            }
        }
    }

    fn park(&mut self, channel: u16, id: TransactionId, named: Option<bool>, batch: Batch) {
        let places = places(batch);
        assert!(!places.is_empty(), "nothing is not worth keeping");
        if named.is_some() {
            let unjudged = places.iter().find(|place| !self.judged.contains(*place));
            assert_eq!(unjudged, None, "a half message is kept that was not judged");
        }
        self.parks.push((channel, id, places.iter().map(key).collect()));
        if named == Some(false) {
            assert!(places.len() == 1 && places[0].1.starts_with(b"h"));
            return;
        }
        let (serial, messages) = (serial(&places[0]), places.len());
        assert!(places.iter().all(|place| self::serial(place) == serial), "{places:?} in one transaction");
        let named = named.is_some();
        let kept = self.kept.entry(id).or_insert(Kept { named, serial, messages: 0, stage: Stage::Undecided });
        assert!(matches!(kept.stage, Stage::Undecided | Stage::Incomplete), "kept when it is decided");
        assert_eq!((kept.serial, kept.named), (serial, named));
        kept.messages += messages;
    }

    fn commit(&mut self, channel: u16, id: TransactionId, named: bool, batch: Batch, parked: bool) {
        let places = places(batch);
        assert_eq!(parked, self.kept.contains_key(&id));
        let committing = self.client.committing(channel).expect("somebody said commit");
        let new = Kept { named, serial: committing.serial, messages: 0, stage: Stage::Undecided };
        let kept = self.kept.entry(id).or_insert(new);
        assert_eq!((kept.stage, kept.named), (Stage::Undecided, named));
        assert_eq!(kept.messages + places.len(), committing.halves, "all of them, and no others");
        assert!(places.iter().all(|place| serial(place) == kept.serial) && kept.serial == committing.serial);
        let unjudged = places.iter().find(|place| !self.judged.contains(*place));
        assert_eq!(unjudged, None, "a decision about messages that were not judged");
        let durable = self.client.durable.get(&kept.serial).copied().unwrap_or_default();
        assert_eq!(durable, kept.messages, "a decision about messages that are not kept");
        assert!(!named || places.is_empty(), "half messages of a named transaction are kept before");
        assert!(self.client.are_through(committing), "what it says of others comes first");
        kept.stage = Stage::Deciding;
        self.commits.push((channel, id, self.client.closes(channel)));
    }

    /// A transaction that was kept ends without a commit.
    fn end(&mut self, id: TransactionId, in_doubt: bool) {
        let kept = self.kept.get_mut(&id).expect("something to forget");
        assert!(!matches!(kept.stage, Stage::Deciding | Stage::Over), "{:?} ends twice", kept.stage);
        assert!(!in_doubt || kept.named, "a transaction without a name is left in doubt");
        assert!(!(in_doubt && kept.stage == Stage::Incomplete), "half of a transaction is left in doubt");
        kept.stage = Stage::Over;
    }

    fn collect(&mut self) {
        let to_upstream = std::mem::take(&mut self.connection.io.to_upstream);
        if !self.upstream_is_lost {
            self.broker.receive(&to_upstream);
        }
        while let Some(command) = self.connection.poll_command() {
            trace(|| format!("                              {command:?}").chars().take(150).collect());
            match command {
                Command::Park { channel, transaction, named, batch } => {
                    self.park(channel, transaction, named.map(|named| named.transactional), batch);
                }
                Command::Commit { channel, transaction, named, batch, parked, wait, .. } => {
                    self.commit(channel, transaction, named.is_some(), batch, parked);
                    self.forwards.extend(wait.map(|_| (channel, transaction)));
                }
                Command::RollBack { channel, transaction, .. } => {
                    self.end(transaction, false);
                    self.rollbacks.push((channel, transaction));
                }
                Command::Abandon { transaction } => self.end(transaction, true),
                Command::Decide { channel, ticket, name, .. } => {
                    // What waits for room is overtaken: the decision may make some.
                    let is_full = self.connection.no_room().is_some();
                    assert!(
                        is_full || self.client.is_next(channel, name.as_str()),
                        "{name} is decided before its turn"
                    );
                    assert!(!self.judged.is_empty(), "RabbitMQ has not said whose decision it is");
                    self.decides.push((channel, ticket, name));
                }
                Command::EndLeases | Command::NoSpareChannel | Command::CommitTook(_) => {}
                Command::Began => self.began += 1,
                Command::Ended(_) => self.ended += 1,
                Command::Close | Command::Abort => self.over = true,
                Command::Connect | Command::Opened(_) | Command::Refused(_) => {}
            }
            assert!(self.ended <= self.began, "a transaction ends once");
        }
        let to_client = std::mem::take(&mut self.connection.io.to_client);
        self.client.receive(&to_client);
    }
}
