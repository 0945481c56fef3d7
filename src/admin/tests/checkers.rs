//! Checkers, and the configuration.

use std::time::Duration;

use super::*;
use crate::config::{Checker, CheckerMatch, Entry, HttpUrl, Origin};
use crate::roster::LastCheck;
use crate::tx::check_back::Answer;
use crate::tx::decision::Decision;
use crate::tx::id::Timestamp;

#[tokio::test]
async fn checkers_are_shown_as_they_answer_and_without_their_secrets() {
    let port = Port::open().await;
    assert_eq!(port.get("/api/checkers").await.json(), json!({"items": []}));
    let orders = Checker {
        name: "orders".into(),
        url: HttpUrl::try_from("http://orders:8080/check?key=hidden".to_owned()).ok(),
        secret: Some(config::Secret::new("hidden")),
        matches: CheckerMatch { transaction: Some("order-*".into()), ..CheckerMatch::default() },
        ..Checker::default()
    };
    let bills = Checker { name: "bills".into(), queue: Some("bills.check".into()), ..Checker::default() };
    port.admin.set_up(Setup { checkers: vec![orders, bills], ..Setup::default() });
    let counts = port.admin.numbers.instruments.checks.checker("orders");
    counts.checks.count(Some(Answer::Decision(Decision::Commit)));
    counts.checks.count(None);
    counts.circuit_open.set(1);
    let last = LastCheck {
        at: Timestamp(5),
        answer: None,
        reason: Some("no answer".into()),
        took: Duration::from_millis(250),
    };
    port.admin.roster.checked(&"orders".into(), last);
    let shown = port.get("/api/checkers").await;
    assert!(!shown.body.contains("hidden"), "{shown:?}");
    let silent = json!([{"name": "orders", "reason": "no answer"}]);
    assert_eq!(port.get("/api/overview").await.json()["silent_checkers"], silent);
    let none = json!({"commit": "0", "rollback": "0", "unknown": "0", "ongoing": "0", "no_answer": "0"});
    let expected = json!({"items": [
        {
            "name": "orders", "kind": "http", "target": "http://orders:8080/check", "vhost": null,
            "match": {"vhost": null, "user": null, "transaction": "order-*", "exchange": null}, "circuit": "open",
            "answers": {"commit": "1", "rollback": "0", "unknown": "0", "ongoing": "0", "no_answer": "1"},
            "exhausted": "0",
            "last": {"at": "1970-01-01T00:00:00.005Z", "result": "no_answer", "reason": "no answer", "seconds": 0.25},
        },
        {
            "name": "bills", "kind": "amqp", "target": "bills.check", "vhost": "/",
            "match": {"vhost": null, "user": null, "transaction": null, "exchange": null}, "circuit": "closed",
            "answers": none, "exhausted": "0", "last": null,
        },
    ]});
    assert_eq!(shown.json(), expected);
    assert_eq!(port.get("/api/checkers?limit=1").await.problem(400).1, "limit");
}

#[tokio::test]
async fn the_configuration_is_shown_with_its_sources() {
    let port = Port::open().await;
    let entry =
        Entry { key: "relay.lanes".into(), value: json!(8), origin: Origin::Variable("HALFWAY_RELAY__LANES".into()) };
    port.admin.set_up(Setup { entries: vec![entry], ..Setup::default() });
    let expected = json!({"items": [{"key": "relay.lanes", "value": 8, "source": "HALFWAY_RELAY__LANES"}]});
    assert_eq!(port.get("/api/config").await.json(), expected);
}
