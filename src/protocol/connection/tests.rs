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
use crate::tx::outcome::ReturnedMessage;
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::Arc;
use uuid::Uuid;

mod claim;
mod ending;
mod half;
mod judgement;
mod leases;
mod login;
mod named;
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

pub(in super::super) fn settings() -> Settings {
    Settings {
        login: LoginRules { from_loopback: false, loopback_users: vec!["guest".into()] },
        forward_wait: Duration::from_secs(1),
        mandatory_wait: Duration::from_secs(30),
        judgement: Duration::ZERO,
        messages_max: 100,
        bytes_max: 1 << 20,
        message_bytes_max: Some(10_000),
        memory_bytes_max: 64 << 10,
        rules: Arc::default(),
        control_exchange: "halfway".into(),
        new_id: || TransactionId(Uuid::now_v7()),
    }
}

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
    fn new(settings: Settings) -> Self {
        let now = Instant::now();
        let connection = Connection::new(settings, now, now + Duration::from_secs(10));
        Self { connection, commands: Vec::new(), lease_ends: 0, now }
    }

    /// Through the handshake, as a user from elsewhere.
    fn open(settings: Settings) -> Self {
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
    fn transactional(settings: Settings) -> Self {
        let mut script = Self::open(settings);
        script.client(&bare(1, id::TX_SELECT));
        script.upstream(&bare(1, id::TX_SELECT_OK));
        script.sent();
        script
    }

    fn client(&mut self, bytes: &[u8]) {
        let used = self.connection.handle_client(bytes);
        assert_eq!(used, bytes.len(), "all of it is handled");
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
            !matches!(command, Command::Began | Command::Ended(_) | Command::Refused(_) | Command::EndLeases)
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

#[test]
fn rubbish_is_greeted_as_by_rabbitmq() {
    let mut script = Script::new(settings());
    script.connection.handle_client(b"GET / HTTP/1.1\r\n");
    script.collect();
    assert_eq!(script.sent().0, PROTOCOL_HEADER);
    assert!(matches!(script.command(), Command::Close));
}

#[test]
fn ordinary_frames_pass_as_they_are() {
    let mut script = Script::open(settings());
    let frames =
        [publish(3, b"body"), ack(3, 0, true), bare(3, id::CONFIRM_SELECT), vec![9, 0, 3, 0, 0, 0, 0, 0xce]].concat();
    script.client(&frames);
    script.client(&frame::HEARTBEAT);
    assert_eq!(script.sent(), (Vec::new(), frames.clone()));
    script.upstream(&[&frames[..], &frame::HEARTBEAT].concat());
    assert_eq!(script.sent(), (frames, Vec::new()));
}

#[test]
fn a_commit_is_judged_then_durable_then_forwarded_then_answered() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), publish(1, b"two")].concat());
    let (_, probe) = script.sent();
    assert_eq!(methods(&probe), [(1, id::BASIC_PUBLISH)], "equal publishes need one probe");
    assert!(!probe.windows(3).any(|window| window == b"one"), "and no body");
    script.client(&bare(1, id::TX_COMMIT));
    assert_eq!(script.sent(), (Vec::new(), bare(1, id::TX_ROLLBACK)), "the fence");
    assert!(script.commands.is_empty(), "nothing is decided before RabbitMQ has judged");

    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    assert_eq!(script.sent(), (Vec::new(), Vec::new()), "the fence is not the client's business");
    let (id, messages, parked) = script.decide();
    assert!(!parked);
    let bodies: Vec<_> = batch::iter(&messages).map(|message| message.unwrap().body.to_vec()).collect();
    assert_eq!(bodies, [b"one", b"two"]);

    script.committed(id);
    assert_eq!(script.sent(), (Vec::new(), Vec::new()), "the relay is waited for");
    script.forwarded(id, Vec::new());
    assert_eq!(script.sent(), (bare(1, id::TX_COMMIT_OK), Vec::new()));
    assert_eq!(script.connection.io.committing, 0);
}

