//! Two peers that send anything, in any phase. Whatever it is: no panic, no memory beyond what came in, no command before
//! RabbitMQ's open-ok or under another identity than the one that it answered, no decision that RabbitMQ has not been asked
//! about, every transaction that began ends, and the store keeps none that nobody decides.

use crate::login;
use crate::script::Script;
use pure::amqp::frame::{self, PROTOCOL_HEADER, Split};
use pure::amqp::method::{self, Publish, StartOk, id};
use pure::amqp::table;
use pure::amqp::wire::Write;
use pure::protocol::command::{Command, Ticket};
use pure::protocol::connection::Connection;
use pure::protocol::handshake::Identity;
use pure::tx::id::TransactionId;
use pure::tx::name::TransactionName;
use pure::tx::outcome::Forwarded;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

struct Run {
    connection: Connection,
    now: Instant,
    fed: usize,
    parks: Vec<(u16, TransactionId)>,
    decides: Vec<(u16, Ticket, TransactionName)>,
    commits: Vec<(u16, TransactionId)>,
    forwards: Vec<(u16, TransactionId)>,
    rollbacks: Vec<(u16, TransactionId)>,
    /// Kept in the store and decided by nobody so far.
    undecided: BTreeSet<TransactionId>,
    /// Answers of RabbitMQ on each channel that a fence may have waited for.
    answers: BTreeMap<u16, usize>,
    decisions: BTreeMap<u16, usize>,
    began: usize,
    ended: usize,
    /// All that RabbitMQ has got before its open-ok.
    said: Vec<u8>,
    /// Who it has let in.
    identity: Option<Identity>,
    over: bool,
}

/// Runs the script; gives back how many bytes were fed.
pub fn run(script: &mut Script<'_>) -> usize {
    let now = Instant::now();
    let mut run = Run {
        connection: Connection::new(script.settings(), now, now + Duration::from_secs(10)),
        now,
        fed: 0,
        parks: Vec::new(),
        decides: Vec::new(),
        commits: Vec::new(),
        forwards: Vec::new(),
        rollbacks: Vec::new(),
        undecided: BTreeSet::new(),
        answers: BTreeMap::new(),
        decisions: BTreeMap::new(),
        began: 0,
        ended: 0,
        said: Vec::new(),
        identity: None,
        over: false,
    };
    let (mut client, mut upstream) = (Vec::new(), Vec::new());
    if script.flag() {
        login::log_in(&mut run.connection, "alice", "a", 2047);
        run.identity.clone_from(&run.connection.io.identity);
        while run.connection.poll_command().is_some() {}
        method::write_bare(&mut client, 1, id::TX_SELECT);
        method::write_bare(&mut client, 2, id::TX_SELECT);
        run.client(&mut client);
    } else if script.flag() {
        client.extend_from_slice(&PROTOCOL_HEADER);
        run.client(&mut client);
        run.connection.handle_upstream_connected();
    }
    while !script.is_over() && !run.over {
        match script.below(14) {
            0..3 => bytes(script, &mut client),
            3..5 => bytes(script, &mut upstream),
            5 => run.connection.handle_upstream_connected(),
            6 => {
                run.now += Duration::from_millis(100 << script.below(10));
                run.connection.handle_time(run.now);
            }
            7 if !run.parks.is_empty() => {
                let (channel, id) = run.parks.remove(0);
                let result = if script.flag() { Err(script.store_error()) } else { Ok(()) };
                run.connection.handle_parked(channel, id, result);
            }
            8 if !run.commits.is_empty() => {
                let (channel, id) = run.commits.remove(0);
                let result = if script.flag() { Err(script.store_error()) } else { Ok(script.flag()) };
                run.connection.handle_committed(channel, id, result);
            }
            9 if !run.forwards.is_empty() => {
                let (channel, id) = run.forwards.remove(0);
                run.connection.handle_forwarded(channel, id, Forwarded::default());
            }
            10 => run.connection.handle_room(script.flag().then_some("the store is full")),
            12 if !run.decides.is_empty() => {
                let (channel, ticket, name) = run.decides.remove(0);
                let result = if script.flag() { Err(script.store_error()) } else { Ok(script.verdict()) };
                run.connection.handle_decided(channel, ticket, &name, result);
            }
            13 if !run.rollbacks.is_empty() => {
                let (channel, id) = run.rollbacks.remove(0);
                let result = if script.flag() { Err(script.store_error()) } else { Ok(()) };
                run.connection.handle_rolled_back(channel, id, result);
            }
            11 => match script.below(12) {
                0 => run.connection.drain(),
                1 => run.connection.handle_upstream_lost(),
                2 => run.connection.handle_client_lost(),
                _ => {}
            },
            _ => {}
        }
        run.collect();
        run.client(&mut client);
        run.upstream(&mut upstream);
    }
    run.connection.handle_client_lost();
    // A commit that has come goes on for a while without its client.
    run.connection.handle_time(run.now + Duration::from_secs(60));
    run.collect();
    assert_eq!(run.began, run.ended, "every transaction that began ends");
    assert!(run.undecided.is_empty(), "the store keeps {:?}, which nobody decides", run.undecided);
    run.fed
}

