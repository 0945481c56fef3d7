//! Every path under `/api`, and what is wrong with requests.

use super::fake::{FakeStore, id};
use super::*;
use crate::store::StoreError;
use crate::tx::decision::{Actor, Decision};
use crate::tx::state::State;

const REASON: &str = r#"{"reason": "the order is in the database"}"#;

fn path(number: u128, what: &str) -> String {
    format!("/api/transactions/{}{what}", id(number))
}

/// Names of a list's items.
fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().expect("items").iter().map(|item| item["name"].as_str().expect("a name")).collect()
}

fn fill(store: &FakeStore) {
    store.add(State::InDoubt, "/", "alice", "order-1");
    store.add(State::InDoubt, "shop", "alice", "order/2 ü");
    store.add(State::Committed, "/", "bob", "order-3");
    store.add(State::RolledBack, "/", "alice", "order-4");
}

#[tokio::test]
async fn a_list_is_filtered_and_comes_in_pages() {
    let port = Port::with_store().await;
    let empty = port.get("/api/transactions").await;
    assert_eq!((empty.status, empty.json()), (200, json!({"items": [], "next_cursor": null})));
    fill(&port.store);
    for (query, expected) in [
        ("", &["order-1", "order/2 ü", "order-3", "order-4"][..]),
        ("?state=in_doubt", &["order-1", "order/2 ü"]),
        ("?vhost=%2F&user=alice", &["order-1", "order-4"]),
        ("?name=order%2F2+%C3%BC", &["order/2 ü"]),
        ("?user=nobody", &[]),
        ("?name=order*", &["order-1", "order/2 ü", "order-3", "order-4"]),
        ("?name=order-?&state=committed", &["order-3"]),
        ("?name=*ü", &["order/2 ü"]),
        ("?min_age=1h", &["order-1", "order/2 ü", "order-3", "order-4"]),
        ("?min_age=200years", &[]),
    ] {
        let list = port.get(&format!("/api/transactions{query}")).await;
        assert_eq!(list.status, 200, "{query}: {list:?}");
        assert_eq!(names(&list.json()), expected, "{query}");
    }

    let mut seen = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let more = cursor.as_str().map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page = port.get(&format!("/api/transactions?vhost=/&limit=2{more}")).await.json();
        assert!(names(&page).len() <= 2, "{page}");
        seen.extend(names(&page).into_iter().map(str::to_owned));
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(seen, ["order-1", "order-3", "order-4"]);
}

#[tokio::test]
async fn a_transaction_has_every_field_in_its_form() {
    let port = Port::with_store().await;
    fill(&port.store);
    let shown = port.get(&path(3, "")).await;
    let expected = json!({
        "id": id(3).to_string(), "name": "order-3", "vhost": "/", "user": "bob", "state": "committed",
        "created_at": "1970-01-01T00:00:01.000Z", "parked_at": "1970-01-01T00:00:02.001Z",
        "decided_at": "2026-01-02T03:04:05.678Z", "decided_by": "checker orders", "messages": "3", "bytes": "4096",
        "checker": null, "checks_answered": 1, "next_check_at": null,
        "history": [
            {"at": "1970-01-01T00:00:02.001Z", "event": "parked", "actor": "channel", "reason": "a \"reason\""}
        ],
    });
    let mut found = shown.json();
    let version = found["version"].take();
    found.as_object_mut().expect("an object").remove("version");
    assert_eq!((shown.status, found), (200, expected));
    assert_eq!(shown.header("etag").map(|etag| etag.trim_matches('"')), version.as_str());
    let list = port.get("/api/transactions?user=bob").await.json();
    assert!(list["items"][0].get("history").is_none(), "a list goes without: {list}");
    assert_eq!(port.get(&path(9, "")).await.problem(404).1, Value::Null);
}

#[tokio::test]
async fn the_first_decision_wins_and_every_answer_says_so() {
    let port = Port::with_store().await;
    fill(&port.store);
    let first = port.post(&path(1, "/commit"), REASON).await;
    let mut expected = json!({
        "id": id(1).to_string(), "state": "committed", "decided_at": "2026-01-02T03:04:05.678Z",
        "decided_by": "operator local", "changed": true,
    });
    assert_eq!((first.status, first.json()), (200, expected.clone()));
    let again = port.post(&path(1, "/commit"), REASON).await;
    expected["changed"] = json!(false);
    assert_eq!((again.status, again.json()), (200, expected));

    let opposite = port.post(&path(1, "/rollback"), REASON).await;
    let (text, _) = opposite.problem(409);
    assert!(text.contains("committed by operator local at 2026-01-02T03:04:05.678Z"), "{text}");
    let problem = opposite.json();
    assert_eq!((&problem["state"], &problem["decided_by"]), (&json!("committed"), &json!("operator local")));
    assert_eq!(
        (&problem["id"], &problem["decided_at"]),
        (&json!(id(1).to_string()), &json!("2026-01-02T03:04:05.678Z"))
    );

    port.post(&path(9, "/commit"), REASON).await.problem(404);
    let decisions = port.store.decisions.lock().unwrap().clone();
    let reason = Some("the order is in the database".to_owned());
    assert_eq!(decisions[0], (Decision::Commit, Actor::Operator("local".into()), reason.clone()));
    assert_eq!(decisions[2], (Decision::RollBack, Actor::Operator("local".into()), reason));
}

