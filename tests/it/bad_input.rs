//! Whatever a client sends, it gets what RabbitMQ gives, and nobody else notices.

use crate::support::id;
use crate::support::raw::{Login, start_with_passwords};
use crate::support::table::{Properties, Table, long};
use crate::support::{Proxy, Raw, broker, proxied_port, proxy, unique};
use halfway::amqp::frame::{self, kind};
use halfway::amqp::wire::Write;
use std::time::{Duration, Instant};

/// RabbitMQ closes its socket three seconds after some errors.
const UNTIL_CLOSED: Duration = Duration::from_secs(6);

/// A case: its name, and what the client does after its handshake, with channel 1 open.
type Case = (&'static str, fn(&mut Raw));

fn raw_frame(raw: &mut Raw, kind: u8, channel: u16, payload: &[u8]) {
    let mut out = Vec::new();
    frame::write(&mut out, kind, channel, |out| out.extend_from_slice(payload));
    let _ = raw.send(&out);
}

fn publish_method(raw: &mut Raw, channel: u16) {
    let publish = |out: &mut Vec<u8>| {
        out.put_u16(0);
        out.put_short_string(b"");
        out.put_short_string(b"nowhere");
        out.put_u8(0);
    };
    let _ = raw.method(channel, id::PUBLISH, publish);
}

fn header(size: u64) -> Vec<u8> {
    Properties::persistent().encode(size)
}

/// Arguments of `queue.declare` with a table as deep as a bomb.
fn nested(depth: usize) -> Vec<u8> {
    let mut table = Vec::new();
    for _ in 0..depth {
        table = Table::new().entry("t", b'F', &long(&table)).0;
    }
    table
}

const CASES: &[Case] = &[
    ("a header without a publish", |raw| raw_frame(raw, kind::HEADER, 1, &header(4))),
    ("a body without a publish", |raw| raw_frame(raw, kind::BODY, 1, b"body")),
    ("a body instead of a header", |raw| {
        publish_method(raw, 1);
        raw_frame(raw, kind::BODY, 1, b"body");
    }),
    ("a method instead of a header", |raw| {
        publish_method(raw, 1);
        publish_method(raw, 1);
    }),
    ("a header of another class", |raw| {
        publish_method(raw, 1);
        let mut header = header(4);
        header[1] = 50;
        raw_frame(raw, kind::HEADER, 1, &header);
    }),
    ("a header with a weight", |raw| {
        publish_method(raw, 1);
        let mut header = header(4);
        header[3] = 1;
        raw_frame(raw, kind::HEADER, 1, &header);
    }),
    ("a method while the body is due", |raw| {
        publish_method(raw, 1);
        raw_frame(raw, kind::HEADER, 1, &header(4));
        publish_method(raw, 1);
    }),
    ("a body that is longer than it said", |raw| {
        publish_method(raw, 1);
        raw_frame(raw, kind::HEADER, 1, &header(4));
        raw_frame(raw, kind::BODY, 1, b"longer");
    }),
    ("an empty body frame behind no body", |raw| {
        publish_method(raw, 1);
        raw_frame(raw, kind::HEADER, 1, &header(0));
        raw_frame(raw, kind::BODY, 1, b"");
    }),
    ("a frame over the limit", |raw| raw_frame(raw, kind::BODY, 1, &vec![0; 9000])),
    ("a wrong frame end", |raw| {
        let _ = raw.send(&[1, 0, 1, 0, 0, 0, 5, 0, 20, 0, 20, 1, 0]);
    }),
    ("an unknown frame type", |raw| raw_frame(raw, 9, 0, b"abc")),
    ("an unknown class", |raw| {
        let _ = raw.method(1, (77, 10), |_| {});
    }),
    ("an unknown method", |raw| {
        let _ = raw.method(1, (60, 200), |_| {});
    }),
    ("truncated arguments", |raw| {
        let _ = raw.method(1, id::QUEUE_DECLARE, |out| out.extend_from_slice(&[0, 0, 9, b'x']));
    }),
    ("trailing arguments", |raw| {
        let _ = raw.method(1, id::CHANNEL_FLOW, |out| out.extend_from_slice(&[1, 1, 1]));
    }),
    ("a truncated publish", |raw| {
        let _ = raw.method(1, id::PUBLISH, |out| out.extend_from_slice(&[0, 0, 200, b'x']));
    }),
    ("a method frame of one byte", |raw| raw_frame(raw, kind::METHOD, 1, &[0])),
    ("a method on a channel that is not open", |raw| publish_method(raw, 5)),
    ("a commit on a channel that is not open", |raw| {
        let _ = raw.method(5, id::TX_COMMIT, |_| {});
    }),
    ("a content on a channel that is not open", |raw| {
        publish_method(raw, 5);
        raw_frame(raw, kind::HEADER, 5, &header(4));
    }),
    ("a channel method on channel 0", |raw| {
        let _ = raw.method(0, id::CHANNEL_OPEN, |out| out.put_short_string(b""));
    }),
    ("a second open of the channel", |raw| {
        let _ = raw.method(1, id::CHANNEL_OPEN, |out| out.put_short_string(b""));
    }),
    ("a connection method on a channel", |raw| {
        let _ = raw.method(1, id::OPEN, |out| out.extend_from_slice(&[1, b'/', 0, 0]));
    }),
    ("a method that only the server sends", |raw| {
        let _ = raw.method(1, id::QUEUE_DECLARE_OK, |out| out.extend_from_slice(&[0; 9]));
    }),
    ("a server's method on channel 0", |raw| {
        let _ = raw.method(0, id::OPEN_OK, |out| out.put_u8(0));
    }),
    ("a heartbeat with a payload", |raw| raw_frame(raw, kind::HEARTBEAT, 0, b"beat")),
    ("a heartbeat on a channel", |raw| raw_frame(raw, kind::HEARTBEAT, 1, b"")),
    ("flow inactive", |raw| {
        let _ = raw.method(1, id::CHANNEL_FLOW, |out| out.put_u8(0));
    }),
    ("qos with a size", |raw| {
        let _ = raw.method(1, id::QOS, |out| out.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0]));
    }),
    ("an unknown type in a table", |raw| {
        publish_method(raw, 1);
        let broken = Properties::new().headers(Table::new().entry("key", b'?', b""));
        raw_frame(raw, kind::HEADER, 1, &broken.encode(0));
    }),
    ("properties that end too soon", |raw| {
        publish_method(raw, 1);
        let mut header = header(0);
        header[12] = 0xff;
        raw_frame(raw, kind::HEADER, 1, &header);
    }),
    ("a header without flags", |raw| {
        publish_method(raw, 1);
        raw_frame(raw, kind::HEADER, 1, &header(0)[..12]);
    }),
    ("a header cut in its body size", |raw| {
        publish_method(raw, 1);
        raw_frame(raw, kind::HEADER, 1, &header(0)[..8]);
    }),
    ("a bomb of nested tables", |raw| {
        let _ = raw.method(1, id::QUEUE_DECLARE, |out| {
            out.put_u16(0);
            out.put_short_string(b"bomb");
            out.put_u8(0b01000);
            out.put_long_string(&nested(400));
        });
    }),
    ("a bomb of nested headers", |raw| {
        publish_method(raw, 1);
        raw_frame(raw, kind::HEADER, 1, &Properties::new().headers(Table(nested(400))).encode(0));
    }),
    ("rubbish", |raw| {
        let _ = raw.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n");
    }),
];

