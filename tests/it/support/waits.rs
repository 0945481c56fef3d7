//! Waiting for what comes, and never for longer.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take that should take no time, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The moment after which a wait has failed.
pub fn deadline(after: Duration) -> Instant {
    Instant::now() + after
}

/// Waits until `condition` holds.
///
/// # Panics
/// When `deadline` has passed and it still does not hold.
#[track_caller]
pub fn wait_until(deadline: Instant, what: &str, mut condition: impl FnMut() -> bool) {
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port that nobody listens on. It lies below the range from which the kernel takes the ports of outgoing
/// connections, so that a server can be started on it again after it was killed.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new((std::process::id() % 11_000) as u16));
    loop {
        let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 12_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