#[tokio::test]
async fn a_name_is_decided_for_its_own_user_and_virtual_host_only() {
    let port = Port::with_store().await;
    fill(&port.store);
    let decide = async |vhost: &str, user: &str, name: &str, what: &str| {
        port.post(&format!("/api/vhosts/{vhost}/users/{user}/transactions/{name}/{what}"), REASON).await
    };
    for (vhost, user) in [("%2F", "bob"), ("shop", "alice"), ("%2f%2f", "alice")] {
        decide(vhost, user, "order-1", "rollback").await.problem(404);
    }
    let done = decide("%2F", "alice", "order-1", "rollback").await;
    assert_eq!((done.status, &done.json()["state"]), (200, &json!("rolled_back")), "{done:?}");
    let done = decide("shop", "alice", "order%2F2%20%C3%BC", "commit").await.json();
    assert_eq!((&done["id"], &done["changed"]), (&json!(id(2).to_string()), &json!(true)));
    decide("%2F", "bob", "order-3", "rollback").await.problem(409);
    let (text, field) = decide("%2F", "bob", &"n".repeat(256), "commit").await.problem(400);
    assert!(field == "name" && text.contains("more than 255"), "{text}");
    decide("%2F", "bob", "%FF", "commit").await.problem(400);
    decide("%2F", "bob", "order-3", "check").await.problem(404);
}

#[tokio::test]
async fn a_check_is_due_at_once_or_the_answer_says_why_not() {
    let port = Port::with_store().await;
    fill(&port.store);
    let (text, _) = port.post(&path(1, "/check"), "").await.problem(409);
    assert!(text.contains("by hand"), "{text}");
    port.store.rows.lock().unwrap()[0].checker = Some("orders".into());
    for body in ["", "{}"] {
        let checked = port.post(&path(1, "/check"), body).await;
        assert_eq!((checked.status, &checked.json()["checker"]), (200, &json!("orders")), "{checked:?}");
        assert_eq!(checked.json()["next_check_at"], "2026-01-02T03:04:05.678Z");
    }
    let (text, _) = port.post(&path(3, "/check"), "").await.problem(409);
    assert!(text.contains("it is committed"), "{text}");
    port.post(&path(9, "/check"), "").await.problem(404);
    assert_eq!(port.post(&path(1, "/check"), REASON).await.problem(400).1, "reason");
}