/// What a client with frame_max 8192 sees after `case`, in transaction mode or not.
fn outcome(port: u16, case: fn(&mut Raw), transactional: bool) -> Vec<String> {
    let mut raw = Raw::login_as(port, &Login { frame_max: 8192, ..Login::default() }).expect("a client can log in");
    if transactional {
        raw.open_tx(1);
    } else {
        raw.open(1);
    }
    case(&mut raw);
    // Behind what is no error, an answer shows that all is well.
    let _ = raw.method(1, (30, 10), |out| out.extend_from_slice(&[0, 0]));
    raw.transcript(UNTIL_CLOSED)
}

/// Runs all cases at the same time, for many of them wait for seconds.
fn compare(transactional: bool) {
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = CASES
            .iter()
            .map(|(name, case)| {
                let direct = scope.spawn(move || outcome(broker().port, *case, transactional));
                let proxied = scope.spawn(move || outcome(proxied_port(), *case, transactional));
                (name, direct, proxied)
            })
            .collect();
        let mut wrong = Vec::new();
        for (name, direct, proxied) in runs {
            let direct = direct.join().expect("RabbitMQ answers");
            let proxied = proxied.join().expect("the proxy answers");
            // RabbitMQ resets a connection that sends an unknown class. The proxy can't tell that from RabbitMQ's end.
            let reset = direct == ["closed"] && proxied.len() == 2 && proxied[0].contains("code: 320");
            if direct != proxied && !reset {
                wrong.push(format!("{name}:\n  RabbitMQ: {direct:?}\n  proxy:    {proxied:?}"));
            }
        }
        wrong
    });
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn an_ordinary_channel_gets_the_brokers_errors() {
    compare(false);
}

