//! Half messages: named transactions, half messages on ordinary channels, and decisions through the control exchange.

use crate::support::id;
use crate::support::raw::{Close, Login};
use crate::support::table::{Properties, Table};
use crate::support::{PATIENCE, Proxy, Raw, broker, deadline, proxy, transactional, unique, wait_until};
use halfway::amqp::wire::Reader;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Headers that name a transaction.
pub fn named(name: &str) -> Properties {
    Properties::persistent().headers(Table::new().string("x-half-transaction", name))
}

/// Publishes a half message to a queue.
fn half(raw: &mut Raw, channel: u16, queue: &str, name: &str, body: &str) {
    raw.publish_with(channel, ("", queue.as_bytes()), 0, &named(name), body.as_bytes());
}

/// Sends a decision.
fn decide(raw: &mut Raw, channel: u16, decision: &str, name: &str) {
    raw.publish_with(channel, ("halfway", decision.as_bytes()), 0, &named(name), b"");
}

/// The prepare barrier.
fn barrier(raw: &mut Raw, channel: u16) {
    raw.call(channel, id::TX_SELECT, id::TX_SELECT_OK, |_| {});
}

fn confirm(raw: &mut Raw, channel: u16) {
    raw.open(channel);
    raw.call(channel, id::CONFIRM_SELECT, id::CONFIRM_SELECT_OK, |out| out.push(0));
}

/// Waits for the next confirm: its tag and whether it is for all up to it.
fn confirmed(raw: &mut Raw, channel: u16) -> (u64, bool) {
    let arguments = raw.expect(channel, id::ACK);
    let mut reader = Reader::new(&arguments);
    (reader.u64().unwrap(), reader.u8().unwrap() & 1 == 1)
}

