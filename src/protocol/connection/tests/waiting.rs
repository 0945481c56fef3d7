//! How long tx.commit-ok waits for the relay.

use super::*;
use crate::tx::outcome::Wait;

/// A transaction that is committed and on its way; who tells of it.
fn on_its_way(script: &mut Script, mandatory: u8) -> (TransactionId, Wait) {
    script.client(&[message(1, b"k", mandatory, &empty(4), b"body"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let Command::Commit { transaction, wait: Some(wait), .. } = script.command() else {
        panic!("the relay is waited for")
    };
    script.sent();
    script.committed(transaction);
    assert_eq!(script.sent().0, b"", "the relay is waited for");
    assert_eq!(wait.mandatory, mandatory > 0);
    (transaction, wait)
}

#[test]
fn the_wait_goes_on_while_rabbitmq_answers_but_not_for_ever() {
    let mut script = Script::transactional(settings());
    let (_, wait) = on_its_way(&mut script, 0);
    for second in 0..29 {
        wait.answered();
        script.later(Duration::from_secs(1));
        assert_eq!(script.sent().0, b"", "after {second} seconds");
    }
    wait.answered();
    script.later(Duration::from_secs(1));
    assert_eq!(methods(&script.sent().0), [(1, id::TX_COMMIT_OK)], "mandatory_wait in all");
    assert_eq!(script.connection.deadline(), None);

    let (_, wait) = on_its_way(&mut script, 0);
    wait.answered();
    script.later(Duration::from_secs(1));
    assert_eq!(script.sent().0, b"");
    script.later(Duration::from_secs(1));
    assert_eq!(methods(&script.sent().0), [(1, id::TX_COMMIT_OK)], "there was no further answer");
}

#[test]
fn what_nobody_will_tell_is_not_waited_for() {
    for (mandatory, first) in [(0, false), (1, false), (0, true)] {
        let mut script = Script::transactional(settings());
        if first {
            // The relay was quicker than the store's answer.
            script.client(&[message(1, b"k", 0, &empty(4), b"body"), bare(1, id::TX_COMMIT)].concat());
            script.upstream(&bare(1, id::TX_ROLLBACK_OK));
            let (id, ..) = script.decide();
            script.sent();
            script.connection.handle_unforwarded(1, id);
            script.collect();
            assert_eq!(script.sent().0, b"", "it is not durable yet");
            script.committed(id);
        } else {
            let (id, _) = on_its_way(&mut script, mandatory);
            script.connection.handle_unforwarded(1, id);
            script.collect();
        }
        assert_eq!(methods(&script.sent().0), [(1, id::TX_COMMIT_OK)]);
        assert_eq!((script.connection.deadline(), script.connection.io.committing), (None, 0));
    }
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
    let mut script = Script::transactional(ConnectionSettings { forward_wait: Duration::ZERO, ..settings() });
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (id, ..) = script.decide();
    script.sent();
    script.committed(id);
    assert_eq!(script.sent().0, bare(1, id::TX_COMMIT_OK));
}