#[test]
fn a_transactional_channel_gets_the_brokers_errors() {
    compare(true);
}

/// RabbitMQ 4 names AMQP 1.0 to those who speak neither, and goes on with those who speak it. The proxy has 0-9-1 alone.
#[test]
fn protocol_headers_are_answered_as_rabbitmq_3_answers_them() {
    let old = broker().version() < (4, 0);
    let headers: &[&[u8]] = &[
        b"AMQP\x00\x00\x09\x02",
        b"AMQP\x00\x00\x0a\x00",
        b"AMQP\x01\x01\x00\x0a",
        b"AMQP\x00\x01\x00\x00",
        b"AMQP\x02\x01\x00\x00",
        b"AMQP\x03\x01\x00\x00",
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a hello of TLS",
        b"\x00\x00\x00\x00\x00\x00\x00\x00",
    ];
    for header in headers {
        let answer = |port| {
            let mut raw = Raw::dial(port).expect("the port is open");
            raw.send(header).unwrap();
            raw.read_bytes(UNTIL_CLOSED)
        };
        let (direct, proxied) = (answer(broker().port), answer(proxied_port()));
        let text = String::from_utf8_lossy(header);
        assert_eq!(proxied, (frame::PROTOCOL_HEADER.to_vec(), true), "{text:?}");
        // Those of AMQP 0-x are told 0-9-1 by all.
        if old || header.starts_with(b"AMQP\x00\x00") {
            assert_eq!(direct, proxied, "{text:?}");
        } else {
            assert!(direct.0.starts_with(b"AMQP\x03\x01\x00\x00"), "{text:?}: {direct:?}");
        }
    }
}

#[test]
fn an_older_but_accepted_header_starts_the_handshake() {
    let start = |port| {
        let mut raw = Raw::dial(port).expect("the port is open");
        raw.send(b"AMQP\x01\x01\x00\x09").unwrap();
        start_with_passwords(&raw.expect(0, id::START))
    };
    assert_eq!(start(broker().port), start(proxied_port()));
}

/// What RabbitMQ and the proxy answer to a script, both at the same time.
#[track_caller]
fn same_silence(what: &str, script: impl Fn(&mut Raw) + Sync) {
    let end = |port| {
        let mut raw = Raw::dial(port).expect("the port is open");
        raw.send(&frame::PROTOCOL_HEADER).unwrap();
        raw.expect(0, id::START);
        let begin = Instant::now();
        script(&mut raw);
        (raw.transcript(UNTIL_CLOSED), begin.elapsed() > Duration::from_secs(2))
    };
    let (direct, proxied) = std::thread::scope(|scope| {
        let direct = scope.spawn(|| end(broker().port));
        let proxied = end(proxied_port());
        (direct.join().expect("RabbitMQ ends it"), proxied)
    });
    assert_eq!(direct, proxied, "left: RabbitMQ itself, right: through the proxy; {what}");
}

fn start_ok(out: &mut Vec<u8>, mechanism: &str, response: &[u8]) {
    out.put_long_string(&[]);
    out.put_short_string(mechanism.as_bytes());
    out.put_long_string(response);
    out.put_short_string(b"en_US");
}

#[test]
fn a_refused_tune_ok_ends_as_with_rabbitmq() {
    // RabbitMQ says nothing and closes after three seconds.
    for (channel_max, frame_max) in [(0, 131_072), (2047, 0), (2047, 4095), (2047, 200_000), (3000, 131_072)] {
        same_silence(&format!("channel_max {channel_max}, frame_max {frame_max}"), |raw| {
            raw.call(0, id::START_OK, id::TUNE, |out| start_ok(out, "PLAIN", b"\0guest\0guest"));
            let tune_ok = |out: &mut Vec<u8>| {
                out.put_u16(channel_max);
                out.put_u32(frame_max);
                out.put_u16(0);
            };
            raw.method(0, id::TUNE_OK, tune_ok).unwrap();
            let _ = raw.method(0, id::OPEN, |out| out.extend_from_slice(&[1, b'/', 0, 0]));
        });
    }
}

