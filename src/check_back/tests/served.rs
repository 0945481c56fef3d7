//! The HTTP checker against real servers: good ones, and every kind of bad one.

use crate::check_back::ask::{Ask, NoAnswer};
use crate::check_back::http::{HttpChecker, reach};
use crate::check_back::question::Question;
use crate::check_back::question::tests::{pack, summary};
use crate::config::HttpUrl;
use crate::tx::check_back::Answer;
use crate::tx::decision::Decision;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use futures_util::stream;
use ring::hmac;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

/// How long a check may take that should take no time; and how long one is waited for that must not end.
const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);
const GOOD: &str = r#"{"decision":"commit"}"#;

fn question() -> Question {
    Question::about(&summary(7), &[pack(b"orders", b"", b"body")]).expect("a question")
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://127.0.0.1:{port}")
}

/// A server that says `answer` to each connection after it has read something, and leaves it open.
async fn serve_bytes(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut some = [0; 16];
            stream.read_exact(&mut some).await.unwrap();
            stream.write_all(answer).await.unwrap();
            kept.push(stream);
        }
    });
    format!("http://127.0.0.1:{port}/")
}

fn checker(url: &str, secret: Option<&[u8]>) -> HttpChecker {
    HttpChecker::new(HttpUrl::try_from(url.to_owned()).expect("a URL"), None, secret)
}

async fn ask(url: &str) -> Result<Answer, NoAnswer> {
    timeout(PATIENCE, checker(url, None).ask(&question())).await.expect("it ends in time")
}

fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], body.into()).into_response()
}

#[tokio::test]
async fn good_answers_are_understood() {
    let mut router = Router::new();
    for (path, word) in [("/c", "commit"), ("/r", "rollback"), ("/u", "unknown"), ("/o", "ongoing")] {
        let body = format!(" {{ \"decision\": \"{word}\" }}\n");
        router = router.route(path, post(async move || json(StatusCode::OK, body)));
    }
    let router = router.route("/bare", post(async || Response::new(Body::from(GOOD))));
    let url = serve(router).await;
    for (path, answer) in [
        ("/c", Answer::Decision(Decision::Commit)),
        ("/r", Answer::Decision(Decision::RollBack)),
        ("/u?a=b", Answer::Unknown),
        ("/o", Answer::Ongoing),
        ("/bare", Answer::Decision(Decision::Commit)),
    ] {
        assert_eq!(ask(&format!("{url}{path}")).await, Ok(answer), "{path}");
    }
}

