//! Client connections: looked at, and closed.

use super::access::with_tokens;
use super::*;
use crate::protocol::command::Stage;
use crate::roster::Guest;
use crate::tx::id::Timestamp;

const REASON: &str = r#"{"reason": "it floods the log"}"#;

async fn close(port: &Port, id: &str, body: &str) -> Response {
    let headers = [("Host", "localhost"), ("Content-Type", "application/json")];
    port.send(&format!("DELETE /api/connections/{id}"), &headers, body).await
}

#[tokio::test]
async fn connections_are_listed_with_what_they_tell_and_in_pages() {
    let port = Port::open().await;
    let roster = &port.admin.roster;
    let peer = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
    let seats: Vec<_> =
        (1..=3).map(|number| roster.seat(number, peer(number as u16), number == 2, Timestamp(5))).collect();
    let second = seats[1].seat();
    second.take(Guest {
        user: "alice".into(),
        vhost: "/".into(),
        product: "pika".into(),
        version: Some("1.3.2".into()),
        name: None,
    });
    second.note(Stage::Blocked, (4, 1));
    second.received(100);
    second.sent(7);
    let list = port.get("/api/connections?limit=2").await.json();
    let opening = json!({
        "id": "1", "peer": "192.0.2.1:1", "tls": false, "user": null, "vhost": null, "product": null, "version": null,
        "name": null, "channels": 0, "transactional_channels": 0, "state": "opening",
        "connected_at": "1970-01-01T00:00:00.005Z", "received_bytes": "0", "sent_bytes": "0",
    });
    let open = json!({
        "id": "2", "peer": "192.0.2.1:2", "tls": true, "user": "alice", "vhost": "/", "product": "pika",
        "version": "1.3.2", "name": null, "channels": 4, "transactional_channels": 1, "state": "blocked",
        "connected_at": "1970-01-01T00:00:00.005Z", "received_bytes": "100", "sent_bytes": "7",
    });
    assert_eq!(list["items"], json!([opening, open]));
    let cursor = list["next_cursor"].as_str().expect("there is one more");
    let rest = port.get(&format!("/api/connections?cursor={cursor}")).await.json();
    assert_eq!((&rest["items"][0]["id"], &rest["next_cursor"]), (&json!("3"), &Value::Null));
    assert_eq!(port.get("/api/connections?user=alice").await.problem(400).1, "user");
}

#[tokio::test]
async fn a_session_is_told_to_end_by_an_operator_with_a_reason() {
    let port = Port::open().await;
    let seated = port.admin.roster.seat(7, port.address, false, Timestamp(0));
    for (id, body, status) in [("8", REASON, 404), ("x", REASON, 400), ("07", REASON, 400), ("7", "{}", 400)] {
        close(&port, id, body).await.problem(status);
    }
    let closed = close(&port, "7", REASON).await;
    assert_eq!((closed.status, closed.body.as_str()), (204, ""));
    assert_eq!(seated.seat().told_to_close().await, "it floods the log");

    let folder = tempfile::tempdir().expect("a folder");
    let port = with_tokens(folder.path()).await;
    let headers = [("Host", "proxy"), ("Authorization", "Bearer secret-b"), ("Content-Type", "application/json")];
    port.send("DELETE /api/connections/7", &headers, REASON).await.problem(403);
}
