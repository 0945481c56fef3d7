//! Half messages and decisions on ordinary channels.

use super::*;
use crate::tx::decision::{Decision, Fate};
use crate::tx::id::Timestamp;
use crate::tx::state::State;

/// Where the judge sits.
const SEAT: u16 = u16::MAX;

pub(super) fn channel_open(channel: u16) -> Vec<u8> {
    let mut out = Vec::new();
    method::write_channel_open(&mut out, channel);
    out
}

pub(super) fn flow_ok(channel: u16) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_method(&mut out, channel, id::CHANNEL_FLOW_OK, |out| out.put_u8(1));
    out
}

/// With these channels open, in confirm mode or not.
fn ordinary(channels: &[u16], confirm: bool) -> Script {
    let mut script = Script::open(settings());
    for channel in channels {
        script.client(&channel_open(*channel));
        if confirm {
            script.client(&bare(*channel, id::CONFIRM_SELECT));
            script.upstream(&bare(*channel, id::CONFIRM_SELECT_OK));
        }
    }
    script.sent();
    script
}

fn parked(script: &mut Script) -> (u16, TransactionId, String) {
    let Command::Park { channel, transaction, named: Some(named), .. } = script.command() else {
        panic!("it is parked under its name")
    };
    assert!(!named.transactional);
    (channel, transaction, named.name.to_string())
}

fn keep(script: &mut Script, channel: u16, id: TransactionId) {
    script.connection.handle_parked(channel, id, Ok(()));
    script.collect();
}

#[test]
fn a_half_message_is_judged_in_order_and_confirmed_when_it_is_durable() {
    let mut script = ordinary(&[1], true);
    script.client(&half(1, "order-1", b"one"));
    assert_eq!(methods(&script.sent().1), [(1, id::CHANNEL_FLOW)], "first everything before it");
    script.upstream(&flow_ok(1));
    let (to_client, to_upstream) = script.sent();
    assert_eq!(to_client, b"", "the client did not ask for that");
    assert_eq!(
        methods(&to_upstream),
        [(SEAT, id::CHANNEL_OPEN), (SEAT, id::TX_SELECT), (SEAT, id::BASIC_PUBLISH), (SEAT, id::TX_ROLLBACK)]
    );
    assert!(!to_upstream.windows(3).any(|bytes| bytes == b"one"), "a probe has no body");
    script.upstream(&[bare(SEAT, id::CHANNEL_OPEN_OK), bare(SEAT, id::TX_SELECT_OK)].concat());
    assert!(script.commands.is_empty());
    script.upstream(&bare(SEAT, id::TX_ROLLBACK_OK));
    let (channel, id, name) = parked(&mut script);
    assert_eq!((channel, name.as_str()), (1, "order-1"));
    assert_eq!(script.sent().0, b"", "not durable yet");
    keep(&mut script, 1, id);
    assert_eq!(script.sent().0, ack(1, 1, false));

    // The next one finds the judge, and nothing has happened that would have to be waited for.
    script.client(&half(1, "order-2", b"two"));
    assert_eq!(methods(&script.sent().1), [(SEAT, id::BASIC_PUBLISH), (SEAT, id::TX_ROLLBACK)]);
}

#[test]
fn a_channel_without_confirms_gets_none() {
    let mut script = ordinary(&[1], false);
    script.client(&half(1, "order-1", b"one"));
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK)].concat());
    let (_, id, _) = parked(&mut script);
    keep(&mut script, 1, id);
    assert_eq!(script.sent().0, b"");
}

