//! On a channel nothing is said in the middle of a content.

use super::*;

#[test]
fn nothing_is_said_in_the_middle_of_a_delivery() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&[bare(1, id::TX_ROLLBACK_OK), deliver(1, 1, 4)].concat());
    let (id, ..) = script.decide();
    script.committed(id);
    script.sent();
    script.forwarded(id, Vec::new());
    assert_eq!(script.sent().0, b"", "two of four bytes are still to come");
    let mut body = Vec::new();
    frame::write(&mut body, kind::BODY, 1, |out| out.extend(b"body"));
    script.upstream(&body);
    assert_eq!(script.sent().0, [body, bare(1, id::TX_COMMIT_OK)].concat());
}

/// A commit was made, and its answer waited for the end of a delivery: it went with the channel that was refused
/// meanwhile, so that the client could take the commit for one that was not made.
#[test]
fn an_answer_that_waits_for_the_end_of_a_delivery_comes_before_the_close_of_its_channel() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&[bare(1, id::TX_ROLLBACK_OK), deliver(1, 1, 4)].concat());
    let (id, ..) = script.decide();
    script.committed(id);
    script.forwarded(id, Vec::new());
    script.sent();
    script.client(&publish(1, &[0; 10_001]));
    assert_eq!(script.sent().0, b"", "two of four bytes are still to come");
    let mut body = Vec::new();
    frame::write(&mut body, kind::BODY, 1, |out| out.extend(b"body"));
    script.upstream(&body);
    let expected = [body, bare(1, id::TX_COMMIT_OK)].concat();
    let to_client = script.sent().0;
    assert_eq!(to_client[..expected.len()], expected);
    assert!(closed(&to_client[expected.len()..]).1.starts_with("PRECONDITION_FAILED"));
}

#[test]
fn a_direct_reply_goes_natively_inside_rabbitmqs_commit() {
    let mut script = Script::transactional(settings());
    let mut reply = Vec::new();
    Publish { exchange: b"", routing_key: b"amq.rabbitmq.reply-to.g2", flags: 0 }.write(&mut reply, 1);
    frame::write_content(&mut reply, 1, &empty(2), b"hi", 4096);
    script.client(&[&reply[..], &bare(1, id::TX_COMMIT)].concat());
    let (_, to_upstream) = script.sent();
    assert!(!to_upstream.windows(8).any(|window| window == b"reply-to"), "the probe must reach nobody");
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    assert_eq!(script.sent().1, [reply, bare(1, id::TX_COMMIT)].concat());
    assert!(script.commands.is_empty(), "nothing for the store");
    script.upstream(&bare(1, id::TX_COMMIT_OK));
    assert_eq!(script.sent().0, bare(1, id::TX_COMMIT_OK));
}

/// tx.select on a channel with a consumer, and something to refuse at once: the close came between the header and the
/// body of a delivery that had begun while the channel was an ordinary one.
#[test]
fn nothing_is_said_in_the_middle_of_a_delivery_that_began_before_tx_select() {
    let mut script = Script::open(settings());
    script.upstream(&deliver(1, 1, 4));
    script.client(&[bare(1, id::TX_SELECT), publish(1, &[0; 10_001])].concat());
    script.sent();
    let mut body = Vec::new();
    frame::write(&mut body, kind::BODY, 1, |out| out.extend(b"four"));
    script.upstream(&body);
    assert_eq!(script.sent().0, body);
    script.upstream(&bare(1, id::TX_SELECT_OK));
    assert_eq!(methods(&script.sent().0), [(1, id::TX_SELECT_OK), (1, id::CHANNEL_CLOSE)]);
}

/// A client that closed its channel just as the proxy did, in the middle of a delivery, got its close-ok between the
/// header and the body.
#[test]
fn both_sides_may_close_in_the_middle_of_a_delivery() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&[bare(1, id::TX_ROLLBACK_OK), deliver(1, 1, 4)].concat());
    let (id, ..) = script.decide();
    script.sent();
    script.connection.handle_committed(1, id, Err(StoreError::Full("disk full".into())));
    script.client(&bare(1, id::CHANNEL_CLOSE));
    assert_eq!(script.sent().0, b"");
    let mut body = Vec::new();
    frame::write(&mut body, kind::BODY, 1, |out| out.extend(b"four"));
    script.upstream(&body);
    let to_client = script.sent().0;
    assert!(to_client.starts_with(&body));
    assert_eq!(methods(&to_client[body.len()..]), [(1, id::CHANNEL_CLOSE), (1, id::CHANNEL_CLOSE_OK)]);
}
