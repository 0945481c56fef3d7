mod access;
mod api;
mod bulk;
mod checkers;
mod connections;
mod fake;
mod letters;
mod messages;
mod openapi;
mod overview;
mod pages;
mod sessions;

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use self::fake::FakeStore;
use super::*;
use crate::config;
use crate::health::{COMPONENTS, Component, Condition};

/// A port that is served, and what stands behind it.
struct Port {
    admin: Admin,
    store: Arc<FakeStore>,
    address: SocketAddr,
}

/// An answer, its header names in small letters.
#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    /// A header's value, in small letters.
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Holds an answer to be a problem document with this status, and gives its detail and its field.
    #[track_caller]
    fn problem(&self, status: u16) -> (String, Value) {
        assert_eq!(self.status, status, "{self:?}");
        if self.head.contains("content-length: 0") {
            panic!("no body: {self:?}");
        }
        assert!(self.head.contains("\r\ncontent-type: application/problem+json\r\n"), "{self:?}");
        let problem = self.json();
        assert_eq!((&problem["type"], &problem["status"]), (&json!("about:blank"), &json!(status)), "{problem}");
        assert!(problem["title"].is_string(), "{problem}");
        (problem["detail"].as_str().expect("a detail").to_owned(), problem["field"].clone())
    }
}

impl Port {
    /// A port as by default: open on loopback.
    async fn open() -> Self {
        Self::start(&config::Admin::default()).await
    }

    async fn start(config: &config::Admin) -> Self {
        let access = Arc::new(Access::load(config).expect("usable tokens"));
        let admin = Admin::new(Arc::default(), Numbers::default(), access, Arc::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(admin.clone().serve(vec![listener]));
        let store = Arc::new(FakeStore::default());
        Self { admin, store, address }
    }

    /// As [`Port::open`], with its store open.
    async fn with_store() -> Self {
        let port = Self::open().await;
        port.admin.open(port.store.clone());
        port
    }

    /// Sends a request with these headers beside `Connection` and `Content-Length`.
    async fn send(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        let mut request = format!("{line} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| request += &format!("{name}: {value}\r\n"));
        request += "\r\n";
        request += body;
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Response { status, head: format!("{}\r\n", head.to_lowercase()), body: body.to_owned() }
    }

    async fn get(&self, path: &str) -> Response {
        self.send(&format!("GET {path}"), &[("Host", "localhost")], "").await
    }

    async fn post(&self, path: &str, body: &str) -> Response {
        let headers = [("Host", "localhost"), ("Content-Type", "application/json")];
        self.send(&format!("POST {path}"), &headers, body).await
    }
}

#[tokio::test]
async fn readiness_follows_the_parts_and_names_what_is_missing() {
    let port = Port::open().await;
    let answer = port.get("/readyz").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["components"]["store"], json!({"status": "not_ready", "reason": "starting"}));

    for component in COMPONENTS {
        port.admin.health.set(component, Condition::Ready);
    }
    port.admin.health.set(Component::Relay, Condition::Degraded("login refused".into()));
    let answer = port.get("/readyz").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let ready = json!({"status": "ready"});
    let relay = json!({"status": "degraded", "reason": "login refused"});
    let components = json!({"listener": ready, "store": ready, "upstream": ready, "relay": relay, "draining": ready});
    assert_eq!(answer.json(), json!({"ready": true, "components": components}));

    port.admin.health.drain();
    let answer = port.get("/readyz").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["components"]["draining"]["status"], "not_ready");
}

#[tokio::test]
async fn life_is_told_apart_from_readiness_and_metrics_are_in_their_format() {
    let port = Port::open().await;
    let answer = port.get("/healthz").await;
    assert!(answer.status == 200 && answer.body == "ok\n", "{answer:?}");
    port.admin.numbers.own.turned_away.inc();
    // As Prometheus asks.
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
    let openmetrics = port.send("GET /metrics", &[("Host", "localhost"), ("Accept", accept)], "").await;
    let older = port.get("/metrics").await;
    for (answer, format, counter) in [
        (openmetrics, "application/openmetrics-text; version=1.0.0", "\n# TYPE halfway_admin_turned_away counter\n"),
        (older, "text/plain; version=0.0.4", "\n# TYPE halfway_admin_turned_away_total counter\n"),
    ] {
        assert!(answer.head.contains(&format!("\r\ncontent-type: {format}")), "{answer:?}");
        assert!(
            answer.body.contains("\nhalfway_admin_turned_away_total 1\n") && answer.body.contains(counter),
            "{answer:?}"
        );
    }
    let text = port.get("/metrics").await.body;
    assert!(text.contains("\nhalfway_admin_requests_total{class=\"2xx\"} 3\n"), "each answer counts: {text}");
}
