//! A whole world from one seed: producers, the protocol core, a store that forgets what it has not synced, RabbitMQ, a
//! relay, a checker; crashes and losses at any moment. Then every guarantee is looked at.
//!
//! A failing seed is printed. `HALFWAY_SIM_SEED=7 cargo test --test simulation` plays one again.

extern crate halfway as pure;

#[allow(dead_code, unreachable_pub, reason = "it is written for the fuzz targets, and shared")]
#[path = "../fuzz/src/session/broker.rs"]
mod broker;
mod cluster;
#[allow(unreachable_pub, reason = "it is written for the fuzz targets, and shared")]
#[path = "../fuzz/src/session/login.rs"]
mod login;
mod producer;
mod store;
#[allow(unreachable_pub, reason = "it is written for the fuzz targets, and shared")]
#[path = "../fuzz/src/session/stream.rs"]
mod stream;

use fastrand::Rng;
use producer::{Kind, Session, Step, Story, Told};
use pure::amqp::method::Publish;
use pure::amqp::reply_code::ReplyCode;
use pure::protocol::command::{Command, ConnectionSettings};
use pure::protocol::handshake::LoginRules;
use pure::tx::batch::{self, Batch};
use pure::tx::check_back::{Answer as Said, Asked, Next, Policy, WhenExhausted};
use pure::tx::checker::{Rule, Rules};
use pure::tx::decision::Decision;
use pure::tx::id::TransactionId;
use pure::tx::limits::TransactionLimits;
use pure::tx::outcome::{Forwarded, StoreError};
use pure::tx::state::State;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Answer, Store};
use uuid::Uuid;

const PRODUCERS: usize = 3;
const STEPS: usize = 400;
const SEEDS: u64 = 10_000;
const FIRST_AFTER: Duration = Duration::from_secs(6);

thread_local! {
    /// Ids in order, so that a seed does the same each time.
    static LAST_ID: Cell<u128> = const { Cell::new(0) };
}

fn new_id() -> TransactionId {
    LAST_ID.set(LAST_ID.get() + 1);
    TransactionId(Uuid::from_u128(LAST_ID.get()))
}

fn settings() -> ConnectionSettings {
    let rule = Rule {
        checker: "c".into(),
        vhost: None,
        user: None,
        transaction: None,
        exchange: None,
        first_after: FIRST_AFTER,
    };
    ConnectionSettings {
        age_max: Duration::ZERO,
        login: LoginRules { from_loopback: true, loopback_users: Vec::new() },
        forward_wait: Duration::from_secs(1),
        mandatory_wait: Duration::from_secs(30),
        judgement: Duration::from_secs(1),
        limits: TransactionLimits {
            messages_max: 100,
            bytes_max: 1 << 20,
            message_bytes_max: Some(8_000),
            memory_bytes_max: 100,
        },
        rules: Arc::new(Rules::new(vec![rule])),
        control_exchange: "halfway".into(),
        new_id,
    }
}

const POLICY: Policy = Policy {
    interval: Duration::from_secs(3),
    max_interval: Duration::from_secs(60),
    max_checks: 1_000,
    when_exhausted: WhenExhausted::Hold,
};

/// A message on its way to a consumer, once.
struct Copy {
    transaction: TransactionId,
    index: usize,
    body: String,
}

struct World {
    rng: Rng,
    start: Instant,
    store: Store,
    sessions: Vec<Session>,
    last_session: u64,
    /// Every story that was begun and is over for its producer.
    told: Vec<Story>,
    /// The producers' database: what it says of a name, once it says something.
    database: HashMap<String, bool>,
    /// Who was asked about what, and has not answered.
    asked: Vec<TransactionId>,
    copies: Vec<Copy>,
    forwards: Vec<(u64, u16, TransactionId)>,
    /// Transactions of one message that RabbitMQ was given before the store.
    lones: Vec<Lone>,
    /// Where they stand in the order of their lanes.
    went_alone: HashMap<TransactionId, (usize, u64)>,
}

