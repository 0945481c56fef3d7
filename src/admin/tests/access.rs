//! Who may use `/api`.

use std::fs;
use std::path::{Path, PathBuf};

use super::fake::id;
use super::*;
use crate::config::{AdminToken, Role};
use crate::tx::decision::Actor;
use crate::tx::state::State;

const REASON: &str = r#"{"reason": "seen by a person"}"#;

/// Writes token files, and gives the settings that name them.
fn tokens(folder: &Path, files: &[(&str, &str, Role)]) -> config::Admin {
    let token = |(name, text, role): &(&str, &str, Role)| {
        let token_file = folder.join(name);
        fs::write(&token_file, text).expect("written");
        AdminToken { token_file, role: *role }
    };
    config::Admin { tokens: files.iter().map(token).collect(), ..config::Admin::default() }
}

const TWO: [(&str, &str, Role); 2] =
    [("alice.token", "secret-a\n", Role::Operator), ("bob", "secret-b\r\n", Role::Viewer)];

pub(super) async fn with_tokens(folder: &Path) -> Port {
    let port = Port::start(&tokens(folder, &TWO)).await;
    port.admin.open(port.store.clone());
    port.store.add(State::InDoubt, "/", "alice", "order-1");
    port
}

/// Puts other tokens in force.
pub(super) fn replace_tokens(port: &Port, folder: &Path, alice: &str, bob: &str) {
    let config = tokens(folder, &[("alice.token", alice, Role::Operator), ("bob", bob, Role::Viewer)]);
    port.admin.access.put_in_force(port.admin.access.read(&config).expect("usable"));
}

/// A status for each of: looking, deciding, asking.
async fn may(port: &Port, headers: &[(&str, &str)]) -> [u16; 3] {
    let mut headers = headers.to_vec();
    headers.push(("Content-Type", "application/json"));
    let path = format!("/api/transactions/{}", id(1));
    let look = port.send("GET /api/transactions", &headers, "").await.status;
    let decide = port.send(&format!("POST {path}/commit"), &headers, REASON).await.status;
    // There is no checker: who may ask is told 409.
    let ask = port.send(&format!("POST {path}/check"), &headers, "").await.status;
    [look, decide, ask]
}

#[tokio::test]
async fn a_viewer_looks_and_an_operator_decides() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = with_tokens(folder.path()).await;
    // With tokens, the name under which the port is reached doesn't matter.
    assert_eq!(may(&port, &[("Host", "proxy"), ("Authorization", "Bearer secret-b")]).await, [200, 403, 403]);
    assert!(port.store.decisions.lock().unwrap().is_empty());
    assert_eq!(may(&port, &[("Host", "proxy"), ("Authorization", "bearer secret-a")]).await, [200, 200, 409]);
    assert_eq!(port.store.decisions.lock().unwrap()[0].1, Actor::Operator("alice".into()));
}

#[tokio::test]
async fn without_a_valid_token_nothing_is_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bodies = Vec::new();
    for authorization in [
        None,
        Some("Bearer"),
        Some("Bearer "),
        Some("Bearer secret-c"),
        Some("Bearer secret-"),
        Some("Bearer secret-aa"),
        Some("Bearer secret-a secret-b"),
        Some("Basic secret-a"),
        Some("secret-a"),
    ] {
        // Of each port a few wrong tokens may be asked before it slows down.
        let port = with_tokens(folder.path()).await;
        let mut headers = vec![("Host", "localhost")];
        headers.extend(authorization.map(|value| ("Authorization", value)));
        assert_eq!(may(&port, &headers).await, [401; 3], "{authorization:?}");
        let answer = port.send("GET /api/transactions", &headers, "").await;
        answer.problem(401);
        assert!(answer.head.contains("\r\nwww-authenticate: bearer\r\n"), "{answer:?}");
        bodies.push(answer.body);
        assert_eq!(port.send("GET /api/nowhere", &headers, "").await.status, 401, "paths are no secret to give away");
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let port = with_tokens(folder.path()).await;
    let twice = [("Host", "localhost"), ("Authorization", "Bearer secret-a"), ("Authorization", "Bearer secret-a")];
    assert_eq!(may(&port, &twice).await, [401; 3]);
    for path in ["/healthz", "/metrics"] {
        assert_eq!(port.get(path).await.status, 200, "{path} stays open");
    }
}

