//! A session as a script: bytes and events in, bytes and commands out.

use super::super::handshake::LoginRules;
use super::*;
use crate::amqp::frame::{PROTOCOL_HEADER, Split, kind};
use crate::amqp::method::{Close, Publish, Return, Settle, Start, StartOk};
use crate::amqp::properties::tests::{empty, full};
use crate::amqp::reply_code::ReplyCode;
use crate::amqp::table;
use crate::amqp::wire::Write;
use crate::tx::batch;
use crate::tx::limits::TransactionLimits;
use crate::tx::outcome::ReturnedMessage;
use bytes::Bytes;
use std::sync::Arc;
use uuid::Uuid;

mod age;
mod behind;
mod claim;
mod commit;
mod deliveries;
mod ending;
mod half;
mod judgement;
mod leases;
mod login;
mod memory;
mod named;
mod passing;
mod room;
mod settlements;
mod turns;
mod waiting;

/// Both ends of a connection under test, and what the session was told to do.
struct Script {
    connection: Connection,
    commands: Vec<Command>,
    now: Instant,
    /// How often the leases of all were ended.
    lease_ends: usize,
}

pub(in super::super) fn settings() -> ConnectionSettings {
    ConnectionSettings {
        login: LoginRules { from_loopback: false, loopback_users: vec!["guest".into()] },
        forward_wait: Duration::from_secs(1),
        mandatory_wait: Duration::from_secs(30),
        judgement: Duration::ZERO,
        age_max: Duration::ZERO,
        limits: TransactionLimits {
            messages_max: 100,
            bytes_max: 1 << 20,
            message_bytes_max: Some(10_000),
            memory_bytes_max: 64 << 10,
        },
        rules: Arc::default(),
        control_exchange: "halfway".into(),
        new_id: || TransactionId(Uuid::now_v7()),
    }
}

fn limited(limit: impl FnOnce(&mut TransactionLimits)) -> ConnectionSettings {
    let mut settings = settings();
    limit(&mut settings.limits);
    settings
}

/// Why there is no room.
const FULL: &str = "the store is full: store.max_size is reached";

fn bare(channel: u16, id: (u16, u16)) -> Vec<u8> {
    let mut out = Vec::new();
    method::write_bare(&mut out, channel, id);
    out
}

fn login(user: &str, mechanism: &[u8]) -> Vec<u8> {
    let (mut capabilities, mut properties, mut out) = (Vec::new(), Vec::new(), Vec::new());
    table::write_bool(&mut capabilities, b"connection.blocked", true);
    table::write_bool(&mut capabilities, b"authentication_failure_close", true);
    properties.put_short_string(b"capabilities");
    properties.put_u8(b'F');
    properties.put_long_string(&capabilities);
    table::write_string(&mut properties, b"product", b"test");
    let response = format!("\0{user}\0secret");
    let start_ok =
        StartOk { client_properties: &properties, mechanism, response: response.as_bytes(), locale: b"en_US" };
    start_ok.write(&mut out);
    out
}

fn start() -> Vec<u8> {
    let mut out = Vec::new();
    let start = Start {
        version: (0, 9),
        server_properties: b"",
        mechanisms: b"PLAIN EXTERNAL AMQPLAIN ANONYMOUS",
        locales: b"en_US",
    };
    start.write(&mut out);
    out
}

fn tune(id: (u16, u16)) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_method(&mut out, 0, id, |out| {
        out.put_u16(2047);
        out.put_u32(4096);
        out.put_u16(60);
    });
    out
}

/// A publish with header and body, in frames.
fn message(channel: u16, routing_key: &[u8], flags: u8, header: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Publish { exchange: b"x", routing_key, flags }.write(&mut out, channel);
    frame::write_content(&mut out, channel, header, body, 4096);
    out
}

fn publish(channel: u16, body: &[u8]) -> Vec<u8> {
    message(channel, b"k", 0, &empty(body.len() as u64), body)
}

/// A publish that names its transaction.
fn half(channel: u16, name: &str, body: &[u8]) -> Vec<u8> {
    let mut headers = Vec::new();
    table::write_string(&mut headers, b"x-half-transaction", name.as_bytes());
    message(channel, b"k", 0, &full(body.len() as u64, &headers), body)
}

/// A decision by the control exchange.
fn control(channel: u16, routing_key: &[u8], name: &str, body: &[u8]) -> Vec<u8> {
    let (mut headers, mut out) = (Vec::new(), Vec::new());
    table::write_string(&mut headers, b"x-half-transaction", name.as_bytes());
    Publish { exchange: b"halfway", routing_key, flags: 0 }.write(&mut out, channel);
    frame::write_content(&mut out, channel, &full(body.len() as u64, &headers), body, 4096);
    out
}

fn ack(channel: u16, tag: u64, multiple: bool) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_method(&mut out, channel, id::BASIC_ACK, |out| {
        out.put_u64(tag);
        out.put_u8(multiple.into());
    });
    out
}