#[test]
fn the_wait_for_the_relay_ends() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.committed(id);
    script.sent();
    script.later(Duration::from_millis(999));
    assert_eq!(script.sent().0, b"");
    assert!(script.connection.deadline().is_some());
    script.later(Duration::from_millis(1));
    assert_eq!(script.sent().0, bare(1, id::TX_COMMIT_OK));
    assert_eq!(script.connection.deadline(), None);
}

#[test]
fn without_a_wait_the_answer_comes_with_the_decision() {
    let mut script = Script::transactional(Settings { forward_wait: Duration::ZERO, ..settings() });
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.sent();
    script.committed(id);
    assert_eq!(script.sent().0, bare(1, id::TX_COMMIT_OK));
}

#[test]
fn a_mandatory_message_is_returned_before_commit_ok_or_later_but_never_lost() {
    let returned = || {
        let mut arguments = Vec::new();
        let returned = Return { code: ReplyCode::NO_ROUTE, text: b"NO_ROUTE", exchange: b"x", routing_key: b"k" };
        returned.write(&mut arguments, 1);
        let arguments = Bytes::copy_from_slice(&arguments[11..arguments.len() - 1]);
        vec![ReturnedMessage { arguments, header: Bytes::from(empty(4)), body: Bytes::from_static(b"back") }]
    };
    for late in [false, true] {
        let mut script = Script::transactional(Settings { forward_wait: Duration::ZERO, ..settings() });
        script.client(&[message(1, b"k", 1, &empty(4), b"back"), bare(1, id::TX_COMMIT)].concat());
        script.upstream(&bare(1, id::TX_ROLLBACK_OK));
        let (id, ..) = script.decide();
        script.sent();
        script.committed(id);
        assert_eq!(script.sent().0, b"", "a return may come, whatever forward_wait says");
        if late {
            script.later(Duration::from_secs(30));
            assert_eq!(methods(&script.sent().0), [(1, id::TX_COMMIT_OK)]);
        }
        script.forwarded(id, returned());
        let (to_client, _) = script.sent();
        assert!(to_client.windows(4).any(|window| window == b"back"));
        let expected: &[_] =
            if late { &[(1, id::BASIC_RETURN)] } else { &[(1, id::BASIC_RETURN), (1, id::TX_COMMIT_OK)] };
        assert_eq!(methods(&to_client), expected);
    }
}

#[test]
fn a_rollback_is_rabbitmqs_and_forgets_everything() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_ROLLBACK), bare(1, id::TX_COMMIT)].concat());
    assert_eq!(methods(&script.sent().1)[1..], [(1, id::TX_ROLLBACK), (1, id::TX_COMMIT)]);
    script.upstream(&[bare(1, id::TX_ROLLBACK_OK), bare(1, id::TX_COMMIT_OK)].concat());
    assert_eq!(methods(&script.sent().0), [(1, id::TX_ROLLBACK_OK), (1, id::TX_COMMIT_OK)]);
    assert!(script.commands.is_empty());
}

#[test]
fn what_rabbitmq_refuses_is_never_decided() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.sent();
    let refusal = close(1, 404, "NOT_FOUND - no exchange 'x' in vhost '/'");
    script.upstream(&refusal);
    assert_eq!(script.sent().0, refusal);
    assert!(script.commands.is_empty());
    let answer = [bare(1, id::CHANNEL_CLOSE_OK), publish(1, b"ordinary again")].concat();
    script.client(&answer);
    assert_eq!(script.sent().1, answer);
    assert_eq!(script.connection.io.committing, 0);
}

