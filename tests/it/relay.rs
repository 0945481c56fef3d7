//! What is committed reaches RabbitMQ, whatever RabbitMQ does meanwhile.

use crate::support::id;
use crate::support::raw::Login;
use crate::support::table::{Properties, Table};
use crate::support::{
    Broker, PATIENCE, Proxy, Raw, broker, deadline, transactional, unique, wait_until, with_relay_account,
};
use halfway::amqp::frame;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A proxy whose relay has an account of its own on the shared broker, and the account's name.
fn with_own_account(settings: &[(&str, &str)]) -> (Proxy, String) {
    let (mut proxy, account) = with_relay_account(settings);
    proxy.resume();
    (proxy, account)
}

/// Gets `count` messages; their bodies.
fn arrivals(raw: &mut Raw, queue: &str, count: usize) -> Vec<String> {
    (0..count).map(|_| raw.get_soon(2, queue).text()).collect()
}

#[test]
fn a_commit_succeeds_while_the_relay_is_locked_out_and_arrives_in_order_later() {
    let (proxy, account) = with_own_account(&[]);
    let queue = unique("relay-locked");
    let mut raw = transactional(proxy.port, &queue);
    broker().lock_out(&account);
    for number in 0..20 {
        raw.publish(1, &queue, format!("{number}"));
        if number % 2 == 1 {
            raw.commit(1);
        }
    }
    assert_eq!(raw.get(2, &queue), None);
    wait_until(deadline(PATIENCE), "the backlog to be seen", || proxy.metric("halfway_backlog_transactions") >= 1.0);
    broker().let_in(&account);
    let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(arrivals(&mut raw, &queue, 20), expected);
    wait_until(deadline(PATIENCE), "the backlog to be gone", || proxy.metric("halfway_backlog_transactions") == 0.0);
    assert_eq!(raw.get(2, &queue), None);
}

#[test]
fn a_lost_connection_costs_nothing_but_marked_duplicates() {
    let (proxy, account) = with_own_account(&[]);
    let queue = unique("relay-lost");
    let mut reader = transactional(proxy.port, &queue);
    let end = Instant::now() + Duration::from_secs(8);
    let committed: Vec<usize> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (proxy, queue) = (&proxy, &queue);
                scope.spawn(move || {
                    let mut raw = Raw::login(proxy.port);
                    raw.open_tx(1);
                    let mut count = 0;
                    while Instant::now() < end {
                        for _ in 0..10 {
                            raw.publish(1, queue, format!("{writer} {count}"));
                            count += 1;
                        }
                        raw.commit(1);
                    }
                    count
                })
            })
            .collect();
        while Instant::now() < end {
            broker().close_connections_of(&account);
            std::thread::sleep(Duration::from_millis(300));
        }
        writers.into_iter().map(|writer| writer.join().expect("every commit succeeds")).collect()
    });
    let (mut next, mut ids) = (vec![0; committed.len()], HashMap::new());
    while next != committed {
        let content = reader.get_soon(2, &queue);
        let text = content.text();
        let half_id = content.properties.header("x-half-id").expect("every forwarded message has an id");
        let (writer, number) = text.split_once(' ').expect("two numbers");
        let (writer, number): (usize, usize) = (writer.parse().unwrap(), number.parse().unwrap());
        if number == next[writer] {
            next[writer] += 1;
            assert_eq!(ids.insert(text, half_id), None);
        } else {
            assert!(number < next[writer], "writer {writer}: {number} came before {}", next[writer]);
            assert_eq!(ids.get(&text), Some(&half_id), "a duplicate has the same id");
            let headers = content.properties.header_entries();
            let mark = headers.iter().find(|(key, _)| key == b"x-half-possible-duplicate");
            assert_eq!(mark.map(|(_, value)| value.as_slice()), Some(&b"t\x01"[..]), "a duplicate is marked");
        }
    }
    assert!(proxy.metric("halfway_relay_reconnects_total") >= 3.0);
}

