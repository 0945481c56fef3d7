//! A store that is full: what waits for room, what passes, and what is refused because it would wait for ever.

use super::half::{channel_open, flow_ok};
use super::*;
use crate::tx::decision::{Decision, Fate};
use crate::tx::id::Timestamp;
use crate::tx::state::State;

const SEAT: u16 = u16::MAX;

/// Handles all of it, as the client must be read on.
fn read(script: &mut Script, frames: &[u8]) {
    script.client(frames);
    assert!(script.connection.wants_client(), "a client that is not read can't decide");
}

fn full(settings: ConnectionSettings) -> Script {
    let mut script = Script::transactional(settings);
    script.client(&bare(2, id::TX_SELECT));
    script.upstream(&bare(2, id::TX_SELECT_OK));
    script.connection.handle_room(Some(FULL));
    script.sent();
    script
}

fn refused(frames: &[u8]) -> (u16, String) {
    let at = if methods(frames)[0].1 == id::CONNECTION_BLOCKED {
        let Split::Frame(blocked) = frame::split(frames, 1000) else { panic!("a frame") };
        blocked.raw.len()
    } else {
        0
    };
    let (channel, text) = closed(&frames[at..]);
    assert!(text.starts_with("RESOURCE_ERROR - the store is full: store.max_size is reached, and "), "{text}");
    (channel, text)
}

fn decided(script: &mut Script, channel: u16) {
    let Command::Decide { channel: on, ticket, name, decision } = script.command() else { panic!("a decision") };
    assert_eq!((on, decision), (channel, Decision::Commit));
    let fate = Fate {
        id: TransactionId(Uuid::nil()),
        state: State::Committed,
        decided_at: Timestamp(0),
        decided_by: "control".into(),
    };
    script.connection.handle_decided(channel, ticket, &name, Ok(Verdict::Decided(fate)));
    script.collect();
}