/// The state of the transactions under a name, oldest first, as the admin port shows them.
fn states(proxy: &Proxy, name: &str) -> Vec<String> {
    let (status, text) = proxy.http(&format!("/api/transactions?name={name}")).unwrap();
    assert_eq!(status, 200, "{text}");
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["state"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn wait_for_states(proxy: &Proxy, name: &str, expected: &[&str]) {
    wait_until(deadline(PATIENCE), &format!("{name} to be {expected:?}"), || states(proxy, name) == expected);
}

/// An administrator's channel to make queues and look into them, whatever becomes of the others.
fn watcher(queue: &str) -> Raw {
    let mut raw = Raw::login(broker().port);
    raw.open(1);
    raw.declare(1, queue);
    raw
}

#[test]
fn a_named_transaction_outlives_its_channel_and_is_decided_by_another() {
    let (queue, name) = (unique("half-outlives"), unique("order"));
    let mut watcher = watcher(&queue);
    for (decision, expected) in [("rollback", &[][..]), ("commit", &["one", "two"])] {
        let mut raw = transactional(proxy().port, &queue);
        half(&mut raw, 1, &queue, &name, "one");
        half(&mut raw, 1, &queue, &name, "two");
        barrier(&mut raw, 1);
        assert_eq!(states(proxy(), &name).last().unwrap(), "open");
        drop(raw);
        wait_until(deadline(PATIENCE), "it to be in doubt", || states(proxy(), &name).contains(&"in_doubt".to_owned()));
        assert_eq!(watcher.get(1, &queue), None);

        let mut other = Raw::login(proxy().port);
        confirm(&mut other, 7);
        decide(&mut other, 7, decision, &name);
        assert_eq!(confirmed(&mut other, 7).0, 1);
        for body in expected {
            assert_eq!(watcher.get_soon(1, &queue).text(), *body);
        }
        // The same again says yes; the opposite says who and when.
        decide(&mut other, 7, decision, &name);
        assert_eq!(confirmed(&mut other, 7).0, 2);
        let opposite = if decision == "commit" { "rollback" } else { "commit" };
        decide(&mut other, 7, opposite, &name);
        let Close { code, text, .. } = other.expect_close(7);
        assert_eq!(code, 406);
        assert!(text.contains("by control"), "{text}");
    }
    assert_eq!(watcher.get(1, &queue), None);
}

#[test]
fn a_commit_on_its_own_channel_delivers_and_leaves_the_name_in_the_headers() {
    let (queue, name) = (unique("half-commit"), unique("order"));
    let mut raw = transactional(proxy().port, &queue);
    let headers = Table::new()
        .string("x-half-transaction", &name)
        .entry("x-half-check-after", b'I', &60i32.to_be_bytes())
        .string("kept", "as it is");
    raw.publish_with(1, ("", queue.as_bytes()), 0, &Properties::persistent().headers(headers), b"one");
    barrier(&mut raw, 1);
    raw.commit(1);
    let message = raw.get(2, &queue).expect("commit-ok came after the delivery");
    assert_eq!(message.properties.header("x-half-transaction").as_deref(), Some(name.as_str()));
    assert_eq!(message.properties.header("kept").as_deref(), Some("as it is"));
    assert_eq!(message.properties.header("x-half-check-after"), None);
    wait_for_states(proxy(), &name, &["delivered"]);
}

#[test]
fn every_end_of_the_channel_leaves_it_in_doubt() {
    let queue = unique("half-ends");
    let mut watcher = watcher(&queue);
    type End = fn(Raw);
    let ends: [(&str, End); 4] = [
        ("channel.close", |mut raw| raw.close(1)),
        ("connection.close", |mut raw| {
            raw.method(0, id::CLOSE, |out| out.extend([0, 200, 0, 0, 0, 0, 0])).unwrap();
            raw.expect(0, id::CLOSE_OK);
        }),
        ("a lost connection", drop),
        ("an error of something else", |mut raw| {
            // A passive declare of a queue that is not there.
            raw.method(1, id::QUEUE_DECLARE, |out| out.extend(b"\0\0\x05nosuc\x01\0\0\0\0")).unwrap();
            assert_eq!(raw.expect_close(1).code, 404);
        }),
    ];
    for (how, end) in ends {
        let name = unique("order");
        let mut raw = transactional(proxy().port, &queue);
        half(&mut raw, 1, &queue, &name, how);
        barrier(&mut raw, 1);
        end(raw);
        wait_for_states(proxy(), &name, &["in_doubt"]);
    }
    assert_eq!(watcher.get(1, &queue), None);
}

#[test]
fn a_refused_publish_decides_it() {
    let (queue, name) = (unique("half-refused"), unique("order"));
    let mut watcher = watcher(&queue);
    let mut raw = transactional(proxy().port, &queue);
    half(&mut raw, 1, &queue, &name, "one");
    barrier(&mut raw, 1);
    raw.publish_with(1, ("no-such-exchange", b"k"), 0, &named(&name), b"two");
    let close = raw.expect_close(1);
    assert_eq!(close.code, 404);
    wait_for_states(proxy(), &name, &["rolled_back"]);
    let mut other = Raw::login(proxy().port);
    confirm(&mut other, 1);
    decide(&mut other, 1, "commit", &name);
    assert_eq!(other.expect_close(1).code, 406);
    assert_eq!(watcher.get(1, &queue), None);
}

#[test]
fn a_later_attempt_replaces_and_a_committed_name_absorbs() {
    let (queue, name) = (unique("half-attempts"), unique("order"));
    let mut watcher = watcher(&queue);
    let mut first = transactional(proxy().port, &queue);
    half(&mut first, 1, &queue, &name, "first");
    barrier(&mut first, 1);

    // While it is open nobody else may use the name.
    let mut second = transactional(proxy().port, &queue);
    half(&mut second, 1, &queue, &name, "second");
    let close = second.expect_close(1);
    assert_eq!(close.code, 405, "{close:?}");

    drop(first);
    wait_until(deadline(PATIENCE), "it to be in doubt", || states(proxy(), &name).contains(&"in_doubt".to_owned()));
    second.open_tx(3);
    half(&mut second, 3, &queue, &name, "second");
    second.commit(3);
    assert_eq!(watcher.get_soon(1, &queue).text(), "second");

    let mut third = transactional(proxy().port, &queue);
    half(&mut third, 1, &queue, &name, "third");
    barrier(&mut third, 1);
    third.commit(1);
    assert_eq!(watcher.get(1, &queue), None, "the name was committed: nothing is sent twice");
    let fates = || {
        let mut states = states(proxy(), &name);
        states.sort();
        states.dedup();
        states
    };
    wait_until(deadline(PATIENCE), "one to be delivered", || fates() == ["delivered", "rolled_back"]);
}

#[test]
fn a_message_id_that_comes_twice_is_one_message() {
    let (queue, name) = (unique("half-twice"), unique("order"));
    let mut watcher = watcher(&queue);
    let with_id = |id: &str| named(&name).text(7, id);
    let mut raw = transactional(proxy().port, &queue);
    for (id, body) in [("a", "one"), ("b", "two"), ("a", "one again")] {
        raw.publish_with(1, ("", queue.as_bytes()), 0, &with_id(id), body.as_bytes());
    }
    barrier(&mut raw, 1);
    raw.publish_with(1, ("", queue.as_bytes()), 0, &with_id("b"), b"two again");
    raw.commit(1);
    assert_eq!(watcher.drain(1, &queue), ["one", "two"]);
}

#[test]
fn an_ordinary_channel_parks_and_confirms_in_its_own_numbers() {
    let (queue, name) = (unique("half-confirm"), unique("order"));
    let mut watcher = watcher(&queue);
    let mut raw = Raw::login(proxy().port);
    confirm(&mut raw, 1);
    raw.publish(1, &queue, "plain 1");
    half(&mut raw, 1, &queue, &name, "half 2");
    raw.publish(1, &queue, "plain 3");
    half(&mut raw, 1, &queue, &name, "half 4");
    raw.publish(1, &queue, "plain 5");
    let mut open: Vec<u64> = (1..=5).collect();
    while !open.is_empty() {
        let (tag, multiple) = confirmed(&mut raw, 1);
        assert!(open.contains(&tag), "{tag} was confirmed before, or never published");
        open.retain(|other| if multiple { *other > tag } else { *other != tag });
    }
    assert_eq!(watcher.drain(1, &queue), ["plain 1", "plain 3", "plain 5"]);
    assert_eq!(states(proxy(), &name), ["in_doubt"]);
    decide(&mut raw, 1, "commit", &name);
    assert_eq!(confirmed(&mut raw, 1), (6, false));
    assert_eq!(watcher.get_soon(1, &queue).text(), "half 2");
    assert_eq!(watcher.get_soon(1, &queue).text(), "half 4");
}

#[test]
fn an_ordinary_half_message_is_judged_in_native_order() {
    let name = unique("order");
    let mut raw = Raw::login(proxy().port);
    for round in 0..50 {
        // Declared, published to and deleted without a pause: RabbitMQ must have seen the one and not the other.
        let exchange = unique("half-order");
        confirm(&mut raw, 1);
        raw.method(1, id::EXCHANGE_DECLARE, |out| {
            out.extend([0, 0, exchange.len() as u8]);
            out.extend(exchange.as_bytes());
            out.extend(b"\x06fanout\x10\0\0\0\0"); // no-wait
        })
        .unwrap();
        raw.publish_with(1, (&exchange, b"k"), 0, &named(&name), b"");
        raw.method(1, id::EXCHANGE_DELETE, |out| {
            out.extend([0, 0, exchange.len() as u8]);
            out.extend(exchange.as_bytes());
            out.push(0);
        })
        .unwrap();
        assert_eq!(confirmed(&mut raw, 1).0, 1, "round {round}");
        raw.expect(1, id::EXCHANGE_DELETE_OK);
        raw.publish_with(1, (&exchange, b"k"), 0, &named(&name), b"");
        let close = raw.expect_close(1);
        assert_eq!((close.code, close.about), (404, id::PUBLISH), "round {round}");
    }
}

#[test]
fn an_ordinary_half_message_gets_rabbitmqs_errors() {
    let user = unique("half-user");
    broker().add_user(&user, ["", "^allowed$", ""]);
    let publish = |port: u16, exchange: &str, properties: &Properties| {
        let mut raw = Raw::login_as(port, &Login { user: &user, password: &user, ..Login::default() }).unwrap();
        raw.open(1);
        raw.publish_with(1, (exchange, b"k"), 0, properties, b"body");
        raw.expect_close(1)
    };
    let plain = Properties::persistent;
    for (exchange, properties, half) in [
        ("refused", plain(), named("a")),
        ("", plain(), named("a")),
        ("allowed", plain(), named("a")),
        ("allowed", plain().text(4, "somebody"), named("a").text(4, "somebody")),
    ] {
        assert_eq!(publish(broker().port, exchange, &properties), publish(proxy().port, exchange, &half));
    }
}

#[test]
fn a_name_belongs_to_its_user_and_its_virtual_host() {
    let (queue, name, user) = (unique("half-owner"), unique("order"), unique("half-owner"));
    broker().add_user(&user, [".*", ".*", ".*"]);
    let _watcher = watcher(&queue);
    let mut raw = Raw::login(proxy().port);
    confirm(&mut raw, 1);
    half(&mut raw, 1, &queue, &name, "guest's");
    confirmed(&mut raw, 1);
    let login = Login { user: &user, password: &user, ..Login::default() };
    let mut other = Raw::login_as(proxy().port, &login).unwrap();
    confirm(&mut other, 1);
    decide(&mut other, 1, "commit", &name);
    let Close { code, text, .. } = other.expect_close(1);
    assert_eq!((code, text), (404, format!("NOT_FOUND - no transaction '{name}'")));
    assert_eq!(states(proxy(), &name), ["in_doubt"]);
}

#[test]
fn what_is_wrong_with_a_half_message_is_named() {
    let long = "n".repeat(256);
    let half = |headers: Table| Properties::persistent().headers(headers);
    let name = || Table::new().string("x-half-transaction", "a");
    type Case<'a> = (&'a str, &'a str, Properties, &'a [u8], u16, &'a str);
    let cases: [Case<'_>; 10] = [
        ("", "q", half(Table::new().string("x-half-transaction", "")), b"", 406, "x-half-transaction is empty"),
        ("", "q", half(Table::new().string("x-half-transaction", &long)), b"", 406, "256 bytes"),
        ("", "q", half(Table::new().entry("x-half-transaction", b'I', &[0; 4])), b"", 406, "has type 'I'"),
        ("", "q", half(name().string("x-half-checker", "nobody")), b"", 406, "'nobody', which is not among"),
        ("", "q", half(name().string("x-half-check-after", "6")), b"", 406, "x-half-check-after has type 'S'"),
        ("", "q", half(name()).text(9, "amq.rabbitmq.reply-to"), b"", 406, "can't be a half message"),
        ("halfway", "commit", Properties::persistent(), b"", 406, "needs the header x-half-transaction"),
        ("halfway", "commit", half(name()), b"body", 406, "has no body"),
        ("halfway", "perhaps", half(name()), b"", 406, "routing key 'perhaps'"),
        ("halfway", "commit", half(name().string("x", "y")), b"", 404, "no transaction 'a'"),
    ];
    let mut raw = Raw::login(proxy().port);
    raw.open(9);
    for (exchange, key, properties, body, code, text) in &cases {
        for transactional in [false, true] {
            if transactional {
                raw.open_tx(1)
            } else {
                raw.open(1)
            }
            raw.publish_with(1, (exchange, key.as_bytes()), 0, properties, body);
            if transactional && *code == 404 {
                raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
            }
            let close = raw.expect_close(1);
            assert_eq!(close.code, *code, "{close:?}");
            assert!(close.text.contains(text), "{close:?}");
        }
    }
    // Nobody else was disturbed.
    let queue = unique("half-undisturbed");
    raw.declare(9, &queue);
    raw.publish(9, &queue, "fine");
    assert_eq!(raw.get_soon(9, &queue).text(), "fine");
}

#[test]
fn a_killed_proxy_finds_what_was_open_in_doubt_and_what_was_decided_decided() {
    let queue = unique("half-killed");
    let mut watcher = watcher(&queue);
    let mut proxy = Proxy::start(broker().port);
    let mut raw = transactional(proxy.port, &queue);
    half(&mut raw, 1, &queue, "prepared", "prepared");
    barrier(&mut raw, 1);
    raw.open_tx(3);
    raw.publish(3, &queue, "unnamed");
    confirm(&mut raw, 4);
    half(&mut raw, 4, &queue, "ordinary", "ordinary");
    confirmed(&mut raw, 4);
    half(&mut raw, 4, &queue, "decided", "decided");
    confirmed(&mut raw, 4);
    decide(&mut raw, 4, "rollback", "decided");
    confirmed(&mut raw, 4);
    proxy.kill();
    proxy.resume();
    assert_eq!(states(&proxy, "prepared"), ["in_doubt"]);
    assert_eq!(states(&proxy, "ordinary"), ["in_doubt"]);
    assert_eq!(states(&proxy, "decided"), ["rolled_back"]);
    let mut raw = Raw::login(proxy.port);
    confirm(&mut raw, 1);
    for name in ["prepared", "ordinary"] {
        decide(&mut raw, 1, "commit", name);
        confirmed(&mut raw, 1);
        assert_eq!(watcher.get_soon(1, &queue).text(), name);
    }
    assert_eq!(watcher.get(1, &queue), None);
    proxy.stop();
}

#[test]
fn many_half_messages_at_once_all_arrive_once_and_in_order() {
    let (queue, name) = (unique("half-many"), unique("order"));
    let mut watcher = watcher(&queue);
    let mut raw = Raw::login(proxy().port);
    confirm(&mut raw, 1);
    const MESSAGES: u64 = 2_000;
    for number in 0..MESSAGES {
        half(&mut raw, 1, &queue, &name, &number.to_string());
    }
    decide(&mut raw, 1, "commit", &name);
    let mut open: BTreeSet<u64> = (1..=MESSAGES + 1).collect();
    while !open.is_empty() {
        let (tag, multiple) = confirmed(&mut raw, 1);
        assert!(!multiple && open.remove(&tag), "{tag} is settled once");
        assert!(tag <= MESSAGES || open.is_empty(), "the decision comes behind what it decides about");
    }
    for number in 0..MESSAGES {
        assert_eq!(watcher.get_soon(1, &queue).text(), number.to_string());
    }
}

/// The number of the judge's channel is known, and RabbitMQ answers tx.rollback on it: the answer was taken for its
/// judgement, and a half message accepted that its user may not publish.
#[test]
fn nobody_answers_for_rabbitmq_on_the_judges_channel() {
    let (user, name) = (unique("may-not-write"), unique("order"));
    broker().add_user(&user, [".*", "^$", ".*"]);
    for answer in [id::TX_ROLLBACK, id::TX_SELECT, id::CHANNEL_CLOSE_OK] {
        let mut raw = Raw::login_as(proxy().port, &Login { user: &user, password: &user, ..Login::default() }).unwrap();
        raw.open(1);
        half(&mut raw, 1, "anywhere", &name, "first");
        assert_eq!(raw.expect_close(1).code, 403, "the judge is there, and RabbitMQ's own word comes");
        raw.open(2);
        half(&mut raw, 2, "anywhere", &name, "second");
        for _ in 0..100 {
            // It may have been closed already.
            let _ = raw.method(u16::MAX, answer, |_| {});
        }
        let mut closed = Vec::new();
        while let Ok(frame) = raw.read(PATIENCE) {
            closed.push((frame.channel, frame.id()));
            if frame.id() == id::CLOSE {
                break;
            }
        }
        assert_eq!(closed.last(), Some(&(0, id::CLOSE)), "the connection ends, as it does at RabbitMQ: {closed:?}");
        assert_eq!(states(proxy(), &name), Vec::<String>::new(), "nothing is parked");
    }
}

/// RabbitMQ's own channel forgets its yes to a permission when it has been silent for a second; so does a judgement.
#[test]
fn a_permission_that_is_revoked_in_an_open_transaction_counts_at_its_commit() {
    let (user, queue) = (unique("revoked"), unique("revoked"));
    let mut watcher = watcher(&queue);
    for properties in [Properties::persistent(), named(&unique("order"))] {
        broker().add_user(&user, [".*", ".*", ".*"]);
        let mut raw = Raw::login_as(proxy().port, &Login { user: &user, password: &user, ..Login::default() }).unwrap();
        raw.open_tx(1);
        raw.publish_with(1, ("", queue.as_bytes()), 0, &properties, b"before");
        let published = Instant::now();
        broker().ctl(&["set_permissions", &user, ".*", "^$", ".*"]);
        wait_until(deadline(PATIENCE), "the judgement to be old", || published.elapsed() > Duration::from_secs(3));
        raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
        let close = raw.expect_close(1);
        assert_eq!((close.code, close.about), (403, id::PUBLISH), "{close:?}");
        broker().ctl(&["delete_user", &user]);
    }
    assert_eq!(watcher.drain(1, &queue), Vec::<String>::new());
}