#[test]
fn a_full_queue_gets_its_messages_when_it_has_room_again() {
    let (proxy, _) = with_own_account(&[]);
    let queue = unique("relay-full");
    let mut raw = Raw::login(proxy.port);
    raw.open(2);
    let limits = Table::new().entry("x-max-length", b'I', &[0, 0, 0, 1]).string("x-overflow", "reject-publish");
    raw.declare_with(2, &queue, limits);
    raw.open_tx(1);
    for number in 0..6 {
        raw.publish(1, &queue, format!("{number}"));
        raw.commit(1);
        // What is in flight with the first that is refused may overtake it; what comes behind may not.
        if number == 1 {
            wait_until(deadline(PATIENCE), "a nack", || proxy.metric("halfway_relay_nacks_total") > 0.0);
        }
    }
    let mut seen: Vec<String> = Vec::new();
    while seen.len() < 6 {
        let text = raw.get_soon(2, &queue).text();
        // A message can be refused by the queue and yet be there: then it comes twice.
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    assert_eq!(seen, ["0", "1", "2", "3", "4", "5"]);
}

#[test]
fn a_message_that_rabbitmq_cannot_take_becomes_a_dead_letter_and_the_rest_arrives() {
    let (proxy, account) = with_own_account(&[]);
    let (queue, exchange) = (unique("relay-rest"), unique("relay-gone"));
    let mut raw = transactional(proxy.port, &queue);
    raw.declare_exchange(2, &exchange, "fanout");
    broker().lock_out(&account);
    for number in 0..9 {
        let target = if number % 3 == 1 { (exchange.as_str(), &b""[..]) } else { ("", queue.as_bytes()) };
        raw.publish_with(1, target, 0, &Properties::persistent(), number.to_string().as_bytes());
    }
    raw.commit(1);
    raw.publish(1, &queue, "after");
    raw.commit(1);
    raw.delete_exchange(2, &exchange);
    broker().let_in(&account);
    let mut seen: Vec<String> = Vec::new();
    while seen.last().is_none_or(|last| last != "after") {
        let text = raw.get_soon(2, &queue).text();
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    assert_eq!(seen, ["0", "2", "3", "5", "6", "8", "after"]);
    wait_until(deadline(PATIENCE), "three dead letters", || proxy.metric("halfway_dead_letters") == 3.0);
}

#[test]
fn dead_letters_outlive_a_restart_and_are_not_sent_again() {
    let (mut proxy, account) = with_own_account(&[]);
    let (queue, exchange) = (unique("relay-kept"), unique("relay-kept-gone"));
    let mut raw = transactional(proxy.port, &queue);
    raw.declare_exchange(2, &exchange, "fanout");
    broker().lock_out(&account);
    raw.publish_with(1, (&exchange, b""), 0, &Properties::persistent(), b"lost its exchange");
    raw.commit(1);
    raw.delete_exchange(2, &exchange);
    broker().let_in(&account);
    wait_until(deadline(PATIENCE), "a dead letter", || proxy.metric("halfway_dead_letters") == 1.0);
    proxy.kill();
    proxy.resume();
    let mut raw = transactional(proxy.port, &queue);
    raw.publish(1, &queue, "new");
    raw.commit(1);
    assert_eq!(arrivals(&mut raw, &queue, 1), ["new"]);
    wait_until(deadline(PATIENCE), "the dead letter", || proxy.metric("halfway_dead_letters") == 1.0);
}

#[test]
fn a_permission_that_the_relay_lacks_makes_dead_letters_not_a_standstill() {
    let (proxy, account) = with_own_account(&[]);
    let (queue, exchange) = (unique("relay-allowed"), unique("relay-forbidden"));
    let mut raw = transactional(proxy.port, &queue);
    raw.declare_exchange(2, &exchange, "fanout");
    broker().ctl(&["set_permissions", &account, "^$", "^amq\\.default$", "^$"]);
    raw.publish_with(1, (&exchange, b""), 0, &Properties::persistent(), b"forbidden");
    raw.publish(1, &queue, "allowed");
    raw.commit(1);
    assert_eq!(arrivals(&mut raw, &queue, 1), ["allowed"]);
    wait_until(deadline(PATIENCE), "a dead letter", || proxy.metric("halfway_dead_letters") == 1.0);
}

#[test]
fn what_finds_no_queue_is_counted_and_dropped_or_kept_as_told() {
    for (told, kept) in [("'drop'", 0.0), ("'dead_letter'", 1.0)] {
        let (proxy, _) = with_own_account(&[("transaction.unroutable", told)]);
        let queue = unique("relay-routed");
        let mut raw = transactional(proxy.port, &queue);
        raw.publish(1, "relay-no-such-queue", "nowhere");
        raw.publish(1, &queue, "somewhere");
        raw.commit(1);
        assert_eq!(arrivals(&mut raw, &queue, 1), ["somewhere"]);
        wait_until(deadline(PATIENCE), "the count", || proxy.metric("halfway_unroutable_messages_total") == 1.0);
        wait_until(deadline(PATIENCE), "the dead letters", || proxy.metric("halfway_dead_letters") == kept);
    }
}

#[test]
fn a_mandatory_message_is_waited_for_and_its_return_comes_late_rather_than_never() {
    let (proxy, account) = with_own_account(&[("transaction.mandatory_wait", "'2s'")]);
    let queue = unique("relay-mandatory");
    let mut raw = transactional(proxy.port, &queue);
    broker().lock_out(&account);
    raw.publish_with(1, ("", b"relay-no-such-queue"), 1, &Properties::persistent(), b"returned");
    let begin = Instant::now();
    raw.commit(1);
    assert!(begin.elapsed() > Duration::from_millis(1500), "commit-ok after {:?}", begin.elapsed());
    broker().let_in(&account);
    assert_eq!(raw.expect_content(1, id::RETURN).text(), "returned");
}

#[test]
fn nobody_waits_for_a_relay_that_cannot_send() {
    let (proxy, account) = with_own_account(&[("transaction.forward_wait", "'20s'")]);
    let queue = unique("relay-unwaited");
    let mut raw = transactional(proxy.port, &queue);
    raw.publish(1, &queue, "0");
    raw.commit(1);
    // Cut off.
    broker().lock_out(&account);
    wait_until(deadline(PATIENCE), "the relay to be out", || proxy.metric("halfway_relay_connected") == 0.0);
    let begin = Instant::now();
    for number in 1..20 {
        raw.publish(1, &queue, number.to_string());
        raw.commit(1);
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "19 commits took {:?}", begin.elapsed());
    broker().let_in(&account);
    let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(arrivals(&mut raw, &queue, 20), expected);
    // Stuck: the one that is nacked is not waited for, nor what comes behind it.
    let full = unique("relay-unwaited-full");
    let limits = Table::new().entry("x-max-length", b'I', &[0, 0, 0, 1]).string("x-overflow", "reject-publish");
    raw.declare_with(2, &full, limits);
    let begin = Instant::now();
    for number in 0..10 {
        raw.publish(1, &full, number.to_string());
        raw.commit(1);
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "10 commits took {:?}", begin.elapsed());
}

#[test]
fn a_large_transaction_is_in_its_queue_when_it_is_answered() {
    const COUNT: u32 = 60_000;
    let (proxy, _) = with_own_account(&[("transaction.forward_wait", "'700ms'")]);
    let queue = unique("relay-large");
    let mut raw = Raw::login(proxy.port);
    raw.open(2);
    raw.declare_with(2, &queue, Table::new().string("x-queue-type", "quorum"));
    raw.open_tx(1);
    for _ in 0..COUNT {
        raw.publish(1, &queue, "body");
    }
    // RabbitMQ takes seconds for it.
    raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
    let end = deadline(PATIENCE);
    while raw.read_any(PATIENCE).unwrap().id() != id::TX_COMMIT_OK {}
    assert!(Instant::now() < end);
    let first = raw.get(2, &queue).expect("it is there");
    let left = first.arguments.last_chunk().map(|count| u32::from_be_bytes(*count));
    assert_eq!(left, Some(COUNT - 1));
}

#[test]
fn the_relay_does_not_sleep_through_a_recovery() {
    let own = Broker::start();
    let settings = [("relay.retry.initial", "'5m'"), ("relay.retry.max", "'10m'")];
    let proxy = Proxy::start_with(own.port, &settings);
    let queue = "relay-recovers";
    let mut raw = transactional(proxy.port, queue);
    raw.publish(1, queue, "0");
    raw.commit(1);
    own.kill();
    wait_until(deadline(PATIENCE), "the relay to be out", || proxy.metric("halfway_relay_connected") == 0.0);
    own.resume();
    let mut raw = transactional(proxy.port, queue);
    raw.publish(1, queue, "1");
    raw.commit(1);
    assert_eq!(arrivals(&mut raw, queue, 2), ["0", "1"]);
}

#[test]
fn a_restart_of_the_broker_loses_nothing() {
    let own = Broker::start();
    let mut proxy =
        Proxy::start_with(own.port, &[("relay.retry.max", "'500ms'"), ("transaction.forward_wait", "'100ms'")]);
    let queue = "relay-restart";
    let mut raw = transactional(proxy.port, queue);
    own.lock_out("relay");
    for number in 0..10 {
        raw.publish(1, queue, format!("{number}"));
        raw.commit(1);
    }
    own.kill();
    // RabbitMQ's loss ends the session in AMQP's words.
    let close = raw.expect_close(0);
    assert_eq!(close.code, 320, "{close:?}");
    assert!(Raw::try_login(proxy.port).is_err());
    assert!(proxy.runs());
    own.resume();
    own.let_in("relay");
    let expected: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    let mut raw = transactional(proxy.port, queue);
    assert_eq!(arrivals(&mut raw, queue, 10), expected);
    // And the other way round: RabbitMQ is there, the proxy comes later.
    raw.publish(1, queue, "last");
    raw.commit(1);
    own.stop();
    proxy.kill();
    own.resume();
    proxy.resume();
    assert_eq!(arrivals(&mut transactional(proxy.port, queue), queue, 1), ["last"]);
}

#[test]
fn an_alarm_blocks_clients_as_rabbitmq_does_and_passes() {
    let own = Broker::start();
    let proxy = Proxy::start_with(own.port, &[("transaction.forward_wait", "'100ms'")]);
    let queue = "relay-alarm";
    for port in [own.port, proxy.port] {
        let mut raw = Raw::login(port);
        raw.open(2);
        raw.declare(2, queue);
        raw.open_tx(1);
        let mut plain = Raw::login(port);
        plain.open(1);
        own.memory_alarm(true);
        plain.publish(1, queue, "plain");
        let reason = plain.expect(0, id::BLOCKED);
        assert_eq!(reason, b"\x0dlow on memory");
        raw.publish(1, queue, "transactional");
        assert_eq!(raw.expect(0, id::BLOCKED), reason);
        raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
        assert_eq!(raw.transcript(Duration::from_millis(500)), ["silence"]);
        own.memory_alarm(false);
        plain.expect(0, id::UNBLOCKED);
        raw.expect(0, id::UNBLOCKED);
        raw.expect(1, id::TX_COMMIT_OK);
        let mut got = arrivals(&mut raw, queue, 2);
        got.sort();
        assert_eq!(got, ["plain", "transactional"]);
    }
}

/// Sets or clears the memory alarm, and lives meanwhile: the command takes longer than the heartbeats allow.
fn alarm(broker: &Broker, on: bool, raw: &mut Raw) {
    std::thread::scope(|scope| {
        let command = scope.spawn(|| broker.memory_alarm(on));
        while !command.is_finished() {
            raw.send(&frame::HEARTBEAT).expect("it lives");
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}

#[test]
fn a_publisher_that_an_alarm_blocks_may_be_silent_for_as_long_as_it_lasts() {
    let own = Broker::start();
    let proxy = Proxy::start(own.port);
    for port in [own.port, proxy.port] {
        let queue = unique("silent");
        let mut raw = Raw::login_as(port, &Login { heartbeat: 1, ..Login::default() }).unwrap();
        raw.open(2);
        raw.declare(2, &queue);
        raw.open_tx(1);
        alarm(&own, true, &mut raw);
        raw.publish(1, &queue, "transactional");
        raw.publish(2, &queue, "plain");
        raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
        assert_eq!(raw.expect(0, id::BLOCKED), b"\x0dlow on memory");
        // As many as would be missed twice, if the silence counted.
        for _ in 0..8 {
            assert_eq!(raw.read_any(PATIENCE).expect("it stays").kind, frame::kind::HEARTBEAT);
        }
        alarm(&own, false, &mut raw);
        raw.expect(0, id::UNBLOCKED);
        raw.expect(1, id::TX_COMMIT_OK);
        let mut got = arrivals(&mut raw, &queue, 2);
        got.sort();
        assert_eq!(got, ["plain", "transactional"]);
    }
    assert!(!proxy.log().contains("missed heartbeats"), "{}", proxy.log());
}

#[test]
fn a_quorum_queue_without_majority_holds_up_its_messages_and_not_the_commit() {
    let nodes = Broker::cluster(3);
    let settings = [("relay.confirm_timeout", "'2s'"), ("transaction.forward_wait", "'500ms'")];
    let proxy = Proxy::start_with(nodes[0].port, &settings);
    let mut raw = Raw::login(proxy.port);
    raw.open(2);
    raw.declare_with(2, "relay-quorum", Table::new().string("x-queue-type", "quorum"));
    raw.open_tx(1);
    raw.publish(1, "relay-quorum", "with majority");
    raw.commit(1);
    assert_eq!(arrivals(&mut raw, "relay-quorum", 1), ["with majority"]);
    nodes[1].freeze();
    nodes[2].freeze();
    raw.publish(1, "relay-quorum", "without majority");
    let begin = Instant::now();
    raw.commit(1);
    assert!(begin.elapsed() < Duration::from_secs(5), "the commit took {:?}", begin.elapsed());
    wait_until(deadline(PATIENCE), "the relay to say that it is stalled", || {
        proxy.metric("halfway_relay_stalled") > 0.0
    });
    nodes[1].thaw();
    nodes[2].thaw();
    let first = raw.get_soon(2, "relay-quorum");
    assert_eq!(first.text(), "without majority");
    let half_id = first.properties.header("x-half-id");
    // It was sent again, perhaps more than once; every copy has the same id.
    wait_until(deadline(PATIENCE), "the backlog to be gone", || proxy.metric("halfway_backlog_transactions") == 0.0);
    while let Some(copy) = raw.get(2, "relay-quorum") {
        assert_eq!((copy.text().as_str(), copy.properties.header("x-half-id")), ("without majority", half_id.clone()));
    }
}
