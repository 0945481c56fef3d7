//! What the client published in a transaction is what the consumer gets, byte for byte.

use crate::support::id;
use crate::support::table::{Properties, Table, long, property};
use crate::support::{Raw, broker, proxied_port, same, unique};
use std::time::Duration;

/// As RabbitMQ hands it out: 3 as it came, 4 with the entries of the header table sorted, of equal keys the first, and
/// those types written in the one way that it writes them.
fn handed_out(sent: &Properties) -> Properties {
    if broker().version() < (4, 0) {
        return sent.clone();
    }
    let mut entries = sent.header_entries();
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    entries.dedup_by(|(one, _), (other, _)| one == other);
    let table = entries.iter().fold(Table::new(), |table, (key, value)| match value[0] {
        b't' => table.entry(key, b't', &[1]),
        b'L' => table.entry(key, b'l', &value[1..]),
        tag => table.entry(key, tag, &value[1..]),
    });
    sent.clone().headers(table)
}

/// Publishes in a transaction to a fresh queue, and returns what a consumer gets.
fn through(port: u16, properties: &Properties, body: &[u8]) -> crate::support::raw::Content {
    let queue = unique("fidelity");
    let mut raw = Raw::login(port);
    raw.open_tx(1);
    raw.open(2);
    raw.declare(2, &queue);
    raw.publish_with(1, ("", queue.as_bytes()), 0, properties, body);
    raw.commit(1);
    let content = raw.get_soon(2, &queue);
    raw.method(2, id::QUEUE_DELETE, |out| {
        use halfway::amqp::wire::Write;
        out.put_u16(0);
        out.put_short_string(queue.as_bytes());
        out.put_u8(0);
    })
    .unwrap();
    content
}

/// Every type of field value that RabbitMQ knows, duplicate keys, an order that is not sorted, nested tables.
fn odd_table() -> Table {
    let nested = Table::new().string("z", "1").string("a", "2").string("z", "3");
    let array = [&[b'S'][..], &long(b"text"), b"V", &[b't', 1], b"F", &long(&nested.0)].concat();
    Table::new()
        .string("zebra", "last letter first")
        .string("twice", "one")
        .string("twice", "two")
        .string("", "an empty key")
        .string([0xff, 0xfe, 0x00], "a key that is not UTF-8")
        .string("not utf-8", [0xc3, 0x28, 0xff])
        .entry("boolean", b't', &[7])
        .entry("byte", b'b', &[0x80])
        .entry("unsigned byte", b'B', &[0xff])
        .entry("short", b's', &(-2_i16).to_be_bytes())
        .entry("unsigned short", b'u', &[0xff, 0xfe])
        .entry("int", b'I', &i32::MIN.to_be_bytes())
        .entry("unsigned int", b'i', &u32::MAX.to_be_bytes())
        .entry("long", b'l', &i64::MIN.to_be_bytes())
        .entry("also long", b'L', &i64::MAX.to_be_bytes())
        .entry("float", b'f', &1.5_f32.to_be_bytes())
        .entry("double", b'd', &(-0.0_f64).to_be_bytes())
        .entry("decimal", b'D', &[2, 0, 0, 0, 99])
        .entry("timestamp", b'T', &u64::MAX.to_be_bytes())
        .entry("nothing", b'V', &[])
        .entry("bytes", b'x', &long(&[0, 1, 255]))
        .entry("table", b'F', &long(&nested.0))
        .entry("array", b'A', &long(&array))
        .entry("empty array", b'A', &long(&[]))
        .string("alphabet", "first letter last")
}

fn all_properties() -> Properties {
    Properties::persistent()
        .with(property::CONTENT_TYPE, vec![4, 0xff, 0, b'/', 0xc3])
        .text(property::CONTENT_ENCODING, "")
        .headers(odd_table())
        .with(property::PRIORITY, vec![200])
        .text(property::CORRELATION_ID, &"c".repeat(255))
        .text(property::REPLY_TO, "nobody")
        .text(property::EXPIRATION, "86400000")
        .text(property::MESSAGE_ID, "message-1")
        .with(property::TIMESTAMP, u64::MAX.to_be_bytes().to_vec())
        .text(property::TYPE, "type")
        .text(property::USER_ID, "guest")
        .text(property::APP_ID, "app")
        .text(property::CLUSTER_ID, "cluster")
}

#[test]
fn all_properties_and_odd_tables_arrive_byte_for_byte() {
    let sent = all_properties();
    let got = same(|port| through(port, &sent, b"\x00body\xce").properties.without_half_id());
    assert_eq!(got, handed_out(&sent));
}

