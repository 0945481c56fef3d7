//! Everything that reads bytes in place: whatever they are, nothing panics, nothing is taken for more than it is, and no
//! memory is taken because a length announces it.

#![no_main]

mod memory;

use libfuzzer_sys::fuzz_target;
use pure::amqp::frame::{self, Split};
use pure::amqp::method::{self, Close, Consume, Publish, Return, Settle, Start, StartOk, Tune};
use pure::amqp::properties::{self, Properties};
use pure::amqp::{table, wire::Reader};
use pure::protocol::{handshake, probe};
use pure::tx::batch;

fuzz_target!(|data: &[u8]| {
    let peak = memory::peak(|| {
        split(data);
        methods(data);
        content(data);
        tables(data, 0);
        batch(data);
    });
    assert!(peak <= (16 << 10) + 64 * data.len(), "{peak} bytes were held for {} bytes", data.len());
});

fn split(data: &[u8]) {
    for payload_bytes_max in [0, 100, 4096, usize::MAX - frame::OVERHEAD_BYTES] {
        let mut rest = data;
        while let Split::Frame(frame) = frame::split(rest, payload_bytes_max) {
            assert!(rest.starts_with(frame.raw) && frame.payload.len() <= payload_bytes_max);
            let mut again = Vec::new();
            frame::write(&mut again, frame.kind, frame.channel, |out| out.extend_from_slice(frame.payload));
            assert_eq!(again, frame.raw, "a frame is written as it was read");
            let _ = (frame.method_id(), frame.arguments());
            rest = &rest[frame.raw.len()..];
        }
        if let Split::NeedBytes(bytes) = frame::split(rest, payload_bytes_max) {
            assert!(bytes > rest.len(), "a look that does not help would be repeated for ever");
        }
    }
}

fn methods(data: &[u8]) {
    if let Ok(publish) = Publish::parse(data) {
        let mut again = Vec::new();
        publish.write(&mut again, 1);
        assert!(Publish::parse(&again[11..again.len() - 1]).is_ok_and(|read| read == publish));
    }
    let _ = (Settle::parse(data), Settle::parse_reject(data), Consume::parse(data).is_ok(), Close::parse(data).is_ok());
    let _ = (Return::parse(data).is_ok(), Start::parse(data).is_ok(), Tune::parse(data).is_ok());
    let _ = (method::get_no_ack(data), method::deliver_tags(data), method::open_vhost(data));
    if let Ok(start_ok) = StartOk::parse(data) {
        let rules = handshake::LoginRules { from_loopback: false, loopback_users: vec!["guest".into()] };
        let _ = rules.check(&start_ok);
        let _ = handshake::has_capability(start_ok.client_properties, b"connection.blocked");
    }
}

fn content(data: &[u8]) {
    let _ = properties::body_size(data);
    let Ok(read) = Properties::parse(data) else { return };
    let mut same = Vec::new();
    match read.headers() {
        Some(headers) => read.write_with_headers(&mut same, properties::body_size(data).unwrap_or(0), |out| {
            properties::copy_entries(out, Some(headers), |_| true);
        }),
        None => read.write_without_headers(&mut same, properties::body_size(data).unwrap_or(0)),
    }
    assert_eq!(same, data, "what is not edited stays as it came");

    let publish = Publish { exchange: b"", routing_key: b"k", flags: 0 };
    let _ = (probe::kind(&publish, &read), probe::is_native(&publish, &read));
    let mut sent = Vec::new();
    probe::write(&mut sent, 1, &publish, &read);
    probe::write_unreadable(&mut sent, 1, &publish, data);
    whole_frames(&sent);
}

fn tables(table: &[u8], depth: usize) {
    let mut length = 0;
    for entry in table::entries(table).map_while(Result::ok) {
        length += entry.raw.len();
        if entry.kind == b'F' && depth < 8 {
            tables(entry.value, depth + 1);
        }
    }
    assert!(length <= table.len());
    if table::check(table).is_ok() {
        assert_eq!(length, table.len(), "a table that is readable is read to its end");
    }
    let _ = (table::find(table, b"k"), table::array_strings(table).count());
    let mut reader = Reader::new(table);
    while reader.short_string().is_ok() {}
}

fn batch(data: &[u8]) {
    let mut again = batch::Batch::default();
    let mut whole = true;
    for message in batch::iter(data) {
        match message {
            Ok(message) => again.push(message),
            Err(_) => whole = false,
        }
    }
    let again = again.into_bytes();
    assert!(data.starts_with(&again) && (!whole || again == data), "a batch is written as it was read");
}

fn whole_frames(mut rest: &[u8]) {
    while let Split::Frame(frame) = frame::split(rest, usize::MAX - frame::OVERHEAD_BYTES) {
        rest = &rest[frame.raw.len()..];
    }
    assert!(rest.is_empty(), "only whole frames are written");
}
