//! Every path under `/api/dead-letters`.

use super::fake::{DECIDED_AT, id};
use super::messages::pack;
use super::*;
use crate::admin::view::time;
use crate::config::{AdminToken, Role};
use crate::store::StoreError;
use crate::tx::decision::Actor;

const REASON: &str = r#"{"reason": "the exchange is back"}"#;

#[tokio::test]
async fn letters_are_listed_in_their_shape_filtered_and_in_pages() {
    let port = Port::with_store().await;
    let empty = port.get("/api/dead-letters").await;
    assert_eq!((empty.status, empty.json()), (200, json!({"items": [], "next_cursor": null})));
    for (vhost, exchange) in [("/", "orders"), ("shop", "orders"), ("/", "")] {
        port.store.add_letter(vhost, exchange);
    }
    let shape = json!({
        "id": "1", "transaction": id(1).to_string(), "exchange": "orders", "routing_key": "k", "message_id": "m",
        "reply_code": 404, "reply_text": "NOT_FOUND", "since": time(DECIDED_AT), "attempts": 2,
    });
    assert_eq!(port.get("/api/dead-letters/1").await.json(), shape);
    assert_eq!(port.get("/api/dead-letters").await.json()["items"][0], shape);
    for (query, expected) in [
        ("", &["1", "2", "3"][..]),
        ("?vhost=%2F", &["1", "3"]),
        ("?exchange=orders&vhost=shop", &["2"]),
        ("?exchange=", &["3"]),
        ("?exchange=nowhere", &[]),
    ] {
        let list = port.get(&format!("/api/dead-letters{query}")).await.json();
        let ids: Vec<_> = list["items"].as_array().expect("items").iter().map(|item| item["id"].clone()).collect();
        assert_eq!(ids, expected, "{query}");
    }
    let first = port.get("/api/dead-letters?limit=2").await.json();
    let cursor = first["next_cursor"].as_str().expect("there are more");
    let rest = port.get(&format!("/api/dead-letters?limit=2&cursor={cursor}")).await.json();
    assert_eq!((&rest["items"][0]["id"], &rest["next_cursor"]), (&json!("3"), &json!(null)));
}

#[tokio::test]
async fn a_letter_is_looked_at_like_a_message_and_its_body_only_where_that_is_allowed() {
    let port = Port::with_store().await;
    port.store.add_letter("/", "orders");
    *port.store.packs.lock().unwrap() = vec![pack(0, 7, true, &[b"{\"a\": 1}"])];
    for (show_bodies, body) in
        [(false, Value::Null), (true, json!({"form": "json", "text": "{\"a\": 1}", "truncated": false}))]
    {
        port.admin.set_up(Setup { show_bodies, ..Setup::default() });
        let letter = port.get("/api/dead-letters/1").await.json();
        let message = &letter["message"];
        assert_eq!(
            (&message["index"], &message["bytes"], &message["body"]),
            (&json!(7), &json!("8"), &body),
            "{letter}"
        );
        assert_eq!(message["headers"][0]["value"], "<script>");
        assert_eq!(port.get("/api/dead-letters").await.json()["items"][0].get("message"), None, "a list has none");
    }
}

#[tokio::test]
async fn a_letter_is_decided_about_once_and_with_a_reason() {
    let port = Port::with_store().await;
    port.store.add_letter("/", "orders");
    port.store.add_letter("/", "orders");
    for (number, what) in [(1, "retry"), (2, "discard")] {
        let path = format!("/api/dead-letters/{number}/{what}");
        for (body, field) in [("{}", "reason"), (r#"{"reason": " "}"#, "reason"), (r#"{"why": "x"}"#, "why")] {
            assert_eq!(port.post(&path, body).await.problem(400).1, field);
        }
        let done = port.post(&path, REASON).await;
        let expected = json!({"id": number.to_string(), "transaction": id(1).to_string(), "decision": what});
        assert_eq!((done.status, done.json()), (200, expected));
        assert!(port.post(&path, REASON).await.problem(404).0.contains("no such dead letter"));
    }
    let local = Actor::Operator("local".into());
    let handled = port.store.handled.lock().unwrap();
    let expected = [("retry", 1), ("retry", 1), ("discard", 2), ("discard", 2)].map(|(what, number)| {
        (what, number.to_string().parse().unwrap(), local.clone(), "the exchange is back".to_owned())
    });
    assert_eq!(*handled, expected);
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let port = Port::with_store().await;
    port.store.add_letter("/", "orders");
    for number in ["x", "0", "-1", "01", "+1", "99999999999999999999"] {
        assert_eq!(port.get(&format!("/api/dead-letters/{number}")).await.problem(400).1, "id", "{number}");
        assert_eq!(port.post(&format!("/api/dead-letters/{number}/retry"), REASON).await.problem(400).1, "id");
    }
    for (query, field) in
        [("state=open", "state"), ("limit=0", "limit"), ("cursor=7", "cursor"), ("vhost=a&vhost=b", "vhost")]
    {
        assert_eq!(port.get(&format!("/api/dead-letters?{query}")).await.problem(400).1, field, "{query}");
    }
    port.get("/api/dead-letters/7").await.problem(404);
    port.get("/api/dead-letters/1/retry").await.problem(405);
    let busy = StoreError::Conflict("committed, and others of its messages are still on their way".into());
    *port.store.failure.lock().unwrap() = Some(busy);
    assert!(port.post("/api/dead-letters/1/discard", REASON).await.problem(409).0.contains("on their way"));
}

#[tokio::test]
async fn a_viewer_decides_about_no_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let token_file = folder.path().join("bob");
    std::fs::write(&token_file, "secret-b").expect("written");
    let tokens = vec![AdminToken { token_file, role: Role::Viewer }];
    let port = Port::start(&config::Admin { tokens, ..config::Admin::default() }).await;
    port.admin.open(port.store.clone());
    port.store.add_letter("/", "orders");
    let headers = [("Host", "proxy"), ("Authorization", "Bearer secret-b"), ("Content-Type", "application/json")];
    assert_eq!(port.send("GET /api/dead-letters/1", &headers, "").await.status, 200);
    for what in ["retry", "discard"] {
        port.send(&format!("POST /api/dead-letters/1/{what}"), &headers, REASON).await.problem(403);
    }
    port.send("GET /api/dead-letters", &headers[..1], "").await.problem(401);
    assert!(port.store.handled.lock().unwrap().is_empty());
}
