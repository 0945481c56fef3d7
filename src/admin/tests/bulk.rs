//! Decisions about all that fit a filter.

use super::fake::id;
use super::*;
use crate::store::StoreError;
use crate::tx::decision::{Actor, Decision};
use crate::tx::id::Timestamp;
use crate::tx::state::State;

const TRANSACTIONS: &str = "/api/transactions/bulk";
const LETTERS: &str = "/api/dead-letters/bulk";

async fn ask(port: &Port, path: &str, body: Value) -> Response {
    port.post(path, &body.to_string()).await
}

#[tokio::test]
async fn a_dry_run_counts_and_decides_nothing() {
    let port = Port::with_store().await;
    for number in 0..5 {
        port.store.add(State::InDoubt, "/", "alice", &format!("order-{number}"));
        port.store.add(State::Committed, "/", "alice", &format!("done-{number}"));
    }
    let dry = |filter: Value| json!({"action": "commit", "filter": filter, "dry_run": true});
    for (filter, matched) in [
        (json!({}), 5),
        (json!({"name": "order-?", "user": "alice", "state": "in_doubt", "exchange": null}), 5),
        (json!({"name": "done-*"}), 0),
        (json!({"min_age": "1s", "vhost": "shop"}), 0),
    ] {
        let answer = ask(&port, TRANSACTIONS, dry(filter.clone())).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"matched": matched, "at_least": false})), "{filter}");
    }
    assert!(port.store.decisions.lock().unwrap().is_empty());
}

#[tokio::test]
async fn batches_go_through_all_that_was_there_and_nothing_that_came_later() {
    let port = Port::with_store().await;
    for number in 0..450 {
        port.store.add(State::InDoubt, "/", "alice", &format!("order-{number}"));
    }
    let mut cursor = Value::Null;
    let mut batches = Vec::new();
    loop {
        let body = json!({"action": "rollback", "filter": {"vhost": "/"}, "reason": "stock is gone", "cursor": cursor});
        let answer = ask(&port, TRANSACTIONS, body).await.json();
        assert_eq!((&answer["skipped"], &answer["failed"]), (&json!(0), &json!([])), "{answer}");
        batches.push(answer["done"].as_u64().expect("a number"));
        cursor = answer["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
        if batches.len() == 1 {
            port.store.add(State::InDoubt, "/", "alice", "late");
            let mut rows = port.store.rows.lock().unwrap();
            rows.last_mut().expect("it was added").parked_at = Some(Timestamp(i64::MAX));
        }
    }
    assert_eq!(batches.iter().sum::<u64>(), 450, "{batches:?}");
    assert!(batches.iter().all(|batch| *batch <= 200), "{batches:?}");
    let decisions = port.store.decisions.lock().unwrap();
    let expected = (Decision::RollBack, Actor::Operator("local".into()), Some("stock is gone".to_owned()));
    assert!(decisions.len() == 450 && decisions.iter().all(|decision| *decision == expected));
    assert_eq!(port.store.rows.lock().unwrap().last().map(|row| row.state), Some(State::InDoubt), "it came too late");
}

#[tokio::test]
async fn checks_are_asked_for_and_what_has_no_checker_is_named() {
    let port = Port::with_store().await;
    port.store.add(State::InDoubt, "/", "alice", "order-1");
    port.store.add(State::InDoubt, "/", "alice", "order-2");
    port.store.rows.lock().unwrap()[1].checker = Some("orders".into());
    let answer =
        ask(&port, TRANSACTIONS, json!({"action": "check", "filter": {}, "reason": "the checker is back"})).await;
    let failed = json!([{"id": id(1).to_string(), "detail": "no checker is asked about it: decide it by hand"}]);
    assert_eq!(answer.json(), json!({"done": 1, "skipped": 0, "failed": failed, "next_cursor": null}));
}

#[tokio::test]
async fn letters_are_tried_again_or_discarded_in_bulk() {
    let port = Port::with_store().await;
    for exchange in ["orders", "orders", "bills"] {
        port.store.add_letter("/", exchange);
    }
    let orders = json!({"exchange": "orders"});
    let dry = json!({"action": "retry", "filter": orders, "dry_run": true, "reason": "x"});
    assert_eq!(ask(&port, LETTERS, dry).await.json(), json!({"matched": 2, "at_least": false}));
    let retry = json!({"action": "retry", "filter": orders, "reason": "the exchange is back"});
    let answer = ask(&port, LETTERS, retry).await;
    assert_eq!(answer.json(), json!({"done": 2, "skipped": 0, "failed": [], "next_cursor": null}));
    let discard = json!({"action": "discard", "filter": {}, "reason": "nobody wants them"});
    assert_eq!(ask(&port, LETTERS, discard).await.json()["done"], 1);
    let handled = port.store.handled.lock().unwrap();
    assert_eq!(handled.iter().map(|(what, ..)| *what).collect::<Vec<_>>(), ["retry", "retry", "discard"]);
}

#[tokio::test]
async fn what_the_store_can_not_do_is_told_of_each() {
    let port = Port::with_store().await;
    port.store.add(State::InDoubt, "/", "alice", "order-1");
    let commit = json!({"action": "commit", "filter": {}, "reason": "paid"});
    *port.store.decision_failure.lock().unwrap() = Some(StoreError::Full("no room".into()));
    let answer = ask(&port, TRANSACTIONS, commit.clone()).await.json();
    assert_eq!((&answer["done"], &answer["failed"][0]["id"]), (&json!(0), &json!(id(1).to_string())), "{answer}");
    assert!(answer["failed"][0]["detail"].as_str().is_some_and(|detail| detail.contains("no room")), "{answer}");
    *port.store.failure.lock().unwrap() = Some(StoreError::Io("broken".into()));
    ask(&port, TRANSACTIONS, commit).await.problem(503);
}

#[tokio::test]
async fn what_is_wrong_with_a_bulk_is_named_and_nothing_is_decided() {
    let port = Port::with_store().await;
    port.store.add(State::InDoubt, "/", "alice", "order-1");
    let good = json!({"action": "commit", "filter": {}, "reason": "paid"});
    for (field, name, value) in [
        ("action", "action", Value::Null),
        ("action", "action", json!("retry")),
        ("action", "action", json!(1)),
        ("filter", "filter", Value::Null),
        ("filter", "filter", json!("all")),
        ("state", "filter", json!({"state": "committed"})),
        ("state", "filter", json!({"state": "wrong"})),
        ("age", "filter", json!({"age": "1h"})),
        ("age", "filter", json!({"age": null})),
        ("user", "filter", json!({"user": ["alice"]})),
        ("reason", "reason", Value::Null),
        ("reason", "reason", json!(" ")),
        ("dry_run", "dry_run", json!("yes")),
        ("cursor", "cursor", json!("0")),
        ("cursor", "cursor", json!("ü".repeat(16))),
        ("force", "force", json!(true)),
    ] {
        let mut body = good.clone();
        body[name] = value.clone();
        assert_eq!(ask(&port, TRANSACTIONS, body).await.problem(400).1, field, "{name}: {value}");
    }
    let mut open = good.clone();
    open["filter"]["state"] = json!("open");
    open["action"] = json!("check");
    assert_eq!(ask(&port, TRANSACTIONS, open).await.problem(400).1, "state");
    assert_eq!(ask(&port, LETTERS, good).await.problem(400).1, "action");
    assert!(port.store.decisions.lock().unwrap().is_empty());
}
