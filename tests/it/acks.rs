//! Acknowledgements on a transactional channel take effect at the commit, as RabbitMQ's own do.

use crate::support::raw::describe;
use crate::support::{Raw, id, same, transactional};
use halfway::amqp::wire::Write;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn acks_count_from_the_commit_on() {
    let lines = same(|port| {
        let mut raw = transactional(port, "tx-acks");
        for number in 1..=4 {
            raw.publish(2, "tx-acks", format!("message {number}"));
        }
        raw.call(1, id::QOS, id::QOS_OK, |out| {
            out.put_u32(0);
            out.put_u16(2);
            out.put_u8(0);
        });
        raw.consume(1, "tx-acks", "c", false);
        let tags = [raw.expect_content(1, id::DELIVER).tag(), raw.expect_content(1, id::DELIVER).tag()];
        raw.ack(1, tags[1], true);
        // The prefetch window is not released before the commit.
        assert_eq!(raw.transcript(Duration::from_millis(300)), ["silence"]);
        raw.rollback(1);
        assert_eq!(raw.transcript(Duration::from_millis(300)), ["silence"]);
        // They can be acked again; rejects and nacks wait for the commit as acks do.
        raw.ack(1, tags[0], false);
        raw.method(1, id::REJECT, |out| {
            out.put_u64(tags[1]);
            out.put_u8(1);
        })
        .unwrap();
        raw.method(1, id::TX_COMMIT, |_| {}).unwrap();
        // Commit-ok, the next message, and the one that was requeued: in an order that the broker does not promise.
        let mut lines = Vec::new();
        for _ in 0..3 {
            let frame = raw.read(SOON).unwrap();
            match frame.id() {
                id::DELIVER => {
                    let content = raw.content(1, id::DELIVER, frame.arguments().to_vec());
                    lines.push(content.text());
                    raw.ack(1, content.tag(), false);
                }
                _ => lines.push(describe(&frame)),
            }
        }
        raw.commit(1);
        let last = raw.expect_content(1, id::DELIVER);
        lines.push(last.text());
        lines.sort();
        // Tag 0 with `multiple` is everything that is unacknowledged now.
        raw.ack(1, 0, true);
        raw.commit(1);
        raw.close(1);
        assert_eq!(raw.get(2, "tx-acks"), None);
        lines
    });
    assert_eq!(lines.len(), 4, "{lines:?}");
}

#[test]
fn unknown_delivery_tags_fail_at_once() {
    let closes = same(|port| {
        let mut raw = transactional(port, "tx-tags");
        raw.publish(2, "tx-tags", "message");
        raw.ack(1, 7, false);
        let unknown = raw.expect_close(1);
        raw.open_tx(1);
        let tag = raw.get_held_soon(1, "tx-tags").tag();
        raw.ack(1, tag, false);
        raw.ack(1, tag, false);
        let twice = raw.expect_close(1);
        // The channel's end undid the ack.
        raw.open(1);
        assert_eq!(raw.get_soon(1, "tx-tags").text(), "message");
        [unknown, twice]
    });
    assert!(closes.iter().all(|close| close.code == 406 && close.text.contains("unknown delivery tag")), "{closes:?}");
}

#[test]
fn recover_leaves_alone_what_the_transaction_has_acked() {
    let recovered = same(|port| {
        let mut raw = transactional(port, "tx-recover");
        raw.publish(2, "tx-recover", "acked");
        raw.publish(2, "tx-recover", "not acked");
        let acked = raw.get_held_soon(1, "tx-recover");
        raw.get_held_soon(1, "tx-recover");
        raw.ack(1, acked.tag(), false);
        raw.call(1, id::RECOVER, id::RECOVER_OK, |out| out.put_u8(1));
        let again = raw.get_soon(2, "tx-recover").text();
        assert_eq!(raw.get(2, "tx-recover"), None);
        raw.commit(1);
        raw.close(1);
        assert_eq!(raw.get(2, "tx-recover"), None);
        again
    });
    assert_eq!(recovered, "not acked");
}

#[test]
fn consume_process_produce_is_all_or_nothing() {
    same(|port| {
        let mut watcher = transactional(port, "tx-in");
        watcher.declare(2, "tx-out");
        watcher.publish(2, "tx-in", "order");
        for commit in [false, true] {
            let mut worker = Raw::login(port);
            worker.open_tx(1);
            worker.consume(1, "tx-in", "c", false);
            let order = worker.expect_content(1, id::DELIVER);
            worker.ack(1, order.tag(), false);
            worker.publish(1, "tx-out", "invoice");
            if commit {
                worker.commit(1);
            } else {
                // Whoever crashes here gets the order again, and has sent no invoice.
                drop(worker);
            }
        }
        assert_eq!(watcher.get_soon(2, "tx-out").text(), "invoice");
        assert_eq!(watcher.get(2, "tx-out"), None);
        assert_eq!(watcher.get(2, "tx-in"), None);
    });
}

/// A consumer that needs no acks, and one that does under the same tag: the second one's deliveries are acknowledged.
#[test]
fn a_consumer_tag_that_is_used_again_is_another_consumer() {
    let lines = same(|port| {
        let mut raw = transactional(port, "tx-reused-tag");
        raw.consume(1, "tx-reused-tag", "c", true);
        raw.call(1, id::CANCEL, id::CANCEL_OK, |out| {
            out.put_short_string(b"c");
            out.put_u8(0);
        });
        raw.consume(1, "tx-reused-tag", "c", false);
        for number in 1..=3 {
            raw.publish(2, "tx-reused-tag", format!("message {number}"));
        }
        let lines: Vec<_> = (0..3).map(|_| raw.expect_content(1, id::DELIVER).text()).collect();
        raw.publish(1, "tx-reused-tag-answers", "answer");
        raw.ack(1, 0, true);
        raw.commit(1);
        raw.close(1);
        assert_eq!(raw.get(2, "tx-reused-tag"), None, "all are acknowledged");
        lines
    });
    assert_eq!(lines, ["message 1", "message 2", "message 3"]);
}