#[test]
fn what_rabbitmq_refuses_closes_the_channel_that_published_it() {
    let mut script = ordinary(&[1, 2], true);
    script.client(&[half(1, "order-1", b"one"), half(2, "order-2", b"two")].concat());
    script.upstream(&[flow_ok(1), flow_ok(2)].concat());
    script.sent();
    script.upstream(&close(SEAT, 403, "ACCESS_REFUSED - access to exchange 'x' in vhost 'shop' refused for user 'u'"));
    let (to_client, to_upstream) = script.sent();
    assert_eq!(
        closed(&to_client),
        (1, "ACCESS_REFUSED - access to exchange 'x' in vhost 'shop' refused for user 'u'".into())
    );
    assert_eq!(
        methods(&to_upstream),
        [
            (SEAT, id::CHANNEL_CLOSE_OK),
            (SEAT, id::CHANNEL_OPEN),
            (SEAT, id::TX_SELECT),
            (SEAT, id::BASIC_PUBLISH),
            (SEAT, id::TX_ROLLBACK),
            (1, id::CHANNEL_CLOSE)
        ],
        "the other one, which RabbitMQ passed over, is asked about again"
    );
    script.upstream(&bare(SEAT, id::TX_ROLLBACK_OK));
    assert_eq!(parked(&mut script).0, 2);
    assert!(script.commands.is_empty());
}

#[test]
fn messages_pass_a_half_message_on_its_way_and_other_methods_wait() {
    let mut script = ordinary(&[1], true);
    let mut delete = Vec::new();
    frame::write_method(&mut delete, 1, (40, 20), |out| out.extend(b"\0\0\x01x\0"));
    script.client(&[half(1, "order-1", b"one"), publish(1, b"plain"), delete.clone(), publish(1, b"late")].concat());
    let to_upstream = script.sent().1;
    assert_eq!(methods(&to_upstream), [(1, id::CHANNEL_FLOW), (1, id::BASIC_PUBLISH)]);
    assert!(to_upstream.ends_with(&publish(1, b"plain")));
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK)].concat());
    let (_, id, _) = parked(&mut script);
    script.sent();
    keep(&mut script, 1, id);
    assert_eq!(script.sent().1, [delete, publish(1, b"late")].concat());
    // The exchange is gone now: the next half message must see that.
    script.client(&half(1, "order-2", b"two"));
    assert_eq!(methods(&script.sent().1), [(1, id::CHANNEL_FLOW)]);
}

#[test]
fn a_number_is_the_clients_until_it_has_answered_for_it() {
    let mut script = ordinary(&[1, SEAT], true);
    script.client(&half(SEAT, "", b""));
    script.upstream(&flow_ok(SEAT));
    assert!(closed(&script.sent().0).1.contains("is empty"));
    script.upstream(&bare(SEAT, id::CHANNEL_CLOSE_OK));
    script.client(&half(1, "order-1", b"one"));
    script.upstream(&flow_ok(1));
    assert!(methods(&script.sent().1).contains(&(SEAT - 1, id::CHANNEL_OPEN)), "the judge takes another");
    script.client(&[bare(SEAT, id::CHANNEL_CLOSE_OK), channel_open(SEAT)].concat());
    assert_eq!(script.sent().1, channel_open(SEAT));
}

/// The judge is asked while the client and RabbitMQ close channel SEAT at once, after so many of the two answers.
#[test]
fn a_number_that_both_sides_close_is_the_clients_until_both_have_answered() {
    for (of_client, of_upstream) in [(true, false), (false, true)] {
        let mut script = ordinary(&[1, SEAT], true);
        script.client(&bare(SEAT, id::CHANNEL_CLOSE));
        script.upstream(&close(SEAT, 404, "NOT_FOUND - no queue 'q' in vhost 'shop'"));
        if of_client {
            script.client(&bare(SEAT, id::CHANNEL_CLOSE_OK));
        }
        if of_upstream {
            script.upstream(&bare(SEAT, id::CHANNEL_CLOSE_OK));
        }
        script.sent();
        script.client(&half(1, "order-1", b"one"));
        script.upstream(&flow_ok(1));
        assert!(methods(&script.sent().1).contains(&(SEAT - 1, id::CHANNEL_OPEN)), "the judge takes another");
        script.upstream(&bare(SEAT, id::CHANNEL_CLOSE_OK));
        assert_eq!(script.sent().0, bare(SEAT, id::CHANNEL_CLOSE_OK), "it is the client's answer");
    }
}

