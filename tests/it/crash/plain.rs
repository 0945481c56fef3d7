//! Plain transactions, a hundred kills. Some go to a queue that is full until the end: they hold up nobody, and lose neither
//! a message nor their order.

use super::{
    Arrival, Arrivals, Run, answer, assert_right, connect_and_work, declare_queues, open_tx, say, write_message,
    write_publish,
};
use crate::support::id;
use crate::support::table::Properties;
use crate::support::{Broker, PATIENCE, Proxy, Raw, deadline, wait_until};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const WRITERS: u64 = 6;
/// Further writers, who write to [`FULL`], and how many transactions each of their channels has.
const STUCK_WRITERS: u64 = 2;
const STUCK_EACH: u64 = 3;
/// A queue that turns away what comes.
const FULL: &str = "crash-full";
/// Every writer works on these at the same time.
const CHANNELS: [u16; 2] = [1, 7];

/// Names a transaction: writer, connection of the writer, channel, number on the channel.
type Key = (u64, u64, u16, u64);

/// What the client knows of its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It got commit-ok.
    Committed,
    /// It asked for commit and got no answer: all or nothing.
    Unsure,
    /// It rolled back, or went away without a word.
    Never,
}

/// Transactions: how many messages, and what became of them.
type Ledger = BTreeMap<Key, (u64, Told)>;

#[test]
fn a_hundred_crashes_lose_nothing_and_invent_nothing() {
    let run = Run::from_environment(100);
    let begin = Instant::now();
    let broker = Broker::start();
    let settings = [("relay.retry.max", "'300ms'"), ("transaction.forward_wait", "'100ms'"), ("log.level", "'warn'")];
    let mut proxy = Proxy::start_with(broker.port, &settings);
    declare_queues(broker.port);
    fill_up(&broker);
    let port = proxy.port;
    let ledgers = run.go(&broker, &mut proxy, WRITERS + STUCK_WRITERS, |writer, seed, done| match writer < WRITERS {
        true => write(port, writer, seed, done),
        false => write_to_full(port, writer, done),
    });
    let ledger: Ledger = ledgers.into_iter().flatten().collect();
    let (ledger, stuck): (Ledger, Ledger) = ledger.into_iter().partition(|(key, _)| key.0 < WRITERS);

    let committed = stuck.values().filter(|(_, told)| *told == Told::Committed).count();
    wait_until(deadline(2 * PATIENCE), "only what is stuck to be left", || {
        let left = proxy.metric("halfway_backlog_transactions") as usize;
        (committed..=stuck.len()).contains(&left)
    });
    assert!(committed > 50, "there was too little that was stuck to prove anything");
    broker.ctl(&["clear_policy", FULL]);

    wait_until(deadline(2 * PATIENCE), "the backlog to be gone", || {
        proxy.http("/readyz").is_ok_and(|(status, _)| status == 200)
            && proxy.metric("halfway_backlog_transactions") == 0.0
    });
    let (messages, duplicates) = reconcile(&ledger, broker.port);
    reconcile_stuck(&stuck, broker.port);
    assert_eq!(proxy.metric("halfway_dead_letters"), 0.0);
    let count = |told| ledger.values().filter(|(_, found)| *found == told).count();
    println!(
        "{} kills in {:?}: {} committed, {} unsure, {} never committed, {committed} stuck; {messages} messages, \
         {duplicates} duplicates",
        run.kills,
        begin.elapsed(),
        count(Told::Committed),
        count(Told::Unsure),
        count(Told::Never),
    );
    assert!(count(Told::Committed) > 500, "there was too little load to prove anything");
}

/// Makes the queue that is full.
fn fill_up(broker: &Broker) {
    let mut raw = Raw::login(broker.port);
    raw.open(1);
    raw.declare(1, FULL);
    let limit = r#"{"max-length": 1, "overflow": "reject-publish"}"#;
    broker.ctl(&["set_policy", "--apply-to", "queues", FULL, &format!("^{FULL}$"), limit]);
    raw.publish(1, FULL, "fills it");
    wait_until(deadline(PATIENCE), "the queue to be full", || {
        broker.ctl(&["list_queues", "-q", "name", "messages", "policy"]).contains(&format!("{FULL}\t1\t{FULL}"))
    });
}

