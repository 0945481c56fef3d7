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
