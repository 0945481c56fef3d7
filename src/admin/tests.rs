use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::health::{COMPONENTS, Component, Condition};

async fn start() -> (Admin, SocketAddr) {
    let admin = Admin { health: Arc::new(Health::new()), metrics: Arc::new(Metrics::new()) };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(admin.clone().serve(listener));
    (admin, address)
}

/// The status line and headers, and the body.
async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn readiness_follows_the_parts_and_names_what_is_missing() {
    let (admin, address) = start().await;
    let (head, body) = get(address, "/readyz").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["components"]["store"], json!({"status": "not_ready", "reason": "starting"}));

    for component in COMPONENTS {
        admin.health.set(component, Condition::Ready);
    }
    admin.health.set(Component::Relay, Condition::Degraded("login refused".into()));
    let (head, body) = get(address, "/readyz").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let ready = json!({"status": "ready"});
    let relay = json!({"status": "degraded", "reason": "login refused"});
    let components = json!({"listener": ready, "store": ready, "upstream": ready, "relay": relay, "draining": ready});
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body, json!({"ready": true, "components": components}));

    admin.health.drain();
    let (head, body) = get(address, "/readyz").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["components"]["draining"]["status"], "not_ready");
}

#[tokio::test]
async fn life_is_told_apart_from_readiness_and_metrics_are_in_their_format() {
    let (admin, address) = start().await;
    let (head, body) = get(address, "/healthz").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body == "ok\n", "{head}\n{body}");
    admin.metrics.connections.inc();
    let (head, body) = get(address, "/metrics").await;
    assert!(head.to_lowercase().contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.contains("\nhalfway_connections 1\n"), "{body}");
}
