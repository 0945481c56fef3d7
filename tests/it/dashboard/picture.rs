//! The dashboard while there is traffic, and a picture of it: after minutes of that, the README's (`make picture`).

use super::{Stage, one_browser, pictures, unknowing};
use crate::support::{Raw, client, transactional, unique};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How many seconds the charts are to show; without it, as little as makes a line.
const SECONDS: &str = "PICTURE_SECONDS";

#[test]
fn charts_follow_the_traffic() {
    let seconds = std::env::var(SECONDS).map_or(0, |seconds| seconds.parse().expect("a number of seconds"));
    let half = Duration::from_secs(seconds) / 2;
    let _turn = one_browser();
    let checker = unknowing();
    let table = format!("[{{ name = 'orders', url = '{}', match = {{ transaction = 'order-*' }} }}]", checker.url);
    let stage = Stage::new(&[("checker", &table)]);
    let (start, over) = (Instant::now(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _end = Over(&over);
        for shop in 0..3 {
            let (stage, over) = (&stage, &over);
            scope.spawn(move || {
                let queue = unique("shop");
                let mut raw = transactional(stage.proxy.port, &queue);
                let mut number = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    sell(&mut raw, &queue, number);
                    number += 1;
                    // Days have their tides.
                    let tide = (start.elapsed().as_secs_f64() / 40.0 + f64::from(shop)).sin() + 1.3;
                    std::thread::sleep(Duration::from_secs_f64(0.02 / tide));
                }
            });
        }
        std::thread::sleep(half);
        stage.doubt([("order-4711", 2), ("order-4712", 1), ("order-4713", 3)]);
        stage.dead_letters(&["invoices"]);
        std::thread::sleep(half);
        let path = pictures().join("picture.png");
        client::node("dashboard/picture.js", &[&stage.url(), &path.display().to_string()]);
    });
}

/// Ends the traffic, also when something fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A transaction, of which one in nine is rolled back.
fn sell(raw: &mut Raw, queue: &str, number: u64) {
    raw.publish(1, queue, "an order");
    if number % 9 == 8 {
        raw.rollback(1);
    } else {
        raw.commit(1);
    }
}
