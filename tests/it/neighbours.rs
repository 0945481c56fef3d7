//! One who misbehaves, and one beside it who must not feel it.

use crate::support::hostile::{self, Neighbours};
use crate::support::id;
use crate::support::{Broker, PATIENCE, Proxy, Raw, broker, deadline, transactional, unique, wait_until};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the neighbour may wait at most for what takes a millisecond.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Whether something was done within [`AT_ONCE`], at one of three times: the machine may be busy with other tests.
fn is_done_at_once(mut work: impl FnMut()) -> bool {
    (0..3).any(|_| {
        let begun = Instant::now();
        work();
        begun.elapsed() < AT_ONCE
    })
}

/// Sends the beginning of a request.
fn half_open(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connected");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Half").expect("sent");
    stream
}

// 256 of them once made every probe fail, for as long as they liked.
#[test]
fn health_and_metrics_are_answered_beside_a_thousand_half_open_heads() {
    let proxy = Proxy::start(broker().port);
    let mut heads: Vec<TcpStream> = (0..1000).map(|_| half_open(proxy.admin_port)).collect();
    let until = deadline(Duration::from_secs(8));
    while Instant::now() < until {
        for path in ["/healthz", "/metrics", "/readyz", "/api/overview"] {
            let answers = || assert_eq!(proxy.http(path).expect("an answer").0, 200, "{path}");
            assert!(is_done_at_once(answers), "{path} is slow");
        }
        // They come again, as those leave that had to, and those whose time is up.
        heads.rotate_left(100);
        for head in &mut heads[..100] {
            *head = half_open(proxy.admin_port);
        }
    }
    assert!(proxy.metric("halfway_admin_turned_away_total") > 800.0);
    wait_until(deadline(PATIENCE), "heads that never end to be given up", || {
        heads.retain_mut(|head| {
            head.set_nonblocking(true).expect("a socket");
            head.read(&mut [0; 256]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        });
        heads.is_empty()
    });
}

/// Connects again and again, says `greeting` and no more, and holds `held` of the connections at a time, until told to stop.
fn storm(address: &str, held: usize, greeting: &'static [u8], stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (address, stop) = (address.to_owned(), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut sockets = VecDeque::new();
        while !stop.load(Ordering::Relaxed) {
            if let Ok(mut socket) = TcpStream::connect(&address) {
                let _ = socket.write_all(greeting);
                sockets.push_back(socket);
            }
            if sockets.len() > held {
                sockets.pop_front();
            }
        }
    })
}

// They once held every place of listen.max_connections: 150 kept a client out for twelve seconds.
#[test]
fn a_client_logs_in_beside_sockets_that_connect_for_ever_and_never_do() {
    let limits = [("listen.max_connections", "5"), ("listen.max_handshakes", "400")];
    let proxy = Proxy::start_with(broker().port, &limits);
    let mut before = Raw::login(proxy.port);
    let stop = Arc::default();
    let address = format!("127.0.0.1:{}", proxy.port);
    let storms = [(100, b"".as_slice()), (100, b""), (100, b""), (50, b"AMQP\x00\x00\x09\x01")];
    let storms = storms.map(|(held, greeting)| storm(&address, held, greeting, &stop));
    let turned_away = || proxy.metric("halfway_connections_refused_total{reason=\"handshakes\"}");
    wait_until(deadline(PATIENCE), "the storm to blow", || turned_away() > 300.0);
    let mut logins = 0;
    wait_until(deadline(4 * PATIENCE), "twenty to come in while many more are turned away", || {
        let mut raw = Raw::login(proxy.port);
        raw.open_tx(1);
        raw.commit(1);
        logins += 1;
        logins >= 20 && turned_away() > 1000.0
    });
    // Who has logged in leaves for nobody, and is let in up to the limit.
    let others: Vec<Raw> = (0..4).map(|_| Raw::login(proxy.port)).collect();
    wait_until(deadline(PATIENCE), "the limit", || Raw::try_login(proxy.port).is_err());
    drop(others);
    stop.store(true, Ordering::Relaxed);
    for storm in storms {
        storm.join().expect("it ends");
    }
    before.open_tx(1);
    before.commit(1);
}

/// Commits of the victim, each of which is waited for.
const COMMITS: usize = 10;

// A flood of heartbeats once took a neighbour's median commit from 3 to 69 ms, headers without end to 287 ms. How fast it is
// beside them is measured by the benchmark `fairness`; here it must go on at all, and nobody may fill the memory.
#[test]
fn a_client_commits_beside_each_kind_of_flood() {
    for kind in hostile::ALL {
        let proxy = Proxy::start(broker().port);
        let queue = unique("victim");
        let mut victim = transactional(proxy.port, &queue);
        let _neighbours = Neighbours::start(kind, proxy.port, broker().port, "halfway", 2);
        let until = deadline(2 * PATIENCE);
        for number in 0..COMMITS {
            victim.publish(1, &queue, number.to_string());
            victim.commit(1);
            assert!(Instant::now() < until, "{number} commits beside {}", kind.name());
        }
        assert!(proxy.memory_bytes() < 400 << 20, "{} bytes beside {}", proxy.memory_bytes(), kind.name());
    }
}

