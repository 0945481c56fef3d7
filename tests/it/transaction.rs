//! Transactions behave as RabbitMQ's own, as far as RabbitMQ's own go: the same scripts, the same answers.

use crate::support::id;
use crate::support::raw::{Close, Login};
use crate::support::table::{Properties, Table, long, property};
use crate::support::{
    PATIENCE, Proxy, Raw, broker, deadline, proxied_port, proxy, same, transactional, unique, wait_until,
};
use halfway::amqp::frame;
use halfway::amqp::wire::Write;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn mode_errors_have_the_brokers_texts() {
    let closes = same(|port| {
        let mut raw = Raw::login(port);
        let mut closes = Vec::new();
        for (before, after) in [
            (Some((id::CONFIRM_SELECT, id::CONFIRM_SELECT_OK)), id::TX_SELECT),
            (Some((id::TX_SELECT, id::TX_SELECT_OK)), id::CONFIRM_SELECT),
            (None, id::TX_COMMIT),
            (None, id::TX_ROLLBACK),
        ] {
            let bits = |id, out: &mut Vec<u8>| {
                if id == id::CONFIRM_SELECT {
                    out.put_u8(0)
                }
            };
            raw.open(1);
            if let Some((before, answer)) = before {
                raw.call(1, before, answer, |out| bits(before, out));
            }
            raw.method(1, after, |out| bits(after, out)).unwrap();
            closes.push(raw.expect_close(1));
        }
        closes
    });
    assert!(closes.iter().all(|close| close.code == 406), "{closes:?}");
}

#[test]
fn nothing_is_there_before_the_commit_and_everything_after() {
    same(|port| {
        let mut raw = transactional(port, "tx-visible");
        raw.publish(1, "tx-visible", "one");
        raw.publish(1, "tx-visible", "two");
        // A repeated select keeps what is pending.
        raw.call(1, id::TX_SELECT, id::TX_SELECT_OK, |_| {});
        raw.publish(1, "tx-visible", "three");
        assert_eq!(raw.get(2, "tx-visible"), None);
        raw.commit(1);
        assert_eq!(raw.drain(2, "tx-visible"), ["one", "two", "three"]);
        // Empty ones are fine.
        raw.commit(1);
        raw.rollback(1);
        raw.commit(1);
    });
}

#[test]
fn a_rolled_back_message_never_comes() {
    same(|port| {
        let mut raw = transactional(port, "tx-rollback");
        raw.publish(1, "tx-rollback", "one");
        raw.rollback(1);
        raw.publish(1, "tx-rollback", "two");
        raw.commit(1);
        raw.publish(1, "tx-rollback", "three");
        raw.close(1);
        assert_eq!(raw.drain(2, "tx-rollback"), ["two"]);
        let mut lost = Raw::login(port);
        lost.open_tx(1);
        lost.publish(1, "tx-rollback", "four");
        drop(lost);
        raw.open_tx(1);
        raw.publish(1, "tx-rollback", "five");
        raw.commit(1);
        assert_eq!(raw.drain(2, "tx-rollback"), ["five"]);
    });
}