#[test]
fn tags_count_for_the_client_as_it_counts() {
    let mut script = ordinary(&[1], true);
    script.client(&[publish(1, b"1"), half(1, "a", b"2"), publish(1, b"3"), publish(1, b"4")].concat());
    script.upstream(&ack(1, 2, true));
    assert_eq!(script.sent().0, [ack(1, 1, true), ack(1, 3, false)].concat(), "2 is not durable");
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK)].concat());
    let (_, id, _) = parked(&mut script);
    keep(&mut script, 1, id);
    script.upstream(&ack(1, 3, true));
    assert_eq!(script.sent().0, [ack(1, 2, false), ack(1, 4, true)].concat());
}

#[test]
fn a_confirm_does_not_come_in_the_middle_of_a_delivery() {
    let mut script = ordinary(&[1], true);
    script.client(&half(1, "a", b"1"));
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK), deliver(1, 1, 4)].concat());
    let (_, id, _) = parked(&mut script);
    script.sent();
    keep(&mut script, 1, id);
    assert_eq!(script.sent().0, b"");
    let mut body = Vec::new();
    frame::write(&mut body, kind::BODY, 1, |out| out.extend(b"four"));
    script.upstream(&body);
    assert_eq!(script.sent().0, [body, ack(1, 1, false)].concat());
}

#[test]
fn a_header_that_comes_later_is_waited_for() {
    let mut script = ordinary(&[1], false);
    let whole = [publish(1, b"plain"), half(1, "order-1", b"one")].concat();
    for cut in 1..whole.len() {
        let used = script.connection.handle_client(&whole[..cut]);
        let rest = &whole[used..];
        script.client(rest);
        let sent = script.sent().1;
        assert!(sent.starts_with(&publish(1, b"plain")), "cut at {cut}");
        assert!(!sent.windows(3).any(|bytes| bytes == b"one"), "cut at {cut}: it was let through");
        script = ordinary(&[1], false);
    }
    // Frames of another channel may stand in between.
    let mut frames = publish(1, b"");
    let header_at = frames.len() - (frame::OVERHEAD_BYTES + 14);
    let mut split = half(1, "order-1", b"");
    let Split::Frame(first) = frame::split(&split, 1000) else { panic!("basic.publish") };
    let method_bytes = first.raw.len();
    let header = split.split_off(method_bytes);
    frames.truncate(header_at);
    script.client(&[split, publish(2, b"other"), header].concat());
    let sent = methods(&script.sent().1);
    assert_eq!(sent, [(2, id::BASIC_PUBLISH), (1, id::CHANNEL_FLOW)]);
    // And an ordinary message is still one.
    script.client(&publish(1, b"plain"));
    assert_eq!(script.sent().1, publish(1, b"plain"));
}

#[test]
fn decisions_are_made_after_what_was_published_before_them() {
    let mut script = ordinary(&[1], true);
    script.client(&[half(1, "order-1", b"one"), control(1, b"commit", "order-1", b"")].concat());
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK)].concat());
    let (_, id, _) = parked(&mut script);
    assert!(script.commands.is_empty(), "the half message is not durable yet");
    keep(&mut script, 1, id);
    let Command::Decide { channel: 1, ticket, decision: Decision::Commit, name } = script.command() else {
        panic!("it is decided")
    };
    script.sent();
    let at = Timestamp(1_790_000_000_000);
    let fate = Fate { id, state: State::RolledBack, decided_at: at, decided_by: "operator ann".into() };
    script.connection.handle_decided(1, ticket, &name, Ok(Verdict::Before(fate.clone())));
    assert_eq!(script.sent().0, ack(1, 2, false));

    script.client(&control(1, b"commit", "order-1", b""));
    let Command::Decide { ticket, name, .. } = script.command() else { panic!("it is decided") };
    script.connection.handle_decided(1, ticket, &name, Ok(Verdict::Contradicted(fate)));
    let text =
        "PRECONDITION_FAILED - transaction 'order-1' is rolled_back since 2026-09-21T14:13:20.000Z by operator ann";
    assert_eq!(closed(&script.sent().0), (1, text.into()));
}

