//! A client and a RabbitMQ that keep to the protocol, a store that answers in its time or fails, a relay, a clock. Then
//! the session keeps to the protocol on both sides, decides only what was judged, and leaves nobody waiting for ever.

use crate::broker::Broker;
use crate::client::Client;
use crate::script::Script;
use pure::amqp::frame::{self, PROTOCOL_HEADER};
use pure::amqp::method::{self, id};
use pure::amqp::wire::Write;
use pure::protocol::command::Command;
use pure::protocol::connection::Connection;
use pure::tx::id::TransactionId;
use pure::tx::outcome::Forwarded;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

const CHANNELS: [u16; 3] = [1, 2, 3];

struct Run {
    connection: Connection,
    client: Client,
    broker: Broker,
    now: Instant,
    fed: usize,
    /// Read from the client and from RabbitMQ, and not used by the session yet.
    client_input: Vec<u8>,
    upstream_input: Vec<u8>,
    parks: Vec<(u16, TransactionId)>,
    /// With how often their channels had been closed.
    commits: Vec<(u16, TransactionId, usize)>,
    forwards: Vec<(u16, TransactionId)>,
    /// Messages in the store of a transaction that is not decided.
    parked: HashMap<TransactionId, usize>,
    /// Transactions that the store could not commit.
    failed: HashSet<TransactionId>,
    began: usize,
    ended: usize,
    upstream_is_lost: bool,
    over: bool,
}

/// Runs the script; gives back how many bytes were fed.
pub fn run(script: &mut Script<'_>) -> usize {
    let mut run = Run::open(script);
    while !script.is_over() && !run.over {
        let number = CHANNELS[script.below(CHANNELS.len())];
        match script.below(16) {
            0..7 => {
                let quiet = run.client.out.is_empty() && run.client_input.is_empty() && run.upstream_input.is_empty();
                run.client.act(script, number, quiet && !run.broker.is_sending(number));
            }
            7 if !run.client.acks_all => run.broker.deliver(number, script.bytes(30)),
            8 if script.below(4) == 0 => run.broker.refuse(number),
            9 => run.answer_park(|script| script.below(4) == 0, script),
            10 => run.answer_commit(|script| script.below(4) == 0, script),
            11 => run.forward(),
            12 => run.later(Duration::from_millis(100 << script.below(10))),
            13 => run.connection.handle_store_full(script.flag()),
            14 if script.below(16) == 0 => run.connection.drain(),
            15 if script.below(16) == 0 => run.lose_upstream(),
            _ => {}
        }
        run.collect();
        let (of_client, of_upstream) = (script.byte(), script.byte());
        run.pump(usize::from(of_client), usize::from(of_upstream));
    }
    run.settle();
    run.connection.handle_client_lost();
    run.collect();
    assert_eq!(run.began, run.ended, "every transaction that began ends");
    // What could not be committed when its channel was gone already is rolled back at the next start.
    let decided = |id| run.failed.contains(id) || run.commits.iter().any(|(_, deciding, _)| deciding == id);
    assert!(run.parked.keys().all(decided), "the store keeps what nobody decides");
    run.fed
}

impl Run {
    /// A connection through its handshake, with channels 1 and 2 in tx mode.
    fn open(script: &mut Script<'_>) -> Self {
        let now = Instant::now();
        let mut connection = Connection::new(script.settings(), now, now + Duration::from_secs(10));
        let tune = |id| {
            let mut out = Vec::new();
            frame::write_method(&mut out, 0, id, |out| {
                out.put_u16(2047);
                out.put_u32(4096);
                out.put_u16(60);
            });
            out
        };
        connection.handle_client(&PROTOCOL_HEADER);
        connection.handle_upstream_connected();
        connection.handle_upstream(&tune(id::CONNECTION_TUNE));
        connection.handle_client(&tune(id::CONNECTION_TUNE_OK));
        let mut bytes = Vec::new();
        method::write_bare(&mut bytes, 0, id::CONNECTION_OPEN_OK);
        connection.handle_upstream(&bytes);
        assert!(connection.is_open());
        connection.io.to_client.clear();
        connection.io.to_upstream.clear();
        let mut run = Self {
            connection,
            client: Client::new(&CHANNELS),
            broker: Broker::new(&CHANNELS),
            now,
            fed: 0,
            client_input: Vec::new(),
            upstream_input: Vec::new(),
            parks: Vec::new(),
            commits: Vec::new(),
            forwards: Vec::new(),
            parked: HashMap::new(),
            failed: HashSet::new(),
            began: 0,
            ended: 0,
            upstream_is_lost: false,
            over: false,
        };
        for number in [1, 2] {
            run.client.act(&mut Script::new(&[]), number, false);
        }
        run
    }

