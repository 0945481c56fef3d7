//! The proxy and RabbitMQ are killed at random moments under load, a hundred times, and then every client's word is
//! held against what is in the queues.
//!
//! The moments come from a seed, which is printed; `HALFWAY_CRASH_SEED` sets it, `HALFWAY_CRASH_KILLS` the number of
//! kills. The seed repeats what is done and when, not how the machine interleaves it.

use crate::support::id;
use crate::support::table::Properties;
use crate::support::{Broker, PATIENCE, Proxy, Raw, deadline, wait_until};
use halfway::amqp::frame;
use halfway::amqp::wire::Write;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Classic ones: a quorum queue of RabbitMQ 3.10 whose node was killed hangs by itself, without any proxy, when it is
/// published to in its first moments.
const QUEUES: [&str; 2] = ["crash-a", "crash-b"];
const WRITERS: u64 = 6;
/// Every writer works on these at the same time.
const CHANNELS: [u16; 2] = [1, 7];
/// Of so many kills, one is RabbitMQ's: its restart takes seconds.
const KILLS_A_BROKER: u32 = 10;

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
    let from_environment = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = from_environment("HALFWAY_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    let kills = from_environment("HALFWAY_CRASH_KILLS").unwrap_or(100) as u32;
    println!("HALFWAY_CRASH_SEED={seed}");
    let begin = Instant::now();

    let broker = Broker::start();
    let settings = [("relay.retry.max", "'300ms'"), ("transaction.forward_wait", "'100ms'"), ("log.level", "'warn'")];
    let mut proxy = Proxy::start_with(broker.port, &settings);
    let mut setup = Raw::login(broker.port);
    setup.open(1);
    for queue in QUEUES {
        setup.declare(1, queue);
    }
    drop(setup);

    let done = AtomicBool::new(false);
    let port = proxy.port;
    let ledger: Ledger = std::thread::scope(|scope| {
        let done = &done;
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || write(port, writer, seed ^ writer, done))).collect();
        // A failure in here must end the writers too, or the scope waits for them for ever.
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| kill(&broker, &mut proxy, seed, kills)));
        done.store(true, Ordering::Relaxed);
        let ledger = writers.into_iter().flat_map(|writer| writer.join().expect("a writer ends")).collect();
        killed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ledger
    });

    wait_until(deadline(2 * PATIENCE), "the backlog to be gone", || {
        proxy.http("/readyz").is_ok_and(|(status, _)| status == 200)
            && proxy.metric("halfway_backlog_transactions") == 0.0
    });
    let (messages, duplicates) = reconcile(&ledger, broker.port);
    let count = |told| ledger.values().filter(|(_, found)| *found == told).count();
    println!(
        "{kills} kills in {:?}: {} committed, {} unsure, {} never committed; {messages} messages, {duplicates} duplicates",
        begin.elapsed(),
        count(Told::Committed),
        count(Told::Unsure),
        count(Told::Never),
    );
    assert!(count(Told::Committed) > 500, "there was too little load to prove anything");
}

/// Kills and restarts, at moments that the seed decides.
fn kill(broker: &Broker, proxy: &mut Proxy, seed: u64, kills: u32) {
    let mut random = fastrand::Rng::with_seed(seed);
    for number in 1..=kills {
        std::thread::sleep(Duration::from_millis(random.u64(20..500)));
        if number % KILLS_A_BROKER == 0 {
            broker.kill();
            std::thread::sleep(Duration::from_millis(random.u64(0..500)));
            // Sometimes both are gone, and the proxy is back first.
            if random.bool() {
                proxy.kill();
                proxy.spawn(&[]);
            }
            broker.resume();
        } else {
            proxy.kill();
            proxy.spawn(&[]);
        }
        proxy.wait_for_port();
    }
}