/// See [`World::lones`].
struct Lone {
    session: u64,
    channel: u16,
    id: TransactionId,
    lane: usize,
    body: String,
    waits: bool,
    /// Whether RabbitMQ got it.
    came: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        LAST_ID.set(0);
        let start = Instant::now();
        let mut world = Self {
            rng: Rng::with_seed(seed),
            start,
            store: Store::default(),
            sessions: Vec::new(),
            last_session: 0,
            told: Vec::new(),
            database: HashMap::new(),
            asked: Vec::new(),
            copies: Vec::new(),
            forwards: Vec::new(),
            lones: Vec::new(),
            went_alone: HashMap::new(),
        };
        for _ in 0..PRODUCERS {
            let session = world.session();
            world.sessions.push(session);
        }
        world
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.store.now as u64)
    }

    fn session(&mut self) -> Session {
        self.last_session += 1;
        Session::open(self.last_session, settings(), self.now())
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            let at = self.rng.usize(..PRODUCERS);
            match self.rng.u32(..100) {
                0..20 => self.begin(at),
                20..60 => {
                    let (bytes, answers) = (self.rng.usize(..400), self.rng.usize(..6));
                    let work = self.rng.usize(..4);
                    self.sessions[at].broker.work(Some(work));
                    self.sessions[at].pump(bytes, answers);
                }
                60..72 => self.sync(),
                72..75 => self.answer_lone(),
                75..78 => self.forward(),
                78..84 => self.ask(),
                84..90 => self.hear(),
                90..94 => {
                    let wait = self.rng.i64(0..4_000);
                    self.later(wait);
                }
                94 => self.lose_client(at),
                95 => {
                    self.sessions[at].connection.handle_upstream_lost();
                }
                96 => {
                    // RabbitMQ refuses what it has not judged yet.
                    let (session, channel) = (&mut self.sessions[at], self.rng.u16(1..3));
                    let place = |body: String| ("x".into(), body.into());
                    let mut places = session.story.iter().flat_map(Story::bodies).map(place);
                    if places.any(|place| !session.judged.contains(&place)) {
                        session.broker.refuse(channel);
                    }
                }
                97 => self.crash(),
                99 => self.answer_lone(),
                98 => self.store.failing = self.rng.u32(..3) == 0,
                _ => {}
            }
            self.collect();
        }
        self.settle();
    }

    fn begin(&mut self, at: usize) {
        if self.sessions[at].is_ready() {
            let kind = [Kind::Plain, Kind::Named, Kind::Half][self.rng.usize(..3)];
            let (messages, commits) = (self.rng.usize(1..4), self.rng.u32(..3) > 0);
            let name = format!("s{}-{}", self.sessions[at].number, self.told.len() * PRODUCERS + at);
            self.sessions[at].begin(name, kind, messages, commits);
        }
    }

    fn later(&mut self, wait: i64) {
        self.store.now += wait;
        let now = self.now();
        for session in &mut self.sessions {
            session.connection.handle_time(now);
        }
    }

    /// The producer at this place gives up its session, and opens another one.
    fn lose_client(&mut self, at: usize) {
        self.sessions[at].connection.handle_client_lost();
        // A commit that has come goes on for a while; here RabbitMQ says nothing more.
        let end = self.now() + Duration::from_secs(60);
        self.sessions[at].connection.handle_time(end);
        self.commands(at);
        let new = self.session();
        self.told.extend(std::mem::replace(&mut self.sessions[at], new).story);
    }

    /// The proxy is killed.
    fn crash(&mut self) {
        for at in 0..PRODUCERS {
            let new = self.session();
            self.told.extend(std::mem::replace(&mut self.sessions[at], new).story);
        }
        self.asked.clear();
        self.forwards.clear();
        self.lones.clear();
        self.store.crash();
    }

    fn sync(&mut self) {
        for (number, answer) in self.store.sync() {
            let Some(session) = self.sessions.iter_mut().find(|session| session.number == number) else { continue };
            let connection = &mut session.connection;
            match answer {
                Answer::Parked(channel, id, result) => connection.handle_parked(channel, id, result),
                Answer::Committed(channel, id, result) => connection.handle_committed(channel, id, result),
                Answer::RolledBack(channel, id) => connection.handle_rolled_back(channel, id, Ok(())),
                Answer::Decided(channel, ticket, name, result) => {
                    connection.handle_decided(channel, ticket, &name, result);
                }
            }
        }
    }

    /// Something becomes of a transaction of one message: RabbitMQ confirms or refuses it, or its moment is over.
    fn answer_lone(&mut self) {
        if self.lones.is_empty() {
            return;
        }
        let lone = self.lones.swap_remove(self.rng.usize(..self.lones.len()));
        let told = match (self.rng.u32(..4), lone.came) {
            (0 | 1, true) => Ok(true),
            (0, false) => Err(StoreError::Refused(ReplyCode::NOT_FOUND, "no exchange".into())),
            _ => {
                let result = self.store.commit(lone.id, lone.lane, None, vec![lone.body.clone()]);
                if result.is_err() {
                    // It is neither here nor there, so nobody is told.
                    self.lones.push(lone);
                } else {
                    if lone.waits {
                        self.forwards.push((lone.session, lone.channel, lone.id));
                    }
                    self.store.answer(lone.session, Answer::Committed(lone.channel, lone.id, result));
                }
                return;
            }
        };
        let Some(session) = self.sessions.iter_mut().find(|session| session.number == lone.session) else { return };
        if lone.waits && told.is_ok() {
            session.connection.handle_forwarded(lone.channel, lone.id, Forwarded::default());
        }
        session.connection.handle_committed(lone.channel, lone.id, told);
    }

    /// The relay sends what is committed on disk, or some of it; it may be killed in between.
    fn forward(&mut self) {
        for id in self.store.backlog() {
            let row = self.store.get(id).clone();
            for (index, body) in row.messages.into_iter().enumerate() {
                assert_eq!(self.store.disk[&id].state, State::Committed, "forwarded before it is decided");
                self.copies.push(Copy { transaction: id, index, body });
                if self.rng.u32(..10) == 0 {
                    return;
                }
            }
            self.store.delivered(id);
            for at in (0..self.forwards.len()).rev().filter(|at| self.forwards[*at].2 == id).collect::<Vec<_>>() {
                let (number, channel, id) = self.forwards.remove(at);
                if let Some(session) = self.sessions.iter_mut().find(|session| session.number == number) {
                    session.connection.handle_forwarded(channel, id, Forwarded::default());
                }
            }
        }
    }

    fn ask(&mut self) {
        for id in self.store.due() {
            let row = self.store.get(id);
            assert!(row.state == State::InDoubt, "asked when it is decided");
            assert!(self.store.now >= row.in_doubt_at + FIRST_AFTER.as_millis() as i64, "asked before its time");
            if !self.asked.contains(&id) {
                self.asked.push(id);
            }
        }
    }

    /// A checker answers: it looks who was first, the producer or itself.
    fn hear(&mut self) {
        let Some(id) = self.asked.pop() else { return };
        let row = self.store.get(id).clone();
        let name = row.name.expect("only what has a name is asked about");
        let said = match self.rng.u32(..6) {
            0 => None,
            1 => Some(Said::Unknown),
            2 => Some(Said::Ongoing),
            _ => match *self.database.entry(name.to_string()).or_insert(false) {
                true => Some(Said::Decision(Decision::Commit)),
                false => Some(Said::Decision(Decision::RollBack)),
            },
        };
        let asked = Asked { attempts: row.attempts, answered: row.answered };
        match POLICY.next(asked, said, self.rng.f64()) {
            Next::Decide(decision) => drop(self.store.decide(&name, decision)),
            Next::Later { after, counted } => {
                let at = self.store.now + after.as_millis() as i64 + 1;
                self.store.checked(id, counted, at);
            }
            Next::Exhausted(_) => {}
        }
    }

    fn collect(&mut self) {
        for at in 0..PRODUCERS {
            self.commands(at);
            for told in self.sessions[at].listen() {
                self.told(at, &told);
            }
            if self.sessions[at].connection.is_open() {
                continue;
            }
            self.lose_client(at);
        }
    }

    fn told(&mut self, at: usize, told: &Told) {
        let Some(story) = &mut self.sessions[at].story else { return };
        let on_disk = |name: &str| {
            let row = self.store.disk.values().find(|row| row.name.as_ref().is_some_and(|own| own.as_str() == name));
            row.map_or((0, None), |row| (row.messages.len(), Some(row.state)))
        };
        match told {
            Told::Kept(kept) => assert!(on_disk(&story.name).0 >= *kept, "confirmed before it is durable"),
            Told::Prepared => {
                let (kept, state) = on_disk(&story.name);
                assert!(kept == story.messages || state == Some(State::RolledBack), "prepared before it is durable");
                let wanted = story.commits;
                // Whoever is first: a checker may have written down a rollback.
                let decision = *self.database.entry(story.name.clone()).or_insert(wanted);
                self.sessions[at].decide(decision);
            }
            Told::Decided => {
                story.step = Step::Told;
                let story = self.sessions[at].story.take().expect("it was there");
                let body = story.bodies().next().expect("it has a message");
                let row = self.store.disk.values().find(|row| row.messages.contains(&body));
                if story.commits {
                    let state = row.map(|row| row.state);
                    let is_there = self.copies.iter().any(|copy| copy.body == body);
                    let is_kept = state.is_some_and(|state| Decision::Commit.is_of(state));
                    assert!(is_kept || is_there, "told before it is durable");
                }
                self.told.push(story);
            }
            Told::Ended => self.lose_client(at),
        }
    }

    fn commands(&mut self, at: usize) {
        let session = &mut self.sessions[at];
        let (number, lane) = (session.number, session.number as usize);
        while let Some(command) = session.connection.poll_command() {
            match command {
                Command::Park { channel, transaction, named, batch } => {
                    let bodies = judged(session, batch, named.is_some());
                    let result = self.store.park(transaction, lane, named.as_ref(), bodies);
                    self.store.answer(number, Answer::Parked(channel, transaction, result));
                }
                Command::Commit { channel, transaction, batch, wait, alone: true, .. }
                    if self.rng.bool() && !self.store.has_backlog(lane) =>
                {
                    let bodies = judged(session, batch, true);
                    let [body] = <[String; 1]>::try_from(bodies).expect("it is one");
                    let came = self.rng.u32(..4) > 0;
                    if came {
                        self.copies.push(Copy { transaction, index: 0, body: body.clone() });
                        self.went_alone.insert(transaction, (lane, self.store.next_sequence()));
                    }
                    let (session, id, waits) = (number, transaction, wait.is_some());
                    self.lones.push(Lone { session, channel, id, lane, body, waits, came });
                }
                Command::Commit { channel, transaction, named, batch, wait, .. } => {
                    let bodies = judged(session, batch, true);
                    let result = self.store.commit(transaction, lane, named.as_ref(), bodies);
                    if wait.is_some() && result.is_ok() {
                        self.forwards.push((number, channel, transaction));
                    }
                    self.store.answer(number, Answer::Committed(channel, transaction, result));
                }
                Command::Decide { channel, ticket, decision, name } => {
                    let result: Result<_, StoreError> = self.store.decide(&name, decision);
                    self.store.answer(number, Answer::Decided(channel, ticket, name, result));
                }
                Command::RollBack { channel, transaction, .. } => {
                    self.store.rollback(transaction);
                    self.store.answer(number, Answer::RolledBack(channel, transaction));
                }
                Command::Abandon { transaction } => self.store.abandon(transaction),
                _ => {}
            }
        }
    }

    /// Everything recovers: then nothing is in doubt, and everything that is committed goes out.
    fn settle(&mut self) {
        self.store.failing = false;
        self.crash();
        for _ in 0..200 {
            self.later(120_000);
            self.ask();
            self.hear();
            self.sync();
            self.forward();
        }
        self.check();
    }

    fn check(&self) {
        let mut ids: BTreeMap<&str, (TransactionId, usize)> = BTreeMap::new();
        for copy in &self.copies {
            let id = *ids.entry(&copy.body).or_insert((copy.transaction, copy.index));
            assert_eq!(id, (copy.transaction, copy.index), "{} has two ids", copy.body);
            let is_alone = self.went_alone.contains_key(&copy.transaction);
            let row = self.store.disk.get(&copy.transaction);
            let is_committed = row.map_or(is_alone, |row| Decision::Commit.is_of(row.state));
            assert!(is_committed, "{} was not committed", copy.body);
        }
        for (id, row) in &self.store.disk {
            assert!(!matches!(row.state, State::Open | State::InDoubt), "{id} is {} for ever", row.state);
        }
        for story in &self.told {
            let came = story.bodies().filter(|body| ids.contains_key(body.as_str())).count();
            let says = self.database.get(&story.name);
            assert!(came == 0 || came == story.messages, "{came} of {story:?} came");
            let all = came > 0;
            match story.kind {
                Kind::Plain if story.step == Step::Told => assert_eq!(all, story.commits, "{story:?}"),
                Kind::Plain => assert!(story.commits || !all, "{story:?} was rolled back, and came"),
                // Refused, or not kept, before its database could know of it: nobody has promised anything.
                _ if story.step == Step::Preparing => assert!(!all, "{story:?} was never committed, and came"),
                _ => assert!(says == Some(&all), "the database says {says:?} of {story:?}, and all came: {all}"),
            }
        }
        self.check_order();
    }

    /// What came first of each message came in the order in which its channel committed.
    fn check_order(&self) {
        let mut last: HashMap<(usize, u16), (u64, usize)> = HashMap::new();
        let mut seen = std::collections::HashSet::new();
        for copy in self.copies.iter().filter(|copy| seen.insert(&copy.body)) {
            let (lane, sequence) = self.went_alone.get(&copy.transaction).copied().unwrap_or_else(|| {
                let row = &self.store.disk[&copy.transaction];
                (row.lane, row.sequence)
            });
            let place = (sequence, copy.index);
            let before = last.insert((lane, 0), place).unwrap_or_default();
            assert!(before < place, "{} came out of order", copy.body);
        }
    }
}

