//! Named transactions: committed, rolled back, left in doubt by a producer that died before or after its database
//! committed. Producers die at every step, checkers misbehave, and proxy and RabbitMQ are killed meanwhile.

mod ledger;
mod producer;

use super::{Arrival, Arrivals, Run, assert_right, declare_queues};
use crate::support::checker::{HttpChecker, Reply};
use crate::support::{Broker, PATIENCE, Proxy, deadline, wait_until};
use ledger::{Ledger, Local, Row};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PRODUCERS: u64 = 8;
/// What the proxy is told; producers say otherwise with `x-half-check-after` now and then.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// The proxy looks whether a transaction is still in doubt, and then asks: a question may be under way when the decision
/// is made. On a machine that is busy it takes a while to arrive.
const GRACE: Duration = Duration::from_secs(1);
/// The store counts whole milliseconds, and rounds down.
const ROUNDING: Duration = Duration::from_millis(2);

#[test]
fn under_crashes_every_named_transaction_goes_the_way_of_its_database() {
    let run = Run::from_environment(60);
    let begin = Instant::now();
    let ledger = Arc::new(Ledger::default());
    let checker = HttpChecker::start({
        let ledger = Arc::clone(&ledger);
        move |name: &str| be_asked(&ledger, name)
    });
    let broker = Broker::start();
    let checkers = format!(
        "[{{ name = 'orders', url = '{}', first_after = '{}ms', interval = '300ms', max_interval = '1s', \
         timeout = '500ms', max_checks = 1000 }}]",
        checker.url,
        FIRST_AFTER.as_millis()
    );
    let settings = [
        ("relay.retry.max", "'300ms'"),
        ("transaction.forward_wait", "'100ms'"),
        ("log.level", "'warn'"),
        ("checker", &*checkers),
    ];
    let mut proxy = Proxy::start_with(broker.port, &settings);
    declare_queues(broker.port);
    let port = proxy.port;
    run.go(&broker, &mut proxy, PRODUCERS, |number, seed, done| {
        producer::Producer::new(number, seed, &ledger).produce(port, done);
    });

    wait_until(deadline(3 * PATIENCE), "all to be decided and delivered", || {
        proxy.http("/readyz").is_ok_and(|(status, _)| status == 200)
            && proxy.metric("halfway_backlog_transactions") == 0.0
            && ["open", "in_doubt"].iter().all(|state| transactions(&proxy, state).is_empty())
    });
    let rows = ledger.rows();
    let mut wrong = ledger.unexpected();
    let arrivals = Arrivals::take(broker.port, &mut wrong);
    reconcile_messages(&rows, &arrivals, &mut wrong);
    reconcile_checks(&rows, &checker.asked(), &mut wrong);
    reconcile_states(&rows, &proxy, &mut wrong);

    let count = |fits: fn(&Row) -> bool| rows.values().filter(|row| fits(row)).count();
    let sent = count(|row| row.local == Some(Local::Committed) && row.known.is_some());
    let lost = count(|row| row.local == Some(Local::Committed) && row.known.is_none());
    let rolled_back = count(|row| row.local == Some(Local::RolledBack) && row.known.is_some());
    let lost_rollback = count(|row| row.local != Some(Local::Committed) && row.known.is_none());
    println!(
        "{} kills in {:?}: {sent} sent, {lost} with the decision lost, {rolled_back} rolled back, {lost_rollback} rolled \
         back with the decision lost; {} checks, {} messages, {} duplicates",
        run.kills,
        begin.elapsed(),
        checker.asked().len(),
        arrivals.messages,
        arrivals.duplicates,
    );
    assert_right(wrong);
    for rate in [sent, lost, rolled_back, lost_rollback] {
        assert!(rate > 30, "there was too little load to prove anything");
    }
}