#[test]
fn a_mechanism_that_was_not_offered_ends_as_with_rabbitmq() {
    for mechanism in ["EXTERNAL", "SCRAM", "PLAIN"] {
        same_silence(mechanism, |raw| {
            raw.method(0, id::START_OK, |out| start_ok(out, mechanism, b"no such response")).unwrap();
        });
    }
}

#[test]
fn others_work_on_beside_a_thousand_connections_that_never_speak() {
    let silent: Vec<Raw> = (0..1000).map(|_| Raw::dial(proxied_port()).expect("the port is open")).collect();
    let mut raw = Raw::login(proxied_port());
    raw.open_tx(1);
    raw.declare(1, "beside-the-silent");
    raw.publish(1, "beside-the-silent", "body");
    raw.commit(1);
    assert_eq!(raw.get_soon(1, "beside-the-silent").text(), "body");
    // They are dropped when the handshake has taken too long: ten seconds in RabbitMQ and here.
    for mut one in silent {
        one.expect_end(Duration::from_secs(20));
    }
}

#[test]
fn half_a_frame_and_silence_ends_with_the_heartbeat() {
    let mut raw = Raw::login_as(proxied_port(), &Login { heartbeat: 1, ..Login::default() }).unwrap();
    raw.open(1);
    raw.send(&[1, 0, 1, 0, 0, 0, 100, 0, 60]).unwrap();
    raw.expect_end(Duration::from_secs(10));
}

#[test]
fn memory_stays_flat_under_lying_sizes() {
    let queue = "lying";
    let mut keep = Vec::new();
    let mut raw = Raw::login(proxied_port());
    raw.open_tx(1);
    raw.declare(1, queue);
    for _ in 0..50 {
        let mut liar = Raw::login(proxied_port());
        liar.open_tx(1);
        // Four GiB announced, a kilobyte sent.
        publish_method(&mut liar, 1);
        raw_frame(&mut liar, kind::HEADER, 1, &header(4 << 30));
        raw_frame(&mut liar, kind::BODY, 1, &[0; 1024]);
        keep.push(liar);
    }
    raw.publish(1, queue, "body");
    raw.commit(1);
    assert_eq!(raw.get_soon(1, queue).text(), "body");
    if std::env::var_os("HALFWAY_TEST_DIRECT").is_none() {
        let memory = proxy().memory_bytes();
        assert!(memory < 200 << 20, "the proxy holds {memory} bytes");
    }
}

/// What RabbitMQ's parser refuses, behind a message that it has judged and that looks the same to it: it was taken for
/// judged, committed, and took the relay's connection of the whole virtual host down.
#[test]
fn what_rabbitmqs_parser_refuses_is_refused_behind_an_equal_message_and_reaches_no_relay() {
    let proxy = Proxy::start(broker().port);
    let queue = unique("unreadable");
    let mut victim = Raw::login(proxy.port);
    victim.open(2);
    victim.declare(2, &queue);
    victim.open_tx(1);
    for (name, tag, value) in [
        ("n", b'd', f64::NAN.to_be_bytes().to_vec()),
        ("n", b'A', long(&[&b"f"[..], &f32::INFINITY.to_be_bytes()].concat())),
        ("x-delay", b'F', long(b"\x01kI\0")),
        ("x-deduplication-header", b'A', long(b"?")),
    ] {
        let mut raw = Raw::login(proxy.port);
        raw.open_tx(1);
        let harmless = Properties::persistent().headers(Table::new().string(name, "harmless"));
        let refused = Properties::persistent().headers(Table::new().entry(name, tag, &value));
        for properties in [&harmless, &refused] {
            raw.publish_with(1, ("", queue.as_bytes()), 0, properties, b"hostile");
        }
        let _ = raw.method(1, id::TX_COMMIT, |_| {});
        assert_eq!(raw.expect_close(0).code, 541, "{name}");
    }
    victim.publish(1, &queue, "victim");
    victim.commit(1);
    assert_eq!(victim.get_soon(2, &queue).text(), "victim");
    assert_eq!(victim.get(2, &queue), None, "nothing of the others is there");
    for metric in ["halfway_relay_reconnects_total", "halfway_dead_letters"] {
        assert_eq!(proxy.metric(metric), 0.0, "{metric}");
    }
}
