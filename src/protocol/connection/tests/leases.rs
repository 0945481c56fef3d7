//! Commits for which RabbitMQ is not asked, because it was a moment ago.

use super::half::{channel_open, flow_ok};
use super::*;

const SEAT: u16 = u16::MAX;

fn leased() -> ConnectionSettings {
    ConnectionSettings { judgement: Duration::from_secs(1), ..settings() }
}

/// With channel 1 in tx mode, and a message of one kind judged and committed.
fn judged() -> Script {
    let mut script = Script::transactional(leased());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    assert_eq!(methods(&script.sent().1), [(1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK)]);
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    commit(&mut script);
    script
}

/// The store and the relay do their part.
fn commit(script: &mut Script) {
    let (id, ..) = script.decide();
    script.committed(id);
    script.forwarded(id, Vec::new());
    assert_eq!(methods(&script.sent().0), [(1, id::TX_COMMIT_OK)]);
}

fn again(script: &mut Script) -> Vec<(u16, (u16, u16))> {
    script.client(&[publish(1, b"two"), bare(1, id::TX_COMMIT)].concat());
    methods(&script.sent().1)
}

#[test]
fn the_next_commit_asks_nobody() {
    let mut script = judged();
    for _ in 0..3 {
        assert_eq!(again(&mut script), []);
        commit(&mut script);
    }
    script.client(&[message(1, b"other", 0, &empty(0), b""), bare(1, id::TX_COMMIT)].concat());
    assert_eq!(methods(&script.sent().1), [(1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK)], "another kind");
}

#[test]
fn what_the_client_asked_before_is_answered_before_its_commit() {
    let mut script = judged();
    let mut get = Vec::new();
    frame::write_method(&mut get, 1, id::BASIC_GET, |out| out.extend(b"\0\0\x01q\0"));
    script.client(&get);
    assert_eq!(again(&mut script), [(1, id::BASIC_GET), (1, id::TX_ROLLBACK)]);
    let mut empty = Vec::new();
    frame::write_method(&mut empty, 1, id::BASIC_GET_EMPTY, |out| out.put_u8(0));
    script.upstream(&[empty, bare(1, id::TX_ROLLBACK_OK)].concat());
    assert_eq!(methods(&script.sent().0), [(1, id::BASIC_GET_EMPTY)]);
    commit(&mut script);
    assert_eq!(again(&mut script), [], "nothing was asked since");
}

#[test]
fn a_first_commit_waits_for_the_answer_to_select() {
    let mut script = Script::open(leased());
    script.client(&[bare(1, id::TX_SELECT), control(1, b"commit", "order-1", b""), bare(1, id::TX_COMMIT)].concat());
    assert_eq!(methods(&script.sent().1), [(1, id::TX_SELECT), (1, id::TX_ROLLBACK)]);
    assert!(script.commands.is_empty());
}

#[test]
fn acks_are_found_right_by_rabbitmq_before_anything_is_decided() {
    let mut script = judged();
    script.upstream(&deliver(1, 1, 0));
    script.sent();
    script.client(&ack(1, 1, false));
    assert_eq!(again(&mut script), [(1, id::BASIC_ACK), (1, id::TX_ROLLBACK)]);
}

#[test]
fn a_lease_is_renewed_on_the_side_and_not_on_the_channel() {
    let mut script = judged();
    script.later(Duration::from_millis(600));
    let asks = [(SEAT, id::CHANNEL_OPEN), (SEAT, id::TX_SELECT), (SEAT, id::BASIC_PUBLISH), (SEAT, id::TX_ROLLBACK)];
    assert_eq!(again(&mut script), asks);
    commit(&mut script);
    script.upstream(&[bare(SEAT, id::CHANNEL_OPEN_OK), bare(SEAT, id::TX_SELECT_OK)].concat());
    script.upstream(&bare(SEAT, id::TX_ROLLBACK_OK));
    assert_eq!(methods(&script.sent().1), [(SEAT, id::CHANNEL_CLOSE)], "the next one wants another");
    script.upstream(&bare(SEAT, id::CHANNEL_CLOSE_OK));
    script.later(Duration::from_millis(450));
    assert_eq!(again(&mut script), []);
    commit(&mut script);
    script.later(Duration::from_millis(150));
    assert_eq!(again(&mut script), asks);
}

#[test]
fn the_judge_of_half_messages_is_another_one_after_a_while() {
    let mut script = Script::open(leased());
    script.client(&[channel_open(1), half(1, "order-1", b"")].concat());
    script.upstream(&flow_ok(1));
    script.sent();
    script.later(Duration::from_millis(600));
    let mut headers = Vec::new();
    table::write_string(&mut headers, b"x-half-transaction", b"order-2");
    script.client(&message(1, b"other", 0, &full(0, &headers), b""));
    assert_eq!(methods(&script.sent().1), [(SEAT, id::CHANNEL_CLOSE)], "this one would say yes from memory");
    script.upstream(&[bare(SEAT, id::TX_ROLLBACK_OK), bare(SEAT, id::CHANNEL_CLOSE_OK)].concat());
    let Command::Park { named: Some(named), .. } = script.command() else { panic!("it is parked") };
    assert_eq!(named.name.as_str(), "order-1");
    let asked = methods(&script.sent().1);
    assert_eq!(asked[..3], [(SEAT, id::CHANNEL_OPEN), (SEAT, id::TX_SELECT), (SEAT, id::BASIC_PUBLISH)]);
    script.upstream(&bare(SEAT, id::TX_ROLLBACK_OK));
    let Command::Park { named: Some(named), .. } = script.command() else { panic!("it is parked") };
    assert_eq!(named.name.as_str(), "order-2");
}