/// A victim whose commits go on, while `until` does not hold; and the proxy's largest memory meanwhile.
fn largest_memory_beside(proxy: &Proxy, what: &str, mut until: impl FnMut() -> bool) -> u64 {
    let queue = unique("victim");
    let mut victim = transactional(proxy.port, &queue);
    let (mut largest, end) = (0, deadline(6 * PATIENCE));
    while !until() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        victim.publish(1, &queue, "a message of the one who holds little");
        victim.commit(1);
        largest = largest.max(proxy.memory_bytes());
    }
    largest
}

// 300 channels with a megabyte each took 305 MiB, for as long as nobody committed.
#[test]
fn open_transactions_of_many_channels_share_the_memory_and_nobody_else_waits() {
    let proxy = Proxy::start_with(broker().port, &[("memory.max", "'32MiB'")]);
    let body = vec![7; 1_000_000];
    let open: Vec<JoinHandle<Raw>> = (0..10)
        .map(|_| {
            let (mut raw, body) = (Raw::login(proxy.port), body.clone());
            std::thread::spawn(move || {
                for channel in 1..=30 {
                    raw.open_tx(channel);
                    raw.publish(channel, "no-such-queue", &body);
                }
                // Behind all of it.
                raw.open(31);
                raw
            })
        })
        .collect();
    let largest = largest_memory_beside(&proxy, "300 messages", || open.iter().all(JoinHandle::is_finished));
    assert!(largest < 200 << 20, "{largest}");
    assert!(proxy.metric("halfway_memory_waits_total") > 0.0);
    for open in open {
        open.join().expect("nobody is killed").commit(1);
    }
    wait_until(deadline(PATIENCE), "all to be given back", || proxy.metric("halfway_memory_used_bytes") < 1e6);
}

// Bodies that stop half-way once crept past every bound, a megabyte a turn.
#[test]
fn bodies_that_never_end_are_given_up_before_they_fill_the_memory() {
    let settings = [("memory.max", "'16MiB'"), ("transaction.max_message_size", "'128MiB'")];
    let proxy = Proxy::start_with(broker().port, &settings);
    let begun: Vec<JoinHandle<bool>> = (0..16)
        .map(|_| {
            let mut raw = Raw::login(proxy.port);
            std::thread::spawn(move || {
                raw.open_tx(1);
                raw.begin(1, "no-such-queue", 100_000_000, 12_000_000);
                raw.read(4 * PATIENCE).is_ok_and(|frame| frame.id() == id::CHANNEL_CLOSE)
            })
        })
        .collect();
    let what = "one of sixteen to be given up";
    let largest = largest_memory_beside(&proxy, what, || begun.iter().any(JoinHandle::is_finished));
    // memory.max, the overdraft, what is read in a turn, and the process itself.
    assert!(largest < 300 << 20, "{largest}");
    let given_up = begun.into_iter().find(JoinHandle::is_finished).expect("one has ended");
    assert!(given_up.join().expect("no panic"), "it is told so");
}

// Six of them on their way took 588 MiB.
#[test]
fn large_bodies_on_their_way_share_the_memory_and_all_come_to_their_end() {
    // RabbitMQ 4 takes 16 MiB unless it is told otherwise.
    let own = Broker::start_with("max_message_size = 134217728");
    let settings = [("memory.max", "'32MiB'"), ("transaction.max_message_size", "'128MiB'")];
    let proxy = Proxy::start_with(own.port, &settings);
    let senders: Vec<JoinHandle<()>> = (0..6)
        .map(|_| {
            let mut raw = Raw::login(proxy.port);
            std::thread::spawn(move || {
                raw.open_tx(1);
                raw.publish(1, "no-such-queue", vec![7; 100_000_000]);
                // The disk may be slow.
                raw.rollback(1);
            })
        })
        .collect();
    let mut held = 0.0_f64;
    let largest = largest_memory_beside(&proxy, "six bodies", || {
        held = held.max(proxy.metric("halfway_memory_used_bytes"));
        senders.iter().all(JoinHandle::is_finished)
    });
    for sender in senders {
        sender.join().expect("nobody is killed");
    }
    // The budget, what may be overdrawn, and one body whose turn it is.
    assert!(held < 300.0 * 1024.0 * 1024.0, "{held}");
    // And one that the store is writing, and what the allocator keeps.
    assert!(largest < 650 << 20, "{largest}");
    assert!(proxy.metric("halfway_memory_waits_total") > 0.0);
}
