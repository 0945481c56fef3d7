//! Probes: what is sent to RabbitMQ in place of a parked message, so that it judges the publish under the client's own
//! identity and nothing is delivered.
//!
//! A probe is the client's basic.publish with an empty body, sent on the client's own channel, whose upstream twin is in
//! tx mode; a tx.rollback later drops it. Some plugins' exchanges act when a message is *routed*, which happens before
//! any rollback; what makes them act is left out of the probe, or replaced.

use crate::amqp::frame;
use crate::amqp::method::{CLASS_BASIC, Publish};
use crate::amqp::properties::{self, Properties, copy_entries};
use crate::amqp::table;
use crate::amqp::wire::Write;

/// A reply to a client that waits for it on its own connection: the key under which RabbitMQ hands it over.
const REPLY_PREFIX: &[u8] = b"amq.rabbitmq.reply-to.";
/// A request whose replies come back on the channel that sent it.
const REPLY_TO: &[u8] = b"amq.rabbitmq.reply-to";
/// Routing key for probes of the default exchange whose own key would already deliver something.
const UNUSED_KEY: &[u8] = b"halfway.probe";
/// Delayed-message exchange: routing schedules the message. Deduplication exchange: routing records the key.
const LEFT_OUT: [&[u8]; 2] = [b"x-delay", b"x-deduplication-header"];
/// Recent-history exchange: routing stores the message, unless this header forbids it.
const NO_STORE: &[u8] = b"x-recent-history-no-store";

/// What a probe's content header has more than its message's at most: [`NO_STORE`] (28), and the length of the table if the
/// message has none (4).
pub const GROWTH_BYTES: usize = 32;

/// Whether a message lives and dies with its connection, so that it must not be parked: a direct reply, or a request
/// that wants direct replies.
pub fn is_native(publish: &Publish<'_>, properties: &Properties<'_>) -> bool {
    properties.reply_to == Some(REPLY_TO) || is_direct_reply(publish, properties)
}

/// Whether RabbitMQ hands this message to a waiting requester as soon as it is published, even inside a transaction.
fn is_direct_reply(publish: &Publish<'_>, properties: &Properties<'_>) -> bool {
    publish.exchange.is_empty()
        && (publish.routing_key.starts_with(REPLY_PREFIX)
            || copied_to(properties).any(|key| key.starts_with(REPLY_PREFIX)))
}

/// The routing keys in CC and BCC.
fn copied_to<'a>(properties: &Properties<'a>) -> impl Iterator<Item = &'a [u8]> {
    [&b"CC"[..], b"BCC"]
        .into_iter()
        .filter_map(|name| properties.find(name))
        .filter(|entry| entry.kind == b'A')
        .flat_map(|entry| table::array_strings(entry.value))
}

/// Appends the probe for a message whose properties can be read.
pub fn write(out: &mut Vec<u8>, channel: u16, publish: &Publish<'_>, properties: &Properties<'_>) {
    let direct_reply = is_direct_reply(publish, properties);
    let routing_key = if direct_reply { UNUSED_KEY } else { publish.routing_key };
    Publish { routing_key, ..*publish }.write(out, channel);
    frame::write(out, frame::kind::HEADER, channel, |out| {
        properties.write_with_headers(out, 0, |out| {
            copy_entries(out, properties.headers(), |name| {
                let reaches_somebody = direct_reply && [&b"CC"[..], b"BCC"].contains(&name);
                !LEFT_OUT.contains(&name) && !reaches_somebody
            });
            if properties.find(NO_STORE).is_none() {
                table::write_bool(out, NO_STORE, true);
            }
        });
    });
}

/// Appends the probe for a message whose properties can't be read: RabbitMQ has the last word on that.
pub fn write_unreadable(out: &mut Vec<u8>, channel: u16, publish: &Publish<'_>, header: &[u8]) {
    publish.write(out, channel);
    frame::write(out, frame::kind::HEADER, channel, |out| {
        let start = out.len();
        out.extend_from_slice(header);
        if let Some(body_size) = out.get_mut(start + 4..start + 12) {
            body_size.fill(0);
        }
    });
}

/// Appends a probe that RabbitMQ takes from nobody but `user`, or whom it lets speak for others: it compares the property
/// `user-id` with the name that its own authentication gave, which is not always the one that the client logged in with.
/// It goes where the message goes, since there the client may write.
pub fn write_claim(out: &mut Vec<u8>, channel: u16, publish: &Publish<'_>, user: &str) {
    // No property holds a longer name, and nobody has none.
    let user = if user.len() <= 255 { user } else { "" };
    publish.write(out, channel);
    frame::write(out, frame::kind::HEADER, channel, |out| {
        out.put_u16(CLASS_BASIC);
        out.put_u16(0);
        out.put_u64(0);
        out.put_u16(properties::HEADERS | properties::USER_ID);
        let mut headers = Vec::new();
        table::write_bool(&mut headers, NO_STORE, true);
        out.put_long_string(&headers);
        out.put_short_string(user.as_bytes());
    });
}

/// Appends [`write_claim`] for a client of which no message tells where it may write.
pub fn write_claim_anywhere(out: &mut Vec<u8>, channel: u16, user: &str) {
    write_claim(out, channel, &Publish { exchange: b"", routing_key: UNUSED_KEY, flags: 0 }, user);
}

