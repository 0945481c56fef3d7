//! Whose word counts as RabbitMQ's judgement, and for how long.

use super::half::flow_ok;
use super::*;
use crate::protocol::channel::PROBES_MAX;

#[test]
fn what_was_judged_a_second_ago_is_judged_again_at_the_commit() {
    let mut script = Script::transactional(settings());
    for (wait, asked) in [(Duration::ZERO, 0), (Duration::from_secs(1), 1)] {
        script.client(&publish(1, b"one"));
        assert_eq!(methods(&script.sent().1), [(1, id::BASIC_PUBLISH)]);
        script.later(wait);
        script.client(&bare(1, id::TX_COMMIT));
        let again = [(1, id::TX_ROLLBACK), (1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK)];
        assert_eq!(methods(&script.sent().1), again[2 - 2 * asked..]);
        (0..=asked).for_each(|_| script.upstream(&bare(1, id::TX_ROLLBACK_OK)));
        let (id, ..) = script.decide();
        script.committed(id);
        script.forwarded(id, Vec::new());
        script.sent();
    }
}

/// RabbitMQ is about to bound the publishes of a transaction: a client's may be as large as before.
#[test]
fn rabbitmq_never_holds_many_probes() {
    for name in [None, Some("order-1")] {
        let mut script = Script::transactional(limited(|limits| {
            limits.messages_max = 20_000;
            limits.bytes_max = 100 << 20;
            limits.memory_bytes_max = 100 << 20;
        }));
        let (mut held, mut most, mut rollbacks) = (0, 0, 0);
        for number in 0..12_000_u32 {
            let (mut headers, body) = (Vec::new(), number.to_be_bytes());
            if let Some(name) = name {
                table::write_string(&mut headers, b"x-half-transaction", name.as_bytes());
            }
            let key = number.to_string();
            script.client(&message(1, key.as_bytes(), 0, &full(4, &headers), &body));
            for (_, method) in methods(&script.sent().1) {
                held = if method == id::TX_ROLLBACK { 0 } else { held + 1 };
                most = most.max(held);
                rollbacks += usize::from(method == id::TX_ROLLBACK);
            }
        }
        assert!(most <= PROBES_MAX && rollbacks >= 12_000 / PROBES_MAX, "{most} at once, {rollbacks} rollbacks");
        assert!(script.connection.is_open(), "it goes on");
    }
}

/// A fence undoes acks at RabbitMQ. Each is sent again when something depends on it, however many fences there were.
#[test]
fn acks_are_sent_again_as_often_as_they_count() {
    let mut script = Script::transactional(limited(|limits| {
        limits.messages_max = 5_000;
        limits.memory_bytes_max = 1 << 20;
    }));
    let (mut acks, mut fences) = (Vec::new(), 0);
    let mut follow = |script: &mut Script| {
        let to_upstream = script.sent().1;
        let methods = methods(&to_upstream);
        acks.extend(methods.iter().enumerate().filter(|(_, it)| it.1 == id::BASIC_ACK).map(|_| fences));
        fences += methods.iter().filter(|it| it.1 == id::TX_ROLLBACK).count();
        to_upstream
    };
    for number in 1..=2_500_u32 {
        script.upstream(&deliver(1, number.into(), 0));
        script
            .client(&[ack(1, number.into(), false), message(1, &number.to_be_bytes(), 0, &full(0, b""), b"")].concat());
        let to_upstream = follow(&mut script);
        if to_upstream.ends_with(&bare(1, id::TX_ROLLBACK)) {
            script.upstream(&bare(1, id::TX_ROLLBACK_OK));
            assert_eq!(script.sent().0, b"", "the client has not asked");
        }
    }
    script.client(&bare(1, id::TX_COMMIT));
    let to_upstream = follow(&mut script);
    let all: Vec<_> = (1..=2_500).flat_map(|tag| ack(1, tag, false)).collect();
    let rollback = bare(1, id::TX_ROLLBACK);
    assert_eq!(
        to_upstream,
        [rollback.clone(), all.clone(), rollback.clone()].concat(),
        "RabbitMQ finds them right first"
    );
    script.upstream(&bare(1, id::TX_ROLLBACK_OK).repeat(2));
    let (id, ..) = script.decide();
    script.committed(id);
    assert_eq!(follow(&mut script), [all, bare(1, id::TX_COMMIT)].concat());
    assert_eq!((fences, acks.len()), (27, 3 * 2_500));
}

#[test]
fn what_a_recover_gives_back_is_not_what_was_acked_before_a_fence() {
    for (recover, again) in [(id::BASIC_RECOVER, true), (id::BASIC_RECOVER_ASYNC, true), (id::BASIC_GET, false)] {
        let mut script = Script::transactional(settings());
        script.upstream(&[deliver(1, 1, 0), deliver(1, 2, 0)].concat());
        script.client(&[ack(1, 1, false), half(1, "order-1", b"")].concat());
        script.sent();
        let mut asks = Vec::new();
        frame::write_method(&mut asks, 1, recover, |out| match recover {
            id::BASIC_GET => out.extend(b"\0\0\x01q\0"),
            _ => out.put_u8(1),
        });
        script.client(&asks);
        let redone = [bare(1, id::TX_ROLLBACK), ack(1, 1, false)].concat();
        assert_eq!(script.sent().1, [if again { redone } else { Vec::new() }, asks].concat());
    }
}

#[test]
fn the_client_can_not_answer_for_the_judge() {
    for (frames, first) in [
        (bare(u16::MAX, id::TX_ROLLBACK), id::TX_ROLLBACK),
        (bare(u16::MAX, id::TX_SELECT), id::TX_SELECT),
        (message(u16::MAX, b"k", 0, &empty(0), b""), id::BASIC_PUBLISH),
        (half(u16::MAX, "b", b""), id::BASIC_PUBLISH),
        (close(u16::MAX, 200, ""), id::CHANNEL_CLOSE),
    ] {
        let mut script = Script::open(settings());
        script.client(&bare(1, id::CHANNEL_OPEN));
        script.client(&half(1, "a", b"forbidden"));
        script.upstream(&flow_ok(1));
        let asked = methods(&script.sent().1);
        assert!(asked.contains(&(u16::MAX, id::TX_ROLLBACK)), "the judge is asked: {asked:?}");
        script.client(&frames);
        // RabbitMQ says that no channel is open there, for there is none.
        assert_eq!(methods(&script.sent().1)[0], (u16::MAX - 1, first));
        script.upstream(&bare(u16::MAX, id::TX_ROLLBACK_OK));
        assert!(script.commands.is_empty(), "nothing is kept: {:?}", script.commands);
    }
}
