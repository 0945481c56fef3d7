//! Transactions: RabbitMQ's own against the proxy's, and named ones against plain ones, until everything is in the queue.

use crate::load::{Client, QueueType};
use crate::report::{count, head, median, ms, percentile, row};
use crate::support::{Broker, Proxy};
use crate::{Options, cpu_time, cpu_time_of_group};
use std::time::{Duration, Instant};

/// What a commit commits.
#[derive(Clone, Copy)]
pub enum Work {
    /// So many messages.
    Plain(usize),
    /// One message in a named transaction, behind a prepare barrier.
    Named,
}

/// What was measured.
pub struct Round {
    pub commits_per_second: f64,
    /// Milliseconds, like the next.
    pub p50: f64,
    pub p99: f64,
    /// CPU time of the proxy for one message.
    pub proxy_micros: f64,
    /// CPU time of RabbitMQ for one message.
    pub broker_micros: f64,
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
        "RabbitMQ CPU µs a message",
    ]);
    for kind in options.queues() {
        for messages in options.messages() {
            for connections in options.connections() {
                let mut rounds: [Vec<Round>; 3] = Default::default();
                for _ in 0..options.rounds {
                    for (at, (_, proxy)) in targets.iter().enumerate() {
                        rounds[at]
                            .push(round(broker, *proxy, kind, connections, Work::Plain(messages), options.time).await);
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
                        format!("{:.1}", of(at, |round| round.broker_micros)),
                    ]);
                }
            }
        }
    }
}

/// Measures named transactions of one message, with barrier and commit, beside plain ones.
pub async fn named(broker: &Broker, options: &Options) {
    head(&["queue", "connections", "`forward_wait`", "transactions", "commits/s", "ratio", "p50 ms", "proxy CPU µs"]);
    for wait in ["0s", "1s"] {
        for kind in options.queues() {
            for connections in options.connections() {
                let mut rounds: [Vec<Round>; 2] = Default::default();
                for _ in 0..options.rounds {
                    for (at, work) in [Work::Plain(1), Work::Named].into_iter().enumerate() {
                        // Names are remembered: each round has a store of its own.
                        let settings =
                            [("transaction.forward_wait", format!("'{wait}'")), ("log.level", "'warn'".to_owned())];
                        let settings = settings.each_ref().map(|(key, value)| (*key, value.as_str()));
                        let proxy = Proxy::start_with(broker.port, &settings);
                        rounds[at].push(round(broker, Some(&proxy), kind, connections, work, options.time).await);
                    }
                }
                let of = |at: usize, value: fn(&Round) -> f64| median(rounds[at].iter().map(value).collect());
                for (at, name) in ["plain", "named, with barrier"].into_iter().enumerate() {
                    let rate = of(at, |round| round.commits_per_second);
                    row(&[
                        kind.name().to_owned(),
                        connections.to_string(),
                        wait.to_owned(),
                        name.to_owned(),
                        count(rate),
                        format!("{:.2}", rate / of(0, |round| round.commits_per_second)),
                        format!("{:.2}", of(at, |round| round.p50)),
                        format!("{:.1}", of(at, |round| round.proxy_micros)),
                    ]);
                }
            }
        }
    }
}

/// Works for a while on so many connections, and waits until everything is in the queue.
pub async fn round(
    broker: &Broker,
    proxy: Option<&Proxy>,
    kind: QueueType,
    connections: usize,
    work: Work,
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
    let cpu = || (proxy.map(|proxy| cpu_time(proxy.process_id())), cpu_time_of_group(broker.process_id()));
    let (before, begin) = (cpu(), Instant::now());
    let tasks: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(number, mut client)| {
            tokio::spawn(async move {
                match work {
                    Work::Plain(messages) => client.commit_until(queue, messages, begin + time).await,
                    Work::Named => client.commit_named_until(queue, number, begin + time).await,
                }
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("a client does not panic").expect("every commit succeeds"));
    }
    let messages = match work {
        Work::Plain(messages) => messages,
        Work::Named => 1,
    };
    let total = times.len() * messages;
    watcher.wait_for_count(queue, kind, total as u64).await.expect("every message arrives");
    let elapsed = begin.elapsed();
    let after = cpu();
    watcher.delete(queue).await.expect("a queue can be deleted");
    Round {
        commits_per_second: times.len() as f64 / elapsed.as_secs_f64(),
        p50: ms(percentile(&mut times, 0.5)),
        p99: ms(percentile(&mut times, 0.99)),
        proxy_micros: after.0.zip(before.0).map_or(0.0, |(after, before)| micros(after - before) / total as f64),
        broker_micros: micros(after.1 - before.1) / total as f64,
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
