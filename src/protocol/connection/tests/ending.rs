//! Clients that go, or say nothing.

use super::*;

#[test]
fn a_client_that_rabbitmq_has_blocked_may_be_silent() {
    let mut script = Script::open(settings());
    assert!(script.connection.misses_heartbeats());
    let mut blocked = Vec::new();
    method::write_blocked(&mut blocked, b"low on memory");
    script.upstream(&blocked);
    assert!(!script.connection.misses_heartbeats());
    script.upstream(&bare(0, id::CONNECTION_UNBLOCKED));
    assert!(script.connection.misses_heartbeats());
    script.upstream(&blocked);
    let mut close = Vec::new();
    Close { code: ReplyCode::SUCCESS, text: b"", method: (0, 0) }.write(&mut close, 0);
    script.client(&close);
    script.upstream(&bare(0, id::CONNECTION_UNBLOCKED));
    assert!(!script.connection.misses_heartbeats(), "it waits for close-ok");
}

#[test]
fn what_nobody_knows_ends_the_connection_without_an_answer() {
    for (unknown, why) in [(StoreError::Unknown("timeout".into()), "nobody knows"), (StoreError::Fenced, "taken over")]
    {
        let mut script = Script::transactional(settings());
        script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
        script.upstream(&bare(1, id::TX_ROLLBACK_OK));
        let (first, ..) = script.decide();
        script.client(&[bare(2, id::TX_SELECT), publish(2, b"two"), bare(2, id::TX_COMMIT)].concat());
        script.upstream(&[bare(2, id::TX_SELECT_OK), bare(2, id::TX_ROLLBACK_OK)].concat());
        let Command::Commit { channel: 2, transaction: second, .. } = script.command() else { panic!("asked") };
        script.sent();
        script.connection.handle_committed(1, first, Err(unknown));
        script.collect();
        assert_eq!(methods(&script.sent().0), [], "another commit is running");
        script.connection.handle_client(&publish(1, b"late"));
        script.upstream(&bare(1, id::TX_SELECT_OK));
        assert_eq!(script.sent(), (Vec::new(), Vec::new()), "its channel is nobody's");
        script.commands.clear();
        script.connection.handle_committed(2, second, Ok(true));
        let (client, _) = script.sent();
        assert_eq!(methods(&client), [(2, id::TX_COMMIT_OK), (0, id::CONNECTION_CLOSE)]);
        let text = String::from_utf8_lossy(&client);
        assert!(text.contains("CONNECTION_FORCED") && text.contains(why), "{text}");
    }
}

/// It was the last that the end waited for.
#[test]
fn what_nobody_knows_holds_up_no_end_that_was_decided_before() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.connection.drain();
    script.connection.handle_committed(1, id, Err(StoreError::Fenced));
    script.collect();
    assert_eq!(methods(&script.sent().0), [(0, id::CONNECTION_CLOSE)]);
}

#[test]
fn a_commit_that_has_come_is_carried_out_though_its_client_is_gone() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.client(&[bare(2, id::TX_SELECT), publish(2, b"never committed")].concat());
    script.connection.handle_client_lost();
    script.collect();
    assert!(script.commands.is_empty(), "RabbitMQ judges it first");
    script.upstream(&[bare(2, id::TX_SELECT_OK), bare(1, id::TX_ROLLBACK_OK)].concat());
    let (id, ..) = script.decide();
    script.committed(id);
    assert!(matches!(script.command(), Command::Close));
    assert!(script.commands.is_empty(), "the other is nobody's");
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
