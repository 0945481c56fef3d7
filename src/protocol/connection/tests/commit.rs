//! A transaction, from its first message to tx.commit-ok.

use super::*;

#[test]
fn a_commit_is_judged_then_durable_then_forwarded_then_answered() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), publish(1, b"two")].concat());
    let (_, probe) = script.sent();
    assert_eq!(methods(&probe), [(1, id::BASIC_PUBLISH)], "equal publishes need one probe");
    assert!(!probe.windows(3).any(|window| window == b"one"), "and no body");
    script.client(&bare(1, id::TX_COMMIT));
    assert_eq!(script.sent(), (Vec::new(), bare(1, id::TX_ROLLBACK)), "the fence");
    assert!(script.commands.is_empty(), "nothing is decided before RabbitMQ has judged");

    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    assert_eq!(script.sent(), (Vec::new(), Vec::new()), "the fence is not the client's business");
    let (id, messages, parked) = script.decide();
    assert!(!parked);
    let bodies: Vec<_> = batch::iter(&messages).map(|message| message.unwrap().body.to_vec()).collect();
    assert_eq!(bodies, [b"one", b"two"]);

    script.committed(id);
    assert_eq!(script.sent(), (Vec::new(), Vec::new()), "the relay is waited for");
    script.forwarded(id, Vec::new());
    assert_eq!(script.sent(), (bare(1, id::TX_COMMIT_OK), Vec::new()));
    assert_eq!(script.connection.io.committing, 0);
}

#[test]
fn a_mandatory_message_is_returned_before_commit_ok_or_later_but_never_lost() {
    let returned = || {
        let mut arguments = Vec::new();
        let returned = Return { code: ReplyCode::NO_ROUTE, text: b"NO_ROUTE", exchange: b"x", routing_key: b"k" };
        returned.write(&mut arguments, 1);
        let arguments = Bytes::copy_from_slice(&arguments[11..arguments.len() - 1]);
        vec![ReturnedMessage { arguments, header: Bytes::from(empty(4)), body: Bytes::from_static(b"back") }]
    };
    for late in [false, true] {
        let mut script = Script::transactional(ConnectionSettings { forward_wait: Duration::ZERO, ..settings() });
        script.client(&[message(1, b"k", 1, &empty(4), b"back"), bare(1, id::TX_COMMIT)].concat());
        script.upstream(&bare(1, id::TX_ROLLBACK_OK));
        let (id, ..) = script.decide();
        script.sent();
        script.committed(id);
        assert_eq!(script.sent().0, b"", "a return may come, whatever forward_wait says");
        if late {
            script.later(Duration::from_secs(30));
            assert_eq!(methods(&script.sent().0), [(1, id::TX_COMMIT_OK)]);
        }
        script.forwarded(id, returned());
        let (to_client, _) = script.sent();
        assert!(to_client.windows(4).any(|window| window == b"back"));
        let expected: &[_] =
            if late { &[(1, id::BASIC_RETURN)] } else { &[(1, id::BASIC_RETURN), (1, id::TX_COMMIT_OK)] };
        assert_eq!(methods(&to_client), expected);
    }
}

#[test]
fn a_rollback_is_rabbitmqs_and_forgets_everything() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_ROLLBACK), bare(1, id::TX_COMMIT)].concat());
    assert_eq!(methods(&script.sent().1)[1..], [(1, id::TX_ROLLBACK), (1, id::TX_COMMIT)]);
    script.upstream(&[bare(1, id::TX_ROLLBACK_OK), bare(1, id::TX_COMMIT_OK)].concat());
    assert_eq!(methods(&script.sent().0), [(1, id::TX_ROLLBACK_OK), (1, id::TX_COMMIT_OK)]);
    assert!(script.commands.is_empty());
}

#[test]
fn what_rabbitmq_refuses_is_never_decided() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.sent();
    let refusal = close(1, 404, "NOT_FOUND - no exchange 'x' in vhost '/'");
    script.upstream(&refusal);
    assert_eq!(script.sent().0, refusal);
    assert!(script.commands.is_empty());
    let answer = [bare(1, id::CHANNEL_CLOSE_OK), publish(1, b"ordinary again")].concat();
    script.client(&answer);
    assert_eq!(script.sent().1, answer);
    assert_eq!(script.connection.io.committing, 0);
}

