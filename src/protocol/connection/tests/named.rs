//! Named transactions on transactional channels.

use super::*;

/// Takes the command to park: the id, the name, and how many messages.
fn parked(script: &mut Script) -> (TransactionId, String, u32) {
    let Command::Park { channel: 1, transaction, named: Some(named), batch } = script.command() else {
        panic!("something is parked under a name")
    };
    assert!(named.transactional);
    (transaction, named.name.to_string(), batch.messages())
}

fn keep(script: &mut Script, id: TransactionId) {
    script.connection.handle_parked(1, id, Ok(()));
    script.collect();
}

fn judge(script: &mut Script) {
    script.upstream(&bare(1, id::TX_ROLLBACK_OK));
}

/// With one message of `order-1` durable, and its id.
fn with_one(settings: ConnectionSettings) -> (Script, TransactionId) {
    let mut script = Script::transactional(settings);
    script.client(&half(1, "order-1", b"one"));
    judge(&mut script);
    let (id, ..) = parked(&mut script);
    keep(&mut script, id);
    script.sent();
    (script, id)
}

#[test]
fn messages_are_durable_as_they_come_and_not_before_they_are_judged() {
    let mut script = Script::transactional(settings());
    script.client(&half(1, "order-1", b"one"));
    assert_eq!(methods(&script.sent().1), [(1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK)]);
    assert!(script.commands.is_empty(), "RabbitMQ has not judged");
    // While it judges, the next ones gather; they are like the first, so nothing has to be asked about them.
    script.client(&[half(1, "order-1", b"two"), publish(1, b"three")].concat());
    judge(&mut script);
    let (id, name, messages) = parked(&mut script);
    assert_eq!((name.as_str(), messages), ("order-1", 1));
    // "three" has other properties: it was probed and is judged on its own.
    assert!(script.commands.is_empty());
    judge(&mut script);
    assert_eq!(parked(&mut script), (id, "order-1".into(), 2));
}

#[test]
fn the_barrier_is_passed_when_everything_before_it_is_durable() {
    let mut script = Script::transactional(settings());
    script.client(&[half(1, "order-1", b"one"), bare(1, id::TX_SELECT), bare(1, id::TX_COMMIT)].concat());
    assert_eq!(
        methods(&script.sent().1),
        [(1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK), (1, id::TX_SELECT)],
        "the commit waits behind the barrier"
    );
    script.upstream(&[bare(1, id::TX_ROLLBACK_OK), bare(1, id::TX_SELECT_OK)].concat());
    let (id, ..) = parked(&mut script);
    assert_eq!(script.sent().0, b"", "judged, not durable");
    keep(&mut script, id);
    assert_eq!(script.sent(), (bare(1, id::TX_SELECT_OK), Vec::new()), "and the commit needs no fence");
    assert_eq!(script.decide(), (id, Vec::new(), true));
    script.committed(id);
    script.forwarded(id, Vec::new());
    assert_eq!(script.sent().0, bare(1, id::TX_COMMIT_OK));
}

#[test]
fn the_answer_to_the_first_select_is_not_taken_for_that_to_the_barrier() {
    let mut script = Script::open(settings());
    script.client(&[bare(1, id::TX_SELECT), half(1, "order-1", b"one"), bare(1, id::TX_SELECT)].concat());
    script.upstream(&bare(1, id::TX_SELECT_OK));
    assert_eq!(script.sent().0, bare(1, id::TX_SELECT_OK), "it is told at once");
    script.upstream(&[bare(1, id::TX_ROLLBACK_OK), bare(1, id::TX_SELECT_OK)].concat());
    let (id, ..) = parked(&mut script);
    assert_eq!(script.sent().0, b"", "judged, not durable");
    keep(&mut script, id);
    assert_eq!(script.sent().0, bare(1, id::TX_SELECT_OK));
}

#[test]
fn a_commit_does_not_overtake_what_was_asked_before_it() {
    let (mut script, id) = with_one(settings());
    let mut declare = Vec::new();
    frame::write_method(&mut declare, 1, (50, 10), |out| out.extend(b"\0\0\x01q\0\0\0\0\0"));
    script.client(&[declare.clone(), bare(1, id::TX_COMMIT)].concat());
    assert_eq!(script.sent().1, [declare, bare(1, id::TX_ROLLBACK)].concat(), "although all of it is kept");
    script.upstream(&[bare(1, (50, 11)), bare(1, id::TX_ROLLBACK_OK)].concat());
    assert_eq!(script.sent().0, bare(1, (50, 11)));
    assert_eq!(script.decide().0, id);
}