    /// Moves bytes both ways; the numbers say how much, 0 being nothing and 255 everything.
    fn pump(&mut self, of_client: usize, of_upstream: usize) {
        let some = |part: usize, whole: usize| if part == 255 { whole } else { whole.min(part * part / 16) };
        let bytes = some(of_client, self.client.out.len());
        self.client_input.extend(self.client.out.drain(..bytes));
        self.feed_client();
        self.client.acks_all &= !(self.client.out.is_empty() && self.client_input.is_empty());
        for _ in 0..some(of_upstream, usize::MAX).min(64) {
            let Some(answer) = self.broker.next_answer().filter(|_| !self.upstream_is_lost) else { break };
            self.upstream_input.extend(answer);
        }
        let held_back = if of_upstream % 7 == 2 { self.upstream_input.len() / 3 } else { 0 };
        self.feed_upstream(self.upstream_input.len() - held_back);
    }

    fn feed_client(&mut self) {
        // As the session does: only when wanted, and what was not used is shown again.
        while !self.over && !self.client_input.is_empty() && self.connection.wants_client() {
            let used = self.connection.handle_client(&self.client_input);
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
        let used = self.connection.handle_upstream(&self.upstream_input[..bytes]);
        self.fed += used;
        self.upstream_input.drain(..used);
        self.collect();
    }

    fn answer_park(&mut self, fails: impl Fn(&mut Script<'_>) -> bool, script: &mut Script<'_>) {
        if self.parks.is_empty() {
            return;
        }
        let (channel, id) = self.parks.remove(0);
        let result = if fails(script) { Err(script.store_error()) } else { Ok(()) };
        self.connection.handle_parked(channel, id, result);
    }

    fn answer_commit(&mut self, fails: impl Fn(&mut Script<'_>) -> bool, script: &mut Script<'_>) {
        if self.commits.is_empty() {
            return;
        }
        let (channel, id, closes) = self.commits.remove(0);
        let result = if fails(script) { Err(script.store_error()) } else { Ok(()) };
        if result.is_ok() {
            self.client.decided(channel, closes);
            self.parked.remove(&id);
        } else {
            self.failed.insert(id);
        }
        self.connection.handle_committed(channel, id, result);
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

    /// Lets everybody answer; then nobody may be waiting.
    fn settle(&mut self) {
        self.connection.handle_store_full(false);
        for _ in 0..100 {
            let none = &mut Script::new(&[]);
            self.collect();
            self.pump(255, 255);
            while !self.parks.is_empty() {
                self.answer_park(|_| false, none);
                self.collect();
            }
            while !self.commits.is_empty() {
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
        self.pump(255, 255);
        assert_eq!(self.connection.io.committing, 0, "a commit is stuck");
        if !self.over {
            assert_eq!(self.client.waits(), None);
            assert!(self.connection.wants_client(), "the client is held back for ever");
        }
    }

    fn collect(&mut self) {
        let to_upstream = std::mem::take(&mut self.connection.io.to_upstream);
        if !self.upstream_is_lost {
            self.broker.receive(&to_upstream);
        }
        while let Some(command) = self.connection.poll_command() {
            match command {
                Command::Park { channel, transaction, batch } => {
                    *self.parked.entry(transaction).or_default() += batch.messages() as usize;
                    self.parks.push((channel, transaction));
                }
                Command::Commit { channel, transaction, batch, parked, wait } => {
                    assert!(self.broker.has_judged(channel), "a decision about messages that were not judged");
                    assert_eq!(parked, self.parked.contains_key(&transaction));
                    let messages = self.parked.get(&transaction).copied().unwrap_or(0) + batch.messages() as usize;
                    assert_eq!(Some(messages), self.client.committing(channel), "all of them, and no others");
                    self.commits.push((channel, transaction, self.client.closes(channel)));
                    self.forwards.extend(wait.then_some((channel, transaction)));
                }
                Command::RollBack { transaction } => {
                    assert!(self.parked.remove(&transaction).is_some(), "nothing to forget");
                }
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