/// A client that sent ahead: RabbitMQ had closed the channel and ignored the rest, the proxy began a transaction for it
/// whose fence nobody answered, and the client's close-ok waited behind that for ever. Found by the fuzz target.
#[test]
fn what_is_sent_ahead_on_a_channel_that_rabbitmq_closed_begins_no_transaction() {
    for channel in [1, 2] {
        let mut script = Script::open(settings());
        script.client(&[bare(1, id::CHANNEL_OPEN), bare(1, id::TX_SELECT), bare(2, id::CHANNEL_OPEN)].concat());
        script.upstream(&bare(1, id::TX_SELECT_OK));
        script.upstream(&close(channel, 404, "NOT_FOUND - no queue 'q' in vhost '/'"));
        script.sent();
        let ahead = [bare(channel, id::TX_SELECT), publish(channel, b"one"), bare(channel, id::TX_COMMIT)].concat();
        let answer = [bare(channel, id::CHANNEL_CLOSE_OK), bare(channel, id::CHANNEL_OPEN)].concat();
        script.client(&[&ahead[..], &answer].concat());
        assert_eq!(script.sent().1, [ahead, answer].concat());
        assert_eq!(script.connection.io.committing, 0);

        script.client(&[bare(channel, id::TX_SELECT), publish(channel, b"one"), bare(channel, id::TX_COMMIT)].concat());
        script.upstream(&bare(channel, id::TX_ROLLBACK_OK));
        assert!(matches!(script.command(), Command::Commit { .. }), "the new channel is like any other");
    }
}

#[test]
fn a_large_transaction_goes_to_the_store_in_parts_and_is_decided_when_all_are_kept() {
    let mut script = Script::transactional(limited(|limits| limits.memory_bytes_max = 100));
    let body = [7; 150];
    script.client(&[publish(1, &body), publish(1, b"small"), bare(1, id::TX_COMMIT)].concat());
    let Command::Park { channel: 1, transaction, batch, .. } = script.command() else { panic!("it is parked") };
    assert_eq!(batch.messages(), 1);
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    assert!(script.commands.is_empty(), "no decision before the first part is kept");
    script.connection.handle_parked(1, transaction, Ok(()));
    script.collect();
    let (id, messages, parked) = script.decide();
    assert_eq!((id, parked, batch::iter(&messages).count()), (transaction, true, 1));
}

#[test]
fn a_store_that_fails_is_a_channel_error_and_leaves_the_connection() {
    let full = || StoreError::Full("disk full".into());
    for parked in [false, true] {
        let memory_bytes_max = if parked { 10 } else { 10_000 };
        let mut script = Script::transactional(limited(|limits| limits.memory_bytes_max = memory_bytes_max));
        script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
        script.upstream(&bare(1, id::TX_ROLLBACK_OK));
        script.sent();
        match script.command() {
            Command::Park { transaction, .. } => script.connection.handle_parked(1, transaction, Err(full())),
            Command::Commit { transaction, .. } => script.connection.handle_committed(1, transaction, Err(full())),
            other => panic!("{other:?}"),
        }
        let (to_client, to_upstream) = script.sent();
        let Split::Frame(frame) = frame::split(&to_client, 1000) else { panic!("close") };
        let close = Close::parse(frame.arguments()).unwrap();
        assert_eq!((frame.channel, close.code), (1, ReplyCode::RESOURCE_ERROR));
        assert_eq!(close.text, b"RESOURCE_ERROR - the store is full: disk full");
        assert_eq!(methods(&to_upstream), [(1, id::CHANNEL_CLOSE)]);

        script.client(&[publish(1, b"too late"), bare(1, id::CHANNEL_CLOSE_OK), bare(1, id::CHANNEL_OPEN)].concat());
        assert_eq!(script.sent().1, b"", "RabbitMQ takes no second open before its close-ok");
        script.upstream(&bare(1, id::CHANNEL_CLOSE_OK));
        assert_eq!(methods(&script.sent().1), [(1, id::CHANNEL_OPEN)]);
        script.upstream(&bare(1, id::CHANNEL_OPEN_OK));
        assert_eq!(methods(&script.sent().0), [(1, id::CHANNEL_OPEN_OK)]);
    }
}