#[tokio::test]
async fn what_is_wrong_with_a_query_is_named() {
    let port = Port::with_store().await;
    for (query, field, words) in [
        ("state=done", "state", "open, in_doubt, committed"),
        ("state=", "state", "one of"),
        ("min_age=1", "min_age", "such as 30s"),
        ("min_age=-1s", "min_age", "such as 30s"),
        ("limit=0", "limit", "1 to 1000"),
        ("limit=1001", "limit", "1 to 1000"),
        ("limit=ten", "limit", "1 to 1000"),
        ("limit=-1", "limit", "1 to 1000"),
        ("cursor=5", "cursor", "next_cursor"),
        ("cursor=%2B000000000000005", "cursor", "next_cursor"),
        ("cursor=ffffffffffffffff", "cursor", "next_cursor"),
        ("name=", "name", "is empty"),
        ("stat=open", "stat", "one of state, vhost, user, name, exchange, min_age, limit, cursor"),
        ("user=a&user=b", "user", "twice"),
    ] {
        let answer = port.get(&format!("/api/transactions?{query}")).await;
        let (text, found) = answer.problem(400);
        assert!(found == field && text.contains(words), "{query}: {answer:?}");
    }
    assert_eq!(port.get("/api/transactions?limit=1000").await.status, 200);
    for id in ["1", "01890a5dac96774bbcceb302099a8057", "%7B01890a5d-ac96-774b-bcce-b302099a8057%7D", "%FF"] {
        assert_eq!(port.get(&format!("/api/transactions/{id}")).await.problem(400).1, "id", "{id}");
        assert_eq!(port.post(&format!("/api/transactions/{id}/commit"), REASON).await.problem(400).1, "id", "{id}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_named_and_nothing_is_decided() {
    let port = Port::with_store().await;
    fill(&port.store);
    let long = format!(r#"{{"reason": "{}"}}"#, "ü".repeat(1001));
    for (body, field, words) in [
        ("", "body", "object"),
        ("[]", "body", "object"),
        ("\"reason\"", "body", "object"),
        ("{", "body", "not JSON"),
        ("{}", "reason", "missing"),
        (r#"{"reason": 7}"#, "reason", "string"),
        (r#"{"reason": null}"#, "reason", "missing"),
        (r#"{"reason": ""}"#, "reason", "empty"),
        (r#"{"reason": " \n "}"#, "reason", "empty"),
        (r#"{"reason": "x", "force": true}"#, "force", "unknown field"),
        (&long, "reason", "1001 characters, more than 1000"),
    ] {
        let (text, found) = port.post(&path(1, "/commit"), body).await.problem(400);
        assert!(found == field && text.contains(words), "{body}: {found} {text}");
    }
    let large = format!(r#"{{"reason": "{}"}}"#, "x".repeat(64 * 1024));
    port.post(&path(1, "/commit"), &large).await.problem(413);
    for form in ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", "application/jsonp"] {
        let headers = [("Host", "localhost"), ("Content-Type", form)];
        let answer = port.send(&format!("POST {}", path(1, "/commit")), &headers, REASON).await;
        assert_eq!(answer.problem(415).1, "Content-Type", "{form}");
    }
    assert!(port.store.decisions.lock().unwrap().is_empty());

    let most = format!(r#"{{"reason": "{}"}}"#, "ü".repeat(1000));
    let headers = [("Host", "localhost"), ("Content-Type", "Application/JSON; charset=utf-8")];
    let answer = port.send(&format!("POST {}", path(1, "/commit")), &headers, &most).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn a_store_that_fails_is_told_from_one_that_is_full_and_one_that_is_not_open_yet() {
    let port = Port::open().await;
    port.get("/api/transactions").await.problem(503);
    port.post(&path(1, "/commit"), REASON).await.problem(503);
    port.admin.open(port.store.clone());
    fill(&port.store);
    for (error, status) in [
        (StoreError::Full("disk".into()), 507),
        (StoreError::Io("I/O error".into()), 503),
        (StoreError::Unknown("connection lost".into()), 503),
        (StoreError::Fenced, 503),
        (StoreError::Closed, 503),
        (StoreError::Locked("order-1".into()), 409),
    ] {
        *port.store.failure.lock().unwrap() = Some(error.clone());
        for what in ["/commit", "/rollback"] {
            assert_eq!(port.post(&path(1, what), REASON).await.problem(status).0, error.to_string());
        }
        port.post(&path(1, "/check"), "").await.problem(status);
        port.get("/api/transactions").await.problem(status);
        port.get(&path(1, "")).await.problem(status);
    }
    *port.store.failure.lock().unwrap() = None;
    assert_eq!(port.get(&path(1, "")).await.json()["state"], "in_doubt");
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_problems_too() {
    let port = Port::with_store().await;
    for unknown in ["/index.html", "/api", "/api/", "/api/transaction", "/apis", "/healthz/", "/api/transactions/"] {
        port.get(unknown).await.problem(404);
    }
    port.post(&path(1, "/delete"), REASON).await.problem(404);
    for (line, allowed) in [
        ("POST /healthz".to_owned(), "get,head"),
        ("DELETE /api/transactions".to_owned(), "get,head"),
        (format!("GET {}", path(1, "/commit")), "post"),
        (format!("PUT {}", path(1, "")), "get,head"),
    ] {
        let answer = port.send(&line, &[("Host", "localhost")], "").await;
        answer.problem(405);
        assert!(answer.head.contains(&format!("\r\nallow: {allowed}\r\n")), "{line}: {answer:?}");
    }
}

#[tokio::test]
async fn answers_are_neither_guessed_at_nor_kept_by_browsers() {
    let port = Port::with_store().await;
    let list = port.get("/api/transactions").await.head;
    let problem = port.get("/api/nowhere").await.head;
    for head in [&list, &problem] {
        assert!(head.contains("\r\ncache-control: no-store\r\n"), "{head}");
    }
    for head in [&list, &problem, &port.get("/healthz").await.head, &port.get("/nowhere").await.head] {
        assert!(head.contains("\r\nx-content-type-options: nosniff\r\n"), "{head}");
    }
}

#[tokio::test]
async fn what_changed_since_it_was_looked_at_is_not_decided() {
    let port = Port::with_store().await;
    fill(&port.store);
    let version = port.get(&path(1, "")).await.json()["version"].as_str().expect("a version").to_owned();
    assert_eq!(port.get("/api/transactions").await.json()["items"][0]["version"], version, "a list tells it as well");
    let decide = async |tags: &str| {
        let headers = [("Host", "localhost"), ("Content-Type", "application/json"), ("If-Match", tags)];
        port.send(&format!("POST {}", path(1, "/commit")), &headers, REASON).await
    };
    port.store.rows.lock().unwrap()[0].attempts += 1;
    for stale in [format!("\"{version}\""), format!("W/\"{version}\""), "\"\"".into(), String::new()] {
        let answer = decide(&stale).await;
        assert_eq!(answer.problem(412).1, "If-Match");
        assert_ne!(answer.json()["version"], version);
    }
    assert!(port.store.decisions.lock().unwrap().is_empty());
    let now = port.get(&path(1, "")).await;
    let etag = now.header("etag").expect("an ETag");
    assert_eq!(decide(&format!("\"other\", {etag}")).await.status, 200);
    assert!(decide(etag).await.problem(412).0.contains("it is committed now"));
    assert_eq!(decide("*").await.status, 200, "any version will do, and it was decided so before");
    let unknown = [("Host", "localhost"), ("Content-Type", "application/json"), ("If-Match", "*")];
    port.send(&format!("POST {}", path(9, "/commit")), &unknown, REASON).await.problem(404);
}