#[test]
fn a_refused_publish_closes_the_channel_at_once_and_takes_the_transaction_with_it() {
    let topic = "tx-topic";
    let mut setup = Raw::login(broker().port);
    setup.open(1);
    setup.declare_exchange(1, topic, "topic");
    broker().add_user("tx-limited", ["", "^(tx-topic|tx-refused)$", ".*"]);
    broker().ctl(&["set_topic_permissions", "tx-limited", topic, "^allowed", ".*"]);
    setup.call(1, id::EXCHANGE_DECLARE, id::EXCHANGE_DECLARE_OK, |out| {
        out.put_u16(0);
        out.put_short_string(b"tx-internal");
        out.put_short_string(b"fanout");
        out.put_u8(0b01010);
        out.put_long_string(&[]);
    });
    let cases: [(&str, &str, &str, Properties); 10] = [
        ("guest", "tx-nowhere", "key", Properties::new()),
        ("guest", "amq.default", "key", Properties::new()),
        ("guest", "tx-internal", "key", Properties::new()),
        ("guest", "", "tx-refused", Properties::new().text(property::EXPIRATION, "1.5")),
        ("guest", "", "tx-refused", Properties::new().text(property::EXPIRATION, "-1")),
        ("guest", "", "tx-refused", Properties::new().text(property::USER_ID, "")),
        ("guest", "", "tx-refused", Properties::new().headers(Table::new().string("BCC", "no array"))),
        ("guest", "", "tx-refused", Properties::new().text(property::REPLY_TO, "amq.rabbitmq.reply-to")),
        ("tx-limited", "", "tx-refused", Properties::new()),
        ("tx-limited", topic, "forbidden", Properties::new()),
    ];
    let closes = same(|port| {
        cases
            .iter()
            .map(|(user, exchange, key, properties)| {
                let mut watcher = transactional(port, "tx-refused");
                let mut raw = Raw::login_as(port, &Login { user, password: user, ..Login::default() }).unwrap();
                raw.open_tx(1);
                if *user == "guest" {
                    raw.publish(1, "tx-refused", "lost with the channel");
                }
                raw.publish_with(1, (exchange, key.as_bytes()), 0, properties, b"refused");
                // A pipelined commit is ignored.
                raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
                let close = raw.expect_close(1);
                // The connection and the channel's number can be used on.
                raw.open_tx(1);
                raw.commit(1);
                assert_eq!(watcher.get(2, "tx-refused"), None);
                close
            })
            .collect::<Vec<Close>>()
    });
    let codes: Vec<u16> = closes.iter().map(|close| close.code).collect();
    assert_eq!(codes, [404, 404, 403, 406, 406, 406, 406, 406, 403, 403], "{closes:?}");
    assert!(closes.iter().all(|close| close.about == id::PUBLISH));
}

/// RabbitMQ 3 refuses it, 4 takes it and hands it out as it came.
#[test]
fn a_delivery_mode_that_does_not_exist_is_judged_by_rabbitmq() {
    let outcome = same(|port| {
        let mut raw = transactional(port, "tx-mode");
        let strange = Properties::new().with(property::DELIVERY_MODE, vec![3]);
        raw.publish_with(1, ("", b"tx-mode"), 0, &strange, b"strange");
        raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
        let answer = raw.read(PATIENCE).unwrap();
        if answer.id() == id::TX_COMMIT_OK {
            return Ok(raw.get_soon(2, "tx-mode").properties.without_half_id());
        }
        assert_eq!(answer.id(), id::CHANNEL_CLOSE);
        Err(Close::read(answer.arguments()))
    });
    if broker().version() < (4, 0) {
        assert_eq!(outcome.map_err(|close| close.code), Err(406));
    } else {
        assert_eq!(outcome, Ok(Properties::new().with(property::DELIVERY_MODE, vec![3])));
    }
}

#[test]
fn errors_that_close_the_connection_do_so_in_a_transaction_too() {
    let closes = same(|port| {
        let immediate = {
            let mut raw = transactional(port, "tx-fatal");
            raw.publish_with(1, ("", b"tx-fatal"), 0b10, &Properties::new(), b"body");
            raw.expect_close(0)
        };
        let unreadable = {
            let mut raw = transactional(port, "tx-fatal");
            let broken = Table::new().entry("key", b'?', b"no such type");
            raw.publish_with(1, ("", b"tx-fatal"), 0, &Properties::new().headers(broken), b"body");
            raw.expect_close(0)
        };
        [immediate, unreadable]
    });
    assert_eq!(closes.map(|close| close.code), [540, 541]);
}

