//! Clients that use no transaction cannot tell the proxy from RabbitMQ.

use crate::support::id;
use crate::support::raw::{Login, describe, start_with_passwords};
use crate::support::table::{Properties, Table, property};
use crate::support::{Raw, broker, proxied_port, same, unique};
use halfway::amqp::frame::kind;
use halfway::amqp::wire::{Reader, Write};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

const SILENCE: Duration = Duration::from_millis(500);

#[test]
fn server_properties_mechanisms_and_tune_are_those_of_rabbitmq() {
    let direct = Raw::login(broker().port);
    let Raw { start, tune, .. } = Raw::login(proxied_port());
    // ANONYMOUS is offered by RabbitMQ 4 alone.
    assert_eq!((&start_with_passwords(&direct.start), &direct.tune), (&start, &tune));
    let start = String::from_utf8_lossy(&start);
    assert!(start.contains("RabbitMQ") && start.contains("PLAIN"));
    assert_eq!(tune, [&2047_u16.to_be_bytes()[..], &131_072_u32.to_be_bytes(), &60_u16.to_be_bytes()].concat());
}

#[test]
fn client_properties_arrive_unchanged() {
    let connected = |port| {
        let _raw = Raw::login(port);
        let all = broker().ctl(&["list_connections", "--no-table-headers", "client_properties"]);
        all.lines().any(|line| line.contains("{\"product\",\"raw\"}") && line.contains("consumer_cancel_notify"))
    };
    assert!(same(connected));
}

#[test]
fn a_wrong_password_and_a_wrong_vhost_get_the_brokers_answer() {
    let errors = same(|port| {
        let wrong_password = Login { password: "wrong", ..Login::default() };
        let unknown_vhost = Login { vhost: "nowhere", ..Login::default() };
        [wrong_password, unknown_vhost].map(|login| {
            let error = Raw::login_as(port, &login).err().expect("the login is refused");
            (error.kind(), error.to_string())
        })
    });
    assert!(errors[0].1.contains("ACCESS_REFUSED") && errors[1].1.contains("vhost nowhere not found"), "{errors:?}");
    assert!(errors.iter().all(|(kind, _)| *kind == ErrorKind::PermissionDenied));
}

#[test]
fn a_vhost_without_permission_gets_the_brokers_answer() {
    broker().ctl(&["add_user", "stranger", "stranger"]);
    let error = same(|port| {
        let login = Login { user: "stranger", password: "stranger", ..Login::default() };
        Raw::login_as(port, &login).err().expect("the login is refused").to_string()
    });
    assert!(error.contains("access to vhost '/' refused for user 'stranger'"), "{error}");
}

/// Sends one method and appends what comes back, until the answer that ends it.
fn step(raw: &mut Raw, lines: &mut Vec<String>, id: id::Id, arguments: impl FnOnce(&mut Vec<u8>)) {
    raw.method(1, id, arguments).expect("the connection takes a method");
    let frame = raw.read(Duration::from_secs(10)).expect("there is an answer");
    lines.push(describe(&frame));
}