/// Bytes that are a frame but for what the script changes, or bytes as they stand there.
fn bytes(script: &mut Script<'_>, out: &mut Vec<u8>) {
    const METHODS: [(u16, u16); 25] = [
        id::BASIC_PUBLISH,
        id::TX_COMMIT,
        id::TX_ROLLBACK,
        id::TX_ROLLBACK_OK,
        id::TX_COMMIT_OK,
        id::TX_SELECT,
        id::BASIC_ACK,
        id::BASIC_DELIVER,
        id::CHANNEL_CLOSE,
        id::CHANNEL_CLOSE_OK,
        id::CHANNEL_OPEN,
        id::CONNECTION_CLOSE,
        id::CONNECTION_CLOSE_OK,
        id::CONNECTION_START,
        id::CONNECTION_START_OK,
        id::CONNECTION_SECURE,
        id::CONNECTION_TUNE,
        id::CONNECTION_TUNE_OK,
        id::CONNECTION_OPEN,
        id::CONNECTION_OPEN_OK,
        id::BASIC_CONSUME_OK,
        id::TX_SELECT_OK,
        id::CONFIRM_SELECT,
        id::CHANNEL_FLOW,
        id::CHANNEL_FLOW_OK,
    ];
    let (choice, channel, length) = (script.below(12), script.below(5), script.below(40));
    // The last one is where the proxy has a channel of its own.
    let channel = if channel == 4 { u16::MAX } else { channel as u16 };
    match choice {
        0 => out.extend_from_slice(script.bytes(length)),
        1 => frame::write(out, script.byte(), channel, |out| out.extend_from_slice(script.bytes(length))),
        2 => frame::write(out, frame::kind::HEADER, channel, |out| {
            out.extend_from_slice(&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            out.push(script.byte());
            out.extend_from_slice(script.bytes(length));
        }),
        3 => frame::write(out, frame::kind::BODY, channel, |out| out.extend_from_slice(script.bytes(length))),
        4 => frame::write_method(out, channel, id::BASIC_PUBLISH, |out| {
            out.extend_from_slice(&[0, 0, 1, b'x', 1, b'k', script.byte() & 1]);
        }),
        5 | 6 => named(script, channel, out),
        7 | 8 => step(script, out),
        _ => {
            let id = METHODS[script.below(METHODS.len())];
            let length = if script.flag() { length } else { 0 };
            frame::write_method(out, channel, id, |out| out.extend_from_slice(script.bytes(length)));
        }
    }
}

/// A step of a login, in its turn or not.
fn step(script: &mut Script<'_>, out: &mut Vec<u8>) {
    match script.below(8) {
        0 => login::start(out),
        1 => login::start_ok(out, "alice"),
        2 => login::start_ok(out, "bob"),
        3 => login::tune(out, id::CONNECTION_TUNE, 2047),
        4 => login::tune(out, id::CONNECTION_TUNE_OK, 2047),
        5 => method::write_open(out, b"a"),
        6 => method::write_open(out, b"b"),
        _ => method::write_bare(out, 0, id::CONNECTION_OPEN_OK),
    }
}

/// A half message, or a decision about one.
fn named(script: &mut Script<'_>, channel: u16, out: &mut Vec<u8>) {
    let (exchange, routing_key): (&[u8], &[u8]) = match script.below(4) {
        0 => (b"halfway", b"commit"),
        1 => (b"halfway", b"rollback"),
        _ => (b"x", b"k"),
    };
    let (mut header, mut headers) = (vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, script.byte() & 1], Vec::new());
    table::write_string(&mut headers, b"x-half-transaction", script.bytes(1));
    header.put_u16(1 << 13);
    header.put_long_string(&headers);
    Publish { exchange, routing_key, flags: script.byte() & 1 }.write(out, channel);
    frame::write(out, frame::kind::HEADER, channel, |out| out.extend_from_slice(&header));
}

impl Run {
    fn client(&mut self, bytes: &mut Vec<u8>) {
        // The session asks for more only when it is wanted, and shows again what was not used.
        while !bytes.is_empty() && !self.over && self.connection.wants_client() {
            let used = self.connection.handle_client(bytes);
            self.fed += used;
            bytes.drain(..used);
            self.collect();
            if used == 0 {
                break;
            }
        }
    }