/// A client that sent ahead: RabbitMQ had closed the channel and ignored the rest, the proxy began a transaction for it
/// whose fence nobody answered, and the client's close-ok waited behind that for ever. Found by the fuzz target.
#[test]
fn what_is_sent_ahead_on_a_channel_that_rabbitmq_closed_begins_no_transaction() {
    for channel in [1, 2] {
        let mut script = Script::transactional(settings());
        script.upstream(&close(channel, 404, "NOT_FOUND - no queue 'q' in vhost '/'"));
        script.sent();
        let ahead = [bare(channel, id::TX_SELECT), publish(channel, b"one"), bare(channel, id::TX_COMMIT)].concat();
        let answer = [bare(channel, id::CHANNEL_CLOSE_OK), bare(channel, id::CHANNEL_OPEN)].concat();
        script.client(&[&ahead[..], &answer].concat());
        assert_eq!(script.sent().1, [ahead, answer].concat());
        assert_eq!(script.connection.io.committing, 0);

        script.client(&[bare(channel, id::TX_SELECT), publish(channel, b"one"), bare(channel, id::TX_COMMIT)].concat());
        script.upstream(&bare(channel, id::TX_ROLLBACK_OK));
        assert!(matches!(script.command(), Command::Commit { .. }), "the new channel is like any other");
    }
}

#[test]
fn acks_take_effect_after_the_decision() {
    let mut script = Script::transactional(settings());
    script.upstream(&[deliver(1, 1, 0), deliver(1, 2, 0)].concat());
    script.client(&[ack(1, 0, true), publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    let (_, to_upstream) = script.sent();
    assert_eq!(methods(&to_upstream), [(1, id::BASIC_ACK), (1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK)]);
    script.upstream(&[bare(1, id::TX_ROLLBACK_OK), deliver(1, 3, 0)].concat());
    let (id, ..) = script.decide();
    assert_eq!(script.sent().1, b"", "not before the store has decided");
    script.committed(id);
    assert_eq!(script.sent().1, [ack(1, 2, true), bare(1, id::TX_COMMIT)].concat());
    script.forwarded(id, Vec::new());
    assert_eq!(methods(&script.sent().0), [], "RabbitMQ's commit-ok is due");
    script.upstream(&bare(1, id::TX_COMMIT_OK));
    assert_eq!(methods(&script.sent().0), [(1, id::TX_COMMIT_OK)], "one answer, not two");
}

#[test]
fn a_commit_of_acks_alone_is_rabbitmqs() {
    let mut script = Script::transactional(settings());
    let frames = [ack(1, 1, false), bare(1, id::TX_COMMIT)].concat();
    script.client(&frames);
    assert_eq!(script.sent().1, frames);
    script.upstream(&bare(1, id::TX_COMMIT_OK));
    assert_eq!(script.sent().0, bare(1, id::TX_COMMIT_OK));
}

#[test]
fn frames_behind_a_commit_wait_and_other_channels_do_not() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.sent();
    script.client(&[publish(1, b"two"), bare(1, id::TX_COMMIT), ack(7, 1, false)].concat());
    assert_eq!(script.sent().1, ack(7, 1, false));
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (first, ..) = script.decide();
    script.committed(first);
    script.forwarded(first, Vec::new());
    let (to_client, to_upstream) = script.sent();
    assert_eq!(methods(&to_client), [(1, id::TX_COMMIT_OK)]);
    assert_eq!(methods(&to_upstream), [(1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK)]);
}

#[test]
fn too_much_behind_a_commit_holds_the_client_back() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    let body = [0; 4000];
    while script.connection.wants_client() {
        script.connection.handle_client(&publish(1, &body));
    }
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.committed(id);
    script.forwarded(id, Vec::new());
    assert!(script.connection.wants_client());
}

#[test]
fn nothing_is_said_in_the_middle_of_a_delivery() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&[bare(1, id::TX_ROLLBACK_OK), deliver(1, 1, 4)].concat());
    let (id, ..) = script.decide();
    script.committed(id);
    script.sent();
    script.forwarded(id, Vec::new());
    assert_eq!(script.sent().0, b"", "two of four bytes are still to come");
    let mut body = Vec::new();
    frame::write(&mut body, kind::BODY, 1, |out| out.extend(b"body"));
    script.upstream(&body);
    assert_eq!(script.sent().0, [body, bare(1, id::TX_COMMIT_OK)].concat());
}