#[test]
fn returns_come_before_commit_ok_and_never_after_a_rollback() {
    let lines = same(|port| {
        let mut raw = transactional(port, "tx-mandatory");
        let bcc = Table::new().entry("BCC", b'A', &long(&[&[b'S'][..], &long(b"nobody")].concat()));
        let properties = Properties::persistent().headers(bcc.string("other", "header"));
        raw.publish_with(1, ("", b"tx-no-such-queue"), 1, &properties, b"lost");
        raw.rollback(1);
        for (key, properties) in [("tx-no-such-queue", &properties), ("tx-mandatory", &Properties::persistent())] {
            raw.publish_with(1, ("", key.as_bytes()), 1, properties, b"body");
        }
        assert_eq!(raw.transcript(Duration::from_millis(300)), ["silence"], "nothing is returned before the commit");
        raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
        let returned = raw.expect_content(1, id::RETURN);
        raw.expect(1, id::TX_COMMIT_OK);
        assert_eq!(raw.drain(2, "tx-mandatory"), ["body"]);
        let returned = (returned.arguments, returned.properties.without_half_id(), returned.body);
        format!("{returned:?}")
    });
    assert!(!lines.contains("BCC"), "{lines}");
}

#[test]
fn an_alternate_exchange_counts_as_a_route() {
    same(|port| {
        let mut raw = transactional(port, "tx-alternate");
        raw.call(2, id::EXCHANGE_DECLARE, id::EXCHANGE_DECLARE_OK, |out| {
            out.put_u16(0);
            out.put_short_string(b"tx-with-alternate");
            out.put_short_string(b"direct");
            out.put_u8(0b00010);
            out.put_long_string(&Table::new().string("alternate-exchange", "amq.fanout").0);
        });
        raw.bind(2, "tx-alternate", "amq.fanout", "");
        raw.publish_with(1, ("tx-with-alternate", b"unbound"), 1, &Properties::persistent(), b"body");
        raw.commit(1);
        assert_eq!(raw.drain(2, "tx-alternate"), ["body"]);
    });
}

#[test]
fn cc_and_bcc_reach_their_queues() {
    same(|port| {
        let mut raw = transactional(port, "tx-key");
        let list = |key: &str| long(&[&[b'S'][..], &long(key.as_bytes())].concat());
        raw.declare(2, "tx-cc");
        raw.declare(2, "tx-bcc");
        let headers = Table::new().entry("CC", b'A', &list("tx-cc")).entry("BCC", b'A', &list("tx-bcc"));
        raw.publish_with(1, ("", b"tx-key"), 0, &Properties::persistent().headers(headers), b"body");
        raw.commit(1);
        ["tx-key", "tx-cc", "tx-bcc"].map(|queue| {
            let content = raw.get_soon(2, queue);
            assert_eq!(raw.get(2, queue), None);
            let keys: Vec<_> = content.properties.header_entries().into_iter().map(|(key, _)| key).collect();
            assert!(keys.contains(&b"CC".to_vec()) && !keys.contains(&b"BCC".to_vec()), "{keys:?}");
            content.text()
        })
    });
}

#[test]
fn a_declare_right_before_a_publish_is_seen() {
    same(|port| {
        let mut raw = transactional(port, "tx-declare");
        for number in 0..40 {
            let exchange = format!("tx-new-{number}");
            // Pipelined on the transaction's own channel: no answer is awaited in between.
            raw.method(1, id::EXCHANGE_DECLARE, |out| {
                out.put_u16(0);
                out.put_short_string(exchange.as_bytes());
                out.put_short_string(b"fanout");
                out.put_u8(0);
                out.put_long_string(&[]);
            })
            .unwrap();
            raw.publish_with(1, (&exchange, b""), 0, &Properties::persistent(), b"body");
            raw.expect(1, id::EXCHANGE_DECLARE_OK);
            raw.commit(1);
            raw.delete_exchange(2, &exchange);
        }
    });
}

#[test]
fn user_id_is_kept_and_other_names_are_refused() {
    same(|port| {
        let mut raw = transactional(port, "tx-user");
        raw.publish_with(1, ("", b"tx-user"), 0, &Properties::persistent().text(property::USER_ID, "guest"), b"body");
        raw.commit(1);
        assert_eq!(raw.get_soon(2, "tx-user").properties.get(property::USER_ID), Some(&b"\x05guest"[..]));
    });
}

