//! What a client sends behind its commit.

use super::*;

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