/// The checker: looks into the producers' database, and misbehaves now and then.
fn be_asked(ledger: &Ledger, name: &str) -> Reply {
    match fastrand::u8(0..100) {
        0..4 => Reply::Word("unknown"),
        4..8 => Reply::Word("ongoing"),
        8..10 => Reply::Status(500),
        10 => Reply::Never,
        11 => Reply::Rubbish,
        12 => Reply::Endless,
        13 => Reply::Slow,
        14 => Reply::Body("{\"decision\":\"commit\",\"decision\":\"rollback\"}"),
        _ => Reply::Word(match ledger.look_or_mark(name) {
            Local::Committed => "commit",
            Local::RolledBack => "rollback",
        }),
    }
}

/// What came is all of what a database committed, and nothing else; in each queue in order.
fn reconcile_messages(rows: &BTreeMap<String, Row>, arrivals: &Arrivals, wrong: &mut Vec<String>) {
    for firsts in &arrivals.firsts {
        let mut last: HashMap<&str, u64> = HashMap::new();
        for Arrival { owner, index, properties } in firsts {
            if last.insert(owner, *index).is_some_and(|before| before >= *index) {
                wrong.push(format!("{owner} {index} came behind a later one"));
            }
            if properties.header("x-half-transaction").as_ref() != Some(owner) {
                wrong.push(format!("{owner} {index} came without its name"));
            }
        }
    }
    let mut came = arrivals.by_owner();
    for (name, row) in rows {
        let came = came.remove(name.as_str()).map_or(0, |indexes| indexes.len() as u64);
        let expected = if row.local == Some(Local::Committed) { row.messages } else { 0 };
        if came != expected {
            wrong.push(format!("{name}: {came} messages came instead of {expected}: {row:?}"));
        }
    }
    for owner in came.keys() {
        wrong.push(format!("{owner} was never published"));
    }
}

/// No check came before its time, none behind a decision that the producer knows of.
fn reconcile_checks(rows: &BTreeMap<String, Row>, asked: &[(String, Instant)], wrong: &mut Vec<String>) {
    for (name, at) in asked {
        let Some(row) = rows.get(name) else {
            wrong.push(format!("the checker was asked about {name}, which was never published"));
            continue;
        };
        let due = row.undecided_at + row.check_after;
        if *at + ROUNDING < due {
            wrong.push(format!("{name} was asked about {:?} before its time: {row:?}", due - *at));
        }
        if let Some(late) = row.known.and_then(|known| at.checked_duration_since(known + GRACE)) {
            wrong.push(format!("{name} was asked about {late:?} behind its decision and the grace: {row:?}"));
        }
    }
}

/// What the admin port says of each name is what became of it.
fn reconcile_states(rows: &BTreeMap<String, Row>, proxy: &Proxy, wrong: &mut Vec<String>) {
    let mut delivered: HashMap<String, u64> = HashMap::new();
    for transaction in transactions(proxy, "delivered") {
        *delivered.entry(transaction["name"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    for (name, row) in rows {
        let expected = u64::from(row.local == Some(Local::Committed));
        let found = delivered.remove(name).unwrap_or_default();
        if found != expected {
            wrong.push(format!("{name} is delivered {found} times instead of {expected}: {row:?}"));
        }
    }
    for state in ["committed", "dead_lettered"] {
        wrong.extend(transactions(proxy, state).iter().map(|left| format!("{state} in the end: {left}")));
    }
}

/// All transactions in a state, as the admin port lists them.
fn transactions(proxy: &Proxy, state: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut page = String::new();
    loop {
        let (status, text) =
            proxy.http(&format!("/api/transactions?state={state}&limit=1000{page}")).expect("the admin port answers");
        assert_eq!(status, 200, "{text}");
        let mut list: Value = serde_json::from_str(&text).expect("JSON");
        all.append(list["items"].as_array_mut().expect("a list"));
        let Some(cursor) = list["next_cursor"].as_str() else { return all };
        page = format!("&cursor={cursor}");
    }
}
