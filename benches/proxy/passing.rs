//! Ordinary traffic: through the proxy, through HAProxy in TCP mode, and directly.

use crate::haproxy::Haproxy;
use crate::load::{Client, QueueType};
use crate::report::{count, head, median, percentile, row};
use crate::support::{Broker, Proxy};
use crate::{Options, cpu_time};
use std::time::{Duration, Instant};

const WINDOW: u64 = 100;
const PUBLISHERS: usize = 10;
const ROUND_TRIPS: usize = 5000;

#[derive(Default)]
struct Measured {
    confirms: Vec<f64>,
    confirm_micros: Vec<f64>,
    consumed: Vec<f64>,
    consume_micros: Vec<f64>,
    round_trip_micros: Vec<f64>,
}

/// Measures the three ways in turns.
pub async fn run(broker: &Broker, options: &Options) {
    let proxy = Proxy::start_with(broker.port, &[("log.level", "'warn'")]);
    let haproxy = Haproxy::start(broker.port);
    let ways = [
        ("RabbitMQ", broker.port, None),
        ("HAProxy, TCP", haproxy.port, Some(haproxy.process_id())),
        ("halfway", proxy.port, Some(proxy.process_id())),
    ];
    let mut measured: [Measured; 3] = Default::default();
    for _ in 0..options.rounds {
        for (at, (_, port, process)) in ways.iter().enumerate() {
            round(broker.port, *port, *process, options.time, &mut measured[at]).await;
        }
    }
    head(&[
        "through",
        "confirms/s, window 100, 10 connections",
        "CPU µs a message",
        "consumed/s, 1 connection",
        "CPU µs a message",
        "`basic.qos` p50 µs",
    ]);
    for ((name, ..), measured) in ways.iter().zip(measured) {
        row(&[
            (*name).to_owned(),
            count(median(measured.confirms)),
            format!("{:.2}", median(measured.confirm_micros)),
            count(median(measured.consumed)),
            format!("{:.2}", median(measured.consume_micros)),
            format!("{:.0}", median(measured.round_trip_micros)),
        ]);
    }
}

async fn round(direct: u16, port: u16, process: Option<u32>, time: Duration, measured: &mut Measured) {
    let queue = "passing";
    let kind = QueueType::Quorum;
    let mut watcher = Client::connect(direct).await.expect("RabbitMQ serves");
    watcher.declare(queue, kind).await.expect("a queue can be declared");
    let mut clients = Vec::new();
    for _ in 0..PUBLISHERS {
        clients.push(Client::connect(port).await.expect("a client can connect"));
    }
    let cpu = || process.map_or(Duration::ZERO, cpu_time);
    let (before, begin) = (cpu(), Instant::now());
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move { client.confirm_until(queue, WINDOW, begin + time, u64::MAX).await })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.expect("a client does not panic").expect("every message is confirmed");
    }
    measured.confirms.push(total as f64 / begin.elapsed().as_secs_f64());
    measured.confirm_micros.push((cpu() - before).as_secs_f64() * 1e6 / total as f64);
    watcher.delete(queue).await.expect("a queue can be deleted");

    let (queue, kind, total) = ("consumed", QueueType::Classic, 60_000);
    watcher.declare(queue, kind).await.expect("a queue can be declared");
    let mut filler = Client::connect(direct).await.expect("RabbitMQ serves");
    filler.confirm_until(queue, 1000, begin + Duration::from_secs(3600), total).await.expect("it fills");
    let mut consumer = Client::connect(port).await.expect("a client can connect");
    let (before, begin) = (cpu(), Instant::now());
    consumer.consume(queue, total).await.expect("everything is consumed");
    measured.consumed.push(total as f64 / begin.elapsed().as_secs_f64());
    measured.consume_micros.push((cpu() - before).as_secs_f64() * 1e6 / total as f64);
    watcher.delete(queue).await.expect("a queue can be deleted");

    let mut client = Client::connect(port).await.expect("a client can connect");
    let mut times = client.round_trips(ROUND_TRIPS).await.expect("qos is answered");
    measured.round_trip_micros.push(percentile(&mut times, 0.5).as_secs_f64() * 1e6);
}