#[test]
fn limits_are_channel_errors_with_a_name() {
    let cases: [(ConnectionSettings, Vec<u8>, &str); 3] = [
        (
            limited(|limits| limits.message_bytes_max = Some(3)),
            publish(1, b"four"),
            "PRECONDITION_FAILED - message size 4 is larger than configured max size 3",
        ),
        (
            limited(|limits| limits.messages_max = 1),
            [publish(1, b"one"), publish(1, b"two")].concat(),
            "PRECONDITION_FAILED - transaction of more than 1 messages (transaction.max_messages)",
        ),
        (
            limited(|limits| limits.bytes_max = 10),
            publish(1, b"one"),
            "PRECONDITION_FAILED - transaction of more than 10 bytes (transaction.max_size)",
        ),
    ];
    for (settings, frames, text) in cases {
        let mut script = Script::transactional(settings);
        script.client(&frames);
        let (to_client, _) = script.sent();
        let Split::Frame(frame) = frame::split(&to_client, 1000) else { panic!("close") };
        let close = Close::parse(frame.arguments()).unwrap();
        assert_eq!(String::from_utf8_lossy(close.text), text);
        assert_eq!(close.method, id::BASIC_PUBLISH);
    }
}

#[test]
fn only_a_single_message_and_nothing_else_may_go_before_it_is_durable() {
    let alone = |settings, publishes: &[u8]| {
        let mut script = Script::transactional(settings);
        script.client(&[publishes, &bare(1, id::TX_COMMIT)].concat());
        script.upstream(&bare(1, id::TX_ROLLBACK_OK));
        loop {
            match script.command() {
                Command::Park { transaction, .. } => {
                    script.connection.handle_parked(1, transaction, Ok(()));
                    script.collect();
                }
                Command::Commit { alone, .. } => return alone,
                other => panic!("{other:?}"),
            }
        }
    };
    assert!(alone(settings(), &publish(1, b"one")));
    let hurried = ConnectionSettings { forward_wait: Duration::ZERO, ..settings() };
    assert!(!alone(hurried.clone(), &publish(1, b"nobody waits until RabbitMQ has it")));
    assert!(alone(hurried, &message(1, b"k", 1, &empty(9), b"mandatory")));
    assert!(!alone(settings(), &[publish(1, b"one"), publish(1, b"two")].concat()));
    assert!(!alone(limited(|limits| limits.memory_bytes_max = 1), &publish(1, b"in the store already")));
}

#[test]
fn what_rabbitmq_refuses_before_it_is_durable_is_its_refusal_on_the_clients_channel() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
    let (transaction, ..) = script.decide();
    script.sent();
    let refused = StoreError::Refused(ReplyCode::NOT_FOUND, "no exchange 'x' in vhost '/'".into());
    script.connection.handle_committed(1, transaction, Err(refused));
    let ended: Vec<_> = std::iter::from_fn(|| script.connection.poll_command()).collect();
    assert!(
        matches!(ended[..], [Command::Ended(crate::tx::outcome::Outcome::Refused), Command::EndLeases]),
        "{ended:?}"
    );
    let (to_client, to_upstream) = script.sent();
    let Split::Frame(frame) = frame::split(&to_client, 1000) else { panic!("close") };
    let close = Close::parse(frame.arguments()).unwrap();
    assert_eq!((frame.channel, close.code, close.method), (1, ReplyCode::NOT_FOUND, id::BASIC_PUBLISH));
    assert_eq!(close.text, b"NOT_FOUND - no exchange 'x' in vhost '/'");
    assert_eq!(methods(&to_upstream), [(1, id::CHANNEL_CLOSE)]);
}