#[test]
fn direct_reply_to_works_inside_transactions() {
    same(|port| {
        let queue = "tx-rpc";
        let mut server = transactional(port, queue);
        let mut client = Raw::login(port);
        client.open_tx(1);
        client.consume(1, "amq.rabbitmq.reply-to", "replies", true);
        let request = Properties::new().text(property::REPLY_TO, "amq.rabbitmq.reply-to");
        client.publish_with(1, ("", queue.as_bytes()), 0, &request, b"question");
        client.publish(1, queue, "ordinary");
        client.commit(1);
        let mut got = [server.get_soon(2, queue), server.get_soon(2, queue)];
        got.sort_by_key(|content| content.text());
        let reply_to = got[1].properties.get(property::REPLY_TO).expect("the question says where to")[1..].to_vec();
        server.publish_with(1, ("", &reply_to), 0, &Properties::new(), b"answer");
        server.commit(1);
        let answer = client.expect_content(1, id::DELIVER);
        assert_eq!(answer.text(), "answer", "a probe must not reach the requester");
        assert_eq!(client.transcript(Duration::from_millis(300)), ["silence"]);
    });
}

#[test]
fn exclusive_queues_can_be_published_to() {
    same(|port| {
        // RabbitMQ may hold it a moment longer than its connection lasts.
        let queue = unique("tx-exclusive");
        let mut raw = transactional(port, "tx-any");
        raw.call(2, id::QUEUE_DECLARE, id::QUEUE_DECLARE_OK, |out| {
            out.put_u16(0);
            out.put_short_string(queue.as_bytes());
            out.put_u8(0b00100);
            out.put_long_string(&[]);
        });
        raw.publish(1, &queue, "body");
        raw.commit(1);
        assert_eq!(raw.drain(2, &queue), ["body"]);
    });
}

#[test]
fn bodies_of_all_sizes_go_through_a_transaction() {
    for frame_max in [8192, 131_072] {
        same(|port| {
            let mut watcher = transactional(port, "tx-sizes");
            let mut raw = Raw::login_as(port, &Login { frame_max, ..Login::default() }).unwrap();
            raw.open_tx(1);
            let bodies = [0, 1, 8183, 8184, 8185, 131_064, 131_065, 3_000_000]
                .map(|size| (0..size).map(|at: u32| (at % 251) as u8).collect::<Vec<u8>>());
            for body in &bodies {
                raw.publish(1, "tx-sizes", body);
            }
            raw.commit(1);
            for body in &bodies {
                assert!(watcher.get_soon(2, "tx-sizes").body == *body, "{} bytes", body.len());
            }
        });
    }
}

#[test]
fn channels_and_connections_have_transactions_of_their_own() {
    same(|port| {
        let mut raw = transactional(port, "tx-a");
        raw.declare(2, "tx-b");
        raw.open_tx(3);
        let mut other = Raw::login(port);
        other.open_tx(1);
        raw.publish(1, "tx-a", "1");
        raw.publish(3, "tx-b", "3");
        other.publish(1, "tx-a", "other");
        raw.publish(1, "tx-b", "1");
        raw.commit(3);
        assert_eq!((raw.drain(2, "tx-a"), raw.drain(2, "tx-b")), (vec![], vec!["3".to_owned()]));
        raw.rollback(3);
        other.commit(1);
        raw.commit(1);
        assert_eq!(raw.drain(2, "tx-a"), ["other", "1"]);
        assert_eq!(raw.drain(2, "tx-b"), ["1"]);
    });
}

#[test]
fn what_is_pipelined_behind_a_commit_is_done_in_its_turn() {
    let mut raw = transactional(proxied_port(), "tx-pipelined");
    // RabbitMQ itself may answer 504 here; the proxy queues.
    let mut out = Vec::new();
    for number in 0..50 {
        for body in [format!("{number}a"), format!("{number}b")] {
            frame::write_method(&mut out, 1, id::PUBLISH, |out| {
                out.put_u16(0);
                out.put_short_string(b"");
                out.put_short_string(b"tx-pipelined");
                out.put_u8(0);
            });
            let header = Properties::persistent().encode(body.len() as u64);
            frame::write_content(&mut out, 1, &header, body.as_bytes(), 131_072);
        }
        frame::write_method(&mut out, 1, if number % 5 == 4 { id::TX_ROLLBACK } else { id::TX_COMMIT }, |_| {});
    }
    raw.send(&out).unwrap();
    for number in 0..50 {
        raw.expect(1, if number % 5 == 4 { id::TX_ROLLBACK_OK } else { id::TX_COMMIT_OK });
    }
    let expected: Vec<String> = (0..50)
        .filter(|number| number % 5 != 4)
        .flat_map(|number| [format!("{number}a"), format!("{number}b")])
        .collect();
    assert_eq!(raw.drain(2, "tx-pipelined"), expected);
}