#[test]
fn every_method_of_exchanges_queues_and_consumers_passes() {
    let lines = same(|port| {
        let (mut raw, mut lines) = (Raw::login(port), Vec::new());
        let raw = &mut raw;
        raw.open(1);
        let names = |out: &mut Vec<u8>, names: &[&str]| {
            out.put_u16(0);
            names.iter().for_each(|name| out.put_short_string(name.as_bytes()));
        };
        for (exchange, kind) in [("every-a", "topic"), ("every-b", "headers")] {
            step(raw, &mut lines, id::EXCHANGE_DECLARE, |out| {
                names(out, &[exchange, kind]);
                out.put_u8(0);
                out.put_long_string(&Table::new().string("alternate-exchange", "amq.fanout").0);
            });
        }
        // exchange.bind and exchange.unbind: RabbitMQ's own.
        for id in [(40, 30), (40, 40)] {
            step(raw, &mut lines, id, |out| {
                names(out, &["every-b", "every-a", "#"]);
                out.put_u8(0);
                out.put_long_string(&[]);
            });
        }
        raw.declare_with(1, "every-q", Table::new().entry("x-max-priority", b'I', &[0, 0, 0, 5]));
        raw.bind(1, "every-q", "every-a", "key.#");
        for _ in 0..3 {
            raw.publish_with(1, ("every-a", b"key.1"), 0, &Properties::persistent(), b"body");
        }
        step(raw, &mut lines, id::QOS, |out| {
            out.put_u32(0);
            out.put_u16(1);
            out.put_u8(0);
        });
        step(raw, &mut lines, id::CONSUME, |out| {
            names(out, &["every-q", "consumer"]);
            out.put_u8(0);
            out.put_long_string(&Table::new().entry("x-priority", b'I', &[0, 0, 0, 9]).0);
        });
        // Prefetch 1: each answer to a delivery brings the next.
        let first = raw.expect_content(1, id::DELIVER);
        raw.ack(1, first.tag(), false);
        let second = raw.expect_content(1, id::DELIVER);
        raw.method(1, id::REJECT, |out| {
            out.put_u64(second.tag());
            out.put_u8(0);
        })
        .unwrap();
        let third = raw.expect_content(1, id::DELIVER);
        raw.method(1, id::NACK, |out| {
            out.put_u64(third.tag());
            out.put_u8(0b10);
        })
        .unwrap();
        let again = raw.expect_content(1, id::DELIVER);
        lines.extend([first, second, third, again].map(|content| format!("{content:?}")));
        // basic.cancel
        step(raw, &mut lines, (60, 30), |out| {
            out.put_short_string(b"consumer");
            out.put_u8(0);
        });
        step(raw, &mut lines, id::RECOVER, |out| out.put_u8(1));
        let got = raw.get_with(1, "every-q", false);
        lines.push(format!("{got:?}"));
        step(raw, &mut lines, id::CHANNEL_FLOW, |out| out.put_u8(1));
        // access.request: of AMQP 0-8, still answered.
        step(raw, &mut lines, (30, 10), |out| {
            out.put_short_string(b"/data");
            out.put_u8(0b11111);
        });
        step(raw, &mut lines, id::QUEUE_PURGE, |out| {
            names(out, &["every-q"]);
            out.put_u8(0);
        });
        // queue.unbind
        step(raw, &mut lines, (50, 50), |out| {
            names(out, &["every-q", "every-a", "key.#"]);
            out.put_long_string(&[]);
        });
        step(raw, &mut lines, id::QUEUE_DELETE, |out| {
            names(out, &["every-q"]);
            out.put_u8(0);
        });
        raw.delete_exchange(1, "every-a");
        raw.delete_exchange(1, "every-b");
        raw.close(1);
        raw.call(0, id::CLOSE, id::CLOSE_OK, |out| {
            out.put_u16(200);
            out.put_short_string(b"bye");
            out.put_u32(0);
        });
        lines
    });
    assert!(lines.len() > 15, "{lines:?}");
}

#[test]
fn bodies_of_any_size_pass_at_any_frame_size() {
    let queue = unique("sizes");
    for frame_max in [8192, 131_072] {
        same(|port| {
            let mut raw = Raw::login_as(port, &Login { frame_max, ..Login::default() }).unwrap();
            raw.open(1);
            raw.declare(1, &queue);
            raw.consume(1, &queue, "c", true);
            for size in [0, 1, 8183, 8184, 8185, 131_064, 131_065, 3_000_000, 16_000_000] {
                let body: Vec<u8> = (0..size).map(|at: u32| (at % 251) as u8).collect();
                raw.publish(1, &queue, &body);
                let got = raw.expect_content(1, id::DELIVER);
                assert!(got.body == body, "{size} bytes at frame_max {frame_max}");
            }
            raw.close(1);
        });
    }
}

#[test]
fn a_header_frame_may_be_larger_than_the_receivers_frame_max() {
    let queue = unique("large-header");
    same(|port| {
        let mut small = Raw::login_as(port, &Login { frame_max: 8192, ..Login::default() }).unwrap();
        small.open(1);
        small.declare(1, &queue);
        small.consume(1, &queue, "c", true);
        let mut large = Raw::login(port);
        large.open(1);
        let properties = Properties::persistent().headers(Table::new().string("large", vec![b'x'; 20_000]));
        large.publish_with(1, ("", queue.as_bytes()), 0, &properties, b"body");
        assert_eq!(small.expect_content(1, id::DELIVER).properties, properties);
    });
}

#[test]
fn channel_numbers_reach_65535_and_their_count_is_limited_by_the_broker() {
    let close = same(|port| {
        let mut raw = Raw::login_as(port, &Login { channel_max: 3, ..Login::default() }).unwrap();
        for channel in [65_535, 1, 40_000] {
            raw.open(channel);
        }
        raw.declare(65_535, "channel-65535");
        raw.publish(65_535, "channel-65535", "body");
        assert_eq!(raw.get_soon(40_000, "channel-65535").text(), "body");
        raw.method(2, id::CHANNEL_OPEN, |out| out.put_short_string(b"")).unwrap();
        raw.expect_close(0)
    });
    assert_eq!(close.code, 530, "{close:?}");
}