    fn upstream(&mut self, bytes: &mut Vec<u8>) {
        if self.over || bytes.is_empty() {
            return;
        }
        self.fed += bytes.len();
        let mut rest = &bytes[..];
        while let Split::Frame(frame) = frame::split(rest, usize::MAX - frame::OVERHEAD_BYTES) {
            if let Some(id::TX_ROLLBACK_OK | id::TX_COMMIT_OK) = frame.method_id() {
                *self.answers.entry(frame.channel).or_default() += 1;
            }
            rest = &rest[frame.raw.len()..];
        }
        let used = self.connection.handle_upstream(bytes);
        bytes.drain(..used);
        self.collect();
    }

    /// Whom RabbitMQ has let in with open-ok: by the first start-ok and the first open that it has got.
    fn let_in(&self) -> (String, String) {
        let (mut user, mut vhost) = (None, None);
        let mut rest = &self.said[8..];
        while let Split::Frame(frame) = frame::split(rest, usize::MAX - frame::OVERHEAD_BYTES) {
            rest = &rest[frame.raw.len()..];
            assert_eq!(frame.channel, 0, "whoever sends on a channel first is not let in");
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("who is let in has a name");
            match frame.method_id() {
                Some(id::CONNECTION_START_OK) if user.is_none() => {
                    let response = StartOk::parse(frame.arguments()).expect("a start-ok").response;
                    user = response.split(|byte| *byte == 0).nth(1).map(text);
                }
                Some(id::CONNECTION_OPEN) if vhost.is_none() => {
                    vhost = Some(text(method::open_vhost(frame.arguments()).expect("an open")));
                }
                Some(id::CONNECTION_TUNE_OK) if user.is_some() => {}
                other => panic!("{other:?} is none of the steps, and somebody is let in behind it"),
            }
        }
        (user.expect("a user"), vhost.expect("a virtual host"))
    }

    fn collect(&mut self) {
        self.connection.io.to_client.clear();
        match self.identity {
            Some(_) => self.connection.io.to_upstream.clear(),
            None => self.said.append(&mut self.connection.io.to_upstream),
        }
        while let Some(command) = self.connection.poll_command() {
            if let Command::Opened(opened) = &command {
                assert_eq!(self.identity, None, "somebody is let in once");
                let (user, vhost) = self.let_in();
                assert_eq!((&*opened.identity.user, &*opened.identity.vhost), (&*user, &*vhost));
                self.identity = Some(opened.identity.clone());
            }
            let is_anybodys =
                matches!(command, Command::Connect | Command::Refused(_) | Command::Close | Command::Abort);
            assert!(is_anybodys || self.identity.is_some(), "nobody is let in, and the store is to do {command:?}");
            match command {
                Command::Park { channel, transaction, named, batch } => {
                    assert!(!batch.is_empty(), "nothing is not worth keeping");
                    let is_named = named.is_some();
                    assert!(!is_named || !self.answers.is_empty(), "RabbitMQ was not asked whose half message it is");
                    self.parks.push((channel, transaction));
                    // What an ordinary channel publishes, somebody else decides.
                    if named.is_none_or(|named| named.transactional) {
                        self.undecided.insert(transaction);
                    }
                }
                Command::Commit { channel, transaction, wait, .. } => {
                    let decisions = self.decisions.entry(channel).or_default();
                    *decisions += 1;
                    let answers = self.answers.get(&channel).copied().unwrap_or_default();
                    let is_anew = self.connection.io.settings.judgement.is_zero();
                    let questions = if is_anew { *decisions } else { 1 };
                    assert!(questions <= answers, "a decision that RabbitMQ was not asked about");
                    self.commits.push((channel, transaction));
                    self.undecided.remove(&transaction);
                    self.forwards.extend(wait.map(|_| (channel, transaction)));
                }
                Command::Decide { channel, ticket, name, .. } => {
                    assert!(!self.answers.is_empty(), "RabbitMQ was not asked whose decision it is");
                    self.decides.push((channel, ticket, name));
                }
                Command::RollBack { channel, transaction, .. } => {
                    self.undecided.remove(&transaction);
                    self.rollbacks.push((channel, transaction));
                }
                Command::Abandon { transaction } => drop(self.undecided.remove(&transaction)),
                Command::EndLeases | Command::NoSpareChannel | Command::CommitTook(_) => {}
                Command::Began => self.began += 1,
                Command::Ended(_) => self.ended += 1,
                Command::Close | Command::Abort => self.over = true,
                Command::Connect | Command::Opened(_) | Command::Refused(_) => {}
            }
            assert!(self.ended <= self.began, "a transaction ends once");
        }
        assert_eq!(self.connection.io.identity, self.identity, "an identity is for good");
        assert!(self.identity.is_some() || self.connection.channels() == (0, 0), "a channel before open-ok");
    }
}