#[test]
fn a_close_behind_a_commit_loses_nothing() {
    same(|port| {
        let mut raw = transactional(port, "tx-close");
        let mut out = Vec::new();
        raw.publish(1, "tx-close", "body");
        frame::write_method(&mut out, 1, id::TX_COMMIT, |_| {});
        frame::write_method(&mut out, 1, id::CHANNEL_CLOSE, |out| {
            out.put_u16(200);
            out.put_short_string(b"");
            out.put_u32(0);
        });
        raw.send(&out).unwrap();
        while raw.read(SOON).unwrap().id() != id::CHANNEL_CLOSE_OK {}
        assert_eq!(raw.get_soon(2, "tx-close").text(), "body");
        raw.open_tx(1);
        raw.commit(1);
    });
}

#[test]
fn a_waiting_commit_holds_up_no_other_channel() {
    let own =
        Proxy::start_with(broker().port, &[("relay.password", "'wrong'"), ("transaction.mandatory_wait", "'4s'")]);
    let queue = unique("tx-waiting");
    let mut raw = transactional(own.port, &queue);
    raw.publish_with(1, ("", queue.as_bytes()), 1, &Properties::persistent(), b"body");
    let begin = Instant::now();
    raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
    // The relay can't log in, so the commit waits for all of mandatory_wait; channel 2 works on.
    for _ in 0..20 {
        raw.call(2, id::CHANNEL_FLOW, id::CHANNEL_FLOW_OK, |out| out.put_u8(1));
    }
    assert!(begin.elapsed() < Duration::from_secs(3), "channel 2 waited {:?}", begin.elapsed());
    raw.expect(1, id::TX_COMMIT_OK);
    assert!(begin.elapsed() > Duration::from_secs(3), "the commit waited only {:?}", begin.elapsed());
    assert_eq!(raw.get(2, &queue), None);
}

#[test]
fn a_transaction_may_be_larger_than_memory() {
    let own = Proxy::start_with(broker().port, &[("transaction.memory", "'1MiB'")]);
    let queue = unique("tx-large");
    let mut raw = transactional(own.port, &queue);
    let before = own.memory_bytes();
    for _ in 0..150 {
        raw.publish(1, &queue, vec![9; 1 << 20]);
    }
    raw.commit(1);
    let mut most = own.memory_bytes();
    for _ in 0..150 {
        assert_eq!(raw.get_soon(2, &queue).body.len(), 1 << 20);
        most = most.max(own.memory_bytes());
    }
    assert!(most < before + (64 << 20), "150 MiB in a transaction took {} MiB of memory", (most - before) >> 20);
}

#[test]
fn limits_close_the_channel_and_nothing_is_delivered() {
    let settings = [("transaction.max_messages", "10"), ("transaction.max_size", "'100KiB'")];
    let own = Proxy::start_with(broker().port, &settings);
    let queue = unique("tx-limits");
    let mut raw = transactional(own.port, &queue);
    let few: Vec<usize> = vec![10; 11];
    let large: Vec<usize> = vec![40_000; 3];
    for sizes in [few, large] {
        for size in sizes {
            raw.publish(1, &queue, vec![b'x'; size]);
        }
        raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
        let close = raw.expect_close(1);
        assert_eq!(close.code, 406, "{close:?}");
        assert_eq!(raw.get(2, &queue), None);
        raw.open_tx(1);
    }
    for _ in 0..10 {
        raw.publish(1, &queue, "body");
    }
    raw.commit(1);
    assert_eq!(raw.drain(2, &queue).len(), 10);
}