#[test]
fn confirms_and_returns_come_in_the_brokers_order() {
    same(|port| {
        let (mut raw, mut lines) = (Raw::login(port), Vec::new());
        raw.open(1);
        raw.declare(1, "confirmed");
        raw.call(1, id::CONFIRM_SELECT, id::CONFIRM_SELECT_OK, |out| out.put_u8(0));
        for (queue, mandatory) in [("confirmed", 0), ("nowhere", 0), ("nowhere", 1), ("confirmed", 1)] {
            raw.publish_with(1, ("", queue.as_bytes()), mandatory, &Properties::persistent(), b"body");
            let answer = raw.read(Duration::from_secs(10)).unwrap();
            lines.push(describe(&answer));
            if answer.id() == id::RETURN {
                lines.push(format!("{:?}", raw.content(1, id::RETURN, answer.arguments().to_vec())));
                raw.expect(1, id::ACK);
            }
        }
        raw.call(1, id::QUEUE_DELETE, id::QUEUE_DELETE_OK, |out| {
            out.put_u16(0);
            out.put_short_string(b"confirmed");
            out.put_u8(0);
        });
        lines
    });
}

#[test]
fn a_full_queue_gives_a_nack() {
    let queue = unique("full");
    same(|port| {
        let mut raw = Raw::login(port);
        raw.open(1);
        let limits = Table::new().entry("x-max-length", b'I', &[0, 0, 0, 0]).string("x-overflow", "reject-publish");
        raw.declare_with(1, &queue, limits);
        raw.call(1, id::CONFIRM_SELECT, id::CONFIRM_SELECT_OK, |out| out.put_u8(0));
        let mut nacked = false;
        // The queue refuses from the moment it has noticed that it is full.
        for _ in 0..20 {
            raw.publish(1, &queue, "body");
            nacked |= raw.read(Duration::from_secs(10)).unwrap().id() == id::NACK;
        }
        assert!(nacked);
    });
}

#[test]
fn channel_errors_are_the_brokers_and_the_connection_lives_on() {
    let errors = same(|port| {
        let mut raw = Raw::login(port);
        let mut errors = Vec::new();
        let mut publish = |exchange: &str, properties: Properties| {
            raw.open(1);
            raw.publish_with(1, (exchange, b"key"), 0, &properties, b"body");
            errors.push(raw.expect_close(1));
        };
        publish("no-such-exchange", Properties::new());
        publish("", Properties::new().text(property::EXPIRATION, "soon"));
        publish("", Properties::new().text(property::REPLY_TO, "amq.rabbitmq.reply-to"));
        publish("", Properties::new().headers(Table::new().string("CC", "not an array")));
        publish("", Properties::new().text(property::USER_ID, "somebody"));
        errors
    });
    assert_eq!(errors.iter().map(|close| close.code).collect::<Vec<_>>(), [404, 406, 406, 406, 406]);
}

#[test]
fn exclusive_and_server_named_queues_work_and_end_with_their_connection() {
    let errors = same(|port| {
        let mut owner = Raw::login(port);
        owner.open(1);
        let answer = owner.call(1, id::QUEUE_DECLARE, id::QUEUE_DECLARE_OK, |out| {
            out.put_u16(0);
            out.put_short_string(b"");
            out.put_u8(0b00100);
            out.put_long_string(&[]);
        });
        let name = String::from_utf8(Reader::new(&answer).short_string().unwrap().to_vec()).unwrap();
        assert!(name.starts_with("amq.gen-"));
        // An empty name means the queue that was declared last on the channel.
        owner.bind(1, "", "amq.topic", &name);
        owner.publish_with(1, ("amq.topic", name.as_bytes()), 0, &Properties::new(), b"body");
        assert_eq!(owner.get_soon(1, "").text(), "body");
        let mut other = Raw::login(port);
        other.open(1);
        let passive = |out: &mut Vec<u8>| {
            out.put_u16(0);
            out.put_short_string(name.as_bytes());
            out.put_u8(0b00001);
            out.put_long_string(&[]);
        };
        other.method(1, id::QUEUE_DECLARE, passive).unwrap();
        let locked = other.expect_close(1).code;
        drop(owner);
        let limit = Instant::now() + Duration::from_secs(10);
        let mut gone = locked;
        while gone == locked && Instant::now() < limit {
            other.open(1);
            other.method(1, id::QUEUE_DECLARE, passive).unwrap();
            gone = other.expect_close(1).code;
        }
        (locked, gone)
    });
    assert_eq!(errors, (405, 404));
}