#[tokio::test]
async fn bad_answers_are_no_answer_and_say_why() {
    let text = async || ([(header::CONTENT_TYPE, "text/plain")], GOOD).into_response();
    let large = async || json(StatusCode::OK, format!("{}{GOOD}", " ".repeat(64 * 1024)));
    let endless = async || {
        let piece = Ok::<_, Infallible>(Bytes::from(vec![b' '; 8192]));
        json(StatusCode::OK, Body::from_stream(stream::repeat(piece)))
    };
    let router = Router::new()
        .route("/here", post(async || Redirect::temporary("/good")))
        .route("/good", post(async || json(StatusCode::OK, GOOD)).get(async || json(StatusCode::OK, GOOD)))
        .route("/500", post(async || json(StatusCode::INTERNAL_SERVER_ERROR, GOOD)))
        .route("/201", post(async || json(StatusCode::CREATED, GOOD)))
        .route("/get", get(async || json(StatusCode::OK, GOOD)))
        .route("/text", post(text))
        .route("/field", post(async || json(StatusCode::OK, r#"{"decision":"commit","why":1}"#)))
        .route("/type", post(async || json(StatusCode::OK, r#"{"decision":true}"#)))
        .route("/word", post(async || json(StatusCode::OK, r#"{"decision":"maybe"}"#)))
        .route("/rubbish", post(async || json(StatusCode::OK, vec![0xff; 100])))
        .route("/empty", post(async || json(StatusCode::OK, "")))
        .route("/large", post(large))
        .route("/endless", post(endless));
    let url = serve(router).await;
    assert!(ask(&format!("{url}/good")).await.is_ok());
    for (path, reason) in [
        ("/here", "no answer: the status is 307, not 200"),
        ("/500", "no answer: the status is 500, not 200"),
        ("/201", "no answer: the status is 201, not 200"),
        ("/get", "no answer: the status is 405, not 200"),
        ("/nowhere", "no answer: the status is 404, not 200"),
        ("/text", "no answer: the content type is text/plain, not application/json"),
        ("/field", "no answer: the answer is not {\"decision\": …}: unknown field `why`"),
        ("/type", "no answer: the answer is not {\"decision\": …}: invalid type: boolean"),
        ("/word", "no answer: `maybe` is none of"),
        ("/rubbish", "no answer: the answer is not a JSON object"),
        ("/empty", "no answer: the answer is not a JSON object"),
        ("/large", "no answer: the answer can't be read: length limit exceeded"),
        ("/endless", "no answer: the answer can't be read: length limit exceeded"),
    ] {
        let found = ask(&format!("{url}{path}")).await.expect_err(path).to_string();
        assert!(found.starts_with(reason), "{path}: {found}");
    }
}

#[tokio::test]
async fn what_is_not_http_is_no_answer() {
    for answer in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let url = serve_bytes(answer).await;
        ask(&url).await.expect_err("no answer");
    }
    let (listener, url) = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
        (listener, url)
    };
    drop(listener);
    let refused = ask(&url).await.expect_err("nobody listens").to_string();
    assert!(refused.starts_with("no answer: cannot connect: "), "{refused}");
}

#[tokio::test]
async fn a_head_without_end_is_no_answer() {
    static HEAD: std::sync::LazyLock<Vec<u8>> =
        std::sync::LazyLock::new(|| [&b"HTTP/1.1 200 OK\r\nx: "[..], &[b'a'; 200 * 1024]].concat());
    let url = serve_bytes(&HEAD).await;
    ask(&url).await.expect_err("no answer");
}

#[tokio::test]
async fn one_that_never_ends_is_waited_for_until_the_caller_gives_up() {
    for answer in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n{\"decision\""] {
        let url = serve_bytes(answer).await;
        timeout(SHORT, checker(&url, None).ask(&question())).await.expect_err("it is not an answer yet");
    }
}

#[tokio::test]
async fn the_question_is_signed_and_says_what_it_is() {
    type Seen = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;
    let seen = Seen::default();
    let keep = Arc::clone(&seen);
    let handler = async move |headers: HeaderMap, body: Bytes| {
        keep.lock().unwrap().push((headers, body));
        json(StatusCode::OK, GOOD)
    };
    let url = serve(Router::new().route("/check", post(handler))).await + "/check";
    assert!(checker(&url, Some(b"key")).ask(&question()).await.is_ok());
    assert!(checker(&url, None).ask(&question()).await.is_ok());
    let seen = seen.lock().unwrap();
    let (headers, body) = &seen[0];
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    assert!(headers[header::HOST].to_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(*body, question().body);
    let signature = headers["x-half-signature"].to_str().unwrap();
    let (time, digest) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let at: u64 = time.parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!((now - 60..=now).contains(&at));
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
    let signed = [time.as_bytes(), b".", body].concat();
    let bytes: Vec<u8> =
        (0..digest.len()).step_by(2).map(|at| u8::from_str_radix(&digest[at..at + 2], 16).unwrap()).collect();
    hmac::verify(&key, &signed, &bytes).expect("the signature fits");
    assert!(!seen[1].0.contains_key("x-half-signature"));
}

#[tokio::test]
async fn reaching_sends_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    let url = HttpUrl::try_from(text).unwrap();
    reach(&url, None, PATIENCE).await.expect("somebody listens");
    let mut received = Vec::new();
    listener.accept().await.unwrap().0.read_to_end(&mut received).await.unwrap();
    assert!(received.is_empty());
    drop(listener);
    reach(&url, None, PATIENCE).await.expect_err("nobody listens");
}