#[test]
fn a_wrong_decision_is_named_and_reaches_nobody() {
    for (frames, text) in [
        (control(1, b"commit", "a", b"body"), "a message to exchange 'halfway' has no body, this one has 4 bytes"),
        (
            control(1, b"abort", "a", b""),
            "routing key 'abort' to exchange 'halfway' is neither 'commit' nor 'rollback'",
        ),
        (control(1, b"commit", "", b""), "header x-half-transaction is empty"),
    ] {
        let mut script = ordinary(&[1], true);
        script.client(&frames);
        assert_eq!(methods(&script.sent().1), [(1, id::CHANNEL_CLOSE)]);
        // RabbitMQ may be in the middle of a delivery, which nobody followed before: its answer tells.
        script.upstream(&bare(1, id::CHANNEL_CLOSE_OK));
        assert_eq!(closed(&script.sent().0), (1, format!("PRECONDITION_FAILED - {text}")));
        assert!(script.commands.is_empty());
    }
}

#[test]
fn the_judge_leaves_its_seat_to_the_client() {
    let mut script = ordinary(&[1], true);
    script.client(&half(1, "a", b"1"));
    script.upstream(&flow_ok(1));
    script.sent();
    let open = channel_open(SEAT);
    assert_eq!(script.connection.handle_client(&open), open.len());
    assert_eq!(methods(&script.sent().1), [(SEAT, id::CHANNEL_CLOSE)]);
    assert!(!script.connection.wants_client(), "the client waits for its channel");
    script.upstream(&bare(SEAT, id::CHANNEL_CLOSE_OK));
    assert!(script.connection.wants_client());
    let sent = methods(&script.sent().1);
    assert_eq!(sent[0], (SEAT, id::CHANNEL_OPEN));
    assert_eq!(
        sent[1..3],
        [(SEAT - 1, id::CHANNEL_OPEN), (SEAT - 1, id::TX_SELECT)],
        "and the question is asked again"
    );
    script.upstream(&[bare(SEAT, id::CHANNEL_OPEN_OK), bare(SEAT - 1, id::TX_ROLLBACK_OK)].concat());
    assert_eq!(methods(&script.sent().0), [(SEAT, id::CHANNEL_OPEN_OK)]);
    assert_eq!(parked(&mut script).0, 1);
}

#[test]
fn a_client_with_all_its_channels_open_is_told_that_one_is_missing() {
    let mut script = ordinary(&(1..=2047).collect::<Vec<_>>(), false);
    script.client(&half(1, "a", b"1"));
    script.upstream(&flow_ok(1));
    let text = "RESOURCE_ERROR - all 2047 channels are open, and a half message needs one more";
    assert_eq!(closed(&script.sent().0), (1, text.into()));
}

#[test]
fn a_client_that_closes_politely_has_everything_kept() {
    let mut script = ordinary(&[1], false);
    let mut goodbye = Vec::new();
    Close { code: ReplyCode::SUCCESS, text: b"bye", method: (0, 0) }.write(&mut goodbye, 0);
    script.client(&[half(1, "a", b"1"), bare(1, id::CHANNEL_CLOSE), goodbye.clone()].concat());
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK)].concat());
    let (_, id, _) = parked(&mut script);
    script.sent();
    keep(&mut script, 1, id);
    assert_eq!(script.sent().1, [bare(1, id::CHANNEL_CLOSE), goodbye].concat());
}