#[test]
fn a_barrier_without_a_name_is_rabbitmqs() {
    let mut script = Script::transactional(settings());
    script.client(&[publish(1, b"one"), bare(1, id::TX_SELECT)].concat());
    script.upstream(&bare(1, id::TX_SELECT_OK));
    assert_eq!(script.sent().0, bare(1, id::TX_SELECT_OK));
}

#[test]
fn a_commit_behind_messages_waits_until_they_are_judged_and_kept() {
    let mut script = Script::transactional(settings());
    script.client(&[half(1, "order-1", b"one"), publish(1, b"two"), bare(1, id::TX_COMMIT)].concat());
    judge(&mut script);
    let (id, ..) = parked(&mut script);
    judge(&mut script);
    assert_eq!(parked(&mut script), (id, "order-1".into(), 1));
    keep(&mut script, id);
    assert!(script.commands.is_empty(), "one of two is kept");
    keep(&mut script, id);
    assert_eq!(script.decide(), (id, Vec::new(), true));
}

#[test]
fn acks_survive_the_judgements() {
    let mut script = Script::transactional(settings());
    script.upstream(&deliver(1, 1, 0));
    script.client(&[ack(1, 1, false), half(1, "order-1", b"one")].concat());
    assert!(script.sent().1.ends_with(&bare(1, id::TX_ROLLBACK)));
    judge(&mut script);
    let (id, ..) = parked(&mut script);
    keep(&mut script, id);
    script.client(&bare(1, id::TX_COMMIT));
    let again = [bare(1, id::TX_ROLLBACK), ack(1, 1, false), bare(1, id::TX_ROLLBACK)].concat();
    assert_eq!(script.sent().1, again);
    judge(&mut script);
    judge(&mut script);
    assert_eq!(script.decide().0, id);
    script.sent();
    script.committed(id);
    assert_eq!(script.sent().1, [ack(1, 1, false), bare(1, id::TX_COMMIT)].concat());
}

#[test]
fn whatever_ends_the_channel_undecided_leaves_it_in_doubt() {
    let mut not_found = Vec::new();
    let text = b"NOT_FOUND - no queue 'q' in vhost 'shop'";
    Close { code: ReplyCode::NOT_FOUND, text, method: (50, 10) }.write(&mut not_found, 1);
    let mut goodbye = Vec::new();
    Close { code: ReplyCode::SUCCESS, text: b"bye", method: (0, 0) }.write(&mut goodbye, 0);
    type End = Box<dyn Fn(&mut Script)>;
    let ends: [(&str, End); 6] = [
        ("channel.close", Box::new(|script| script.client(&bare(1, id::CHANNEL_CLOSE)))),
        ("connection.close", Box::new(move |script| script.client(&goodbye))),
        ("the client is lost", Box::new(|script| script.connection.handle_client_lost())),
        ("RabbitMQ is lost", Box::new(|script| script.connection.handle_upstream_lost())),
        ("the proxy ends", Box::new(|script| script.connection.drain())),
        ("RabbitMQ refuses something else", Box::new(move |script| script.upstream(&not_found))),
    ];
    for (name, end) in ends {
        let (mut script, id) = with_one(settings());
        end(&mut script);
        script.collect();
        assert!(
            matches!(script.command(), Command::Abandon { transaction } if transaction == id),
            "{name} leaves it in doubt"
        );
    }
}

#[test]
fn a_client_that_closes_its_channel_hears_nothing_that_it_did_not_ask_for() {
    let mut script = Script::transactional(settings());
    script.client(&[half(1, "order-1", b"one"), bare(1, id::CHANNEL_CLOSE)].concat());
    judge(&mut script);
    assert_eq!(script.sent().0, b"", "the judgement was the proxy's question");
    script.upstream(&bare(1, id::CHANNEL_CLOSE_OK));
    assert_eq!(script.sent().0, bare(1, id::CHANNEL_CLOSE_OK));
}

#[test]
fn a_client_that_is_lost_in_its_commit_leaves_it_in_doubt_or_decided() {
    let (mut script, id) = with_one(settings());
    // A further message has to be judged, so that the commit is still in its fence.
    script.client(&[publish(1, b"two"), bare(1, id::TX_COMMIT)].concat());
    script.connection.handle_client_lost();
    script.collect();
    assert!(script.commands.is_empty(), "RabbitMQ has not judged it");
    script.later(LOST_FOR);
    assert!(matches!(script.command(), Command::Abandon { transaction } if transaction == id));

    let (mut script, id) = with_one(settings());
    script.client(&bare(1, id::TX_COMMIT));
    script.connection.handle_client_lost();
    script.collect();
    assert_eq!(script.decide().0, id);
    assert!(!script.commands.iter().any(|command| matches!(command, Command::Abandon { .. })), "it is being decided");
}