fn deliver(channel: u16, tag: u64, body_bytes: u64) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_method(&mut out, channel, id::BASIC_DELIVER, |out| {
        out.put_short_string(b"consumer");
        out.put_u64(tag);
        out.put_u8(0);
        out.put_short_string(b"x");
        out.put_short_string(b"k");
    });
    frame::write(&mut out, kind::HEADER, channel, |out| out.extend(empty(body_bytes)));
    out
}

fn close(channel: u16, code: u16, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    Close { code: ReplyCode(code), text: text.as_bytes(), method: id::BASIC_PUBLISH }.write(&mut out, channel);
    out
}

/// The channel that the proxy closes, and its words.
fn closed(frames: &[u8]) -> (u16, String) {
    let Split::Frame(frame) = frame::split(frames, 1000) else { panic!("a close") };
    assert_eq!(frame.method_id(), Some(id::CHANNEL_CLOSE));
    let close = Close::parse(frame.arguments()).unwrap();
    (frame.channel, String::from_utf8_lossy(close.text).into_owned())
}

/// The methods in some frames, with their channels.
fn methods(mut frames: &[u8]) -> Vec<(u16, (u16, u16))> {
    let mut found = Vec::new();
    while let Split::Frame(frame) = frame::split(frames, FRAME_BYTES_MAX) {
        found.extend(frame.method_id().map(|id| (frame.channel, id)));
        frames = &frames[frame.raw.len()..];
    }
    assert!(frames.is_empty(), "only whole frames go out");
    found
}

impl Script {
    fn new(settings: ConnectionSettings) -> Self {
        let now = Instant::now();
        let connection = Connection::new(settings, now, now + Duration::from_secs(10));
        Self { connection, commands: Vec::new(), lease_ends: 0, now }
    }

    /// Through the handshake, as a user from elsewhere.
    fn open(settings: ConnectionSettings) -> Self {
        let mut script = Self::new(settings);
        script.client(&PROTOCOL_HEADER);
        assert!(matches!(script.command(), Command::Connect));
        script.connection.handle_upstream_connected();
        script.upstream(&start());
        script.client(&login("orders", b"PLAIN"));
        script.upstream(&tune(id::CONNECTION_TUNE));
        script.client(&tune(id::CONNECTION_TUNE_OK));
        let mut open = Vec::new();
        method::write_open(&mut open, b"shop");
        script.client(&open);
        script.upstream(&bare(0, id::CONNECTION_OPEN_OK));
        let Command::Opened(opened) = script.command() else { panic!("it is open") };
        assert_eq!((&*opened.identity.user, &*opened.identity.vhost), ("orders", "shop"));
        assert_eq!((opened.heartbeat, &*opened.product), (60, "test"));
        script.sent();
        // How RabbitMQ does so has scripts of its own.
        script.connection.io.user_confirmed = true;
        script
    }

    /// With channel 1 in tx mode.
    fn transactional(settings: ConnectionSettings) -> Self {
        let mut script = Self::open(settings);
        script.client(&bare(1, id::TX_SELECT));
        script.upstream(&bare(1, id::TX_SELECT_OK));
        script.sent();
        script
    }

    fn client(&mut self, mut bytes: &[u8]) {
        loop {
            self.connection.begin_turn();
            bytes = &bytes[self.connection.handle_client(bytes)..];
            if !self.connection.had_its_turn() {
                break;
            }
        }
        assert!(bytes.is_empty(), "all of it is handled");
        self.collect();
    }

    fn upstream(&mut self, bytes: &[u8]) {
        assert_eq!(self.connection.handle_upstream(bytes), bytes.len());
        self.collect();
    }

    fn later(&mut self, wait: Duration) {
        self.now += wait;
        self.connection.handle_time(self.now);
        self.collect();
    }

    fn collect(&mut self) {
        let kept = |command: &Command| {
            !matches!(
                command,
                Command::Began | Command::Ended(_) | Command::CommitTook(_) | Command::Refused(_) | Command::EndLeases
            )
        };
        while let Some(command) = self.connection.poll_command() {
            self.lease_ends += usize::from(matches!(command, Command::EndLeases));
            self.commands.extend(Some(command).filter(kept));
        }
    }

    fn command(&mut self) -> Command {
        assert!(!self.commands.is_empty(), "a command is due");
        self.commands.remove(0)
    }

    /// What went to the client and to RabbitMQ since the last look.
    fn sent(&mut self) -> (Vec<u8>, Vec<u8>) {
        let io = &mut self.connection.io;
        (std::mem::take(&mut io.to_client), std::mem::take(&mut io.to_upstream))
    }

    /// Takes the command to commit.
    fn decide(&mut self) -> (TransactionId, Vec<u8>, bool) {
        let Command::Commit { channel: 1, transaction, batch, parked, .. } = self.command() else {
            panic!("the store is asked")
        };
        (transaction, batch.into_bytes(), parked)
    }

    fn committed(&mut self, id: TransactionId) {
        self.connection.handle_committed(1, id, Ok(true));
        self.collect();
    }

    fn forwarded(&mut self, id: TransactionId, returned: Vec<ReturnedMessage>) {
        self.connection.handle_forwarded(1, id, Forwarded { returned });
        self.collect();
    }
}
