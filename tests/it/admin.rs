//! The admin port of a running proxy, as the dashboard uses it.

use crate::support::table::{Properties, Table};
use crate::support::{PATIENCE, Proxy, Raw, broker, deadline, unique, wait_until};
use serde_json::{Value, json};

fn get(proxy: &Proxy, path: &str) -> Value {
    let (status, body) = proxy.http(path).expect("an answer");
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

/// The only connection to this proxy, once `is_so`.
fn only(proxy: &Proxy, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut found = Value::Null;
    wait_until(deadline(PATIENCE), what, || {
        let list = get(proxy, "/api/connections");
        found = list["items"][0].clone();
        list["items"].as_array().is_some_and(|items| items.len() == 1) && is_so(&found)
    });
    found
}

#[test]
fn a_connection_is_seen_with_its_channels_and_is_closed_by_hand() {
    let proxy = Proxy::start(broker().port);
    let mut raw = Raw::login(proxy.port);
    raw.open(2);
    raw.open_tx(1);
    let seen = only(&proxy, "both channels", |seen| seen["channels"] == 2);
    for (field, expected) in [
        ("user", json!("guest")),
        ("vhost", json!("/")),
        ("product", json!("raw")),
        ("transactional_channels", json!(1)),
        ("state", json!("open")),
        ("tls", json!(false)),
        ("peer", json!(format!("127.0.0.1:{}", raw.local_port()))),
    ] {
        assert_eq!(seen[field], expected, "{field} of {seen}");
    }
    let bytes = |seen: &Value, field: &str| seen[field].as_str().and_then(|bytes| bytes.parse::<u64>().ok());
    assert!(bytes(&seen, "received_bytes") > Some(100) && bytes(&seen, "sent_bytes") > Some(100), "{seen}");
    raw.close(1);
    only(&proxy, "one channel less", |seen| seen["channels"] == 1 && seen["transactional_channels"] == 0);

    let path = format!("/api/connections/{}", seen["id"].as_str().expect("an id"));
    let (status, body) =
        proxy.request("DELETE", &path, r#"{"reason": "it is the wrong \u001b[2J one"}"#).expect("an answer");
    assert_eq!((status, body.as_str()), (204, ""));
    let close = raw.expect_close(0);
    assert_eq!(
        (close.code, close.text.as_str()),
        (320, "CONNECTION_FORCED - closed by an operator: it is the wrong \u{1b}[2J one")
    );
    drop(raw);
    wait_until(deadline(PATIENCE), "it to leave the list", || get(&proxy, "/api/connections")["items"] == json!([]));
    let log = proxy.log();
    let audit = log.lines().find(|line| line.contains("halfway::audit")).expect("an audit line");
    assert!(audit.contains("close") && audit.contains("operator local") && audit.contains("\\u{1b}[2J"), "{audit}");
}

#[test]
fn messages_in_doubt_are_shown_as_they_were_published() {
    let proxy = Proxy::start_with(broker().port, &[("admin.show_bodies", "true")]);
    let (queue, name) = (unique("shown"), unique("shown-tx"));
    let mut raw = Raw::login(proxy.port);
    raw.open(1);
    raw.declare(1, &queue);
    let headers = Table::new().string("x-half-transaction", &name).string("html", "<b>\u{202e}");
    let properties = Properties::persistent().headers(headers);
    raw.publish_with(1, ("", queue.as_bytes()), 0, &properties, br#"{"order": 17}"#);
    let path = format!("/api/transactions?name={name}&state=in_doubt");
    let mut id = String::new();
    wait_until(deadline(PATIENCE), "the transaction", || {
        id = get(&proxy, &path)["items"][0]["id"].as_str().unwrap_or_default().to_owned();
        !id.is_empty()
    });
    let shown = get(&proxy, &format!("/api/transactions/{id}/messages"));
    let message = &shown["items"][0];
    assert_eq!((&message["exchange"], &message["routing_key"]), (&json!(""), &json!(queue)), "{shown}");
    assert_eq!(message["body"], json!({"form": "json", "text": "{\"order\": 17}", "truncated": false}));
    let headers = message["headers"].as_array().expect("headers");
    assert!(headers.contains(&json!({"name": "html", "type": "longstr", "value": "<b>\u{202e}"})), "{shown}");
    for (filter, found) in
        [("exchange=&user=guest", 1), ("exchange=orders", 0), ("min_age=1h", 0), ("name=shown-tx*", 1)]
    {
        let list = get(&proxy, &format!("/api/transactions?{filter}"));
        assert_eq!(list["items"].as_array().map(Vec::len), Some(found), "{filter}: {list}");
    }
}