#[test]
fn a_commit_that_the_store_fails_leaves_it_in_doubt() {
    let (mut script, id) = with_one(settings());
    script.client(&bare(1, id::TX_COMMIT));
    script.decide();
    script.connection.handle_committed(1, id, Err(StoreError::Io("input/output error".into())));
    script.collect();
    assert!(matches!(script.command(), Command::Abandon { transaction } if transaction == id));
    assert_eq!(methods(&script.sent().0), [(1, id::CHANNEL_CLOSE)]);
}

#[test]
fn a_refused_publish_rolls_it_back_with_the_reason() {
    let (mut script, id) = with_one(settings());
    script.client(&publish(1, b"refused"));
    script.upstream(&close(1, 404, "NOT_FOUND - no exchange 'x' in vhost 'shop'"));
    let Command::RollBack { transaction, reason: Some(reason), .. } = script.command() else { panic!("it is decided") };
    assert_eq!(transaction, id);
    assert_eq!(reason, "refused by RabbitMQ: 404 NOT_FOUND - no exchange 'x' in vhost 'shop'");
    script.connection.handle_client_lost();
    script.collect();
    assert!(!script.commands.iter().any(|command| matches!(command, Command::Abandon { .. })));
}

#[test]
fn what_ends_a_commit_before_all_of_it_is_kept_rolls_it_back_with_the_reason() {
    let reason = |script: &mut Script| match script.command() {
        Command::RollBack { reason: Some(reason), .. } => reason,
        other => panic!("half of it is left: {other:?}"),
    };
    // The store can't keep the second message, whose commit is on its way.
    let (mut script, id) = with_one(settings());
    script.client(&[publish(1, b"two"), bare(1, id::TX_COMMIT)].concat());
    judge(&mut script);
    parked(&mut script);
    script.connection.handle_parked(1, id, Err(StoreError::Full("disk full".into())));
    script.collect();
    assert!(reason(&mut script).ends_with("the store is full: disk full"));
    // RabbitMQ refuses it.
    let (mut script, _) = with_one(settings());
    script.client(&[publish(1, b"two"), bare(1, id::TX_COMMIT)].concat());
    script.upstream(&close(1, 404, "NOT_FOUND - no exchange 'x' in vhost 'shop'"));
    assert_eq!(reason(&mut script), "refused by RabbitMQ: 404 NOT_FOUND - no exchange 'x' in vhost 'shop'");
}

#[test]
fn a_rollback_while_rabbitmq_judges_forgets_what_it_judges() {
    let mut script = Script::transactional(settings());
    script.client(&[half(1, "order-1", b"one"), bare(1, id::TX_ROLLBACK), half(1, "order-2", b"two")].concat());
    judge(&mut script);
    assert!(script.commands.is_empty(), "it was rolled back before it was kept");
    judge(&mut script);
    assert_eq!(methods(&script.sent().0), [(1, id::TX_ROLLBACK_OK)]);
    judge(&mut script);
    assert_eq!(parked(&mut script).1, "order-2");
}

#[test]
fn a_rollback_of_what_is_kept_is_answered_when_rabbitmq_and_the_store_have_done_it() {
    for store_first in [true, false] {
        let (mut script, id) = with_one(settings());
        script.client(&[bare(1, id::TX_ROLLBACK), half(1, "order-2", b"two")].concat());
        assert!(
            matches!(script.command(), Command::RollBack { channel: 1, transaction, reason: None } if transaction == id)
        );
        assert_eq!(methods(&script.sent().1), [(1, id::TX_ROLLBACK)], "what comes behind it waits");
        let kept = |script: &mut Script| {
            script.connection.handle_rolled_back(1, id, Ok(()));
            script.collect();
        };
        if store_first {
            kept(&mut script);
        } else {
            judge(&mut script);
        }
        assert_eq!(methods(&script.sent().0), [], "a crash could still leave it in doubt");
        if store_first {
            judge(&mut script);
        } else {
            kept(&mut script);
        }
        let (to_client, to_upstream) = script.sent();
        assert_eq!(methods(&to_client), [(1, id::TX_ROLLBACK_OK)]);
        assert_eq!(methods(&to_upstream), [(1, id::BASIC_PUBLISH), (1, id::TX_ROLLBACK)]);
    }
}

#[test]
fn a_rollback_that_the_store_can_not_keep_is_not_answered_with_ok() {
    let (mut script, id) = with_one(settings());
    script.client(&bare(1, id::TX_ROLLBACK));
    script.command();
    judge(&mut script);
    script.connection.handle_rolled_back(1, id, Err(StoreError::Full("no space".into())));
    script.collect();
    let (to_client, _) = script.sent();
    assert_eq!(methods(&to_client), [(1, id::CHANNEL_CLOSE)]);
}

