//! One who misbehaves, and one beside it who must not feel it.

use crate::support::{PATIENCE, Proxy, broker, deadline, wait_until};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
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
