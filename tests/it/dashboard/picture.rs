//! The picture of the dashboard that the README shows.

use super::{Stage, one_browser, unknowing};
use crate::support::{Raw, client, transactional, unique};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What the charts show.
const SPAN: Duration = Duration::from_secs(300);

#[test]
#[ignore = "takes five minutes, and writes docs/dashboard.png"]
fn picture() {
    let _turn = one_browser();
    let checker = unknowing();
    let table = format!("[{{ name = 'orders', url = '{}', match = {{ transaction = 'order-*' }} }}]", checker.url);
    let stage = Stage::new(&[("checker", &table)]);
    let (start, over) = (Instant::now(), AtomicBool::new(false));
    std::thread::scope(|scope| {
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
        std::thread::sleep(SPAN / 2);
        stage.doubt([("order-4711", 2), ("order-4712", 1), ("order-4713", 3)]);
        stage.dead_letters(&["invoices"]);
        std::thread::sleep(SPAN / 2);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dashboard.png");
        client::node("dashboard/picture.js", &[&stage.url(), &path.display().to_string()]);
        over.store(true, Ordering::Relaxed);
    });
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
