//! A client that commits, alone and beside neighbours that nobody wants: through the proxy, and at RabbitMQ itself.

use crate::Options;
use crate::report::{count, head, median, ms, percentile, row};
use crate::support::hostile::{ALL, Kind, Neighbours};
use crate::support::{Broker, Proxy, Raw};
use std::time::{Duration, Instant};

/// Connections that do the same, beside the one that is measured.
const NEIGHBOURS: usize = 3;
/// How long they get to do their worst before it is.
const BEFORE: Duration = Duration::from_millis(500);

/// Commits a second, and how long one takes, of each round.
#[derive(Default)]
struct Measured {
    rates: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// Measures both ways with each neighbour, in turns.
pub fn run(options: &Options) {
    head(&[
        "beside",
        "RabbitMQ: commits/s",
        "of alone",
        "p50 ms",
        "p99 ms",
        "halfway: commits/s",
        "of alone",
        "p50 ms",
        "p99 ms",
    ]);
    let mut alone = [f64::NAN; 2];
    let wanted = |kind: &Kind| options.neighbour.as_ref().is_none_or(|name| kind.name().starts_with(name));
    for kind in std::iter::once(None).chain(ALL.into_iter().filter(wanted).map(Some)) {
        let mut measured: [Measured; 2] = Default::default();
        for _ in 0..options.rounds {
            for (way, measured) in measured.iter_mut().enumerate() {
                // What the neighbours leave behind is nobody else's.
                let broker = Broker::start();
                let proxy = (way == 1).then(|| Proxy::start_with(broker.port, &[("log.level", "'warn'")]));
                let port = proxy.as_ref().map_or(broker.port, |proxy| proxy.port);
                let mut victim = Raw::login(port);
                victim.open(2);
                victim.declare(2, "victim");
                victim.open_tx(1);
                let control = if way == 1 { "halfway" } else { "amq.fanout" };
                let _neighbours = kind.map(|kind| Neighbours::start(kind, port, broker.port, control, NEIGHBOURS));
                std::thread::sleep(BEFORE);
                measured.add(&mut victim, options.time);
            }
        }
        let mut cells = vec![kind.map_or("nobody", |kind| kind.name()).to_owned()];
        for (measured, alone) in measured.into_iter().zip(&mut alone) {
            let rate = median(measured.rates);
            if kind.is_none() {
                *alone = rate;
            }
            cells.extend([count(rate), format!("{:.2}", rate / *alone)]);
            cells.extend([measured.p50, measured.p99].map(|times| format!("{:.1}", median(times))));
        }
        row(&cells);
    }
}

impl Measured {
    fn add(&mut self, victim: &mut Raw, time: Duration) {
        let (begun, mut times) = (Instant::now(), Vec::new());
        while begun.elapsed() < time {
            let one = Instant::now();
            victim.publish(1, "victim", "a message of the one who is measured");
            victim.commit(1);
            times.push(one.elapsed());
        }
        self.rates.push(times.len() as f64 / begun.elapsed().as_secs_f64());
        self.p50.push(ms(percentile(&mut times, 0.5)));
        self.p99.push(ms(percentile(&mut times, 0.99)));
    }
}
