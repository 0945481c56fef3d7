//! Transactions under full load, with and without people who look at the dashboard.

use crate::Options;
use crate::commits::{Round, Work, round};
use crate::report::{count, head, median, row};
use crate::support::{Broker, Proxy};
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Browsers that show the overview, each with a stream of events, and that read the lists once a second besides.
const BROWSERS: usize = 4;

/// What such a browser reads.
const LISTS: [&str; 4] =
    ["/api/overview", "/api/transactions?limit=50", "/api/transactions?state=in_doubt&limit=50", "/api/connections"];

/// Measures one-message commits on each number of connections that the options ask for.
pub async fn run(broker: &Broker, options: &Options) {
    head(&["queue", "connections", "dashboards", "commits/s", "ratio", "p50 ms", "p99 ms", "proxy CPU µs"]);
    let proxy = Proxy::start_with(broker.port, &[("transaction.forward_wait", "'0s'"), ("log.level", "'warn'")]);
    for kind in options.queues() {
        for connections in options.connections() {
            let mut rounds: [Vec<Round>; 2] = Default::default();
            for _ in 0..options.rounds {
                for (at, browsers) in [0, BROWSERS].into_iter().enumerate() {
                    let mut watching = watch(proxy.admin_port, browsers);
                    rounds[at].push(round(broker, Some(&proxy), kind, connections, Work::Plain(1), options.time).await);
                    assert!(watching.try_join_next().is_none(), "a dashboard was sent away");
                }
            }
            let of = |at: usize, value: fn(&Round) -> f64| median(rounds[at].iter().map(value).collect());
            for (at, browsers) in [0, BROWSERS].into_iter().enumerate() {
                let rate = of(at, |round| round.commits_per_second);
                row(&[
                    kind.name().to_owned(),
                    connections.to_string(),
                    browsers.to_string(),
                    count(rate),
                    format!("{:.2}", rate / of(0, |round| round.commits_per_second)),
                    format!("{:.2}", of(at, |round| round.p50)),
                    format!("{:.2}", of(at, |round| round.p99)),
                    format!("{:.1}", of(at, |round| round.proxy_micros)),
                ]);
            }
        }
    }
}

/// Watches until it is dropped.
fn watch(port: u16, browsers: usize) -> JoinSet<io::Result<()>> {
    let mut watching = JoinSet::new();
    for _ in 0..browsers {
        watching.spawn(async move { read(port, "/api/events").await });
        watching.spawn(async move {
            loop {
                for path in LISTS {
                    read(port, path).await?;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    watching
}

/// Reads an answer to its end.
async fn read(port: u16, path: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut buffer = vec![0; 1 << 16];
    let first = stream.read(&mut buffer).await?;
    if !buffer[..first].starts_with(b"HTTP/1.1 200") {
        return Err(io::Error::other(String::from_utf8_lossy(&buffer[..first])));
    }
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}
