//! What a silent connection costs in memory.

use crate::haproxy::Haproxy;
use crate::load::Client;
use crate::memory_bytes;
use crate::report::{head, row};
use crate::support::{Broker, Proxy};

const CONNECTIONS: usize = 1000;

/// Measures both proxies, one after the other.
pub async fn run(broker: &Broker) {
    let proxy = Proxy::start_with(broker.port, &[("log.level", "'warn'")]);
    let haproxy = Haproxy::start(broker.port);
    head(&["through", "memory at start, MiB", "with 1,000 connections, MiB", "KiB a connection"]);
    for (name, port, process) in
        [("HAProxy, TCP", haproxy.port, haproxy.process_id()), ("halfway", proxy.port, proxy.process_id())]
    {
        // The first connection brings what is needed once.
        let _first = Client::connect(port).await.expect("a client can connect");
        let before = memory_bytes(process);
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(Client::connect(port).await.expect("a client can connect"));
        }
        let after = memory_bytes(process);
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        let each = (after.saturating_sub(before)) as f64 / CONNECTIONS as f64 / 1024.0;
        row(&[name.to_owned(), mib(before), mib(after), format!("{each:.1}")]);
    }
}