#[test]
fn a_direct_reply_goes_natively_inside_rabbitmqs_commit() {
    let mut script = Script::transactional(settings());
    let mut reply = Vec::new();
    Publish { exchange: b"", routing_key: b"amq.rabbitmq.reply-to.g2", flags: 0 }.write(&mut reply, 1);
    frame::write_content(&mut reply, 1, &empty(2), b"hi", 4096);
    script.client(&[&reply[..], &bare(1, id::TX_COMMIT)].concat());
    let (_, to_upstream) = script.sent();
    assert!(!to_upstream.windows(8).any(|window| window == b"reply-to"), "the probe must reach nobody");
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    assert_eq!(script.sent().1, [reply, bare(1, id::TX_COMMIT)].concat());
    assert!(script.commands.is_empty(), "nothing for the store");
    script.upstream(&bare(1, id::TX_COMMIT_OK));
    assert_eq!(script.sent().0, bare(1, id::TX_COMMIT_OK));
}

#[test]
fn a_large_transaction_goes_to_the_store_in_parts_and_is_decided_when_all_are_kept() {
    let mut script = Script::transactional(Settings { memory_bytes_max: 100, ..settings() });
    let body = [7; 150];
    script.client(&[publish(1, &body), publish(1, b"small"), bare(1, id::TX_COMMIT)].concat());
    let Command::Park { channel: 1, transaction, batch, .. } = script.command() else { panic!("it is parked") };
    assert_eq!(batch.messages(), 1);
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    assert!(script.commands.is_empty(), "no decision before the first part is kept");
    script.connection.handle_parked(1, transaction, Ok(()));
    script.collect();
    let (id, messages, parked) = script.decide();
    assert_eq!((id, parked, batch::iter(&messages).count()), (transaction, true, 1));
}

#[test]
fn a_store_that_fails_is_a_channel_error_and_leaves_the_connection() {
    let full = || StoreError::Full("disk full".into());
    for parked in [false, true] {
        let memory_bytes_max = if parked { 10 } else { 10_000 };
        let mut script = Script::transactional(Settings { memory_bytes_max, ..settings() });
        script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
        script.upstream(&bare(1, id::TX_ROLLBACK_OK));
        script.sent();
        match script.command() {
            Command::Park { transaction, .. } => script.connection.handle_parked(1, transaction, Err(full())),
            Command::Commit { transaction, .. } => script.connection.handle_committed(1, transaction, Err(full())),
            other => panic!("{other:?}"),
        }
        let (to_client, to_upstream) = script.sent();
        let Split::Frame(frame) = frame::split(&to_client, 1000) else { panic!("close") };
        let close = Close::parse(frame.arguments()).unwrap();
        assert_eq!((frame.channel, close.code), (1, ReplyCode::RESOURCE_ERROR));
        assert_eq!(close.text, b"RESOURCE_ERROR - the store is full: disk full");
        assert_eq!(methods(&to_upstream), [(1, id::CHANNEL_CLOSE)]);

        script.client(&[publish(1, b"too late"), bare(1, id::CHANNEL_CLOSE_OK), bare(1, id::CHANNEL_OPEN)].concat());
        assert_eq!(script.sent().1, b"", "RabbitMQ takes no second open before its close-ok");
        script.upstream(&bare(1, id::CHANNEL_CLOSE_OK));
        assert_eq!(methods(&script.sent().1), [(1, id::CHANNEL_OPEN)]);
        script.upstream(&bare(1, id::CHANNEL_OPEN_OK));
        assert_eq!(methods(&script.sent().0), [(1, id::CHANNEL_OPEN_OK)]);
    }
}