#[test]
fn a_transaction_that_is_open_for_too_long_ends_with_its_channel() {
    let own = Proxy::start_with(broker().port, &[("transaction.max_age", "'2s'")]);
    let queue = unique("tx-old");
    let mut raw = transactional(own.port, &queue);
    raw.publish(1, &queue, "old");
    let oldest = || own.metric("halfway_transactions_open_oldest_age_seconds");
    wait_until(deadline(PATIENCE), "its age to show", || oldest() >= 1.0);
    let close = raw.expect_close(1);
    assert!(close.code == 406 && close.text.ends_with("(transaction.max_age)"), "{close:?}");
    wait_until(deadline(PATIENCE), "nothing to be open", || oldest() == 0.0);
    raw.open_tx(1);
    raw.publish(1, &queue, "young");
    raw.commit(1);
    assert_eq!(raw.get_soon(2, &queue).text(), "young");
    assert_eq!(raw.get(2, &queue), None);
}

#[test]
fn a_user_may_publish_in_a_transaction_only_what_rabbitmq_allows_him() {
    broker().add_user("tx-writer", ["", "^tx-allowed$", ""]);
    let mut watcher = transactional(broker().port, "tx-of-writer");
    watcher.declare_exchange(2, "tx-allowed", "fanout");
    watcher.declare_exchange(2, "tx-forbidden", "fanout");
    watcher.bind(2, "tx-of-writer", "tx-allowed", "");
    watcher.bind(2, "tx-of-writer", "tx-forbidden", "");
    same(|port| {
        let login = Login { user: "tx-writer", password: "tx-writer", ..Login::default() };
        let mut raw = Raw::login_as(port, &login).unwrap();
        raw.open_tx(1);
        raw.publish_with(1, ("tx-allowed", b""), 0, &Properties::persistent(), b"allowed");
        raw.publish_with(1, ("tx-forbidden", b""), 0, &Properties::persistent(), b"forbidden");
        raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
        let close = raw.expect_close(1);
        assert_eq!(close.code, 403);
        raw.open_tx(1);
        raw.publish_with(1, ("tx-allowed", b""), 0, &Properties::persistent(), b"allowed");
        raw.commit(1);
        close
    });
    assert_eq!(watcher.drain(2, "tx-of-writer"), ["allowed", "allowed"]);
}

#[test]
fn virtual_hosts_are_kept_apart() {
    broker().add_vhost("tx-other");
    same(|port| {
        let mut here = transactional(port, "tx-vhost");
        let mut there = Raw::login_as(port, &Login { vhost: "tx-other", ..Login::default() }).unwrap();
        there.open_tx(1);
        there.declare(1, "tx-vhost");
        there.publish(1, "tx-vhost", "there");
        there.commit(1);
        here.publish(1, "tx-vhost", "here");
        here.commit(1);
        there.open(2);
        assert_eq!(
            (here.drain(2, "tx-vhost"), there.drain(2, "tx-vhost")),
            (vec!["here".into()], vec!["there".into()])
        );
    });
}

#[test]
fn a_transaction_is_counted_in_the_metrics() {
    let queue = unique("tx-metrics");
    let mut raw = transactional(proxy().port, &queue);
    raw.publish(1, &queue, "body");
    raw.commit(1);
    let (status, text) = proxy().http("/metrics").expect("the admin port answers");
    assert_eq!(status, 200);
    assert!(text.contains("halfway_"), "{text}");
}

/// A client that sends its commit and goes. What it asked for has come, so it is done.
#[test]
fn a_commit_is_carried_out_though_its_client_does_not_wait() {
    let proxy = proxy();
    let queue = unique("not-waited-for");
    let mut raw = Raw::login(proxy.port);
    raw.open(2);
    raw.declare(2, &queue);
    let bodies: Vec<_> = (0..10).map(|number| format!("message {number}")).collect();
    for body in &bodies {
        let mut hasty = Raw::login(proxy.port);
        hasty.open_tx(1);
        hasty.publish(1, &queue, body);
        hasty.method(1, id::TX_COMMIT, |_| {}).unwrap();
    }
    let mut arrived: Vec<_> = bodies.iter().map(|_| raw.get_soon(2, &queue).text()).collect();
    arrived.sort();
    assert_eq!(arrived, bodies);
}
