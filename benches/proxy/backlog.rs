//! A store with a million committed messages that RabbitMQ has not got yet: how soon the proxy is ready with it, in how
//! much memory, and how fast it gets rid of them while new commits go on.

use crate::Options;
use crate::load::{Client, QueueType};
use crate::memory_bytes;
use crate::report::{count, head, ms, percentile, row};
use crate::support::broker::RELAY;
use crate::support::{Broker, Proxy};
use std::time::{Duration, Instant};

const MESSAGES: u64 = 1_000_000;
const A_COMMIT: usize = 100;

/// Fills a store with the relay locked out, then starts the proxy on it.
pub async fn run(broker: &Broker, options: &Options) {
    let queue = "backlog";
    let settings = [("transaction.forward_wait", "'0s'"), ("log.level", "'warn'"), ("store.max_size", "'8GiB'")];
    let mut proxy = Proxy::start_with(broker.port, &settings);
    let mut watcher = Client::connect(broker.port).await.expect("RabbitMQ serves");
    watcher.declare(queue, QueueType::Quorum).await.expect("a queue can be declared");
    broker.lock_out(RELAY);
    let mut filled = 0;
    while filled < MESSAGES {
        let mut client = Client::connect(proxy.port).await.expect("a client can connect");
        let end = Instant::now() + Duration::from_secs(1);
        filled +=
            (client.commit_until(queue, A_COMMIT, end).await.expect("every commit succeeds").len() * A_COMMIT) as u64;
    }
    proxy.kill();
    broker.let_in(RELAY);
    let store_bytes = std::fs::metadata(proxy.folder().join("halfway.db")).expect("the store is a file").len();
    let begin = Instant::now();
    proxy.resume();
    let ready = begin.elapsed();
    let at_start = memory_bytes(proxy.process_id());
    // New commits beside it, on another queue, until the backlog is gone.
    let mut beside = Client::connect(proxy.port).await.expect("a client can connect");
    watcher.declare("beside", QueueType::Quorum).await.expect("a queue can be declared");
    let drain = async {
        let mut most = at_start;
        while watcher.declare(queue, QueueType::Quorum).await.expect("the queue can be looked at") < filled {
            most = most.max(memory_bytes(proxy.process_id()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        (begin.elapsed() - ready, most)
    };
    let commits = beside.commit_until("beside", 1, Instant::now() + options.time);
    let ((drained, most), commits) = tokio::join!(drain, commits);
    let mut commits = commits.expect("every commit succeeds");
    head(&["", "measured"]);
    let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    let commit_rate = commits.len() as f64 / options.time.as_secs_f64();
    for (what, value) in [
        ("messages in the store", count(filled as f64)),
        ("size of the store", mib(store_bytes)),
        ("start to ready", format!("{:.2} s", ready.as_secs_f64())),
        ("memory when ready", mib(at_start)),
        ("most memory while draining", mib(most)),
        ("drained", format!("{} messages/s", count(filled as f64 / drained.as_secs_f64()))),
        ("one-message commits beside it", format!("{}/s", count(commit_rate))),
        ("their p50", format!("{:.2} ms", ms(percentile(&mut commits, 0.5)))),
        ("their p99", format!("{:.2} ms", ms(percentile(&mut commits, 0.99)))),
    ] {
        row(&[what.to_owned(), value]);
    }
    watcher.delete(queue).await.expect("a queue can be deleted");
    watcher.delete("beside").await.expect("a queue can be deleted");
}
