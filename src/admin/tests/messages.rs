//! The messages of a transaction.

use super::fake::id;
use super::*;
use crate::amqp::properties::tests::full;
use crate::amqp::table;
use crate::amqp::wire::Write;
use crate::store::{Pack, Sequence, Stored, Strand};
use crate::tx::batch::{Batch, HalfMessage};
use crate::tx::state::State;

/// A pack of transaction 1 with these bodies, from this place on.
pub(super) fn pack(number: u32, first_index: u32, last: bool, bodies: &[&[u8]]) -> Pack {
    let mut headers = Vec::new();
    table::write_string(&mut headers, b"x-half-transaction", b"<script>");
    let mut publish = Vec::new();
    publish.put_u16(0);
    publish.put_short_string(b"orders");
    publish.put_short_string(b"k\xff");
    publish.put_u8(1);
    let mut batch = Batch::default();
    for body in bodies {
        batch.push(HalfMessage { publish: &publish, header: &full(body.len() as u64, &headers), body });
    }
    let messages = Stored::Sound(batch.into_bytes().into());
    Pack {
        sequence: Sequence(1),
        id: id(1),
        strand: Strand(0),
        number,
        first_index,
        last,
        retried: false,
        decided_at: None,
        messages,
    }
}

async fn port(show_bodies: bool) -> Port {
    let port = Port::with_store().await;
    port.admin.set_up(Setup { show_bodies, ..Setup::default() });
    port.store.add(State::InDoubt, "/", "alice", "order-1");
    port.store.add(State::Delivered, "/", "alice", "order-2");
    *port.store.packs.lock().unwrap() =
        vec![pack(0, 0, false, &[b"{\"a\": 1}", b"two"]), pack(1, 2, true, &[b"\0\xff", b"four", b"five"])];
    port
}

fn path(number: u128, query: &str) -> String {
    format!("/api/transactions/{}/messages{query}", id(number))
}

#[tokio::test]
async fn a_message_has_its_types_and_its_body_only_where_that_is_allowed() {
    let port = port(false).await;
    let shown = port.get(&path(1, "?limit=1")).await;
    let message = &shown.json()["items"][0];
    assert_eq!(shown.status, 200);
    for (field, expected) in [
        ("index", json!(0)),
        ("exchange", json!("orders")),
        ("routing_key", json!("k\u{fffd}")),
        ("mandatory", json!(true)),
        ("bytes", json!("8")),
        ("headers", json!([{"name": "x-half-transaction", "type": "longstr", "value": "<script>"}])),
        ("body", Value::Null),
    ] {
        assert_eq!(message[field], expected, "{field} of {message}");
    }
    let properties = message["properties"].as_array().expect("a list");
    assert_eq!(properties.len(), 13, "{message}");
    assert!(properties.contains(&json!({"name": "priority", "type": "octet", "value": 9})), "{message}");
    let timestamp = json!({"name": "timestamp", "type": "timestamp", "value": "1970-01-01T00:01:17Z"});
    assert!(properties.contains(&timestamp), "{message}");

    let port = self::port(true).await;
    let items = port.get(&path(1, "")).await.json()["items"].clone();
    let bodies: Vec<_> = items.as_array().expect("a list").iter().map(|item| item["body"].clone()).collect();
    let body = |form, text| json!({"form": form, "text": text, "truncated": false});
    assert_eq!(bodies[..3], [body("json", "{\"a\": 1}"), body("text", "two"), body("hex", "00ff")]);
}

#[tokio::test]
async fn pages_go_through_every_message_once() {
    let port = port(true).await;
    for limit in 1..=6 {
        let (mut indexes, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = port.get(&path(1, &format!("?limit={limit}{cursor}"))).await.json();
            let items = page["items"].as_array().expect("a list");
            assert!(!items.is_empty() && items.len() <= limit, "{page}");
            indexes.extend(items.iter().map(|item| item["index"].as_u64().expect("a number")));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(indexes, [0, 1, 2, 3, 4], "pages of {limit}");
    }
}

#[tokio::test]
async fn what_has_none_any_more_has_an_empty_page_and_what_is_wrong_is_named() {
    let port = port(true).await;
    assert_eq!(port.get(&path(2, "")).await.json(), json!({"items": [], "next_cursor": null}));
    port.get(&path(9, "")).await.problem(404);
    for (query, field) in [
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?cursor=x", "cursor"),
        ("?cursor=ffffffffffffffff", "cursor"),
        ("?vhost=/", "vhost"),
    ] {
        assert_eq!(port.get(&path(1, query)).await.problem(400).1, field, "{query}");
    }
    port.post(&path(1, ""), "{}").await.problem(405);
}