/// Connects again and again, and writes transactions until `done`.
fn write(port: u16, writer: u64, seed: u64, done: &AtomicBool) -> Ledger {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut ledger = Ledger::new();
    for connection in 0.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let Ok(mut raw) = Raw::try_login(port) else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        // An error is a crash that this connection has not survived; the ledger says what it knows.
        let _ = work(&mut raw, (writer, connection), &mut random, &mut ledger, done);
    }
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
        raw.method(channel, id::CHANNEL_OPEN, |out| out.put_short_string(b""))?;
        answer(raw, channel, id::CHANNEL_OPEN_OK)?;
        raw.method(channel, id::TX_SELECT, |_| {})?;
        answer(raw, channel, id::TX_SELECT_OK)?;
    }
    for number in 0.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let mut asked = Vec::new();
        for channel in CHANNELS {
            let key = (writer, connection, channel, number);
            let count = random.u64(1..8);
            ledger.insert(key, (count, Told::Never));
            raw.send(&publishes(key, count))?;
            match random.u8(0..20) {
                // Away without a word, in the middle of a transaction.
                0 => return Ok(()),
                1..4 => {
                    raw.method(channel, id::TX_ROLLBACK, |_| {})?;
                    asked.push((key, id::TX_ROLLBACK_OK));
                }
                _ => {
                    ledger.insert(key, (count, Told::Unsure));
                    raw.method(channel, id::TX_COMMIT, |_| {})?;
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

fn answer(raw: &mut Raw, channel: u16, id: id::Id) -> io::Result<()> {
    let frame = raw.read(PATIENCE)?;
    if (frame.channel, frame.id()) == (channel, id) { Ok(()) } else { Err(io::Error::other("another answer")) }
}

/// A transaction's messages, in turns to the two queues: each says whose it is.
fn publishes(key: Key, count: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for index in 0..count {
        let body = format!("{} {} {} {} {index}", key.0, key.1, key.2, key.3);
        frame::write_method(&mut out, key.2, id::PUBLISH, |out| {
            out.put_u16(0);
            out.put_short_string(b"");
            out.put_short_string(QUEUES[(index % 2) as usize].as_bytes());
            out.put_u8(0);
        });
        let header = Properties::persistent().encode(body.len() as u64);
        frame::write_content(&mut out, key.2, &header, body.as_bytes(), 131_072);
    }
    out
}

/// Empties the queues and holds what is in them against the ledger; how many messages and duplicates there were.
fn reconcile(ledger: &Ledger, port: u16) -> (usize, usize) {
    let mut wrong: Vec<String> = Vec::new();
    let (mut ids, mut all_ids) = (HashMap::new(), HashSet::new());
    let (mut messages, mut duplicates) = (0, 0);
    for (parity, queue) in QUEUES.iter().enumerate() {
        let mut last: HashMap<(u64, u64, u16), (u64, u64)> = HashMap::new();
        let mut raw = Raw::login(port);
        raw.open(1);
        while let Some(content) = raw.get(1, queue) {
            messages += 1;
            let text = content.text();
            let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().expect("a number")).collect();
            let [writer, connection, channel, number, index] = numbers[..] else { panic!("{text:?} is not ours") };
            let key: Key = (writer, connection, channel as u16, number);
            if index % 2 != parity as u64 {
                wrong.push(format!("{text} is in {queue}"));
            }
            let Some(half_id) = content.properties.header("x-half-id") else {
                wrong.push(format!("{text} has no x-half-id"));
                continue;
            };
            let headers = content.properties.header_entries();
            let marked = headers.iter().any(|(key, value)| key == b"x-half-possible-duplicate" && value == b"t\x01");
            match ids.get(&(key, index)) {
                None => {
                    let place = (number, index);
                    let before = last.insert((key.0, key.1, key.2), place);
                    if before.is_some_and(|before| before >= place) {
                        wrong.push(format!("{text} came after {before:?} in {queue}"));
                    }
                    if !all_ids.insert(half_id.clone()) {
                        wrong.push(format!("{text} has the x-half-id of another message"));
                    }
                    ids.insert((key, index), half_id);
                }
                Some(first) => {
                    duplicates += 1;
                    if *first != half_id || !marked {
                        wrong.push(format!("{text} came again, with id {first} then {half_id}, marked: {marked}"));
                    }
                }
            }
        }
    }
    for (key, (count, told)) in ledger {
        let came = (0..*count).filter(|index| ids.contains_key(&(*key, *index))).count() as u64;
        let right = match told {
            Told::Committed => came == *count,
            Told::Unsure => came == 0 || came == *count,
            Told::Never => came == 0,
        };
        if !right {
            wrong.push(format!("{key:?} was {told:?}, and {came} of its {count} messages came"));
        }
    }
    wrong.truncate(20);
    assert!(wrong.is_empty(), "{wrong:#?}");
    (messages, duplicates)
}