#[test]
fn a_publish_waits_for_room_and_everything_else_is_read() {
    let mut script = full(settings());
    read(&mut script, &publish(7, b"ordinary"));
    script.sent();
    read(&mut script, &[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    let (to_client, to_upstream) = script.sent();
    assert_eq!((methods(&to_client), to_upstream), (vec![(0, id::CONNECTION_BLOCKED)], Vec::new()));
    assert!(script.connection.misses_heartbeats() && script.connection.stage() == Stage::Blocked);
    read(&mut script, &[publish(7, b"ordinary"), publish(2, b"two"), ack(7, 1, false)].concat());
    assert_eq!(script.sent().1, [publish(7, b"ordinary"), ack(7, 1, false)].concat(), "what adds nothing passes");
    script.connection.handle_room(None);
    script.collect();
    let (to_client, to_upstream) = script.sent();
    assert_eq!(methods(&to_client), [(0, id::CONNECTION_UNBLOCKED)]);
    let mut found = methods(&to_upstream);
    found.sort_unstable();
    assert_eq!(found, [(1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK), (2, id::BASIC_PUBLISH)]);
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (_, messages, _) = script.decide();
    assert_eq!(batch::iter(&messages).count(), 1);
}

#[test]
fn what_came_before_is_committed() {
    let mut script = Script::transactional(ConnectionSettings { forward_wait: Duration::ZERO, ..settings() });
    script.client(&publish(1, b"one"));
    script.connection.handle_room(Some(FULL));
    read(&mut script, &bare(1, id::TX_COMMIT));
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.sent();
    script.committed(id);
    assert_eq!(script.sent().0, bare(1, id::TX_COMMIT_OK));
}

#[test]
fn a_rollback_or_a_close_drops_what_waits() {
    let mut script = full(settings());
    let mut goodbye = Vec::new();
    Close { code: ReplyCode::SUCCESS, text: b"bye", method: (0, 0) }.write(&mut goodbye, 2);
    for _ in 0..2 {
        // Again and again in one piece, too.
        let waits = [publish(1, &[1; 5000]), bare(1, id::TX_ROLLBACK)].concat();
        read(&mut script, &[waits.clone(), waits].concat());
        let found = methods(&script.sent().1);
        let [asked, rolled_back] = [(1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK)];
        assert_eq!(found, [asked, rolled_back, asked, rolled_back], "RabbitMQ has its say");
        script.upstream(&[bare(1, id::TX_ROLLBACK_OK), bare(1, id::TX_ROLLBACK_OK)].concat());
        assert_eq!(methods(&script.sent().0), [(1, id::TX_ROLLBACK_OK); 2]);
    }
    read(&mut script, &[publish(2, b"two"), goodbye.clone()].concat());
    assert!(script.sent().1.ends_with(&goodbye));
    assert!(script.commands.is_empty(), "nothing was kept");
    // The next one waits as the first did.
    read(&mut script, &publish(1, b"three"));
    assert_eq!(script.sent().1, b"");
}

#[test]
fn who_gives_up_behind_a_commit_hears_that_it_was_not_made() {
    for (asks, gives_up) in
        [(id::TX_COMMIT, id::TX_ROLLBACK), (id::TX_SELECT, id::TX_ROLLBACK), (id::TX_COMMIT, id::CHANNEL_CLOSE)]
    {
        let mut script = full(settings());
        read(&mut script, &[publish(1, b"one"), bare(1, asks), bare(1, gives_up)].concat());
        let (channel, text) = refused(&script.sent().0);
        assert!(channel == 1 && text.ends_with("the client has given up to wait"), "{text}");
        assert!(script.commands.is_empty());
    }
}

#[test]
fn a_transaction_that_takes_room_does_not_wait_for_it() {
    // In the store already, about to be, and deciding about what may be.
    let parked = publish(1, &[7; 150]);
    let cases = [(parked, true), (half(1, "order-1", b"one"), false), (control(1, b"commit", "order-2", b""), false)];
    for (first, is_parked) in cases {
        let mut script = Script::transactional(limited(|limits| limits.memory_bytes_max = 100));
        script.client(&first);
        assert_eq!(script.commands.len(), usize::from(is_parked));
        script.connection.handle_room(Some(FULL));
        script.sent();
        let more = if is_parked { publish(1, b"more") } else { half(1, "order-1", b"more") };
        let more = if first.windows(7).any(|bytes| bytes == b"halfway") { publish(1, b"more") } else { more };
        read(&mut script, &more);
        let (channel, text) = refused(&script.sent().0);
        assert!(channel == 1 && text.contains("can't wait for room"), "{text}");
        let rolled_back = script.commands.iter().any(|command| matches!(command, Command::RollBack { .. }));
        assert_eq!(rolled_back, is_parked, "and gives its own room back");
        script.connection.handle_room(None);
    }
}

#[test]
fn decisions_are_made_in_a_full_store_and_never_stand_behind_what_waits() {
    let mut script = full(settings());
    read(&mut script, &[control(1, b"commit", "order-1", b""), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    decided(&mut script, 1);
    assert_eq!(methods(&script.sent().0), [(1, id::TX_COMMIT_OK)], "nobody is told to wait");
    for before in [publish(2, b"waits"), [publish(2, b"waits"), bare(2, id::TX_COMMIT)].concat()] {
        let mut script = full(settings());
        read(&mut script, &[before, control(2, b"commit", "order-1", b"")].concat());
        let (channel, text) = refused(&script.sent().0);
        assert!(channel == 2 && text.contains("a decision stands behind"), "{text}");
    }
}

#[test]
fn no_more_waits_on_a_channel_than_there_is_room_for() {
    let mut script = full(limited(|limits| limits.message_bytes_max = Some(10 << 20)));
    let mut begun = message(1, b"k", 0, &empty(2 << 20), b"");
    for _ in 0..300 {
        frame::write(&mut begun, kind::BODY, 1, |out| out.extend([b'x'; 4000]));
    }
    read(&mut script, &begun);
    let (channel, text) = refused(&script.sent().0);
    assert!(channel == 1 && text.contains("more than 1048576 bytes wait"), "{text}");
    assert!(script.connection.held_bytes() < 1000);
}

/// Channel 1 in confirm mode, the store full, and a half message on it that RabbitMQ has nothing against.
fn held_back(name: &str) -> Script {
    let mut script = Script::open(settings());
    script.client(&[channel_open(1), bare(1, id::CONFIRM_SELECT)].concat());
    script.upstream(&bare(1, id::CONFIRM_SELECT_OK));
    script.connection.handle_room(Some(FULL));
    read(&mut script, &half(1, name, b"one"));
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK)].concat());
    assert!(script.commands.is_empty(), "there is no room for it");
    assert_eq!(script.connection.io.committing, 0, "the end of the connection waits for nothing");
    script.sent();
    script
}

#[test]
fn a_half_message_on_an_ordinary_channel_waits_and_nothing_waits_for_it() {
    let mut script = held_back("order-1");
    let mut delete = Vec::new();
    frame::write_method(&mut delete, 1, (40, 20), |out| out.extend(b"\0\0\x01x\0"));
    read(&mut script, &[publish(1, b"plain"), ack(1, 1, false), delete.clone()].concat());
    assert_eq!(script.sent().1, [publish(1, b"plain"), ack(1, 1, false), delete].concat());
    read(&mut script, &control(1, b"commit", "order-2", b""));
    script.upstream(&flow_ok(1));
    decided(&mut script, 1);
    assert_eq!(script.sent().0, ack(1, 3, false), "the decision overtakes it");
    read(&mut script, &half(1, "order-3", b"three"));
    script.upstream(&bare(SEAT, id::TX_ROLLBACK_OK));
    script.connection.handle_room(None);
    script.collect();
    script.sent();
    for (name, tag) in [("order-1", 1), ("order-3", 4)] {
        let Command::Park { transaction, named: Some(named), .. } = script.command() else { panic!("in order") };
        assert_eq!(named.name.as_str(), name);
        assert_eq!(script.connection.io.committing, 1);
        script.connection.handle_parked(1, transaction, Ok(()));
        assert_eq!(script.sent().0, ack(1, tag, false));
    }
    assert_eq!(script.connection.io.committing, 0);
}

#[test]
fn a_channel_with_a_half_message_that_waits_may_be_closed() {
    let mut script = held_back("order-1");
    let mut goodbye = Vec::new();
    Close { code: ReplyCode::SUCCESS, text: b"bye", method: (0, 0) }.write(&mut goodbye, 1);
    read(&mut script, &goodbye);
    assert_eq!(script.sent().1, goodbye);
    script.connection.handle_room(None);
    script.collect();
    assert!(script.commands.is_empty(), "nobody was told that it is kept, and nobody can be");
}

#[test]
fn what_can_not_overtake_a_half_message_that_waits_is_refused() {
    let cases = [
        (control(1, b"commit", "order-1", b""), "a message waits of the transaction that is to be decided"),
        (bare(1, id::TX_SELECT), "half messages wait on this channel"),
    ];
    for (frames, expected) in cases {
        let mut script = held_back("order-1");
        read(&mut script, &frames);
        let (channel, text) = refused(&script.sent().0);
        assert!(channel == 1 && text.ends_with(expected), "{text}");
        assert_eq!(script.connection.io.committing, 0);
    }
    let mut script = held_back("order-1");
    let mut said = Vec::new();
    for number in 0..150 {
        read(&mut script, &half(1, &format!("more-{number}"), &[1; 9_000]));
        script.upstream(&bare(SEAT, id::TX_ROLLBACK_OK));
        said.extend(script.sent().0);
    }
    assert!(refused(&said).1.contains("more than 1048576 bytes wait"));
}