/// tx.select on a channel with a consumer, and something to refuse at once: the close came between the header and the
/// body of a delivery that had begun while the channel was an ordinary one.
#[test]
fn nothing_is_said_in_the_middle_of_a_delivery_that_began_before_tx_select() {
    let mut script = Script::open(settings());
    script.upstream(&deliver(1, 1, 4));
    script.client(&[bare(1, id::TX_SELECT), publish(1, &[0; 10_001])].concat());
    script.sent();
    let mut body = Vec::new();
    frame::write(&mut body, kind::BODY, 1, |out| out.extend(b"four"));
    script.upstream(&body);
    assert_eq!(script.sent().0, body);
    script.upstream(&bare(1, id::TX_SELECT_OK));
    assert_eq!(methods(&script.sent().0), [(1, id::TX_SELECT_OK), (1, id::CHANNEL_CLOSE)]);
}

/// A client that closed its channel just as the proxy did, in the middle of a delivery, got its close-ok between the
/// header and the body.
#[test]
fn both_sides_may_close_in_the_middle_of_a_delivery() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&[bare(1, id::TX_ROLLBACK_OK), deliver(1, 1, 4)].concat());
    let (id, ..) = script.decide();
    script.sent();
    script.connection.handle_committed(1, id, Err(StoreError::Full("disk full".into())));
    script.client(&bare(1, id::CHANNEL_CLOSE));
    assert_eq!(script.sent().0, b"");
    let mut body = Vec::new();
    frame::write(&mut body, kind::BODY, 1, |out| out.extend(b"four"));
    script.upstream(&body);
    let to_client = script.sent().0;
    assert!(to_client.starts_with(&body));
    assert_eq!(methods(&to_client[body.len()..]), [(1, id::CHANNEL_CLOSE), (1, id::CHANNEL_CLOSE_OK)]);
}

#[test]
fn limits_are_channel_errors_with_a_name() {
    let cases: [(Settings, Vec<u8>, &str); 3] = [
        (
            Settings { message_bytes_max: Some(3), ..settings() },
            publish(1, b"four"),
            "PRECONDITION_FAILED - message size 4 is larger than configured max size 3",
        ),
        (
            Settings { messages_max: 1, ..settings() },
            [publish(1, b"one"), publish(1, b"two")].concat(),
            "PRECONDITION_FAILED - transaction of more than 1 messages (transaction.max_messages)",
        ),
        (
            Settings { bytes_max: 10, ..settings() },
            publish(1, b"one"),
            "PRECONDITION_FAILED - transaction of more than 10 bytes (transaction.max_size)",
        ),
    ];
    for (settings, frames, text) in cases {
        let mut script = Script::transactional(settings);
        script.client(&frames);
        let (to_client, _) = script.sent();
        let Split::Frame(frame) = frame::split(&to_client, 1000) else { panic!("close") };
        let close = Close::parse(frame.arguments()).unwrap();
        assert_eq!(String::from_utf8_lossy(close.text), text);
        assert_eq!(close.method, id::BASIC_PUBLISH);
    }
}

#[test]
fn when_rabbitmq_is_lost_a_decision_that_is_made_is_told_and_one_that_is_not_is_a_rollback() {
    let mut script = Script::transactional(settings());
    script.client(&[bare(2, id::TX_SELECT), publish(2, b"fencing"), bare(2, id::TX_COMMIT)].concat());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.sent();
    script.connection.handle_upstream_lost();
    script.collect();
    assert_eq!(script.sent().0, b"", "the store is deciding");
    script.committed(id);
    let (to_client, _) = script.sent();
    assert_eq!(methods(&to_client), [(1, id::TX_COMMIT_OK), (0, id::CONNECTION_CLOSE)]);
    script.client(&bare(0, id::CONNECTION_CLOSE_OK));
    assert!(matches!(script.command(), Command::Close));
    assert!(script.commands.is_empty());
}