#[test]
fn messages_without_properties_or_headers_stay_what_they_are() {
    for sent in [Properties::new(), Properties::persistent(), Properties::new().with(property::DELIVERY_MODE, vec![1])]
    {
        assert_eq!(same(|port| through(port, &sent, b"body").properties.without_half_id()), sent);
    }
}

#[test]
fn the_headers_are_the_senders_and_one_more() {
    let sent = all_properties();
    let got = through(proxied_port(), &sent, b"body").properties;
    let (mut ours, theirs): (Vec<_>, Vec<_>) =
        got.header_entries().into_iter().partition(|(key, _)| key.starts_with(b"x-half-"));
    assert_eq!(theirs, handed_out(&sent).header_entries());
    let (key, value) = ours.pop().expect("the id is there");
    assert_eq!((key.as_slice(), value[0], ours.len()), (&b"x-half-id"[..], b'S', 0), "a long string, and nothing else");
    assert!(got.header("x-half-id").is_some_and(|id| (8..=64).contains(&id.len())));
}

#[test]
fn every_message_has_an_id_of_its_own() {
    let queue = unique("fidelity-ids");
    let mut raw = Raw::login(proxied_port());
    raw.open_tx(1);
    raw.open(2);
    raw.declare(2, &queue);
    for _ in 0..3 {
        for _ in 0..5 {
            raw.publish(1, &queue, "the same body");
        }
        raw.commit(1);
    }
    let ids: std::collections::BTreeSet<_> =
        (0..15).map(|_| raw.get_soon(2, &queue).properties.header("x-half-id").expect("an id")).collect();
    assert_eq!(ids.len(), 15);
}

#[test]
fn control_headers_are_taken_out_and_a_forged_id_does_not_pass() {
    let headers = Table::new()
        .string("before", "1")
        .string("x-half-checker", "orders")
        .entry("x-half-check-after", b'I', &[0, 0, 0, 5])
        .string("x-half-id", "forged")
        .string("after", "2");
    let got = through(proxied_port(), &Properties::persistent().headers(headers), b"body").properties;
    let keys: Vec<String> =
        got.header_entries().iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect();
    let mut sorted = keys.clone();
    sorted.sort();
    assert_eq!(sorted, ["after", "before", "x-half-id"], "{keys:?}");
    assert_ne!(got.header("x-half-id").as_deref(), Some("forged"));
}

#[test]
fn routing_keys_and_exchange_names_need_not_be_utf8() {
    same(|port| {
        let mut raw = Raw::login(port);
        raw.open_tx(1);
        raw.open(2);
        let queue = unique("fidelity-key");
        raw.declare(2, &queue);
        raw.bind(2, &queue, "amq.fanout", "");
        let key = [0xff, 0x00, 0xc3, 0x28];
        raw.publish_with(1, ("amq.fanout", &key), 0, &Properties::persistent(), b"body");
        raw.commit(1);
        let got = raw.get_soon(2, &queue);
        assert!(got.arguments.windows(5).any(|bytes| bytes == [&[4][..], &key].concat()), "{:?}", got.arguments);
        raw.call(2, id::QUEUE_DELETE, id::QUEUE_DELETE_OK, |out| {
            use halfway::amqp::wire::Write;
            out.put_u16(0);
            out.put_short_string(queue.as_bytes());
            out.put_u8(0);
        });
    });
}

#[test]
fn a_header_that_nearly_fills_a_frame_passes_and_a_fuller_one_is_refused_at_once() {
    let headers = |size| Properties::persistent().headers(Table::new().string("large", vec![b'x'; size]));
    same(|port| {
        let sent = headers(130_900);
        assert!(through(port, &sent, b"body").properties.without_half_id() == sent);
    });
    // With x-half-id it would not fit the largest frame that RabbitMQ takes.
    let mut raw = Raw::login(proxied_port());
    raw.open_tx(1);
    raw.publish_with(1, ("", b"nowhere"), 0, &headers(131_030), b"body");
    raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
    let close = raw.expect_close(1);
    assert!(close.code == 406 && close.text.contains("x-half-id"), "{close:?}");
}

#[test]
fn a_message_outlives_its_time_in_the_queue_only() {
    same(|port| {
        let mut raw = Raw::login(port);
        raw.open_tx(1);
        raw.open(2);
        let queue = unique("fidelity-ttl");
        raw.declare(2, &queue);
        let sent = Properties::persistent().text(property::EXPIRATION, "1500");
        raw.publish_with(1, ("", queue.as_bytes()), 0, &sent, b"body");
        // The time counts from the moment when the message is in the queue: from the commit on.
        assert_eq!(raw.transcript(Duration::from_secs(2)), ["silence"]);
        raw.commit(1);
        assert_eq!(raw.get_soon(2, &queue).text(), "body");
    });
}
