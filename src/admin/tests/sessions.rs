//! Logging in and out with a browser, and what other sites can't do with it.

use super::access::{replace_tokens, with_tokens};
use super::fake::id;
use super::*;

const JSON: (&str, &str) = ("Content-Type", "application/json");
const HOST: (&str, &str) = ("Host", "proxy:15673");

/// Logs in, and gives the value of the cookie.
async fn log_in(port: &Port, token: &str) -> String {
    let answer = port.send("POST /api/session", &[HOST, JSON], &json!({"token": token}).to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let cookie = answer.header("set-cookie").expect("a cookie");
    for part in ["; httponly", "; samesite=strict", "; path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    cookie.split(';').next().expect("a pair").to_owned()
}

fn with<'a>(cookie: &'a str, others: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[HOST, ("Cookie", cookie)], others].concat()
}

async fn looks(port: &Port, cookie: &str) -> u16 {
    port.send("GET /api/session", &with(cookie, &[]), "").await.status
}

#[tokio::test]
async fn a_session_stands_for_its_token_until_it_is_closed() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = with_tokens(folder.path()).await;
    let (alice, bob) = (log_in(&port, "secret-a").await, log_in(&port, "secret-b").await);
    let shown = port.send("GET /api/session", &with(&alice, &[]), "").await.json();
    let expected = json!({
        "name": "alice", "role": "operator", "open": false, "show_bodies": false, "version": view::VERSION,
    });
    assert_eq!(shown, expected);
    assert_eq!(port.send("GET /api/session", &with(&bob, &[]), "").await.json()["role"], "viewer");

    let commit = format!("POST /api/transactions/{}/commit", id(1));
    let reason = r#"{"reason": "seen by a person"}"#;
    assert_eq!(port.send(&commit, &with(&bob, &[JSON]), reason).await.status, 403);
    assert_eq!(port.send(&commit, &with(&alice, &[JSON]), reason).await.status, 200);

    let ended = port.send("DELETE /api/session", &with(&alice, &[JSON]), "").await;
    assert_eq!((ended.status, ended.body.as_str()), (204, ""));
    assert!(ended.header("set-cookie").is_some_and(|cookie| cookie.contains("max-age=0")), "{ended:?}");
    assert_eq!((looks(&port, &alice).await, looks(&port, &bob).await), (401, 200));
}

#[tokio::test]
async fn only_one_of_our_cookies_opens_and_an_authorization_goes_before_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = with_tokens(folder.path()).await;
    let cookie = log_in(&port, "secret-a").await;
    let (name, secret) = cookie.split_once('=').expect("a pair");
    let forged = format!("{name}={}", "0".repeat(64));
    assert_eq!(looks(&port, &forged).await, 401);
    assert_eq!(looks(&port, &format!("other={secret}")).await, 401);
    assert_eq!(looks(&port, &format!("{forged}; a=b; {cookie}")).await, 200, "another port of the host set one too");
    let both = with(&cookie, &[("Authorization", "Bearer wrong")]);
    assert_eq!(port.send("GET /api/session", &both, "").await.status, 401);
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = with_tokens(folder.path()).await;
    let cookie = log_in(&port, "secret-a").await;
    replace_tokens(&port, folder.path(), "new", "secret-b");
    assert_eq!(looks(&port, &cookie).await, 401);
    replace_tokens(&port, folder.path(), "secret-a", "secret-b");
    assert_eq!(looks(&port, &cookie).await, 401, "it is over for good");
    assert_eq!(looks(&port, &log_in(&port, "secret-a").await).await, 200);
}

#[tokio::test]
async fn other_sites_neither_decide_nor_log_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = with_tokens(folder.path()).await;
    let cookie = log_in(&port, "secret-a").await;
    let commit = format!("POST /api/transactions/{}/commit", id(1));
    let reason = r#"{"reason": "seen by a person"}"#;
    for foreign in [
        &[("Origin", "https://evil.example")][..],
        &[("Origin", "http://proxy:1")],
        &[("Origin", "null")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-site"), ("Origin", "http://proxy:15673")],
    ] {
        let headers = [&with(&cookie, &[JSON])[..], foreign].concat();
        port.send(&commit, &headers, reason).await.problem(403);
        let headers = [&[HOST, JSON][..], foreign].concat();
        port.send("POST /api/session", &headers, r#"{"token": "secret-a"}"#).await.problem(403);
    }
    // What a form can send.
    for form in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let headers = with(&cookie, &[("Content-Type", form)]);
        assert_eq!(port.send(&commit, &headers, reason).await.problem(415).1, "Content-Type");
        port.send("DELETE /api/session", &headers, "").await.problem(415);
    }
    assert!(port.store.decisions.lock().unwrap().is_empty());
    for own in [
        &[("Origin", "http://PROXY:15673")][..],
        &[("Sec-Fetch-Site", "same-origin"), ("Origin", "https://outside.example")],
        &[("Sec-Fetch-Site", "none")],
    ] {
        let headers = [&with(&cookie, &[JSON])[..], own].concat();
        assert_eq!(port.send(&commit, &headers, reason).await.status, 200, "{own:?}");
    }
    let open = Port::with_store().await;
    let headers = [("Host", "localhost"), JSON, ("Origin", "http://evil.example")];
    open.send(&commit, &headers, reason).await.problem(403);
    assert!(open.store.decisions.lock().unwrap().is_empty(), "a port that needs no token is no exception");
}

#[tokio::test]
async fn wrong_tokens_are_slowed_down_and_sessions_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = with_tokens(folder.path()).await;
    let cookie = log_in(&port, "secret-a").await;
    let bearer = [HOST, ("Authorization", "Bearer guess")];
    let login = [HOST, JSON];
    for (line, headers, body) in
        [("POST /api/session", &login, r#"{"token": "guess"}"#), ("GET /api/session", &bearer, "")]
    {
        let mut guesses = 0;
        let refused = loop {
            let answer = port.send(line, headers, body).await;
            match answer.status {
                401 if guesses < 100 => guesses += 1,
                _ => break answer,
            }
        };
        refused.problem(429);
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    assert_eq!(looks(&port, &cookie).await, 200);
    assert_eq!(port.send("GET /api/session", &[HOST], "").await.status, 401, "nothing shown is nothing guessed");
}

#[tokio::test]
async fn what_is_wrong_with_a_login_is_named_and_nothing_is_kept_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = with_tokens(folder.path()).await;
    for (body, field) in [
        ("", "body"),
        ("[]", "body"),
        ("{}", "token"),
        (r#"{"token": 1}"#, "token"),
        (r#"{"token": "secret-a", "name": "eve"}"#, "name"),
    ] {
        let answer = port.send("POST /api/session", &[HOST, JSON], body).await;
        assert_eq!(answer.problem(400).1, field, "{body}");
        assert_eq!(answer.header("set-cookie"), None);
    }
    let secure = port
        .send("POST /api/session", &[("Host", "proxy"), JSON, ("Origin", "https://proxy")], r#"{"token": "secret-a"}"#)
        .await;
    assert!(secure.header("set-cookie").is_some_and(|cookie| cookie.ends_with("; secure")), "{secure:?}");
}

#[tokio::test]
async fn where_no_token_is_needed_nobody_logs_in() {
    let port = Port::with_store().await;
    let expected =
        json!({"name": "local", "role": "operator", "open": true, "show_bodies": false, "version": view::VERSION});
    assert_eq!(port.get("/api/session").await.json(), expected);
    let answer = port.post("/api/session", r#"{"token": "any"}"#).await;
    assert_eq!((answer.header("set-cookie"), answer.json()), (None, expected));
}