/// RabbitMQ went while the store decided, with a second transaction waiting behind the commit: that one asked a RabbitMQ
/// that was gone, and the connection stayed open for ever. Found by the fuzz target.
#[test]
fn what_waits_behind_a_commit_asks_nobody_when_rabbitmq_is_lost() {
    let mut script = Script::transactional(settings());
    let transaction = [publish(1, b"one"), bare(1, id::TX_COMMIT)].concat();
    script.client(&[&transaction[..], &transaction].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.connection.handle_upstream_lost();
    script.sent();
    script.committed(id);
    assert_eq!(methods(&script.sent().0), [(1, id::TX_COMMIT_OK), (0, id::CONNECTION_CLOSE)]);
    assert_eq!(script.connection.io.committing, 0);
}

#[test]
fn a_drain_lets_a_running_commit_finish() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.sent();
    script.connection.drain();
    assert_eq!(script.sent(), (Vec::new(), Vec::new()));
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.committed(id);
    let (to_client, to_upstream) = script.sent();
    assert_eq!(methods(&to_client), [(1, id::TX_COMMIT_OK), (0, id::CONNECTION_CLOSE)]);
    assert_eq!(methods(&to_upstream), [(0, id::CONNECTION_CLOSE)]);
}

#[test]
fn an_operator_closes_it_behind_a_running_commit_and_says_why() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.sent();
    script.connection.close_because(&format!("closed by an operator: {}", "\u{fc}".repeat(1000)));
    assert_eq!((script.sent(), script.connection.stage()), ((Vec::new(), Vec::new()), Stage::Closing));
    script.committed(id);
    let (to_client, to_upstream) = script.sent();
    assert_eq!(methods(&to_client), [(1, id::TX_COMMIT_OK), (0, id::CONNECTION_CLOSE)]);
    assert_eq!(methods(&to_upstream), [(0, id::CONNECTION_CLOSE)]);
    let commit_ok = bare(1, id::TX_COMMIT_OK).len();
    let Split::Frame(close) = frame::split(&to_client[commit_ok..], FRAME_BYTES_MAX) else { panic!("a frame") };
    let text = std::str::from_utf8(Close::parse(close.arguments()).unwrap().text).expect("no character is cut");
    assert!(text.starts_with("CONNECTION_FORCED - closed by an operator: \u{fc}\u{fc}") && text.len() > 250, "{text}");
    let mut early = Script::new(settings());
    early.connection.close_because("no reason");
    assert!(matches!(early.connection.poll_command(), Some(Command::Close)));
}

#[test]
fn channels_are_counted_as_they_come_and_go() {
    let mut script = Script::open(settings());
    let seen = |script: &Script| (script.connection.stage(), script.connection.channels());
    assert_eq!(seen(&script), (Stage::Open, (0, 0)));
    for channel in 1..=3 {
        script.client(&bare(channel, id::CHANNEL_OPEN));
    }
    for channel in 1..=2 {
        script.client(&bare(channel, id::TX_SELECT));
        script.upstream(&bare(channel, id::TX_SELECT_OK));
    }
    assert_eq!(seen(&script), (Stage::Open, (3, 2)));
    // RabbitMQ closes one, the client another.
    script.upstream(&close(1, 404, "NOT_FOUND"));
    script.client(&bare(1, id::CHANNEL_CLOSE_OK));
    assert_eq!(seen(&script), (Stage::Open, (2, 1)));
    script.client(&close(2, 200, "bye"));
    script.upstream(&bare(2, id::CHANNEL_CLOSE_OK));
    assert_eq!(seen(&script), (Stage::Open, (1, 0)));
    script.connection.handle_store_full(true);
    script.client(&bare(3, id::TX_SELECT));
    script.upstream(&bare(3, id::TX_SELECT_OK));
    script.connection.handle_client_lost();
    assert_eq!(seen(&script), (Stage::Closing, (1, 0)));
}

#[test]
fn a_client_that_closes_behind_its_commit_is_closed_after_it() {
    let mut script = Script::transactional(settings());
    let mut goodbye = Vec::new();
    Close { code: ReplyCode::SUCCESS, text: b"bye", method: (0, 0) }.write(&mut goodbye, 0);
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT), goodbye.clone()].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.sent();
    script.committed(id);
    assert_eq!(script.sent(), (bare(1, id::TX_COMMIT_OK), goodbye));
    script.upstream(&bare(0, id::CONNECTION_CLOSE_OK));
    assert_eq!(script.sent().0, bare(0, id::CONNECTION_CLOSE_OK));
    script.connection.handle_upstream_lost();
    script.collect();
    assert!(matches!(script.command(), Command::Close));
}

