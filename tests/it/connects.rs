//! Clients that connect while no node answers, with `upstream.wait`.

use crate::support::broker::Broker;
use crate::support::{PATIENCE, Proxy, Raw, broker, deadline, free_port, unique, wait_until};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

#[test]
fn a_restart_of_rabbitmq_is_seen_by_none_of_two_hundred_who_connect() {
    const CLIENTS: usize = 200;
    let node = Broker::start();
    // More than RabbitMQ takes on a machine that is busy.
    let proxy = Proxy::start_with(node.port, &[("upstream.wait", "'25s'")]);
    node.ctl(&["stop_app"]);
    let port = proxy.port;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(fastrand::u64(0..1_000)));
                let mut raw = Raw::try_login(port)?;
                // It is one like any other.
                raw.open(1);
                let queue = unique("connects");
                raw.declare(1, &queue);
                raw.publish(1, &queue, "here");
                Ok::<_, std::io::Error>(raw.get_soon(1, &queue).text())
            })
        })
        .collect();
    wait_until(deadline(PATIENCE), "clients to wait", || proxy.metric("halfway_connections_waiting") > 10.0);
    let (_, ready) = proxy.http("/readyz").expect("an answer");
    assert!(ready.contains("Connection refused"), "{ready}");
    node.ctl(&["start_app"]);
    for client in clients {
        assert_eq!(client.join().expect("no panic").expect("no error"), "here");
    }
    wait_until(deadline(PATIENCE), "nobody to wait", || proxy.metric("halfway_connections_waiting") == 0.0);
    let log = proxy.log();
    assert!(log.contains("clients that connect wait for it") && log.contains("no client waits"), "{log}");
}

#[test]
fn a_wait_has_an_end_and_without_one_the_client_is_closed_at_once() {
    let (gone, wait) = (free_port(), Duration::from_secs(3));
    let closed_after = |settings: &[(&str, &str)]| {
        let mut proxy = Proxy::prepare(gone, settings);
        proxy.spawn(&[]);
        proxy.wait_for_port();
        let begun = Instant::now();
        Raw::try_login(proxy.port).err().expect("nobody is there");
        begun.elapsed()
    };
    assert!(closed_after(&[]) < wait);
    let waited = closed_after(&[("upstream.wait", "'3s'"), ("listen.handshake_timeout", "'500ms'")]);
    assert!(waited >= wait, "the client's own time stands still meanwhile: {waited:?}");
}

#[test]
fn a_node_that_ends_a_connection_without_a_word_is_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    // It takes its time to start, and here nobody may be waited for.
    let node = broker().port;
    let drops = Arc::new(AtomicUsize::new(0));
    let left = Arc::clone(&drops);
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            // As a node does that goes down, or comes up.
            if left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                continue;
            }
            let upstream = TcpStream::connect(("127.0.0.1", node)).expect("the broker");
            for (mut from, mut to) in [(&client, &upstream), (&upstream, &client)]
                .map(|(from, to)| (from.try_clone().expect("a descriptor"), to.try_clone().expect("a descriptor")))
            {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    let proxy = Proxy::start_with(port, &[("upstream.wait", "'10s'")]);
    drops.store(3, SeqCst);
    let mut raw = Raw::try_login(proxy.port).expect("the fourth connection");
    raw.open(1);
    assert_eq!(drops.load(SeqCst), 0);
}
