//! What RabbitMQ allows the relay's connection, and what the relay makes of it.

use crate::support::broker::RELAY;
use crate::support::raw::Login;
use crate::support::table::{Properties, Table};
use crate::support::{Broker, PATIENCE, Proxy, Raw, broker, deadline, transactional, unique, wait_until};

/// A proxy whose relay uses the account of this broker.
fn proxy(broker: &Broker, settings: &[(&str, &str)]) -> Proxy {
    let account = format!("'{RELAY}'");
    let own = [("relay.username", account.as_str()), ("relay.password", account.as_str())];
    Proxy::start_with(broker.port, &[&own, settings].concat())
}

#[test]
fn without_a_limit_for_frames_what_a_client_may_send_the_relay_may_too() {
    let broker = Broker::start_with("frame_max = 0");
    let proxy = proxy(&broker, &[]);
    let large = Properties::persistent().headers(Table::new().string("large", "h".repeat(300 << 10)));
    let mut lengths = Vec::new();
    for port in [broker.port, proxy.port] {
        let queue = unique("relay-frames");
        let mut raw = Raw::login_as(port, &Login { frame_max: 0, ..Login::default() }).unwrap();
        assert_eq!(raw.frame_max, 0, "there is no limit");
        raw.open(2);
        raw.declare(2, &queue);
        raw.open_tx(1);
        raw.publish_with(1, ("", queue.as_bytes()), 0, &large, b"body");
        // It comes back to the relay, in a single frame.
        raw.publish(1, "relay-frames-no-such-queue", "b".repeat(3 << 20));
        raw.commit(1);
        let content = raw.get_soon(2, &queue);
        lengths.push((content.properties.header("large").map(|header| header.len()), content.text()));
    }
    assert_eq!(lengths[0], (Some(300 << 10), "body".into()));
    assert_eq!(lengths[0], lengths[1], "left: RabbitMQ itself, right: through the proxy");
    wait_until(deadline(PATIENCE), "the unroutable one", || proxy.metric("halfway_unroutable_messages_total") == 1.0);
    wait_until(deadline(PATIENCE), "the backlog to be gone", || proxy.metric("halfway_backlog_transactions") == 0.0);
    assert_eq!(proxy.metric("halfway_dead_letters"), 0.0);
    assert_eq!(proxy.metric("halfway_relay_reconnects_total"), 0.0);
}

#[test]
fn rabbitmqs_list_shows_the_relay_as_it_shows_clients() {
    let broker = broker();
    let (mut proxy, account) = crate::support::with_relay_account(&[]);
    proxy.resume();
    let queue = unique("relay-listed");
    let mut raw = transactional(proxy.port, &queue);
    raw.publish(1, &queue, "forwarded");
    raw.commit(1);
    raw.get_soon(2, &queue);
    let list = broker.ctl(&["list_connections", "user", "client_properties"]);
    let relay = list.lines().find(|line| line.starts_with(&account)).expect("the relay is in the list");
    for (name, value) in [
        ("product", "Halfway"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("platform", "Rust"),
        ("information", "RabbitMQ"),
        ("connection_name", "halfway relay"),
    ] {
        let (_, rest) = relay.split_once(&format!("\"{name}\"")).unwrap_or_else(|| panic!("{name} in {relay}"));
        assert!(rest.split('}').next().is_some_and(|rest| rest.contains(value)), "{name} in {relay}");
    }
    assert!(relay.contains("\"capabilities\""), "{relay}");
}

/// Commits `count` messages, each on a channel of its own connection's, so that all lanes have some; and reads them.
fn commit_on_all_lanes(proxy: &Proxy, queue: &str, count: usize) {
    let mut reader = transactional(proxy.port, queue);
    let mut writers: Vec<Raw> = (0..20).map(|_| Raw::login(proxy.port)).collect();
    for writer in &mut writers {
        for channel in 1..=2 {
            writer.open_tx(channel);
        }
    }
    for number in 0..count {
        let (writer, channel) = (number % writers.len(), 1 + number / writers.len() % 2);
        writers[writer].publish(channel as u16, queue, number.to_string());
        writers[writer].commit(channel as u16);
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < count {
        seen.insert(reader.get_soon(2, queue).text().parse::<usize>().unwrap());
    }
    assert_eq!(seen, (0..count).collect());
    assert_eq!(proxy.metric("halfway_dead_letters"), 0.0);
}

fn readiness(proxy: &Proxy) -> String {
    proxy.http("/readyz").expect("the admin port answers").1
}

#[test]
fn where_rabbitmq_allows_fewer_channels_than_there_are_lanes_they_share_them() {
    let broker = Broker::start_with("channel_max = 4");
    let proxy = proxy(&broker, &[]);
    commit_on_all_lanes(&proxy, &unique("relay-few-channels"), 80);
    assert_eq!(proxy.metric("halfway_relay_reconnects_total"), 0.0, "it is known from the login");
    wait_until(deadline(PATIENCE), "readiness to say so", || readiness(&proxy).contains("RabbitMQ allows only 4"));
    let doctor = String::from_utf8(proxy.command(&["doctor"]).stdout).unwrap();
    assert!(doctor.contains("RabbitMQ allows only 4, and relay.lanes is 8"), "{doctor}");
}

#[test]
fn an_account_that_may_open_few_channels_is_found_out_and_no_message_suffers() {
    let (mut proxy, account) = crate::support::with_relay_account(&[]);
    broker().ctl(&["set_user_limits", &account, "{\"max-channels\": 3}"]);
    proxy.resume();
    commit_on_all_lanes(&proxy, &unique("relay-few-of-account"), 80);
    assert!(proxy.metric("halfway_relay_reconnects_total") <= 3.0);
    wait_until(deadline(PATIENCE), "readiness to say so", || readiness(&proxy).contains("RabbitMQ allows only 3"));
    doctor_says(&proxy, "RabbitMQ allows only 3, and relay.lanes is 8");
}

/// What the doctor says of channels, beside the relay that runs.
fn doctor_says(proxy: &Proxy, expected: &str) {
    let doctor = String::from_utf8(proxy.command(&["doctor"]).stdout).unwrap();
    assert!(doctor.contains(expected), "{doctor}");
}

// It once counted what was left beside the open channels of the relay.
#[test]
fn a_limit_that_the_lanes_use_up_is_enough() {
    let (mut proxy, account) = crate::support::with_relay_account(&[]);
    proxy.resume();
    commit_on_all_lanes(&proxy, &unique("relay-just-enough"), 80);
    let doctor = |limit: u8| {
        broker().ctl(&["set_user_limits", &account, &format!("{{\"max-channels\": {limit}}}")]);
        String::from_utf8(proxy.command(&["doctor"]).stdout).unwrap()
    };
    // A few more, on which permissions are looked at.
    let enough = doctor(12);
    assert!(enough.contains("user-id") && !enough.contains("RabbitMQ allows"), "{enough}");
    let used_up = doctor(8);
    assert!(
        used_up.contains("login") && used_up.contains("all channels that the account may have are open"),
        "{used_up}"
    );
}