#[test]
fn a_client_waits_while_much_is_on_its_way_and_no_longer() {
    const BODY: usize = 10_000;
    for lost in [false, true] {
        let mut script = ordinary(&[1], true);
        let mut count = 0;
        while script.connection.wants_client() {
            script.client(&half(1, "order-1", &[7; BODY]));
            count += 1;
            assert!(count < 1000);
        }
        assert!((90..=110).contains(&count), "{count} of {BODY} bytes");
        script.upstream(&flow_ok(1));
        for _ in 0..count {
            script.upstream(&bare(SEAT, id::TX_ROLLBACK_OK));
        }
        let kept: Vec<_> = (0..count).map(|_| parked(&mut script).1).collect();
        assert!(!script.connection.wants_client(), "judged, not durable");
        // The last first: answers may come in any order.
        keep(&mut script, 1, kept[count - 1]);
        assert!(script.connection.wants_client());
        if lost {
            script.connection.handle_upstream_lost();
            script.collect();
        }
        script.sent();
        for id in &kept[..count - 1] {
            keep(&mut script, 1, *id);
        }
        let acks: Vec<_> = (1..count as u64).map(|tag| ack(1, tag, false)).collect();
        if !lost {
            assert_eq!(script.sent().0, acks.concat());
        }
    }
}

#[test]
fn a_store_that_fails_closes_the_channel() {
    let mut script = ordinary(&[1], true);
    script.client(&half(1, "a", b"1"));
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK)].concat());
    let (_, id, _) = parked(&mut script);
    script.sent();
    script.connection.handle_parked(1, id, Err(StoreError::Full("disk full".into())));
    assert_eq!(closed(&script.sent().0), (1, "RESOURCE_ERROR - the store is full: disk full".into()));
}

#[test]
fn a_client_and_rabbitmq_that_close_a_channel_at_once_both_get_their_answer() {
    let mut script = ordinary(&[1], true);
    script.client(&[half(1, "a", b"1"), bare(1, id::CHANNEL_CLOSE)].concat());
    assert_eq!(methods(&script.sent().1), [(1, id::CHANNEL_FLOW)], "the close waits");
    script.upstream(&close(1, 404, "NOT_FOUND - no queue 'q' in vhost 'shop'"));
    let (to_client, to_upstream) = script.sent();
    assert_eq!(methods(&to_client), [(1, id::CHANNEL_CLOSE)]);
    assert_eq!(to_upstream, bare(1, id::CHANNEL_CLOSE), "RabbitMQ answers it, so the client is not left waiting");
}

#[test]
fn a_channel_is_not_closed_in_the_middle_of_a_message_that_passes() {
    let mut script = ordinary(&[1], true);
    script.client(&half(1, "a", b"1"));
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK)].concat());
    let (_, id, _) = parked(&mut script);
    script.sent();
    let mut front = publish(1, b"plain");
    let body = front.split_off(front.len() - frame::OVERHEAD_BYTES - 5);
    script.client(&front);
    script.connection.handle_parked(1, id, Err(StoreError::Full("disk full".into())));
    script.collect();
    assert_eq!(script.sent(), (Vec::new(), front), "RabbitMQ would close the connection");
    script.client(&body);
    let (to_client, to_upstream) = script.sent();
    assert_eq!(closed(&to_client), (1, "RESOURCE_ERROR - the store is full: disk full".into()));
    assert!(to_upstream.starts_with(&body));
    assert_eq!(methods(&to_upstream), [(1, id::CHANNEL_CLOSE)]);
}

#[test]
fn an_answer_to_a_channel_that_is_closed_is_not_taken_by_the_next_one() {
    let mut script = ordinary(&[1], true);
    let decide = |script: &mut Script, name| {
        script.client(&control(1, b"commit", name, b""));
        let Command::Decide { ticket, name, .. } = script.command() else { panic!("it is decided") };
        (ticket, name)
    };
    let (ticket, name) = decide(&mut script, "old");
    script.upstream(&close(1, 404, "NOT_FOUND - no queue 'q' in vhost 'shop'"));
    script.client(&[bare(1, id::CHANNEL_CLOSE_OK), channel_open(1), bare(1, id::CONFIRM_SELECT)].concat());
    script.upstream(&[bare(1, id::CHANNEL_OPEN_OK), bare(1, id::CONFIRM_SELECT_OK)].concat());
    decide(&mut script, "new");
    script.upstream(&flow_ok(1));
    script.sent();
    let at = Timestamp(0);
    let fate = Fate { id: TransactionId(Uuid::nil()), state: State::Committed, decided_at: at, decided_by: "x".into() };
    script.connection.handle_decided(1, ticket, &name, Ok(Verdict::Decided(fate)));
    assert_eq!(script.sent().0, b"", "the new one is not durable");
}

