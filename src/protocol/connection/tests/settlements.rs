//! Acks in a transaction.

use super::*;

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
