//! With OAuth 2 RabbitMQ looks at the token alone, and the login name is free.

use crate::half::named;
use crate::support::broker::RELAY;
use crate::support::raw::Login;
use crate::support::{Broker, PATIENCE, Proxy, Raw, deadline, id, unique, wait_until};

/// A RabbitMQ that takes tokens, and beside them its own users.
fn with_tokens() -> Broker {
    let broker = Broker::start();
    broker.enable("rabbitmq_auth_backend_oauth2");
    broker.eval(
        r#"Key = #{<<"kty">> => <<"oct">>, <<"alg">> => <<"HS256">>, <<"k">> => base64url:encode(<<"halfway">>)},
        Keys = [{default_key, <<"tests">>}, {signing_keys, #{<<"tests">> => {map, Key}}}],
        application:set_env(rabbitmq_auth_backend_oauth2, key_config, Keys),
        application:set_env(rabbitmq_auth_backend_oauth2, resource_server_id, <<"rabbitmq">>),
        application:set_env(rabbit, auth_backends, [rabbit_auth_backend_oauth2, rabbit_auth_backend_internal])."#,
    );
    broker
}

/// A token of this user, with permissions such as `write:*/*`.
fn token(broker: &Broker, user: &str, permissions: &[&str]) -> String {
    let scopes: Vec<_> = permissions.iter().map(|permission| format!("<<\"rabbitmq.{permission}\">>")).collect();
    let text = broker.eval(&format!(
        r#"Until = os:system_time(seconds) + 3600,
        Claims = #{{<<"sub">> => <<"{user}">>, <<"aud">> => <<"rabbitmq">>, <<"scope">> => [{}], <<"exp">> => Until}},
        Head = #{{<<"alg">> => <<"HS256">>, <<"kid">> => <<"tests">>}},
        Signed = jose_jwt:sign(jose_jwk:from_oct(<<"halfway">>), Head, Claims),
        element(2, jose_jws:compact(Signed))."#,
        scopes.join(", ")
    ));
    text.split('"').nth(1).expect("it prints a binary").to_owned()
}

fn login(port: u16, user: &str, token: &str) -> Raw {
    Raw::login_as(port, &Login { user, password: token, ..Login::default() }).expect("RabbitMQ takes the token")
}

fn half(raw: &mut Raw, channel: u16, queue: &str, name: &str) {
    raw.publish_with(channel, ("", queue.as_bytes()), 0, &named(name), b"body");
}

fn decide(raw: &mut Raw, channel: u16, decision: &str, name: &str) {
    raw.publish_with(channel, ("halfway", decision.as_bytes()), 0, &named(name), b"");
}

fn states(proxy: &Proxy, name: &str) -> Vec<(String, String)> {
    let (_, text) = proxy.http(&format!("/api/transactions?name={name}")).unwrap();
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    let text = |item: &serde_json::Value, key: &str| item[key].as_str().unwrap().to_owned();
    list["items"].as_array().unwrap().iter().map(|item| (text(item, "user"), text(item, "state"))).collect()
}

#[test]
fn nobody_owns_or_decides_a_transaction_under_a_name_that_is_not_its_token_s() {
    let broker = with_tokens();
    let account = format!("'{RELAY}'");
    let proxy = Proxy::start_with(broker.port, &[("relay.username", &account), ("relay.password", &account)]);
    let all = ["configure:*/*", "write:*/*", "read:*/*"];
    let (alice, mallory) = (token(&broker, "alice", &all), token(&broker, "mallory", &all));
    let (queue, name) = (unique("oauth"), unique("order"));
    let mut watcher = login(broker.port, "alice", &alice);
    watcher.open(1);
    watcher.declare(1, &queue);

    let mut raw = login(proxy.port, "alice", &alice);
    raw.open_tx(1);
    half(&mut raw, 1, &queue, &name);
    raw.call(1, id::TX_SELECT, id::TX_SELECT_OK, |_| {});
    drop(raw);
    let doubt = [("alice".to_owned(), "in_doubt".to_owned())];
    wait_until(deadline(PATIENCE), "it to be in doubt", || states(&proxy, &name) == doubt);

    // RabbitMQ lets mallory's token in under any name.
    for transactional in [false, true] {
        for decision in ["commit", "rollback"] {
            let mut raw = login(proxy.port, "alice", &mallory);
            if transactional {
                raw.open_tx(1);
            } else {
                raw.open(1);
            }
            decide(&mut raw, 1, decision, &name);
            if transactional {
                raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
            }
            let close = raw.expect_close(1);
            assert_eq!(close.code, 406);
            assert!(close.text.contains("does not confirm that this is user 'alice'"), "{}", close.text);
        }
        let other = unique("order");
        let mut raw = login(proxy.port, "alice", &mallory);
        if transactional {
            raw.open_tx(1);
        } else {
            raw.open(1);
        }
        half(&mut raw, 1, &queue, &other);
        let close = raw.expect_close(1);
        assert_eq!((close.code, close.about), (406, id::PUBLISH));
        assert!(close.text.contains("authenticated user was 'mallory'"), "{}", close.text);
        assert_eq!(states(&proxy, &other), []);
    }
    assert_eq!(states(&proxy, &name), doubt);
    assert_eq!(watcher.get(1, &queue), None);

    // Who may write to nothing that is known of is still known, by RabbitMQ's refusal.
    let narrow = token(&broker, "alice", &["write:*/orders"]);
    let mut raw = login(proxy.port, "alice", &narrow);
    raw.open_tx(1);
    decide(&mut raw, 1, "commit", &name);
    raw.commit(1);
    assert_eq!(watcher.get_soon(1, &queue).text(), "body");
}