/// Everything that RabbitMQ's judgement of a publish can depend on, or `None` if the judgement of another message says
/// nothing about this one. Of messages of one kind RabbitMQ is asked about one.
pub fn kind(publish: &Publish<'_>, properties: &Properties<'_>) -> Option<Vec<u8>> {
    if properties.reply_to == Some(REPLY_TO) {
        return None;
    }
    let mut kind = Vec::with_capacity(64);
    kind.put_u8(publish.flags & !Publish::MANDATORY);
    kind.put_u16(properties.delivery_mode.map_or(u16::MAX, u16::from));
    kind.put_short_string(publish.exchange);
    // RabbitMQ asks nobody about a routing key to the default exchange.
    if !publish.exchange.is_empty() {
        kind.put_short_string(publish.routing_key);
    }
    for text in [properties.user_id, properties.expiration] {
        kind.put_u8(text.is_some().into());
        kind.put_short_string(text.unwrap_or_default());
    }
    for name in [&b"CC"[..], b"BCC"] {
        if let Some(entry) = properties.find(name) {
            kind.put_long_string(entry.raw);
        }
    }
    Some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::frame::{Split, split};
    use crate::amqp::properties::body_size;
    use crate::amqp::properties::tests::{empty, full};

    const PUBLISH: Publish<'static> = Publish { exchange: b"x", routing_key: b"k", flags: 1 };

    /// The publish and the header payload of a probe.
    fn parts(probe: &[u8]) -> (Publish<'_>, &[u8]) {
        let Split::Frame(method) = split(probe, 10_000) else { panic!("a probe begins with a method") };
        let Split::Frame(header) = split(&probe[method.raw.len()..], 10_000) else { panic!("then a header") };
        assert_eq!(method.raw.len() + header.raw.len(), probe.len(), "and has no body");
        (Publish::parse(&method.payload[4..]).unwrap(), header.payload)
    }

    fn probe(publish: &Publish<'_>, header: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, 1, publish, &Properties::parse(header).unwrap());
        out
    }

    fn keys(name: &[u8], keys: &[&[u8]]) -> Vec<u8> {
        let (mut array, mut entry) = (Vec::new(), Vec::new());
        for key in keys {
            array.put_u8(b'S');
            array.put_long_string(key);
        }
        entry.put_short_string(name);
        entry.put_u8(b'A');
        entry.put_long_string(&array);
        entry
    }

    #[test]
    fn a_probe_has_no_body_and_everything_that_is_judged() {
        let mut headers = Vec::new();
        table::write_string(&mut headers, b"x-delay", b"5000");
        table::write_string(&mut headers, b"k", b"v");
        table::write_string(&mut headers, b"x-deduplication-header", b"once");
        let header = full(99, &headers);
        let probe = probe(&PUBLISH, &header);
        let (publish, payload) = parts(&probe);
        assert_eq!(publish, PUBLISH);
        assert_eq!(body_size(payload), Ok(0));
        let properties = Properties::parse(payload).unwrap();
        assert_eq!(properties.user_id, Some(&b"guest"[..]));
        assert_eq!(properties.expiration, Some(&b"1000"[..]));
        let names: Vec<_> = table::entries(properties.headers().unwrap()).map(|entry| entry.unwrap().name).collect();
        assert_eq!(names, [&b"k"[..], NO_STORE]);
    }

    #[test]
    fn a_direct_reply_is_native_and_its_probe_reaches_nobody() {
        let by_key = Publish { exchange: b"", routing_key: b"amq.rabbitmq.reply-to.g1", flags: 0 };
        let by_copy = Publish { exchange: b"", routing_key: b"q", flags: 0 };
        let copies = full(9, &keys(b"BCC", &[b"other", b"amq.rabbitmq.reply-to.g1"]));
        for (publish, header) in [(by_key, empty(9)), (by_copy, copies)] {
            assert!(is_native(&publish, &Properties::parse(&header).unwrap()));
            let probe = probe(&publish, &header);
            let (sent, payload) = parts(&probe);
            assert_eq!(sent.routing_key, UNUSED_KEY);
            assert!(!probe.windows(REPLY_PREFIX.len()).any(|window| window == REPLY_PREFIX));
            assert!(Properties::parse(payload).is_ok());
        }
        let elsewhere = Publish { exchange: b"x", ..by_key };
        assert!(!is_native(&elsewhere, &Properties::parse(&empty(9)).unwrap()));
    }

    #[test]
    fn only_what_is_judged_alike_shares_a_probe() {
        let of = |publish: &Publish<'_>, header: &[u8]| kind(publish, &Properties::parse(header).unwrap());
        let base = of(&PUBLISH, &full(1, b""));
        assert!(base.is_some());
        assert_eq!(base, of(&PUBLISH, &full(2, b"")), "the body is not judged");
        assert_ne!(base, of(&Publish { routing_key: b"j", ..PUBLISH }, &full(1, b"")));
        assert_ne!(base, of(&Publish { exchange: b"y", ..PUBLISH }, &full(1, b"")));
        assert_ne!(base, of(&PUBLISH, &empty(1)), "user-id and expiration differ");
        assert_ne!(base, of(&PUBLISH, &full(1, &keys(b"CC", &[b"a"]))));
        let inner = b"\x01kF\0\0\0\x03\x01k?";
        assert!(Properties::parse(&full(1, inner)).is_err(), "a table that can't be read is asked about each time");
    }
}