#[test]
fn one_transaction_has_one_name_from_its_first_message_on() {
    let refused = |frames: &[Vec<u8>]| {
        let mut script = Script::transactional(settings());
        script.client(&frames.concat());
        closed(&script.sent().0).1
    };
    assert_eq!(
        refused(&[half(1, "a", b""), half(1, "b", b"")]),
        "PRECONDITION_FAILED - header x-half-transaction is 'b', the transaction of this channel is 'a'"
    );
    assert_eq!(
        refused(&[publish(1, b""), half(1, "a", b"")]),
        "PRECONDITION_FAILED - header x-half-transaction must come with the first message of a transaction"
    );
    assert_eq!(refused(&[half(1, "", b"")]), "PRECONDITION_FAILED - header x-half-transaction is empty");
}

#[test]
fn a_name_that_is_open_elsewhere_is_locked() {
    let mut script = Script::transactional(settings());
    script.client(&half(1, "order-1", b"one"));
    judge(&mut script);
    let (id, ..) = parked(&mut script);
    script.sent();
    script.connection.handle_parked(1, id, Err(StoreError::Locked("order-1".into())));
    let text = "RESOURCE_LOCKED - transaction 'order-1' is open on another channel";
    assert_eq!(closed(&script.sent().0), (1, text.into()));
}

#[test]
fn what_was_committed_before_is_not_waited_for() {
    let (mut script, id) = with_one(settings());
    script.client(&bare(1, id::TX_COMMIT));
    script.decide();
    script.connection.handle_committed(1, id, Ok(false));
    assert_eq!(script.sent().0, bare(1, id::TX_COMMIT_OK));
}

#[test]
fn decisions_on_a_transactional_channel_are_made_at_its_commit_and_before_it() {
    let mut script = Script::transactional(settings());
    let decision = control(1, b"commit", "order-9", b"");
    script.client(&[publish(1, b"own"), decision, bare(1, id::TX_COMMIT)].concat());
    judge(&mut script);
    let Command::Decide { channel: 1, ticket, name, .. } = script.command() else { panic!("others come first") };
    assert!(script.commands.is_empty());
    script.connection.handle_decided(1, ticket, &name, Ok(Verdict::Unknown));
    script.collect();
    assert_eq!(closed(&script.sent().0), (1, "NOT_FOUND - no transaction 'order-9'".into()));
    assert!(!script.commands.iter().any(|command| matches!(command, Command::Commit { .. })), "nothing is committed");
}

#[test]
fn a_commit_that_only_decides_about_others_ends_once_when_its_client_is_lost() {
    let mut script = Script::transactional(settings());
    let decision = control(1, b"commit", "order-9", b"");
    script.connection.handle_client(&[decision, bare(1, id::TX_COMMIT)].concat());
    script.connection.handle_upstream(&bare(1, id::TX_ROLLBACK_OK));
    script.connection.handle_client_lost();
    script.connection.handle_time(script.now + LOST_FOR);
    let commands: Vec<_> = std::iter::from_fn(|| script.connection.poll_command()).collect();
    let count = |is: fn(&Command) -> bool| commands.iter().filter(|command| is(command)).count();
    assert_eq!(count(|command| matches!(command, Command::Began)), 1);
    assert_eq!(count(|command| matches!(command, Command::Ended(_))), 1);
}

/// RabbitMQ's judgement came between the frames of a decision: what had gathered meanwhile was never judged, and the
/// barrier never answered.
#[test]
fn what_gathers_while_a_decision_comes_is_judged_behind_it() {
    let mut script = Script::transactional(settings());
    script.client(&[half(1, "order-1", b"one"), publish(1, b"two")].concat());
    let decision = control(1, b"commit", "order-9", b"");
    let Split::Frame(method) = frame::split(&decision, 1000) else { panic!("a decision") };
    let (method, header) = decision.split_at(method.raw.len());
    script.client(method);
    judge(&mut script);
    let (id, ..) = parked(&mut script);
    keep(&mut script, id);
    script.sent();
    script.client(&[header, &bare(1, id::TX_SELECT)].concat());
    assert_eq!(methods(&script.sent().1), [(1, id::TX_ROLLBACK), (1, id::TX_SELECT)]);
    judge(&mut script);
    assert_eq!(parked(&mut script), (id, "order-1".into(), 1));
    keep(&mut script, id);
    script.upstream(&bare(1, id::TX_SELECT_OK));
    assert_eq!(script.sent().0, bare(1, id::TX_SELECT_OK));
}