/// Commits on ever new channels what can't arrive yet, until `done`.
fn write_to_full(port: u16, writer: u64, done: &AtomicBool) -> Ledger {
    let mut ledger = Ledger::new();
    connect_and_work(port, done, |raw, connection| {
        for channel in CHANNELS {
            open_tx(raw, channel)?;
        }
        for number in 0..STUCK_EACH {
            for channel in CHANNELS {
                let key = (writer, connection, channel, number);
                ledger.insert(key, (1, Told::Unsure));
                let mut out = Vec::new();
                let body = format!("{} 0", owner(key));
                write_publish(&mut out, channel, ("", FULL), &Properties::persistent(), body.as_bytes());
                raw.send(&out)?;
                say(raw, channel, id::TX_COMMIT)?;
                answer(raw, channel, id::TX_COMMIT_OK)?;
                ledger.insert(key, (1, Told::Committed));
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    });
    ledger
}

/// Writes transactions until `done`.
fn write(port: u16, writer: u64, seed: u64, done: &AtomicBool) -> Ledger {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut ledger = Ledger::new();
    connect_and_work(port, done, |raw, connection| work(raw, (writer, connection), &mut random, &mut ledger, done));
    ledger
}

/// Writes transactions on all channels side by side, until the connection ends or it is time to stop.
fn work(
    raw: &mut Raw,
    (writer, connection): (u64, u64),
    random: &mut fastrand::Rng,
    ledger: &mut Ledger,
    done: &AtomicBool,
) -> io::Result<()> {
    for channel in CHANNELS {
        open_tx(raw, channel)?;
    }
    for number in 0.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let mut asked = Vec::new();
        for channel in CHANNELS {
            let key = (writer, connection, channel, number);
            // One message goes another way than several, and both in their order.
            let count = if random.bool() { 1 } else { random.u64(2..8) };
            ledger.insert(key, (count, Told::Never));
            raw.send(&publishes(key, count))?;
            match random.u8(0..20) {
                // Away without a word, in the middle of a transaction.
                0 => return Ok(()),
                1..4 => {
                    say(raw, channel, id::TX_ROLLBACK)?;
                    asked.push((key, id::TX_ROLLBACK_OK));
                }
                _ => {
                    ledger.insert(key, (count, Told::Unsure));
                    say(raw, channel, id::TX_COMMIT)?;
                    asked.push((key, id::TX_COMMIT_OK));
                }
            }
        }
        // Answers on different channels come in any order.
        while !asked.is_empty() {
            let frame = raw.read(PATIENCE)?;
            let at = asked.iter().position(|(key, id)| (key.2, *id) == (frame.channel, frame.id()));
            let (key, id) = asked.swap_remove(at.ok_or_else(|| io::Error::other("an answer to nothing"))?);
            if id == id::TX_COMMIT_OK {
                ledger.entry(key).and_modify(|(_, told)| *told = Told::Committed);
            }
        }
        std::thread::sleep(Duration::from_millis(random.u64(0..20)));
    }
    Ok(())
}

/// A transaction's messages.
fn publishes(key: Key, count: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for index in 0..count {
        write_message(&mut out, key.2, &owner(key), index, &Properties::persistent());
    }
    out
}

/// A key in the bodies of its messages.
fn owner((writer, connection, channel, number): Key) -> String {
    format!("{writer} {connection} {channel} {number}")
}

/// The same with what was stuck.
fn reconcile_stuck(ledger: &Ledger, port: u16) {
    let (mut wrong, mut raw) = (Vec::new(), Raw::login(port));
    raw.open(1);
    let (mut last, mut came) = (HashMap::new(), HashSet::new());
    let keys: HashMap<String, Key> = ledger.keys().map(|key| (format!("{} 0", owner(*key)), *key)).collect();
    for text in raw.drain(1, FULL).into_iter().filter(|text| text != "fills it") {
        let Some(key) = keys.get(&text) else {
            wrong.push(format!("{text} was never published"));
            continue;
        };
        if came.insert(*key) && last.insert((key.0, key.1, key.2), key.3).is_some_and(|before| before > key.3) {
            wrong.push(format!("{text} came too late"));
        }
    }
    let missing = ledger.iter().filter(|(key, (_, told))| *told == Told::Committed && !came.contains(*key));
    wrong.extend(missing.map(|(key, _)| format!("{key:?} was committed, and did not come")));
    assert_right(wrong);
}

/// Empties the queues and holds what is in them against the ledger; how many messages and duplicates there were.
fn reconcile(ledger: &Ledger, port: u16) -> (usize, usize) {
    let mut wrong: Vec<String> = Vec::new();
    let arrivals = Arrivals::take(port, &mut wrong);
    let keys: HashMap<String, Key> = ledger.keys().map(|key| (owner(*key), *key)).collect();
    for firsts in &arrivals.firsts {
        let mut last: HashMap<(u64, u64, u16), (u64, u64)> = HashMap::new();
        for Arrival { owner, index, .. } in firsts {
            let Some(key) = keys.get(owner) else {
                wrong.push(format!("{owner} {index} was never published"));
                continue;
            };
            let place = (key.3, *index);
            let before = last.insert((key.0, key.1, key.2), place);
            if before.is_some_and(|before| before >= place) {
                wrong.push(format!("{owner} {index} came after {before:?}"));
            }
        }
    }
    let came = arrivals.by_owner();
    for (key, (count, told)) in ledger {
        let came = came.get(&*owner(*key)).map_or(0, |indexes| indexes.len() as u64);
        let right = match told {
            Told::Committed => came == *count,
            Told::Unsure => came == 0 || came == *count,
            Told::Never => came == 0,
        };
        if !right {
            wrong.push(format!("{key:?} was {told:?}, and {came} of its {count} messages came"));
        }
    }
    assert_right(wrong);
    (arrivals.messages, arrivals.duplicates)
}