#[test]
fn a_broken_frame_is_rabbitmqs_to_answer() {
    let cases: [Vec<u8>; 4] = [
        vec![1, 0, 1, 0, 0, 0, 4, 0, 90, 0, 20, 0],
        [&publish(1, b"body")[..30], &bare(1, id::TX_COMMIT)[..]].concat(),
        {
            let mut frames = Vec::new();
            frame::write(&mut frames, kind::BODY, 1, |out| out.extend(b"stray"));
            frames
        },
        {
            let mut frames = message(1, b"k", 0, &empty(2), b"four");
            frames.extend(bare(1, id::TX_COMMIT));
            frames
        },
    ];
    for (number, frames) in cases.iter().enumerate() {
        let mut script = Script::transactional(settings());
        script.connection.handle_client(frames);
        script.collect();
        assert_eq!(script.sent().1, *frames, "case {number}: RabbitMQ is shown what came");
        assert!(script.commands.is_empty(), "case {number}");
        let answer = close(0, 501, "FRAME_ERROR");
        script.upstream(&answer);
        assert_eq!(script.sent().0, answer, "case {number}");
    }
}

#[test]
fn a_full_store_blocks_who_publishes_in_a_transaction() {
    let mut script = Script::transactional(settings());
    script.connection.handle_store_full(true);
    script.client(&publish(7, b"ordinary"));
    assert!(script.connection.wants_client());
    let message = publish(1, b"one");
    let used = script.connection.handle_client(&message);
    assert_eq!(message.len() - used, b"one".len() + 8, "the header triggers it, the body waits");
    assert!(!script.connection.wants_client() && !script.connection.misses_heartbeats());
    assert_eq!(methods(&script.sent().0), [(0, id::CONNECTION_BLOCKED)]);
    script.connection.handle_store_full(false);
    assert_eq!(methods(&script.sent().0), [(0, id::CONNECTION_UNBLOCKED)]);
    script.client(&message[used..]);
    assert_eq!(methods(&script.sent().1), [(1, id::BASIC_PUBLISH)]);
}

#[test]
fn settlements_of_every_kind_are_replayed_in_order() {
    let mut script = Script::transactional(settings());
    let mut reject = Vec::new();
    frame::write_method(&mut reject, 1, id::BASIC_REJECT, |out| {
        out.put_u64(2);
        out.put_u8(1);
    });
    let settlements = [ack(1, 1, false), reject].concat();
    script.client(&[&settlements[..], &publish(1, b"one"), &bare(1, id::TX_COMMIT)].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.sent();
    script.committed(id);
    assert_eq!(script.sent().1, [settlements, bare(1, id::TX_COMMIT)].concat());
    assert_eq!(Settle::parse(&ack(1, 9, true)[11..]).unwrap(), Settle { tag: 9, multiple: true });
}

proptest! {
    /// However the network cuts the bytes, both sides get the same.
    #[test]
    fn cuts_make_no_difference(cuts in proptest::collection::vec(0usize..600, 0..20), rubbish in any::<[u8; 16]>()) {
        let frames = [
            publish(3, b"ordinary"), bare(1, id::TX_SELECT), publish(1, b"first"), ack(1, 5, true),
            publish(1, &[1; 90]), bare(1, id::TX_COMMIT), publish(1, b"behind"), rubbish.to_vec(),
        ].concat();
        let mut whole = Script::open(settings());
        let used = whole.connection.handle_client(&frames);
        let mut cut = Script::open(settings());
        let (mut at, mut end) = (0, 0);
        for step in cuts.into_iter().chain([frames.len()]) {
            end = (end + step).min(frames.len());
            at += cut.connection.handle_client(&frames[at..end]);
        }
        prop_assert_eq!(used, at);
        prop_assert_eq!(whole.sent(), cut.sent());
    }
}