/// The bodies of a batch, each judged if it has to be.
fn judged(session: &Session, batch: Batch, must: bool) -> Vec<String> {
    let bytes = batch.into_bytes();
    let messages = batch::iter(&bytes).map(|message| message.expect("a message"));
    let look = |message: batch::HalfMessage<'_>| {
        let publish = Publish::parse(message.publish).expect("basic.publish");
        let place = (publish.exchange.to_vec(), publish.routing_key.to_vec());
        assert!(!must || session.judged.contains(&place), "{place:?} was not judged");
        String::from_utf8_lossy(message.body).into_owned()
    };
    messages.map(look).collect()
}

/// Says which seed it was, whatever fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again with: HALFWAY_SIM_SEED={} cargo test --test simulation", self.0);
        }
    }
}

#[test]
fn what_is_promised_is_kept_whatever_happens() {
    let wanted = std::env::var("HALFWAY_SIM_SEED").ok().map(|seed| seed.parse().expect("HALFWAY_SIM_SEED is a number"));
    let seeds = wanted.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    let (mut told, mut copies) = (0, 0);
    for seed in seeds {
        let _named = Seed(seed);
        let mut world = World::new(seed);
        world.run();
        told += world.told.iter().filter(|story| story.step == Step::Told).count();
        copies += world.copies.len();
    }
    println!("{told} transactions were told to be decided, {copies} copies came");
    assert!(wanted.is_some() || told > SEEDS as usize, "the world stands still: {told} decisions");
}
