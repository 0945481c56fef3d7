//! Nobody owns or decides a transaction before RabbitMQ has said that its name is its own.

use super::half::flow_ok;
use super::*;
use crate::amqp::properties::Properties;
use crate::tx::decision::Decision;

/// Where the judge sits.
const SEAT: u16 = u16::MAX;

const OWN_REFUSAL: &str = "ACCESS_REFUSED - access to exchange 'amq.default' in vhost 'shop' refused for user 'orders'";
const LIE: &str = "PRECONDITION_FAILED - user_id property set to 'orders' but authenticated user was 'somebody'";

/// A client that has logged in as orders, which RabbitMQ has let in.
fn claimed() -> Script {
    let mut script = Script::open(settings());
    script.connection.io.user_confirmed = false;
    script
}

/// The users in the content headers of some frames; `None` for one without.
fn users(mut frames: &[u8]) -> Vec<Option<String>> {
    let mut found = Vec::new();
    while let Split::Frame(frame) = frame::split(frames, FRAME_BYTES_MAX) {
        if frame.kind == kind::HEADER {
            let user = Properties::parse(frame.payload).unwrap().user_id;
            found.push(user.map(|user| String::from_utf8_lossy(user).into_owned()));
        }
        frames = &frames[frame.raw.len()..];
    }
    found
}

fn decided(script: &mut Script) -> (Decision, String) {
    let Command::Decide { decision, name, .. } = script.command() else { panic!("the store decides") };
    (decision, name.to_string())
}

/// Everything that is on its way on the judge's channel is answered.
fn judged(script: &mut Script) {
    script.upstream(&bare(SEAT, id::TX_ROLLBACK_OK));
}

#[test]
fn a_named_transaction_asks_about_its_user_once() {
    let mut script = claimed();
    script.client(&[bare(1, id::TX_SELECT), half(1, "order-1", b"one")].concat());
    let to_upstream = script.sent().1;
    let expected = [id::TX_SELECT, id::BASIC_PUBLISH, id::BASIC_PUBLISH, id::TX_ROLLBACK];
    assert_eq!(methods(&to_upstream), expected.map(|method| (1, method)));
    assert_eq!(users(&to_upstream), [Some("orders".into()), Some("guest".into())], "the message says whom it wants");
    assert!(!script.commands.iter().any(|command| matches!(command, Command::Park { .. })));
    script.upstream(&[bare(1, id::TX_SELECT_OK), bare(1, id::TX_ROLLBACK_OK)].concat());
    assert!(script.connection.io.user_confirmed);
    script.client(&[bare(2, id::TX_SELECT), half(2, "order-2", b"two")].concat());
    assert_eq!(users(&script.sent().1), [Some("guest".into())]);
}

#[test]
fn a_transaction_without_a_name_asks_about_no_user() {
    let mut script = claimed();
    script.client(&[bare(1, id::TX_SELECT), publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    assert_eq!(users(&script.sent().1), [None]);
    script.upstream(&[bare(1, id::TX_SELECT_OK), bare(1, id::TX_ROLLBACK_OK)].concat());
    assert!(!script.connection.io.user_confirmed, "RabbitMQ was not asked");
}

#[test]
fn a_half_message_on_an_ordinary_channel_asks_too() {
    let mut script = claimed();
    script.client(&half(1, "order-1", b"one"));
    script.upstream(&flow_ok(1));
    assert_eq!(users(&script.sent().1), [Some("orders".into()), Some("guest".into())]);
    script.upstream(&close(SEAT, 406, LIE));
    assert_eq!(closed(&script.sent().0), (1, LIE.into()));
    assert!(script.commands.is_empty() && !script.connection.io.user_confirmed);
}

#[test]
fn a_decision_waits_until_the_user_is_known() {
    for answer in [bare(SEAT, id::TX_ROLLBACK_OK), close(SEAT, 403, OWN_REFUSAL)] {
        let mut script = claimed();
        script.client(&control(1, b"commit", "order-1", b""));
        assert_eq!(users(&script.sent().1), [Some("orders".into())]);
        assert!(script.commands.is_empty());
        script.upstream(&answer);
        assert_eq!(decided(&mut script), (Decision::Commit, "order-1".into()));
        // The next one is known.
        script.client(&control(2, b"rollback", "order-2", b""));
        assert_eq!(decided(&mut script), (Decision::RollBack, "order-2".into()));
    }
}

#[test]
fn a_decision_in_a_transaction_waits_too() {
    for answer in [bare(SEAT, id::TX_ROLLBACK_OK), close(SEAT, 403, OWN_REFUSAL)] {
        let mut script = claimed();
        script.client(&[bare(1, id::TX_SELECT), control(1, b"commit", "order-1", b"")].concat());
        script.client(&bare(1, id::TX_COMMIT));
        script.upstream(&[bare(1, id::TX_SELECT_OK), bare(1, id::TX_ROLLBACK_OK)].concat());
        assert_eq!(users(&script.sent().1), [Some("orders".into())]);
        assert!(script.commands.is_empty());
        script.upstream(&answer);
        assert_eq!(decided(&mut script), (Decision::Commit, "order-1".into()));
    }
}

#[test]
fn who_has_another_name_decides_nothing() {
    let other = OWN_REFUSAL.replace("'orders'", "'somebody'");
    let elsewhere = OWN_REFUSAL.replace("'shop'", "'other'");
    for (code, text) in [(406, LIE), (403, &other), (403, &elsewhere), (404, OWN_REFUSAL)] {
        let says = format!(
            "PRECONDITION_FAILED - RabbitMQ does not confirm that this is user 'orders', whose transaction it would be: {text}"
        );
        let mut script = claimed();
        script.client(&control(1, b"commit", "order-1", b""));
        script.upstream(&flow_ok(1));
        script.sent();
        script.upstream(&close(SEAT, code, text));
        assert!(says.starts_with(&closed(&script.sent().0).1), "{text}");
        assert!(script.commands.is_empty() && !script.connection.io.user_confirmed);

        script = claimed();
        script.client(&[bare(1, id::TX_SELECT), control(1, b"commit", "order-1", b"")].concat());
        script.client(&bare(1, id::TX_COMMIT));
        script.upstream(&[bare(1, id::TX_SELECT_OK), bare(1, id::TX_ROLLBACK_OK)].concat());
        script.sent();
        script.upstream(&close(SEAT, code, text));
        assert!(says.starts_with(&closed(&script.sent().0).1), "{text}");
        assert!(!script.commands.iter().any(|command| matches!(command, Command::Decide { .. })));
    }
}

#[test]
fn nothing_is_decided_when_rabbitmq_is_gone_before_it_answers() {
    for transactional in [false, true] {
        let mut script = claimed();
        if transactional {
            script.client(&[bare(1, id::TX_SELECT)].concat());
        }
        script.client(&control(1, b"commit", "order-1", b""));
        if transactional {
            script.client(&bare(1, id::TX_COMMIT));
            script.upstream(&[bare(1, id::TX_SELECT_OK), bare(1, id::TX_ROLLBACK_OK)].concat());
        }
        script.connection.handle_upstream_lost();
        script.collect();
        judged(&mut script);
        assert!(!script.commands.iter().any(|command| matches!(command, Command::Decide { .. })));
    }
}