#[test]
fn direct_reply_to_works() {
    same(|port| {
        let queue = unique("rpc");
        let (mut client, mut server) = (Raw::login(port), Raw::login(port));
        server.open(1);
        server.declare(1, &queue);
        client.open(1);
        client.consume(1, "amq.rabbitmq.reply-to", "replies", true);
        let request = Properties::new().text(property::REPLY_TO, "amq.rabbitmq.reply-to");
        client.publish_with(1, ("", queue.as_bytes()), 0, &request, b"question");
        let got = server.get_soon(1, &queue);
        let reply_to = got.properties.get(property::REPLY_TO).unwrap()[1..].to_vec();
        assert!(reply_to.starts_with(b"amq.rabbitmq.reply-to."));
        server.publish_with(1, ("", &reply_to), 0, &Properties::new(), b"answer");
        assert_eq!(client.expect_content(1, id::DELIVER).text(), "answer");
    });
}

#[test]
fn a_consumer_is_told_when_its_queue_is_deleted() {
    let queue = unique("deleted");
    same(|port| {
        let mut raw = Raw::login(port);
        raw.open(1);
        raw.open(2);
        raw.declare(1, &queue);
        raw.consume(1, &queue, "c", true);
        raw.method(2, id::QUEUE_DELETE, |out| {
            out.put_u16(0);
            out.put_short_string(queue.as_bytes());
            out.put_u8(0);
        })
        .unwrap();
        let mut lines = [raw.read(SILENCE).unwrap(), raw.read(SILENCE).unwrap()].map(|frame| describe(&frame));
        lines.sort();
        assert!(lines[0].starts_with("1: (60, 30)"), "{lines:?}");
        lines
    });
}

#[test]
fn update_secret_is_answered() {
    same(|port| {
        Raw::login(port).call(0, id::UPDATE_SECRET, id::UPDATE_SECRET_OK, |out| {
            out.put_long_string(b"guest");
            out.put_short_string(b"a test");
        })
    });
}

#[test]
fn heartbeats_come_and_a_silent_client_is_dropped() {
    for port in [broker().port, proxied_port()] {
        let mut raw = Raw::login_as(port, &Login { heartbeat: 1, ..Login::default() }).unwrap();
        let begin = Instant::now();
        let mut beats = 0;
        // The server beats twice a second or so, and gives up between two and three intervals without a byte.
        let end = loop {
            match raw.read_any(Duration::from_secs(15)) {
                Ok(frame) if frame.kind == kind::HEARTBEAT => beats += 1,
                Ok(frame) => panic!("{frame:?}"),
                Err(error) => break error,
            }
        };
        assert_ne!(end.kind(), ErrorKind::TimedOut);
        assert!(beats >= 2, "{beats} heartbeats");
        assert!((1500..8000).contains(&begin.elapsed().as_millis()), "dropped after {:?}", begin.elapsed());
    }
}

#[test]
fn a_client_that_beats_stays_connected_while_idle() {
    let mut raw = Raw::login_as(proxied_port(), &Login { heartbeat: 1, ..Login::default() }).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        raw.send(&halfway::amqp::frame::HEARTBEAT).unwrap();
        if let Err(error) = raw.read(Duration::from_millis(400)) {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "the connection was dropped");
        }
    }
    raw.open(1);
}

#[test]
fn a_client_that_does_not_read_costs_nobody_anything() {
    let queue = unique("slow-reader");
    let mut slow = Raw::login(proxied_port());
    slow.open(1);
    slow.declare(1, &queue);
    let mut busy = Raw::login(proxied_port());
    busy.open(1);
    for _ in 0..64 {
        busy.publish(1, &queue, vec![7; 1 << 20]);
    }
    busy.call(1, id::CHANNEL_FLOW, id::CHANNEL_FLOW_OK, |out| out.put_u8(1));
    // 64 MiB are on their way to somebody who reads none of it.
    slow.consume(1, &queue, "c", true);
    let begin = Instant::now();
    for _ in 0..200 {
        busy.call(1, id::CHANNEL_FLOW, id::CHANNEL_FLOW_OK, |out| out.put_u8(1));
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?} for 200 round trips", begin.elapsed());
    if std::env::var_os("HALFWAY_TEST_DIRECT").is_none() {
        let memory = crate::support::proxy().memory_bytes();
        assert!(memory < 160 << 20, "the proxy holds {memory} bytes");
    }
    for _ in 0..64 {
        assert_eq!(slow.expect_content(1, id::DELIVER).body.len(), 1 << 20);
    }
}
