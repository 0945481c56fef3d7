//! Transactions of one message, which RabbitMQ is given before the store.

use crate::support::raw::{Close, Content};
use crate::support::table::Properties;
use crate::support::{Broker, PATIENCE, Proxy, Raw, broker, deadline, id, transactional, unique, wait_until};
use std::collections::HashSet;
use std::time::{Duration, Instant};

const DIRECT: &str = "halfway_relay_direct_transactions_total";

/// Commits single messages until one goes past the store: the relay has to be connected, and its lane to be known as empty.
fn warm_up(proxy: &Proxy, raw: &mut Raw, queue: &str) -> usize {
    let (mut count, until) = (0, deadline(PATIENCE));
    while proxy.metric(DIRECT) < 1.0 {
        assert!(Instant::now() < until, "none goes past the store");
        raw.publish(1, queue, format!("{count}"));
        raw.commit(1);
        count += 1;
    }
    count
}

fn is_marked(content: &Content) -> bool {
    content.properties.header_entries().iter().any(|(key, _)| key == b"x-half-possible-duplicate")
}

#[test]
fn in_health_rabbitmq_has_it_and_the_store_never_does() {
    let proxy = Proxy::start_with(broker().port, &[("relay.lanes", "1")]);
    let queue = unique("alone");
    let mut raw = transactional(proxy.port, &queue);
    let mut count = warm_up(&proxy, &mut raw, &queue);
    // Longer ones between them keep their places.
    for _ in 0..50 {
        for messages in [1, 1, 3, 1, 2] {
            for _ in 0..messages {
                raw.publish(1, &queue, format!("{count}"));
                count += 1;
            }
            raw.commit(1);
        }
    }
    assert!(proxy.metric(DIRECT) > 50.0, "{} went past the store", proxy.metric(DIRECT));
    let mut ids = HashSet::new();
    for number in 0..count {
        let content = raw.get_soon(2, &queue);
        assert_eq!(content.text(), format!("{number}"));
        assert!(ids.insert(content.properties.header("x-half-id").expect("an id")));
        assert!(!is_marked(&content), "{number}");
    }
    assert_eq!(raw.get(2, &queue), None);
}

#[test]
fn its_refusal_is_rabbitmqs_own_and_nothing_is_kept() {
    let proxy = Proxy::start_with(broker().port, &[("relay.lanes", "1"), ("transaction.judgement", "'60s'")]);
    let (queue, exchange) = (unique("alone-refused"), unique("alone-gone"));
    let mut raw = transactional(proxy.port, &queue);
    let mut direct = Raw::login(broker().port);
    direct.open(1);
    direct.declare_exchange(1, &exchange, "fanout");
    raw.publish_with(1, (&exchange, b"key"), 0, &Properties::persistent(), b"judged");
    raw.commit(1);
    warm_up(&proxy, &mut raw, &queue);
    wait_until(deadline(PATIENCE), "all to be forwarded", || proxy.metric("halfway_backlog_transactions") == 0.0);
    direct.delete_exchange(1, &exchange);
    raw.publish_with(1, (&exchange, b"key"), 0, &Properties::persistent(), b"refused");
    raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
    let frame = raw.read(PATIENCE).expect("an answer");
    assert_eq!(frame.id(), id::CHANNEL_CLOSE);
    let close = Close::read(frame.arguments());
    assert_eq!((close.code, close.about), (404, id::PUBLISH), "{close:?}");
    assert!(close.text.starts_with(&format!("NOT_FOUND - no exchange '{exchange}'")), "{close:?}");
    assert_eq!((proxy.metric("halfway_dead_letters"), proxy.metric("halfway_backlog_transactions")), (0.0, 0.0));
    wait_until(deadline(PATIENCE), "it to be counted", || {
        proxy.metric("halfway_transactions_total{outcome=\"refused\"}") == 1.0
    });
}

#[test]
fn a_rabbitmq_that_says_nothing_holds_up_no_commit_and_gets_it_once() {
    let broker = Broker::start();
    let settings = [("relay.lanes", "1"), ("transaction.forward_wait", "'100ms'"), ("transaction.judgement", "'60s'")];
    let mut proxy = Proxy::start_with(broker.port, &settings);
    let queue = unique("alone-frozen");
    let mut raw = transactional(proxy.port, &queue);
    let count = warm_up(&proxy, &mut raw, &queue);
    broker.freeze();
    for number in count..count + 3 {
        raw.publish(1, &queue, format!("{number}"));
        let began = Instant::now();
        raw.commit(1);
        assert!(began.elapsed() < Duration::from_secs(2), "the store has it after a moment");
    }
    wait_until(deadline(PATIENCE), "the store to have them", || proxy.metric("halfway_backlog_transactions") >= 3.0);
    // What was answered is not lost with the proxy.
    proxy.kill();
    broker.thaw();
    proxy.spawn(&[]);
    proxy.wait_for_port();
    let mut raw = Raw::login(broker.port);
    raw.open(2);
    let mut came: Vec<String> = Vec::new();
    wait_until(deadline(PATIENCE), "all to come", || {
        while let Some(content) = raw.get(2, &queue) {
            let text = content.text();
            match came.contains(&text) {
                true => assert!(is_marked(&content), "{text} came twice, unmarked"),
                false => came.push(text),
            }
        }
        came.len() == count + 3
    });
    assert_eq!(came, (0..count + 3).map(|number| number.to_string()).collect::<Vec<_>>());
}
