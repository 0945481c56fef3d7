//! Transactions: RabbitMQ's own against the proxy's, until everything is in the queue.

use crate::load::{Client, QueueType};
use crate::report::{count, head, median, ms, percentile, row};
use crate::support::{Broker, Proxy};
use crate::{Options, cpu_time};
use std::time::{Duration, Instant};

struct Round {
    commits_per_second: f64,
    p50: f64,
    p99: f64,
    proxy_micros: f64,
}

/// Measures all combinations that the options ask for.
pub async fn run(broker: &Broker, options: &Options) {
    let at_once = Proxy::start_with(broker.port, &[("transaction.forward_wait", "'0s'"), ("log.level", "'warn'")]);
    let waiting = Proxy::start_with(broker.port, &[("log.level", "'warn'")]);
    let targets =
        [("RabbitMQ", None), ("halfway, `forward_wait` 0", Some(&at_once)), ("halfway, default", Some(&waiting))];
    head(&[
        "queue",
        "connections",
        "messages a commit",
        "through",
        "commits/s",
        "ratio",
        "p50 ms",
        "p99 ms",
        "proxy CPU µs a message",
    ]);
    for kind in options.queues() {
        for messages in options.messages() {
            for connections in options.connections() {
                let mut rounds: [Vec<Round>; 3] = Default::default();
                for _ in 0..options.rounds {
                    for (at, (_, proxy)) in targets.iter().enumerate() {
                        rounds[at].push(round(broker, *proxy, kind, connections, messages, options.time).await);
                    }
                }
                let of = |at: usize, value: fn(&Round) -> f64| median(rounds[at].iter().map(value).collect());
                let native = of(0, |round| round.commits_per_second);
                for (at, (name, proxy)) in targets.iter().enumerate() {
                    let rate = of(at, |round| round.commits_per_second);
                    row(&[
                        kind.name().to_owned(),
                        connections.to_string(),
                        messages.to_string(),
                        (*name).to_owned(),
                        count(rate),
                        format!("{:.2}", rate / native),
                        format!("{:.2}", of(at, |round| round.p50)),
                        format!("{:.2}", of(at, |round| round.p99)),
                        proxy.map_or_else(String::new, |_| format!("{:.1}", of(at, |round| round.proxy_micros))),
                    ]);
                }
            }
        }
    }
}

async fn round(
    broker: &Broker,
    proxy: Option<&Proxy>,
    kind: QueueType,
    connections: usize,
    messages: usize,
    time: Duration,
) -> Round {
    let queue = "commits";
    let mut watcher = Client::connect(broker.port).await.expect("RabbitMQ serves");
    watcher.declare(queue, kind).await.expect("a queue can be declared");
    let port = proxy.map_or(broker.port, |proxy| proxy.port);
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Client::connect(port).await.expect("a client can connect"));
    }
    let (cpu, begin) = (proxy.map(|proxy| cpu_time(proxy.process_id())), Instant::now());
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| tokio::spawn(async move { client.commit_until(queue, messages, begin + time).await }))
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("a client does not panic").expect("every commit succeeds"));
    }
    let total = times.len() * messages;
    watcher.wait_for_count(queue, kind, total as u64).await.expect("every message arrives");
    let elapsed = begin.elapsed();
    let cpu = cpu.map(|before| cpu_time(proxy.expect("it has a time").process_id()) - before);
    watcher.delete(queue).await.expect("a queue can be deleted");
    Round {
        commits_per_second: times.len() as f64 / elapsed.as_secs_f64(),
        p50: ms(percentile(&mut times, 0.5)),
        p99: ms(percentile(&mut times, 0.99)),
        proxy_micros: cpu.map_or(0.0, |cpu| cpu.as_secs_f64() * 1e6 / total as f64),
    }
}