#[tokio::test]
async fn a_port_without_tokens_that_is_not_open_answers_nobody() {
    for config in [
        config::Admin { open_on_loopback: false, ..config::Admin::default() },
        config::Admin { address: vec!["0.0.0.0:1".parse().expect("an address")], ..config::Admin::default() },
    ] {
        let port = Port::start(&config).await;
        port.admin.open(port.store.clone());
        assert_eq!(may(&port, &[("Host", "localhost")]).await, [401; 3]);
        assert_eq!(may(&port, &[("Host", "localhost"), ("Authorization", "Bearer x")]).await, [401; 3]);
        assert_eq!(port.get("/healthz").await.status, 200);
    }
}

#[tokio::test]
async fn an_open_port_answers_to_names_of_this_machine_only() {
    let port = Port::with_store().await;
    port.store.add(State::InDoubt, "/", "alice", "order-1");
    for host in
        ["evil.example", "evil.example:15673", "localhost.evil.example", "192.0.2.1", "127.0.0.1@evil.example", ""]
    {
        assert_eq!(may(&port, &[("Host", host)]).await, [403; 3], "{host}");
    }
    // HTTP/1.1 wants exactly one; what the server itself does not refuse, the port does.
    assert!(port.send("GET /api/transactions", &[], "").await.status >= 400);
    let twice = [("Host", "localhost"), ("Host", "evil.example")];
    assert!(may(&port, &twice).await.iter().all(|status| (400..500).contains(status)));
    assert!(port.store.decisions.lock().unwrap().is_empty());
    // A reverse proxy on the same machine made every visitor an operator.
    for forwarded in ["Forwarded", "Via", "X-Forwarded-For", "x-forwarded-proto", "X-Real-IP"] {
        assert_eq!(may(&port, &[("Host", "localhost"), (forwarded, "192.0.2.1")]).await, [403; 3], "{forwarded}");
    }
    assert!(port.store.decisions.lock().unwrap().is_empty());
    for host in ["localhost", "LOCALHOST:15673", "127.0.0.1:15673", "[::1]", "[::1]:15673"] {
        assert_eq!(may(&port, &[("Host", host)]).await, [200, 200, 409], "{host}");
    }
}

#[tokio::test]
async fn tokens_are_read_again_and_stay_if_they_can_not_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = with_tokens(folder.path()).await;
    let config = tokens(folder.path(), &TWO);
    let look = async |token: &str| {
        let value = format!("Bearer {token}");
        port.send("GET /api/transactions", &[("Host", "proxy"), ("Authorization", &value)], "").await.status
    };
    fs::write(folder.path().join("alice.token"), "new").expect("written");
    assert_eq!((look("secret-a").await, look("new").await), (200, 401));
    port.admin.access.put_in_force(port.admin.access.read(&config).expect("usable"));
    assert_eq!((look("secret-a").await, look("new").await), (401, 200));
    fs::write(folder.path().join("alice.token"), "\n").expect("written");
    assert!(port.admin.access.read(&config).is_err(), "it is empty");
    assert_eq!((look("new").await, look("secret-b").await), (200, 200));
}

#[test]
fn a_token_file_that_can_not_work_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let load = |files: &[(&str, &str, Role)]| {
        Access::load(&tokens(folder.path(), files)).map(|_| ()).expect_err("unusable").to_string()
    };
    for (text, words) in [
        ("", "is empty"),
        ("\r\n", "is empty"),
        ("two words", "visible ASCII"),
        ("a\nb\n", "visible ASCII"),
        ("ü", "ASCII"),
    ] {
        let error = load(&[("alice", text, Role::Viewer)]);
        assert!(
            error.contains("alice") && error.contains(words) && error.contains("admin.tokens"),
            "{text:?}: {error}"
        );
    }
    let error = load(&[("bob.a", "1", Role::Viewer), ("bob.b", "2", Role::Operator)]);
    assert!(error.contains("bob.b") && error.contains("same name"), "{error}");
    let error = load(&[("bob", "1", Role::Viewer), ("eve", "1", Role::Operator)]);
    assert!(error.contains("eve") && error.contains("same token"), "{error}");
    let nowhere = vec![AdminToken { token_file: PathBuf::from("/nowhere/token"), role: Role::Viewer }];
    let error = Access::load(&config::Admin { tokens: nowhere, ..config::Admin::default() }).expect_err("no such file");
    assert!(error.to_string().contains("/nowhere/token"), "{error}");
    let shown =
        format!("{:?}", Access::load(&tokens(folder.path(), &[("eve", "hidden", Role::Viewer)])).expect("usable"));
    assert!(!shown.contains("hidden"), "{shown}");
}