#[test]
fn a_client_that_closes_behind_a_decision_hears_nothing_that_it_did_not_ask_for() {
    let mut script = ordinary(&[1], true);
    script.client(&control(1, b"commit", "a", b""));
    let Command::Decide { ticket, name, .. } = script.command() else { panic!("it is decided") };
    let at = Timestamp(0);
    let fate = Fate { id: TransactionId(Uuid::nil()), state: State::Committed, decided_at: at, decided_by: "x".into() };
    script.connection.handle_decided(1, ticket, &name, Ok(Verdict::Decided(fate)));
    script.client(&bare(1, id::CHANNEL_CLOSE));
    assert_eq!(methods(&script.sent().1), [(1, id::CHANNEL_FLOW)], "the close waits for the answer to that");
    script.upstream(&flow_ok(1));
    let (to_client, to_upstream) = script.sent();
    assert_eq!((to_client, to_upstream), (ack(1, 1, false), bare(1, id::CHANNEL_CLOSE)));
}

#[test]
fn the_answer_to_the_clients_own_flow_is_not_taken_for_the_proxys() {
    let mut script = ordinary(&[1], true);
    let mut flow = Vec::new();
    method::write_flow(&mut flow, 1);
    script.client(&[flow, half(1, "a", b"1")].concat());
    script.sent();
    script.upstream(&flow_ok(1));
    assert_eq!(script.sent(), (flow_ok(1), Vec::new()), "nothing is asked before the second answer");
    script.upstream(&flow_ok(1));
    assert_eq!(methods(&script.sent().1)[0], (SEAT, id::CHANNEL_OPEN));
}

/// The close of a channel waited for the end of an ordinary message, the end of the proxy for the close, and the client was
/// not read any more.
#[test]
fn a_drain_does_not_wait_for_the_rest_of_a_message() {
    let mut script = ordinary(&[1], true);
    script.client(&half(1, "a", b"1"));
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK)].concat());
    let (_, id, _) = parked(&mut script);
    let plain = publish(1, b"plain");
    script.client(&plain[..plain.len() - (b"plain".len() + frame::OVERHEAD_BYTES)]);
    script.connection.drain();
    script.sent();
    script.connection.handle_parked(1, id, Err(StoreError::Full("disk full".into())));
    assert_eq!(methods(&script.sent().0), [(0, id::CONNECTION_CLOSE)]);
}

/// A nack that came between the client's channel.close and its close-ok had RabbitMQ's number.
#[test]
fn tags_count_for_the_client_until_its_channel_is_closed() {
    let mut script = ordinary(&[1], true);
    script.client(&[half(1, "a", b"1"), publish(1, b"2")].concat());
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK)].concat());
    let (_, id, _) = parked(&mut script);
    keep(&mut script, 1, id);
    script.client(&bare(1, id::CHANNEL_CLOSE));
    script.sent();
    script.upstream(&[ack(1, 1, false), bare(1, id::CHANNEL_CLOSE_OK)].concat());
    assert_eq!(script.sent().0, [ack(1, 2, false), bare(1, id::CHANNEL_CLOSE_OK)].concat());
    script.client(&[channel_open(1), publish(1, b"plain")].concat());
    script.upstream(&ack(1, 1, false));
    assert_eq!(script.sent().0, ack(1, 1, false), "another channel, in ordinary numbers");
}