#[test]
fn a_no_to_a_renewal_closes_the_channel_that_has_such_a_message() {
    let no = "ACCESS_REFUSED - write access to exchange 'x' in vhost 'shop' refused for user 'orders'";
    let mut script = judged();
    script.later(Duration::from_millis(600));
    script.client(&publish(1, b"two"));
    script.upstream(&close(SEAT, 403, no));
    assert_eq!(closed(&script.sent().0), (1, no.into()));
    assert_eq!(script.lease_ends, 1, "others go by the same word");

    // The transaction that renewed it is decided: the next one hears of it.
    let mut script = judged();
    script.later(Duration::from_millis(600));
    again(&mut script);
    let (id, ..) = script.decide();
    script.upstream(&close(SEAT, 403, no));
    script.committed(id);
    script.forwarded(id, Vec::new());
    assert_eq!(methods(&script.sent().0), [(1, id::TX_COMMIT_OK)]);
    script.client(&publish(1, b"three"));
    assert_eq!(closed(&script.sent().0), (1, no.into()));
}

#[test]
fn whoever_takes_something_away_ends_the_leases_of_all() {
    let take = |method| {
        let mut out = Vec::new();
        frame::write_method(&mut out, 2, method, |out| out.extend(b"\0\0\x01x\0"));
        out
    };
    for (method, answer) in [
        (id::EXCHANGE_DELETE, id::EXCHANGE_DELETE_OK),
        (id::EXCHANGE_UNBIND, id::EXCHANGE_UNBIND_OK),
        (id::QUEUE_DELETE, id::QUEUE_DELETE_OK),
        (id::QUEUE_UNBIND, id::QUEUE_UNBIND_OK),
    ] {
        let mut script = judged();
        script.client(&[channel_open(2), take(method)].concat());
        script.upstream(&bare(2, answer));
        assert_eq!(script.lease_ends, 2, "when it is asked for, and when it is done");
        script.sent();
        script.connection.io.routing += 1;
        assert_eq!(again(&mut script), [(1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK)]);
    }
}

#[test]
fn a_new_secret_and_a_declare_end_the_leases_that_they_concern() {
    for (channel, method) in [(0, id::CONNECTION_UPDATE_SECRET), (1, (40, 10))] {
        let mut script = judged();
        script.client(&bare(channel, method));
        script.sent();
        script.client(&publish(1, b"two"));
        assert_eq!(methods(&script.sent().1), [(1, id::BASIC_PUBLISH)]);
    }
}

#[test]
fn a_named_message_is_parked_at_once() {
    let mut script = judged();
    script.client(&half(1, "order-1", b""));
    assert_eq!(
        methods(&script.sent().1),
        [(1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK)],
        "it has properties of its own"
    );
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let Command::Park { transaction, .. } = script.command() else { panic!("it is parked") };
    script.connection.handle_parked(1, transaction, Ok(()));
    script.client(&half(1, "order-1", b""));
    assert!(matches!(script.command(), Command::Park { .. }));
    assert_eq!(script.sent().1, b"");
}

#[test]
fn half_messages_on_an_ordinary_channel_go_by_a_lease_too() {
    let mut script = Script::open(leased());
    script.client(&[channel_open(1), half(1, "order-1", b"")].concat());
    script.upstream(&[flow_ok(1), bare(SEAT, id::TX_ROLLBACK_OK)].concat());
    assert!(matches!(script.command(), Command::Park { .. }));
    script.sent();
    script.client(&half(1, "order-2", b""));
    assert!(matches!(script.command(), Command::Park { .. }));
    assert_eq!(script.sent().1, b"");
    script.later(Duration::from_secs(1));
    script.client(&half(1, "order-3", b""));
    assert!(script.commands.is_empty(), "it is asked about");
}

#[test]
fn a_user_without_a_channel_to_spare_is_asked_about_on_its_own() {
    let mut limited = Vec::new();
    let text =
        b"NOT_ALLOWED - number of channels opened for user 'orders' has reached the maximum allowed user limit of 1";
    Close { code: ReplyCode::NOT_ALLOWED, text, method: id::CHANNEL_OPEN }.write(&mut limited, 0);
    let mut script = judged();
    script.later(Duration::from_millis(600));
    again(&mut script);
    script.upstream(&limited);
    assert!(script.commands.iter().any(|command| matches!(command, Command::NoSpareChannel)));

    let mut script = judged();
    script.connection.io.spare_channel = false;
    script.later(Duration::from_millis(600));
    assert_eq!(again(&mut script), [], "the lease runs out");
    commit(&mut script);
    script.later(Duration::from_millis(500));
    assert_eq!(again(&mut script), [(1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK)]);
    script.client(&[channel_open(2), half(2, "order-1", b"")].concat());
    script.upstream(&flow_ok(2));
    assert!(closed(&script.sent().0).1.contains("lets user 'orders' open no more channels"));
}
