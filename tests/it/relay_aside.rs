//! Order binds the messages of one client channel, and no others: what waits for one of them that RabbitMQ does not take
//! waits beside those of everybody else.

use crate::support::id;
use crate::support::{PATIENCE, Proxy, Raw, broker, deadline, unique, wait_until, with_relay_account};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Client connections, and channels on each, with something in a queue that is full.
const CONNECTIONS: usize = 4;
const CHANNELS: usize = 250;
/// Transactions of each of these channels.
const EACH: usize = 2;

/// A queue that takes a single message until [`give_room`], and has it.
fn full_queue(name: &str) -> Raw {
    let mut raw = Raw::login(broker().port);
    raw.open(1);
    raw.declare(1, name);
    let limit = r#"{"max-length": 1, "overflow": "reject-publish"}"#;
    broker().ctl(&["set_policy", "--apply-to", "queues", name, &format!("^{name}$"), limit]);
    raw.publish(1, name, "fills it");
    wait_until(deadline(PATIENCE), "the queue to be full", || {
        broker().ctl(&["list_queues", "-q", "name", "messages", "policy"]).contains(&format!("{name}\t1\t{name}"))
    });
    raw
}

fn give_room(name: &str) {
    broker().ctl(&["clear_policy", name]);
}

/// Commits on each channel of a connection, and does not wait for an answer.
fn fill(proxy: &Proxy, queue: &str, connection: usize) -> Raw {
    let mut raw = Raw::login(proxy.port);
    for channel in 1..=CHANNELS as u16 {
        raw.open_tx(channel);
    }
    for number in 0..EACH {
        for channel in 1..=CHANNELS as u16 {
            raw.publish(channel, queue, format!("{connection}/{channel} {number}"));
            raw.method(channel, id::TX_COMMIT, |_| {}).unwrap();
        }
    }
    raw
}

/// Commits on so many channels that each lane has some; all arrive, though the others are stuck.
fn others_arrive(proxy: &Proxy, name: &str) {
    const COUNT: usize = 400;
    let queue = unique(name);
    let mut reader = Raw::login(broker().port);
    reader.open(1);
    reader.declare(1, &queue);
    reader.consume(1, &queue, "reader", true);
    let mut writers: Vec<Raw> = (0..4).map(|_| Raw::login(proxy.port)).collect();
    for writer in &mut writers {
        (1..=10).for_each(|channel| writer.open_tx(channel));
    }
    for number in 0..COUNT {
        let channel = (number / writers.len() % 10 + 1) as u16;
        let writer = number % writers.len();
        writers[writer].publish(channel, &queue, number.to_string());
        writers[writer].commit(channel);
    }
    let end = deadline(PATIENCE);
    let arrived: BTreeSet<usize> =
        (0..COUNT).map(|_| reader.expect_content(1, id::DELIVER).text().parse().unwrap()).collect();
    assert!(Instant::now() < end);
    assert_eq!(arrived, (0..COUNT).collect());
}

#[test]
fn beside_a_thousand_stuck_channels_everybody_else_goes_on_and_a_restart_changes_nothing() {
    let (mut proxy, account) = with_relay_account(&[]);
    proxy.resume();
    let queue = unique("aside-full");
    let mut reader = full_queue(&queue);
    let stuck: Vec<Raw> = (0..CONNECTIONS).map(|connection| fill(&proxy, &queue, connection)).collect();
    let count = CONNECTIONS * CHANNELS;
    wait_until(deadline(PATIENCE), "all channels to be stuck", || {
        proxy.http("/readyz").is_ok_and(|(_, text)| {
            text.contains(&format!("client channels that wait, because RabbitMQ nacks messages of theirs: {count},"))
        })
    });
    others_arrive(&proxy, "aside-others");
    let backlog = (count * EACH) as f64;
    wait_until(deadline(PATIENCE), "only what is stuck to be left", || {
        proxy.metric("halfway_backlog_transactions") == backlog
    });
    // A lost connection, and a lost process.
    broker().close_connections_of(&account);
    others_arrive(&proxy, "aside-others");
    proxy.kill();
    drop(stuck);
    proxy.resume();
    others_arrive(&proxy, "aside-others");
    wait_until(deadline(PATIENCE), "only what is stuck to be left", || {
        proxy.metric("halfway_backlog_transactions") == backlog
    });
    give_room(&queue);
    assert_eq!(reader.get_soon(1, &queue).text(), "fills it");
    let mut next: BTreeMap<String, usize> = BTreeMap::new();
    reader.consume(1, &queue, "reader", true);
    while next.values().sum::<usize>() < count * EACH {
        let text = reader.expect_content(1, id::DELIVER).text();
        let (channel, number) = text.split_once(' ').expect("a channel and a number");
        let (number, next): (usize, _) = (number.parse().unwrap(), next.entry(channel.to_owned()).or_default());
        // A message can be refused by the queue and yet be there: then it comes twice.
        assert!(number <= *next, "{text} came before {next}");
        *next += usize::from(number == *next);
    }
    wait_until(deadline(PATIENCE), "the backlog to be gone", || proxy.metric("halfway_backlog_transactions") == 0.0);
    assert_eq!(proxy.metric("halfway_dead_letters"), 0.0);
}
