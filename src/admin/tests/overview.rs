//! The whole at one look, and as a stream.

use std::time::Duration;

use tokio::time::timeout;

use super::access::{replace_tokens, with_tokens};
use super::*;
use crate::roster::{Link, Situation};
use crate::tx::id::Timestamp;

#[tokio::test]
async fn the_overview_has_every_part_before_the_store_is_open_and_after() {
    let port = Port::open().await;
    let early = port.get("/api/overview").await;
    assert_eq!((early.status, &early.json()["store"]["blocked"]), (200, &json!(false)), "{early:?}");
    assert_eq!(early.json()["components"][0], json!({"name": "listener", "status": "not_ready", "reason": "starting"}));

    port.admin.open(port.store.clone());
    port.admin.health.set(Component::Store, Condition::Degraded("nearly full".into()));
    let counted = &port.admin.numbers.instruments;
    counted.unfinished.in_doubt.set(3);
    counted.unfinished.committed.set(1 << 60);
    counted.dead_letters.set(2);
    counted.store_used_bytes.set(4096);
    let link = Link { vhost: "shop".into(), state: "blocked", reason: Some("memory".into()), in_flight: 7 };
    port.admin.roster.stand(Situation { oldest_doubt: Some(Timestamp(1_500)), links: vec![link] });
    let shown = port.get("/api/overview").await.json();
    for (path, expected) in [
        ("/version", json!(view::VERSION)),
        ("/draining", json!(false)),
        ("/transactions", json!({"open": "0", "in_doubt": "3", "committed": "1152921504606846976"})),
        ("/in_doubt_oldest_since", json!("1970-01-01T00:00:01.500Z")),
        ("/dead_letters", json!("2")),
        ("/store", json!({"used_bytes": "4096", "max_bytes": "0", "blocked": false})),
        ("/components/1", json!({"name": "store", "status": "degraded", "reason": "nearly full"})),
        ("/relay", json!([{"vhost": "shop", "state": "blocked", "reason": "memory", "in_flight": "7"}])),
        ("/silent_checkers", json!([])),
        ("/connections", json!("0")),
    ] {
        assert_eq!(shown.pointer(path), Some(&expected), "{path} of {shown}");
    }
    assert!(shown["at"].as_str() >= shown["started_at"].as_str(), "{shown}");
    assert_eq!(shown["rates"]["committed"], 0.0);
    assert_eq!(shown["commit_seconds"], json!({"p50": null, "p99": null}));
}

/// Reads a stream's events until one has this name, and gives its data.
async fn next_event(stream: &mut TcpStream, buffer: &mut String, name: &str) -> Option<Value> {
    let head = format!("event: {name}\ndata: ");
    loop {
        if let Some((_, rest)) = buffer.split_once(&head)
            && let Some((data, rest)) = rest.split_once("\n\n")
        {
            let data = serde_json::from_str(data).expect("JSON");
            *buffer = rest.to_owned();
            return Some(data);
        }
        let mut bytes = [0; 64 * 1024];
        let read = timeout(Duration::from_secs(60), stream.read(&mut bytes)).await.expect("an event in time");
        match read.expect("readable") {
            0 => return None,
            read => buffer.push_str(std::str::from_utf8(&bytes[..read]).expect("UTF-8")),
        }
    }
}

async fn watch(port: &Port, headers: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(port.address).await.expect("connected");
    let request = format!("GET /api/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    (stream, String::new())
}

#[tokio::test]
async fn who_watches_gets_the_history_and_then_every_second() {
    let port = Port::with_store().await;
    let (mut stream, mut buffer) = watch(&port, "").await;
    let history = next_event(&mut stream, &mut buffer, "history").await.expect("a history");
    assert!(history["samples"].is_array(), "{history}");
    let first = next_event(&mut stream, &mut buffer, "overview").await.expect("an overview");
    let second = next_event(&mut stream, &mut buffer, "overview").await.expect("an overview");
    assert!(second["sample"]["at"].as_str() > first["sample"]["at"].as_str(), "{first} {second}");
    assert!(second["sample"]["outcomes"]["committed"].is_number(), "{second}");
    // Who comes later gets what was sampled meanwhile.
    let (mut late, mut buffer) = watch(&port, "").await;
    let history = next_event(&mut late, &mut buffer, "history").await.expect("a history");
    assert!(history["samples"].as_array().is_some_and(|samples| samples.contains(&second["sample"])), "{history}");
}

#[tokio::test]
async fn only_so_many_watch_and_who_leaves_makes_room() {
    let port = Port::with_store().await;
    let mut watchers = Vec::new();
    let refused = loop {
        let (mut stream, mut buffer) = watch(&port, "").await;
        let mut bytes = [0; 1024];
        let read = stream.read(&mut bytes).await.expect("readable");
        buffer.push_str(&String::from_utf8_lossy(&bytes[..read]));
        if !buffer.starts_with("HTTP/1.1 200 ") {
            break buffer;
        }
        watchers.push(stream);
        assert!(watchers.len() < 1000);
    };
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1"), "{refused}");
    drop(watchers);
    // The places are free once the port has seen that they are gone: at the latest with the next event.
    timeout(Duration::from_secs(60), async {
        loop {
            let (mut stream, mut buffer) = watch(&port, "").await;
            if next_event(&mut stream, &mut buffer, "history").await.is_some() {
                break;
            }
        }
    })
    .await
    .expect("room");
}

#[tokio::test]
async fn a_stream_ends_with_the_token_it_was_opened_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = with_tokens(folder.path()).await;
    let (mut stream, mut buffer) = watch(&port, "Authorization: Bearer secret-b\r\n").await;
    assert!(next_event(&mut stream, &mut buffer, "overview").await.is_some());
    replace_tokens(&port, folder.path(), "secret-a", "other");
    while next_event(&mut stream, &mut buffer, "overview").await.is_some() {}
}
