//! What the tests stand on: RabbitMQ nodes and proxies as child processes, a raw AMQP client, and waiting.

pub mod broker;
pub mod checker;
pub mod child;
pub mod client;
pub mod collector;
pub mod hostile;
mod http;
pub mod id;
pub mod postgres;
pub mod proxy;
pub mod raw;
pub mod table;
mod waits;

pub use broker::Broker;
pub use proxy::Proxy;
pub use raw::Raw;
pub use waits::{PATIENCE, deadline, free_port, wait_until};

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A name that no other test uses.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The broker that all tests share which do not break theirs: a start takes seconds.
pub fn broker() -> &'static Broker {
    static SHARED: LazyLock<Broker> = LazyLock::new(Broker::start);
    &SHARED
}

/// The proxy in front of [`broker`], with the default configuration, for tests that need nothing else.
pub fn proxy() -> &'static Proxy {
    static SHARED: LazyLock<Proxy> = LazyLock::new(|| Proxy::start(broker().port));
    &SHARED
}

/// The port of [`proxy`]. With `HALFWAY_TEST_DIRECT` in the environment it is the broker's own: so the tests that
/// must not be able to tell the difference are themselves tested.
pub fn proxied_port() -> u16 {
    if std::env::var_os("HALFWAY_TEST_DIRECT").is_some() { broker().port } else { proxy().port }
}

/// A proxy in front of [`broker`] whose relay has an account of its own, so that it can be locked out; not started yet, and
/// the account's name.
pub fn with_relay_account(settings: &[(&str, &str)]) -> (Proxy, String) {
    let account = unique("relay-of-test");
    broker().add_relay_account(&account);
    let quoted = format!("'{account}'");
    let own = [
        ("relay.username", quoted.as_str()),
        ("relay.password", quoted.as_str()),
        ("relay.retry.max", "'500ms'"),
        ("transaction.forward_wait", "'300ms'"),
    ];
    (Proxy::prepare(broker().port, &[&own, settings].concat()), account)
}

/// Logs in as guest, opens channel 1 in transaction mode, and channel 2 plain with a durable queue, as it is.
#[track_caller]
pub fn transactional(port: u16, queue: &str) -> Raw {
    let mut raw = Raw::login(port);
    raw.open(2);
    raw.declare(2, queue);
    raw.open_tx(1);
    raw
}

/// Runs a script against RabbitMQ and against the proxy, which must give the same; returns that.
#[track_caller]
pub fn same<T: PartialEq + std::fmt::Debug>(script: impl Fn(u16) -> T) -> T {
    let direct = script(broker().port);
    let proxied = script(proxied_port());
    assert_eq!(direct, proxied, "left: RabbitMQ itself, right: through the proxy");
    proxied
}
